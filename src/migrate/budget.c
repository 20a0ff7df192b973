/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/budget.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Version 1 says so for "max": the most that it can count, in pages. */
#define LEGACY_ANY (INT64_MAX / UNIT_BYTES * UNIT_BYTES)

uint64_t budget_add(uint64_t a, uint64_t b)
{
	return b < BUDGET_ANY - a ? a + b : BUDGET_ANY;
}

uint64_t budget_left(uint64_t of, uint64_t taken)
{
	if (of == BUDGET_ANY)
		return of;
	return taken < of ? of - taken : 0;
}

static uint64_t at_most(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

uint64_t budget_pool(const struct region *region)
{
	return region->memory == POSTCOPY_MEMORY_HUGETLB || region_is_staged(region)
	               ? region->page_size
	               : UNIT_BYTES;
}

uint64_t budget_need(const struct budget_guest *g, uint64_t pool)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < g->table->n; i++)
		if (budget_pool(&g->table->regions[i]) == pool)
			bytes += g->table->regions[i].size;
	return at_most(bytes, g->missing_bytes);
}

/* As fault/resolver.c fills it (ARCHITECTURE.md, "Filling and mapping"). */
static bool is_charged_to_daemon(const struct budget_guest *g, const struct region *r)
{
	if (r->flags & POSTCOPY_REGION_ASKED)
		return true;
	switch (r->memory) {
	case POSTCOPY_MEMORY_GUEST_MEMFD:
		return true;
	case POSTCOPY_MEMORY_MEMFD:
		return g->lazy || g->warm;
	default:
		return false;
	}
}

uint64_t budget_charge(const struct budget_guest *g, bool to_daemon)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < g->table->n; i++) {
		const struct region *r = &g->table->regions[i];

		if (budget_pool(r) == UNIT_BYTES && is_charged_to_daemon(g, r) == to_daemon)
			bytes += r->size;
	}
	return at_most(bytes, g->missing_bytes);
}

uint64_t budget_cgroup_limit(const struct budget_cgroup *c)
{
	return at_most(c->max, c->high);
}

uint64_t budget_cgroup_room(const struct budget_cgroup *c)
{
	return budget_left(budget_cgroup_limit(c), budget_left(c->current, c->inactive_file));
}

/* Whether "memory" is one of the controllers of a line "N:a,b,c:/path". */
static bool is_of_memory(const char *controllers, size_t len)
{
	static const char name[] = "memory";

	while (len) {
		const char *comma = memchr(controllers, ',', len);
		size_t n = comma ? (size_t)(comma - controllers) : len;

		if (n == sizeof name - 1 && !memcmp(controllers, name, n))
			return true;
		n += comma != NULL;
		controllers += n;
		len -= n;
	}
	return false;
}

/* Cut at its end. NULL where it is none that this process can look up. */
static const char *cut_path(char *path)
{
	path[strcspn(path, "\n")] = 0;
	return *path == '/' && !strstr(path, "/..") ? path : NULL;
}

const char *budget_find_cgroup(char *text, bool *ret_legacy)
{
	char *unified = NULL;

	*ret_legacy = false;
	for (char *line = text; line; line = strchr(line, '\n')) {
		char *controllers, *path;

		line += *line == '\n';
		controllers = line + strcspn(line, ":\n");
		path = *controllers == ':' ? controllers + 1 + strcspn(controllers + 1, ":\n")
		                           : controllers;
		if (*path != ':')
			continue;
		if (is_of_memory(controllers + 1, (size_t)(path - controllers - 1))) {
			*ret_legacy = true;
			return cut_path(path + 1);
		}
		if (!strncmp(line, "0::", 3))
			unified = path + 1;
	}
	return unified ? cut_path(unified) : NULL;
}

/* What follows "KEY" and blanks at the beginning of a line; NULL where there is none. */
static const char *find_value(const char *text, const char *key)
{
	size_t len = strlen(key);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, len) && line[len] == ' ')
			return line + len + strspn(line + len, " ");
	}
	return NULL;
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

uint64_t budget_parse_available(const char *meminfo)
{
	const char *value = find_value(meminfo, "MemAvailable:");
	uint64_t kib;

	if (!value || !is_digit(*value))
		return BUDGET_ANY;
	kib = strtoull(value, NULL, 10);
	return kib < BUDGET_ANY / 1024 ? kib * 1024 : BUDGET_ANY;
}

uint64_t budget_parse_bytes(const char *text, uint64_t otherwise)
{
	uint64_t bytes;

	if (!strncmp(text, "max", 3))
		return BUDGET_ANY;
	if (!is_digit(*text))
		return otherwise;
	bytes = strtoull(text, NULL, 10);
	return bytes < LEGACY_ANY ? bytes : BUDGET_ANY;
}

uint64_t budget_parse_stat(const char *stat, const char *key)
{
	const char *value = find_value(stat, key);

	return value && is_digit(*value) ? strtoull(value, NULL, 10) : 0;
}

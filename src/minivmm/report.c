/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "minivmm/fail.h"
#include "minivmm/image.h"

#define LINE_MAX_BYTES 1024

static int write_line(int fd, const char *line, struct postcopy_error *err)
{
	size_t len = strlen(line);

	while (len) {
		ssize_t n = write(fd, line, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail_errno(err, -errno, "can't write to --status-fd %d", fd);
		line += n;
		len -= (size_t)n;
	}
	return 0;
}

/* Within JSON's quotes. */
static void escape(const char *text, char *out, size_t size)
{
	char *end = out + size - 7; /* the longest escape and the NUL */

	for (; *text && out < end; text++) {
		if (*text == '"' || *text == '\\') {
			*out++ = '\\';
			*out++ = *text;
		} else if ((unsigned char)*text < 0x20) {
			out += sprintf(out, "\\u%04x", (unsigned char)*text);
		} else {
			*out++ = *text;
		}
	}
	*out = '\0';
}

uint64_t report_now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

int report_event(int fd, const char *event, uint64_t at_us, const char *reason,
                 struct postcopy_error *err)
{
	char text[LINE_MAX_BYTES / 2], line[LINE_MAX_BYTES];

	if (reason && *reason) {
		escape(reason, text, sizeof text);
		snprintf(line, sizeof line,
		         "{\"event\":\"%s\",\"at_us\":%" PRIu64 ",\"reason\":\"%s\"}\n", event,
		         at_us, text);
	} else {
		snprintf(line, sizeof line, "{\"event\":\"%s\",\"at_us\":%" PRIu64 "}\n", event,
		         at_us);
	}
	return write_line(fd, line, err);
}

static void add_stats(struct guest_stats *to, const struct guest_stats *from)
{
	to->accesses += from->accesses;
	to->writes += from->writes;
	to->timed += from->timed;
	if (from->max_ticks > to->max_ticks)
		to->max_ticks = from->max_ticks;
	for (unsigned int i = 0; i < GUEST_HIST_BUCKETS; i++)
		to->buckets[i] += from->buckets[i];
}

void result_collect(const struct vm *vm, unsigned int phase, struct result *ret)
{
	*ret = (struct result){ .vcpus = vm->n_vcpus,
		                .memory_bytes = vm->memory.size,
		                .first_bad = GUEST_NO_PAGE,
		                .tsc_khz = vm->tsc_khz };
	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		const struct guest_vcpu *v = image_vcpu(&vm->memory, i);

		ret->pages_checked += v->pages_checked;
		result_add_bad(ret, v->pages_bad, v->first_bad);
		add_stats(&ret->stats, &v->stats[phase]);
		ret->userfaults += atomic_load(&vm->vcpus[i].userfaults);
	}
}

void result_add_bad(struct result *r, uint64_t pages, uint64_t first)
{
	r->pages_bad += pages;
	if (pages && first < r->first_bad)
		r->first_bad = first;
}

/* The largest value that counts in bucket @i. */
static uint64_t bucket_upper(unsigned int i)
{
	unsigned int shift;

	if (i < GUEST_HIST_SUB)
		return i;
	shift = i / GUEST_HIST_SUB - 1;
	return (((uint64_t)(i % GUEST_HIST_SUB) + GUEST_HIST_SUB + 1) << shift) - 1;
}

static double ticks_us(const struct result *r, uint64_t ticks)
{
	return (double)ticks * 1000 / r->tsc_khz;
}

/* The value below which @permille of all lie, by the upper end of its bucket. */
static double quantile_us(const struct result *r, unsigned int permille)
{
	const struct guest_stats *s = &r->stats;
	uint64_t rank = (s->timed * permille + 999) / 1000;
	uint64_t seen = 0;

	for (unsigned int i = 0; i < GUEST_HIST_BUCKETS - 1; i++) {
		seen += s->buckets[i];
		if (seen >= rank) {
			uint64_t upper = bucket_upper(i);

			return ticks_us(r, upper < s->max_ticks ? upper : s->max_ticks);
		}
	}
	return ticks_us(r, s->max_ticks);
}

int report_result(int fd, const struct result *r, struct postcopy_error *err)
{
	char line[LINE_MAX_BYTES], first_bad[32] = "null";

	if (r->first_bad != GUEST_NO_PAGE)
		snprintf(first_bad, sizeof first_bad, "%" PRIu64, r->first_bad);
	snprintf(line, sizeof line,
	         "{\"event\":\"result\",\"role\":\"%s\",\"vcpus\":%u,\"memory_bytes\":%" PRIu64
	         ",\"pages_checked\":%" PRIu64 ",\"pages_bad\":%" PRIu64 ",\"first_bad\":%s"
	         ",\"fetched\":%" PRIu64 ",\"prefaulted\":%" PRIu64 ",\"userfaults\":%" PRIu64
	         ",\"touched\":%" PRIu64 ",\"accesses\":%" PRIu64 ",\"writes\":%" PRIu64
	         ",\"guest_access_us\":{\"count\":%" PRIu64
	         ",\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}}\n",
	         r->role, r->vcpus, r->memory_bytes, r->pages_checked, r->pages_bad, first_bad,
	         r->fetched, r->prefaulted, r->userfaults, r->touched, r->stats.accesses,
	         r->stats.writes, r->stats.timed, quantile_us(r, 500), quantile_us(r, 900),
	         quantile_us(r, 990), quantile_us(r, 999), ticks_us(r, r->stats.max_ticks));
	return write_line(fd, line, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/host.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "ctl/json.h"
#include "ctl/units.h"

static void pool_path(char *ret, size_t size, uint64_t page_bytes, const char *name)
{
	snprintf(ret, size, "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/%s",
	         page_bytes / 1024, name);
}

/* Return: the pool's number, 0 where this host doesn't have such pages. */
static uint64_t pool_read(uint64_t page_bytes, const char *name)
{
	_cleanup_fclose_ FILE *f = NULL;
	uint64_t n = 0;
	char path[128];

	pool_path(path, sizeof path, page_bytes, name);
	f = fopen(path, "re");
	return f && fscanf(f, "%" SCNu64, &n) == 1 ? n : 0;
}

static int pool_write(uint64_t page_bytes, uint64_t count)
{
	_cleanup_fclose_ FILE *f = NULL;
	char path[128];

	pool_path(path, sizeof path, page_bytes, "nr_hugepages");
	f = fopen(path, "we");
	if (!f || fprintf(f, "%" PRIu64 "\n", count) < 0 || fflush(f) == EOF)
		return -errno;
	return 0;
}

/* Those that nobody has a claim to. */
static uint64_t pool_free(uint64_t page_bytes)
{
	uint64_t n_free = pool_read(page_bytes, "free_hugepages");
	uint64_t reserved = pool_read(page_bytes, "resv_hugepages");

	return n_free > reserved ? n_free - reserved : 0;
}

static int report_missing(uint64_t page_bytes, uint64_t count, uint64_t n_free, bool reserved,
                          struct error *err)
{
	struct text size = text_bytes((double)page_bytes);
	char path[128];

	pool_path(path, sizeof path, page_bytes, "nr_hugepages");
	if (access(path, F_OK))
		return error_set(err, -ENOMEM, "this host has no huge pages of %s", size.s);
	if (reserved)
		return error_set(err, -ENOMEM,
		                 "%s huge pages of %s are missing: the kernel found room for %s of "
		                 "the %s that both sides need; reserve them at boot",
		                 text_count(count - n_free).s, size.s, text_count(n_free).s,
		                 text_count(count).s);
	return error_set(err, -ENOMEM,
	                 "%s huge pages of %s are missing: both sides need %s, %s are free; run "
	                 "with --hugepages as root, or write %" PRIu64 " to %s",
	                 text_count(count - n_free).s, size.s, text_count(count).s,
	                 text_count(n_free).s,
	                 pool_read(page_bytes, "nr_hugepages") + count - n_free, path);
}

int hugepages_ensure(uint64_t page_bytes, uint64_t count, bool may_reserve, struct hugepages *ret,
                     struct error *err)
{
	uint64_t n_free = pool_free(page_bytes);
	uint64_t old = pool_read(page_bytes, "nr_hugepages");
	int r;

	*ret = (struct hugepages){ .page_bytes = 0 };
	if (n_free >= count)
		return 0;
	if (!may_reserve)
		return report_missing(page_bytes, count, n_free, false, err);
	r = pool_write(page_bytes, old + count - n_free);
	if (r < 0)
		return error_errno(err, -ENOMEM, "--hugepages: reserving %s huge pages of %s (%s)",
		                   text_count(count - n_free).s, text_bytes((double)page_bytes).s,
		                   strerror(-r));
	*ret = (struct hugepages){ .page_bytes = page_bytes, .old_count = old };
	if (pool_free(page_bytes) < count) {
		r = report_missing(page_bytes, count, pool_free(page_bytes), true, err);
		hugepages_give_back(ret);
		return r;
	}
	fprintf(stderr,
	        "reserved %s huge pages of %s for this run; they are given back at its end\n",
	        text_count(count - n_free).s, text_bytes((double)page_bytes).s);
	return 0;
}

void hugepages_give_back(struct hugepages *h)
{
	int r;

	if (!h->page_bytes)
		return;
	r = pool_write(h->page_bytes, h->old_count);
	if (r < 0)
		fprintf(stderr, "could not give the huge pages of %s back: %s\n",
		        text_bytes((double)h->page_bytes).s, strerror(-r));
	h->page_bytes = 0;
}

/* A field of a "name: value" file of /proc, without the space around it. */
static bool proc_field(const char *path, const char *name, char *ret, size_t size)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	size_t len = strlen(name);
	char line[512];

	while (f && fgets(line, sizeof line, f)) {
		char *colon = strchr(line, ':');

		if (!colon || strncmp(line, name, len) || !strchr("\t :", line[len]))
			continue;
		colon += 1 + strspn(colon + 1, " \t");
		colon[strcspn(colon, "\n")] = 0;
		snprintf(ret, size, "%s", colon);
		return true;
	}
	return false;
}

int host_memory_check(uint64_t bytes, struct error *err)
{
	uint64_t kib;
	char value[64];

	if (!proc_field("/proc/meminfo", "MemAvailable", value, sizeof value) ||
	    sscanf(value, "%" SCNu64, &kib) != 1 || kib * 1024 >= bytes)
		return 0;
	return error_set(err, -ENOMEM,
	                 "both sides' guests need %s of memory, this host has %s available: take a "
	                 "smaller --memory",
	                 text_bytes((double)bytes).s, text_bytes((double)kib * 1024).s);
}

struct json_object *host_describe(void)
{
	struct json_object *host = json_object_new_object();
	struct utsname uts;
	char model[128];

	if (!uname(&uts))
		json_set_string(host, "kernel", uts.release);
	json_set_count(host, "cpus", (uint64_t)sysconf(_SC_NPROCESSORS_ONLN));
	if (proc_field("/proc/cpuinfo", "model name", model, sizeof model))
		json_set_string(host, "cpu_model", model);
	return host;
}

void host_memory_warm(uint64_t bytes, uint64_t page_bytes)
{
	int huge = page_bytes ? MAP_HUGETLB | (__builtin_ctzll(page_bytes) << MAP_HUGE_SHIFT) : 0;
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
	               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | huge, -1, 0);

	if (p != MAP_FAILED)
		munmap(p, bytes);
}

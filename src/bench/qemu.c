// SPDX-License-Identifier: Apache-2.0
#include "bench/qemu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl/json.h"
#include "ctl/units.h"
#include "util/clock.h"

#define RUNS_MAX 1000
/* What its page tables map. */
#define BARE_MEMORY_MAX (1ull << 30)
#define LINUX_MEMORY_MIN (192ull << 20)
/* More lies above a hole: then a file's offset is no address. */
#define LOW_MEMORY_MAX (2ull << 30)

static const struct bench_way *const ways[] = {
	&bench_way_ours,
	&bench_way_preempt_tls,
	&bench_way_postcopy,
};
#define N_WAYS (sizeof ways / sizeof *ways)

int bench_qemu_check(const struct bench_options *o, struct error *err)
{
	if (strcmp(o->backend, "memfd") && strcmp(o->backend, "hugetlb"))
		return error_set(err, -EINVAL, "--vmm qemu takes --backend memfd or hugetlb");
	if (!o->kernel != !o->initrd)
		return error_set(err, -EINVAL, "--kernel and --initrd go together");
	if (!o->kernel && o->memory_bytes > BARE_MEMORY_MAX)
		return error_set(err, -EINVAL,
		                 "the guest that is built in has 1G of memory at most: say less by "
		                 "--memory, or have a --kernel");
	if (o->kernel && (o->memory_bytes < LINUX_MEMORY_MIN || o->memory_bytes > LOW_MEMORY_MAX))
		return error_set(err, -EINVAL, "a Linux guest takes --memory of 192M to 2G");
	if (o->native && (o->link_mbit || o->bandwidth_bytes_per_s))
		return error_set(err, -EINVAL,
		                 "--link-mbit and --bandwidth are of postcopyd: not with --native");
	if (o->beside)
		return error_set(err, -EINVAL,
		                 "--beside is of minivmm's guests: not with --vmm qemu");
	if (o->fault_threads > 1)
		return error_set(err, -EINVAL,
		                 "--fault-threads is of minivmm's guests: not with --vmm qemu, "
		                 "whose userfaultfd is one");
	if (o->runs > RUNS_MAX)
		return error_set(err, -EINVAL, "--vmm qemu makes %d --runs at most", RUNS_MAX);
	return 0;
}

int bench_qemu_find(struct bench *b, struct error *err)
{
	const char *program = b->options->qemu ? b->options->qemu : "qemu-system-x86_64";
	int r;

	if (strchr(program, '/')) {
		if (!realpath(program, b->qemu_path))
			return error_errno(err, -errno, "--qemu \"%s\"", program);
	} else {
		r = process_find(program, "", b->qemu_path, err);
		if (r < 0)
			return r;
	}
	return process_find("postcopy-qemu", "qemu", b->adapter_path, err);
}

/* What --native adds stands after ours. */
static size_t n_ways(const struct bench *b)
{
	return b->options->native ? N_WAYS : 1;
}

/* Between two QEMUs that are ready. */
static int move_and_check(struct bench *b, const struct bench_way *way, unsigned int n,
                          struct bench_vmm *source, struct bench_vmm *destination,
                          struct bench_moved *ret, struct error *err)
{
	struct bench_guest guest;
	struct pace pace = { 0 };
	int r = bench_vmm_wait_ready(source, &guest, err);

	if (!r)
		r = pace_start(&pace, source, destination, &guest, err);
	if (!r)
		r = way->move(b, source, destination, n, &pace, err);
	pace_stop(&pace);
	if (r < 0)
		return r;
	pace_result(&pace, ret);
	return bench_vmm_check_guest(destination, &guest, &ret->bad_pages, err);
}

static int run_once(struct bench *b, const struct bench_way *way, unsigned int n, char *ret_version,
                    size_t version_size, struct bench_moved *ret, struct error *err)
{
	struct bench_vmm source = BENCH_VMM_INIT, destination = BENCH_VMM_INIT;
	int r = bench_vmm_start(&source, b, false, err);

	if (!r)
		r = bench_vmm_start(&destination, b, true, err);
	if (!r) {
		const struct qmp_version *v = qmp_version(source.qmp);

		snprintf(ret_version, version_size, "%d.%d.%d", v->major, v->minor, v->micro);
		/* The source's guest has yet to take its own; what this leaves is for both. */
		if (!b->options->cold)
			host_memory_warm(2 * b->options->memory_bytes, 0);
		r = move_and_check(b, way, n, &source, &destination, ret, err);
	}
	bench_vmm_stop(&destination);
	bench_vmm_stop(&source);
	return r < 0 ? error_prefix(err, "%s", way->title) : 0;
}

static int compare_numbers(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Of one member of each of @moved. */
static double median(const struct bench_moved *moved, size_t n, size_t offset)
{
	double values[RUNS_MAX];

	for (size_t i = 0; i < n; i++)
		values[i] = *(const double *)((const char *)&moved[i] + offset);
	qsort(values, n, sizeof *values, compare_numbers);
	return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static struct json_object *way_result(const struct bench_way *way, const struct bench_moved *moved,
                                      size_t n)
{
	struct json_object *o = json_object_new_object();
	uint64_t bad = 0;

	for (size_t i = 0; i < n; i++)
		bad += moved[i].bad_pages;
	json_set_string(o, "way", way->name);
	json_set_string(o, "title", way->title);
	json_set_number(o, "downtime_ms",
	                median(moved, n, offsetof(struct bench_moved, downtime_ms)));
	json_set_number(o, "gap_ms", median(moved, n, offsetof(struct bench_moved, gap_ms)));
	json_set_number(o, "lost_ms", median(moved, n, offsetof(struct bench_moved, lost_ms)));
	json_set_number(o, "total_ms", median(moved, n, offsetof(struct bench_moved, total_ms)));
	json_set_count(o, "bad_pages", bad);
	return o;
}

static struct json_object *setting(const struct bench *b, const char *version)
{
	const struct bench_options *options = b->options;
	struct json_object *o = json_object_new_object();

	json_set_string(o, "vmm", "qemu");
	json_set_string(o, "version", version);
	json_set_string(o, "guest", options->kernel ? "linux" : "bare");
	json_set_string(o, "accel", options->accel);
	json_set_string(o, "backend", options->backend);
	json_set_count(o, "memory_bytes", options->memory_bytes);
	json_set_count(o, "vcpus", bench_qemu_vcpus(options));
	json_set_count(o, "streams", options->streams);
	json_set_count(o, "runs", options->runs);
	json_object_object_add(o, "host", host_describe());
	return o;
}

/* One after the other, again and again: what this host does besides then troubles all alike. */
static int run_all(struct bench *b, struct bench_moved *moved, char *version, size_t version_size,
                   struct error *err)
{
	size_t runs = b->options->runs;

	for (size_t n = 0; n < runs * n_ways(b); n++) {
		const struct bench_way *way = ways[n % n_ways(b)];
		size_t run = n / n_ways(b);
		int r;

		if (!b->quiet)
			fprintf(stderr, "\r\033[Krun %zu of %zu: %s", run + 1, runs, way->title);
		r = run_once(b, way, (unsigned int)n, version, version_size,
		             &moved[(n % n_ways(b)) * runs + run], err);
		if (!b->quiet)
			fprintf(stderr, "\r\033[K");
		if (r < 0)
			return r;
	}
	return 0;
}

int bench_qemu(struct bench *b, struct json_object *results, struct error *err)
{
	size_t runs = b->options->runs;
	_cleanup_free_ struct bench_moved *moved = calloc(runs * n_ways(b), sizeof *moved);
	struct json_object *result, *list;
	char version[32] = "";
	int r;

	if (!moved)
		return error_set(err, -ENOMEM, "out of memory");
	r = run_all(b, moved, version, sizeof version, err);
	if (r < 0)
		return r;
	result = setting(b, version);
	list = json_object_new_array();
	for (size_t i = 0; i < n_ways(b); i++)
		json_object_array_add(list, way_result(ways[i], moved + i * runs, runs));
	json_object_object_add(result, "ways", list);
	json_object_array_add(results, result);
	return 0;
}

bool bench_qemu_good(struct json_object *result, struct error *err)
{
	struct json_object *list = json_find(result, "ways");

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *way = json_object_array_get_idx(list, i);
		uint64_t bad = json_count_or(way, "bad_pages", 0);

		if (bad) {
			error_set(err, -EIO, "%s: %llu pages are wrong",
			          json_string_or(way, "title", "?"), (unsigned long long)bad);
			return false;
		}
	}
	return true;
}

static struct text duration_at(struct json_object *way, const char *name)
{
	return text_pad(text_duration(json_number_or(way, name, 0) * 1000), 12);
}

void bench_qemu_print(struct json_object *result)
{
	struct json_object *list = json_find(result, "ways");

	printf("  guest      %s, %s of %s, %s vCPUs, %s\n", json_string_or(result, "guest", "?"),
	       text_bytes(json_number_or(result, "memory_bytes", 0)).s,
	       json_string_or(result, "backend", "?"),
	       text_count(json_count_or(result, "vcpus", 0)).s,
	       json_string_or(result, "accel", "?"));
	printf("  QEMU       %s; postcopyd with %s bulk connections and urgent ones\n",
	       json_string_or(result, "version", "?"),
	       text_count(json_count_or(result, "streams", 0)).s);
	printf("  host       Linux %s, %s CPUs, %s\n", json_string_or(result, "host.kernel", "?"),
	       text_count(json_count_or(result, "host.cpus", 0)).s,
	       json_string_or(result, "host.cpu_model", "?"));
	printf("  runs       %s each, in turn: medians follow, bad pages are the sum\n\n",
	       text_count(json_count_or(result, "runs", 0)).s);
	printf("  %-28s %-12s%-12s%-12s%-12s%s\n", "", "downtime", "longest gap", "work lost",
	       "total", "bad pages");
	for (size_t i = 0; list && i < json_object_array_length(list); i++) {
		struct json_object *way = json_object_array_get_idx(list, i);

		printf("  %-28s %s%s%s%s%s\n", json_string_or(way, "title", "?"),
		       duration_at(way, "downtime_ms").s, duration_at(way, "gap_ms").s,
		       duration_at(way, "lost_ms").s, duration_at(way, "total_ms").s,
		       text_count(json_count_or(way, "bad_pages", 0)).s);
	}
}

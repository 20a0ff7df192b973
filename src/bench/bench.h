/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The benchmark: two daemons and two VMMs on this host, a real guest migrated from
 * one to the other, which then checks each of its pages.
 *
 * bench.c    the command: options, what the host must have, set-up and clean-up
 * run.c      one migration
 * process.c  its children; host.c what it wants of the host
 * link*.c    two network namespaces with a link between them, where one is asked for
 * qemu.h     all of this with QEMU in the place of minivmm
 * work.c     what the guest got done meanwhile, and what not
 * result.c   the figures: what JSON has, medians of several runs
 * print.c    the figures for people
 * floors*.c  what this host can do at best
 * report*.c, chart.c  a migration as a page for people, of the benchmark's or of any other
 *
 * One thread; it waits in poll() only, on the daemons' answers and the VMMs' status
 * lines, and each of these waits ends when a signal wants the benchmark to end
 * (cancel_fd), so that all ways out pass the clean-up.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <json-c/json.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "bench/host.h"
#include "bench/link.h"
#include "bench/process.h"
#include "ctl/warm_options.h"
#include "util/error.h"

/* Guests that may move beside the one that is measured. */
#define BENCH_BESIDE_MAX 7u

struct bench_options {
	const char *backend;
	const char *workload;
	const char *map;
	const char *trace;
	const char *report;    /* HTML file, or NULL */
	const char *keep_logs; /* directory, or NULL */
	uint64_t memory_bytes;
	uint64_t vcpus;
	uint64_t streams;
	uint64_t bandwidth_bytes_per_s; /* that bulk may take; 0: no cap */
	uint64_t write_percent;
	uint64_t zero_percent;
	struct warm_args warm;
	const char *dirty_log;
	uint64_t dirty_bytes_per_s; /* 0: as fast as it can */
	uint64_t seed;
	uint64_t vmstate_pad_bytes;
	uint64_t runs;
	uint64_t idle_faults; /* UINT64_MAX: not given */
	uint64_t link_mbit;   /* 0: loopback */
	uint64_t rtt_us;
	uint64_t queue_ms;
	uint64_t cross_mbit;
	uint64_t beside;        /* further guests that move at the same time */
	uint64_t fault_threads; /* the destination's daemon's; 0: as many as it likes */
	const char *qdisc;
	bool floors;
	bool hugepages;
	bool cold;
	const char *vmm;
	/* Of QEMU only: */
	const char *qemu; /* path, or NULL */
	const char *accel;
	const char *kernel; /* of a Linux guest; NULL: the guest that is built in */
	const char *initrd;
	bool native;
};

struct client;

struct bench {
	const struct bench_options *options;
	int cancel_fd;
	bool quiet; /* no progress on stderr */
	char dir[64];
	char log_dir[PATH_MAX];
	char daemon_path[PATH_MAX];
	char vmm_path[PATH_MAX];
	char qemu_path[PATH_MAX];
	char adapter_path[PATH_MAX];
	struct process source_daemon;
	struct process destination_daemon;
	unsigned int port; /* of the source's page server */
	struct client *source;
	struct client *destination;
	struct client *watcher; /* a second connection to the destination */
	struct hugepages hugepages;
	struct link link;
};

/* The two daemons, and connections to them. bench_stop() also after failure. */
int bench_start(struct bench *b, struct error *err);
void bench_stop(struct bench *b);

/* Prepares both sides of a migration. @bulk: it is on from the beginning. */
int bench_prepare(struct bench *b, const char *id, bool bulk, struct error *err);

/*
 * bench_migrate() - one migration from fresh VMMs to the guest's own verdict
 * @n: which run it is, from 0 on
 * @ret: the result with the series of the report (migration_json.h)
 */
int bench_migrate(struct bench *b, unsigned int n, struct json_object **ret, struct error *err);

/* What each vCPU computes between two accesses, so that the guest writes as fast as is wanted. */
uint64_t bench_think_us(const struct bench_options *o);

/*
 * bench_result_new() - the benchmark's contract
 * @report: the destination's Report
 * @source: the source's Get
 * @verdict: the guest's result line
 */
struct json_object *bench_result_new(const struct bench_options *o, struct json_object *report,
                                     struct json_object *source, struct json_object *verdict);

/*
 * Adds "link" {mbit, rtt_us, queue_ms, cross_mbit, qdisc, used, queue_share}
 * @sent_bytes: by it, from the source, in @took_ns
 */
void bench_result_add_link(struct json_object *result, const struct bench_options *o,
                           uint64_t sent_bytes, uint64_t took_ns);

/* Adds "floors" and the "ratios" of this result to them. */
void bench_result_add_floors(struct json_object *result, struct json_object *floors);

/* Whether every page was checked and is right; if not, @err says what is wrong. */
bool bench_result_good(struct json_object *result, struct error *err);

/* Takes the series out, which are for the HTML page only. */
void bench_result_drop_series(struct json_object *result);

/*
 * bench_result_median() - @results (an array of at least one) as one
 *
 * Each number is the median of its peers; the integrity counts are sums.
 */
struct json_object *bench_result_median(struct json_object *results);

/* For people. @runs: how many it is the median of. */
void bench_print(struct json_object *result, size_t runs);

/* One line for one of several runs. */
void bench_print_run(struct json_object *result, size_t n);

#endif

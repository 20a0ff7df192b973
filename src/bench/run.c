/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bench/work.h"
#include "ctl/client.h"
#include "ctl/json.h"
#include "ctl/pki.h"
#include "ctl/progress.h"
#include "ctl/token.h"
#include "util/clock.h"

#define READY_TIMEOUT_MS 30000
/* From a daemon's last word to its end. */
#define DEATH_MS 1000
/* The guest writes or checks all of its memory in this time, and much to spare. */
#define GUEST_TIMEOUT_MS(bytes) (60000 + (int)((bytes) >> 20) * 20)
#define WATCH_INTERVAL_MS 50
#define STALL_TIMEOUT_NS (60 * NSEC_PER_SEC)
/*
 * An idle guest takes no faults: don't wait for the asked number for ever. Nor for so long that
 * a hypervisor takes back the memory that was touched ahead (host_memory_warm()).
 */
#define IDLE_PHASE_MAX_NS (1 * NSEC_PER_SEC)
/*
 * So long the guest runs as ever before it moves: its steady state, for the work that it loses.
 * Not from the beginning: until then its VMMs attach, and its caches are cold.
 */
#define STEADY_MS 500
#define SETTLE_MS 200
/* The guest goes on for so long after the last page came, so that it meets them all. */
#define RUN_AFTER_COMPLETE_MS "200"

struct paths {
	char control[128], vmm[128], cert[128], key[128], ca[128], log[PATH_MAX];
};

static void paths_init(struct paths *p, const struct bench *b, const char *side, const char *cert,
                       const char *key)
{
	snprintf(p->control, sizeof p->control, "%s/%s.control", b->dir, side);
	snprintf(p->vmm, sizeof p->vmm, "%s/%s.vmm", b->dir, side);
	snprintf(p->cert, sizeof p->cert, "%s/%s", b->dir, cert);
	snprintf(p->key, sizeof p->key, "%s/%s", b->dir, key);
	snprintf(p->ca, sizeof p->ca, "%s/%s", b->dir, PKI_CA);
	snprintf(p->log, sizeof p->log, "%.*s/%s-postcopyd.log", PATH_MAX - 64, b->log_dir, side);
}

/* Waits for "READY port=N". */
static int wait_daemon(struct bench *b, struct process *p, unsigned int *ret_port,
                       struct error *err)
{
	char *line;
	int r = process_read_line(p, READY_TIMEOUT_MS, b->cancel_fd, &line, err);

	if (r < 0)
		return r;
	if (sscanf(line, "READY port=%u", ret_port) != 1)
		return error_set(err, -EPROTO, "%s said \"%.80s\" instead of READY", p->name, line);
	return 0;
}

static int connect_to(struct bench *b, const struct paths *p, struct client **ret,
                      struct error *err)
{
	const struct client_target target = { .control = p->control };

	return client_new(&target, b->cancel_fd, ret, err);
}

static const char *source_address(const struct bench *b)
{
	return b->options->link_mbit ? LINK_SOURCE_ADDRESS : "127.0.0.1";
}

static int start_source(struct bench *b, struct error *err)
{
	struct paths p;
	char listen[32];
	/* clang-format off */
	char *const argv[] = {
		b->daemon_path, "--config", "/dev/null",
		"--control", p.control, "--vmm", p.vmm, "--listen", listen,
		"--cert", p.cert, "--key", p.key, "--ca", p.ca,
		"--allow-peer", PKI_DESTINATION_NAME,
		"--trace", (char *)b->options->trace, "--ready-fd", PROCESS_STATUS_FD_TEXT,
		NULL,
	};
	/* clang-format on */
	int r;

	snprintf(listen, sizeof listen, "%s:0", source_address(b));
	paths_init(&p, b, "source", PKI_SOURCE_CERT, PKI_SOURCE_KEY);
	r = process_start(&b->source_daemon, "the source's postcopyd", argv, p.log, err);
	if (!r)
		r = wait_daemon(b, &b->source_daemon, &b->port, err);
	return r < 0 ? r : connect_to(b, &p, &b->source, err);
}

static int start_destination(struct bench *b, struct error *err)
{
	struct paths p;
	char fault_threads[24];
	/* clang-format off */
	char *const argv[] = {
		b->daemon_path, "--config", "/dev/null",
		"--control", p.control, "--vmm", p.vmm, "--cert", p.cert, "--key", p.key,
		"--ca", p.ca, "--allow-peer", PKI_SOURCE_NAME, "--fault-threads", fault_threads,
		"--trace", (char *)b->options->trace, "--ready-fd", PROCESS_STATUS_FD_TEXT,
		NULL,
	};
	/* clang-format on */
	unsigned int port;
	int r;

	snprintf(fault_threads, sizeof fault_threads, "%llu",
	         (unsigned long long)b->options->fault_threads);
	paths_init(&p, b, "destination", PKI_DESTINATION_CERT, PKI_DESTINATION_KEY);
	r = process_start(&b->destination_daemon, "the destination's postcopyd", argv, p.log, err);
	if (!r)
		r = wait_daemon(b, &b->destination_daemon, &port, err);
	if (!r)
		r = connect_to(b, &p, &b->destination, err);
	return r < 0 ? r : connect_to(b, &p, &b->watcher, err);
}

int bench_start(struct bench *b, struct error *err)
{
	int r = pki_make(b->dir, err);

	if (!r)
		r = start_source(b, err);
	return r < 0 ? r : start_destination(b, err);
}

void bench_stop(struct bench *b)
{
	b->watcher = client_free(b->watcher);
	b->destination = client_free(b->destination);
	b->source = client_free(b->source);
	process_stop(&b->destination_daemon);
	process_stop(&b->source_daemon);
}

int bench_prepare(struct bench *b, const char *id, bool bulk, struct error *err)
{
	const struct bench_options *o = b->options;
	struct client_prepare p = { .id = id, .limits = CLIENT_LIMITS_INIT };
	char address[32];
	int r = token_make(p.token, err);

	if (!r)
		r = client_prepare(b->source, &p, NULL, err);
	if (r < 0)
		return error_prefix(err, "preparing the source");
	snprintf(address, sizeof address, "%s:%u", source_address(b), b->port);
	p.destination = true;
	p.source = address;
	p.map = o->map;
	p.limits.streams = (unsigned int)o->streams;
	p.limits.bandwidth_bytes_per_s = (int64_t)o->bandwidth_bytes_per_s;
	p.limits.bulk = bulk;
	p.limits.prefetch = bulk;
	r = client_prepare(b->destination, &p, NULL, err);
	return r < 0 ? error_prefix(err, "preparing the destination") : 0;
}

/* One run's own things. */
struct run {
	struct bench *b;
	unsigned int guest; /* 0: the one that is measured; else one beside it */
	char id[32];
	struct process source_vmm;
	struct process destination_vmm;
	struct work_course course;
	uint64_t source_cpu_ns, destination_cpu_ns; /* of the daemons, from start to complete */
	uint64_t sent_bytes, took_ns;               /* on the link, likewise */
	/* Following it: */
	bool bulk_on;
	uint64_t postcopy_since_ns; /* 0 before */
	uint64_t moved_ns;          /* when something changed last */
	uint64_t last_present;
	char last_state[16];
	struct progress progress;
};

/* One side of one guest, in names of files. */
static void side_name(const struct run *run, bool source, char ret[24])
{
	const char *side = source ? "source" : "destination";

	if (run->guest)
		snprintf(ret, 24, "%s-%u", side, run->guest);
	else
		snprintf(ret, 24, "%s", side);
}

/* Where the guest's progress on one side is written down. */
static void progress_path(const struct run *run, bool source, char ret[128])
{
	char side[24];

	side_name(run, source, side);
	snprintf(ret, 128, "%s/%s.progress", run->b->dir, side);
}

static int start_vmm(struct run *run, bool source, struct error *err)
{
	const struct bench_options *o = run->b->options;
	const char *side = source ? "source" : "destination";
	char memory[24], vcpus[24], writes[24], zeroes[24], seed[24], pad[24], think[24];
	char socket[128], work[128], log[PATH_MAX], name[48], file[24];
	/* clang-format off */
	char *const argv[] = {
		run->b->vmm_path,
		"--role", (char *)side, "--socket", socket, "--id", run->id,
		"--memory", memory, "--backend", (char *)o->backend, "--vcpus", vcpus,
		"--workload", (char *)o->workload, "--write-percent", writes,
		"--zero-percent", zeroes, "--run-after-complete", RUN_AFTER_COMPLETE_MS,
		"--seed", seed, "--vmstate-pad", pad, "--think-us", think, "--progress", work,
		"--dirty-log", (char *)o->dirty_log,
		"--status-fd", PROCESS_STATUS_FD_TEXT,
		NULL,
	};
	/* clang-format on */

	snprintf(memory, sizeof memory, "%" PRIu64, o->memory_bytes);
	snprintf(vcpus, sizeof vcpus, "%" PRIu64, o->vcpus);
	snprintf(writes, sizeof writes, "%" PRIu64, o->write_percent);
	snprintf(zeroes, sizeof zeroes, "%" PRIu64, o->zero_percent);
	snprintf(seed, sizeof seed, "%" PRIu64, o->seed);
	snprintf(think, sizeof think, "%" PRIu64, bench_think_us(o));
	snprintf(pad, sizeof pad, "%" PRIu64, o->vmstate_pad_bytes);
	snprintf(socket, sizeof socket, "%s/%s.vmm", run->b->dir, side);
	progress_path(run, source, work);
	side_name(run, source, file);
	snprintf(log, sizeof log, "%.*s/%s-minivmm.log", PATH_MAX - 64, run->b->log_dir, file);
	snprintf(name, sizeof name, "the %s's minivmm", file);
	return process_start(source ? &run->source_vmm : &run->destination_vmm, name, argv, log,
	                     err);
}

/* Reads status lines until @event. @ret may be NULL. */
static int wait_event(struct run *run, struct process *vmm, const char *event,
                      struct json_object **ret, struct error *err)
{
	int timeout_ms = GUEST_TIMEOUT_MS(run->b->options->memory_bytes);

	for (;;) {
		_cleanup_json_ struct json_object *status = NULL;
		const char *name;
		char *line;
		int r = process_read_line(vmm, timeout_ms, run->b->cancel_fd, &line, err);

		if (r < 0)
			return error_prefix(err, "waiting for \"%s\"", event);
		status = json_tokener_parse(line);
		name = json_string_or(status, "event", NULL);
		if (!name)
			return error_set(err, -EPROTO, "%s: status line \"%.80s\" is not JSON",
			                 vmm->name, line);
		if (!strcmp(name, "failed"))
			return error_set(
			        err, -EIO, "%s: %s", vmm->name,
			        json_string_or(status, "reason", "failed without a reason"));
		if (strcmp(name, event))
			continue;
		if (ret)
			*ret = steal_ptr(&status);
		return 0;
	}
}

static uint64_t now_us(void)
{
	return clock_now_ns() / NSEC_PER_USEC;
}

static int check_processes(struct run *run, struct error *err)
{
	struct process *const all[] = { &run->b->source_daemon, &run->b->destination_daemon,
		                        &run->source_vmm, &run->destination_vmm };
	int r = 0;

	for (size_t i = 0; !r && i < sizeof all / sizeof *all; i++)
		r = process_check(all[i], err);
	return r;
}

/* Nothing but the guest runs meanwhile. */
static int watch_steady_state(struct run *run, struct error *err)
{
	struct pollfd cancel = { .fd = run->b->cancel_fd, .events = POLLIN };
	int r;

	run->course.steady_us = now_us() + SETTLE_MS * 1000;
	r = poll(&cancel, 1, SETTLE_MS + STEADY_MS);
	if (r < 0)
		return error_errno(err, -errno, "waiting for the guest's steady state");
	if (r > 0)
		return error_set(err, -ECANCELED, "interrupted");
	run->course.steady_end_us = now_us();
	return check_processes(run, err);
}

static int attach_vmms(struct run *run, struct error *err)
{
	int r = start_vmm(run, true, err);

	if (!r)
		r = start_vmm(run, false, err);
	if (!r)
		r = wait_event(run, &run->source_vmm, "attached", NULL, err);
	if (!r)
		r = wait_event(run, &run->destination_vmm, "attached", NULL, err);
	return r;
}

/* Ends the phase of idle faults: from here on bulk runs beside them. */
static int switch_bulk_on(struct run *run, struct error *err)
{
	struct client_limits limits = CLIENT_LIMITS_INIT;

	limits.bulk = limits.prefetch = run->bulk_on = true;
	return client_set_limits(run->b->destination, run->id, &limits, NULL, err);
}

static int check_moving(struct run *run, struct json_object *migration, uint64_t now,
                        struct error *err)
{
	uint64_t present = json_count_or(migration, "pages_present", 0);
	const char *state = json_string_or(migration, "state", "");

	if (present != run->last_present || strcmp(state, run->last_state)) {
		run->last_present = present;
		snprintf(run->last_state, sizeof run->last_state, "%s", state);
		run->moved_ns = now;
	}
	if (now - run->moved_ns < STALL_TIMEOUT_NS)
		return 0;
	return error_set(err, -ETIMEDOUT, "state \"%s\", and nothing has moved for %llu s", state,
	                 STALL_TIMEOUT_NS / NSEC_PER_SEC);
}

static int follow(struct json_object *migration, void *userdata, struct error *err)
{
	struct run *run = userdata;
	uint64_t now = clock_now_ns();
	bool running = !strcmp(json_string_or(migration, "state", ""), "postcopy");
	int r = check_processes(run, err);

	if (!r)
		r = check_moving(run, migration, now, err);
	if (!r && running && !run->bulk_on) {
		run->postcopy_since_ns = run->postcopy_since_ns ? run->postcopy_since_ns : now;
		if (json_count_or(migration, "faults.remote", 0) >= run->b->options->idle_faults ||
		    now - run->postcopy_since_ns >= IDLE_PHASE_MAX_NS)
			r = switch_bulk_on(run, err);
	}
	progress_update(&run->progress, migration, now);
	if (!r && !run->b->quiet) {
		char line[512];

		progress_format(&run->progress, migration, 30, line, sizeof line);
		fprintf(stderr, "\r%s\033[K", line);
	}
	return r;
}

/* Called at the start and at the end: what lies between. */
static void count_costs(struct run *run)
{
	const struct bench *b = run->b;

	run->source_cpu_ns = process_cpu_ns(b->source_daemon.pid) - run->source_cpu_ns;
	run->destination_cpu_ns =
	        process_cpu_ns(b->destination_daemon.pid) - run->destination_cpu_ns;
	run->took_ns = clock_now_ns() - run->took_ns;
	if (b->options->link_mbit)
		run->sent_bytes = link_sent_bytes(&b->link) - run->sent_bytes;
}

/* Of the guest's memory, zero pages and all: what it costs to move a guest of that size. */
static void add_cpu(const struct run *run, struct json_object *result)
{
	/* Of all guests: those beside it are as large, and as far. */
	double gib = (double)(1 + run->b->options->beside) * (double)run->b->options->memory_bytes /
	             (double)(1ull << 30);
	struct json_object *cpu = json_object_new_object();

	json_set_number(cpu, "source", (double)run->source_cpu_ns / NSEC_PER_SEC / gib);
	json_set_number(cpu, "destination", (double)run->destination_cpu_ns / NSEC_PER_SEC / gib);
	json_object_object_add(cpu, "floor", NULL);
	json_object_object_add(result, "cpu_s_per_gib", cpu);
}

static int start(struct run *run, struct error *err)
{
	struct client_warm warm;
	int r = client_start(run->b->destination, run->id, false,
	                     warm_args_policy(&run->b->options->warm, &warm), NULL, NULL, err);

	run->moved_ns = clock_now_ns();
	return r < 0 ? error_prefix(err, "starting") : 0;
}

static int await_end(struct run *run, struct error *err)
{
	_cleanup_json_ struct json_object *last = NULL;
	int r = client_watch(run->b->watcher, run->id, NULL, WATCH_INTERVAL_MS, follow, run, &last,
	                     err);

	if (!run->b->quiet)
		fprintf(stderr, "\r\033[K");
	if (r < 0)
		return r;
	if (strcmp(json_string_or(last, "state", ""), "complete"))
		return error_set(err, -EIO, "the migration ended %s: %s",
		                 json_string_or(last, "state", "without a state"),
		                 json_string_or(last, "reason", "no reason given"));
	return 0;
}

/* @runs: the one that is measured, and those beside it. */
static int migrate(struct run *runs, size_t n, struct error *err)
{
	struct bench *b = runs->b;
	int r = 0;

	/* The source's guest has its memory by now: what this leaves is the destination's. */
	if (!b->options->cold)
		host_memory_warm(n * b->options->memory_bytes, 0);
	count_costs(runs);
	runs->course.start_us = now_us();
	for (size_t i = 0; !r && i < n; i++)
		r = start(&runs[i], err);
	if (!r)
		r = await_end(runs, err);
	count_costs(runs);
	return r;
}

/* What the VMMs have said by now: when what was, and the guest's verdict. */
static int hear_verdict(struct run *run, struct json_object **ret, struct error *err)
{
	_cleanup_json_ struct json_object *paused = NULL;
	_cleanup_json_ struct json_object *resumed = NULL;
	_cleanup_json_ struct json_object *complete = NULL;
	int r = wait_event(run, &run->source_vmm, "paused", &paused, err);

	if (!r)
		r = wait_event(run, &run->destination_vmm, "resumed", &resumed, err);
	if (!r)
		r = wait_event(run, &run->destination_vmm, "complete", &complete, err);
	if (!r)
		r = wait_event(run, &run->destination_vmm, "result", ret, err);
	run->course.pause_us = json_count_or(paused, "at_us", 0);
	run->course.resume_us = json_count_or(resumed, "at_us", 0);
	run->course.complete_us = json_count_or(complete, "at_us", 0);
	return r;
}

static int collect(struct run *run, struct json_object **ret, struct error *err)
{
	_cleanup_json_ struct json_object *report = NULL;
	_cleanup_json_ struct json_object *source = NULL;
	_cleanup_json_ struct json_object *verdict = NULL;
	struct json_object *result, *rss;
	int r = hear_verdict(run, &verdict, err);

	if (!r)
		r = client_get_report(run->b->destination, run->id, NULL, &report, err);
	if (!r)
		r = client_get(run->b->source, run->id, NULL, &source, err);
	if (r < 0)
		return r;
	result = bench_result_new(run->b->options, report, source, verdict);
	rss = json_object_new_object();
	json_set_count(rss, "source", process_peak_rss_bytes(&run->b->source_daemon));
	json_set_count(rss, "destination", process_peak_rss_bytes(&run->b->destination_daemon));
	json_object_object_add(result, "rss_bytes", rss);
	add_cpu(run, result);
	if (run->b->options->link_mbit)
		bench_result_add_link(result, run->b->options, run->sent_bytes, run->took_ns);
	*ret = result;
	return 0;
}

/* Both VMMs end by themselves; one that finds bad pages may say so by its status too. */
static int finish(struct run *run, struct error *err)
{
	int timeout_ms = GUEST_TIMEOUT_MS(run->b->options->memory_bytes);
	int r = process_wait(&run->source_vmm, timeout_ms, run->b->cancel_fd, err);

	return r < 0 ? r : process_wait(&run->destination_vmm, timeout_ms, run->b->cancel_fd, err);
}

/* Both VMMs have ended: what they wrote is whole. */
static int add_work(struct run *run, struct json_object *result, struct error *err)
{
	_cleanup_(work_series_deinit) struct work_series source = { .n = 0 };
	_cleanup_(work_series_deinit) struct work_series destination = { .n = 0 };
	_cleanup_(work_series_deinit) struct work_series both = { .n = 0 };
	char path[128];
	int r;

	progress_path(run, true, path);
	r = work_series_read(path, &source, err);
	progress_path(run, false, path);
	if (!r)
		r = work_series_read(path, &destination, err);
	if (r < 0)
		return r;
	if (!work_series_merge(&source, &destination, &both))
		return error_set(err, -ENOMEM, "no memory for the guest's progress");
	run->course.warm = json_count_or(result, "warm.bytes", 0);
	work_add(result, &both, &run->course);
	return 0;
}

/* A guest beside the one that is measured: it must be whole as well. */
static int end_beside(struct run *run, double *fault_p99_us, double *total_ms, struct error *err)
{
	_cleanup_json_ struct json_object *verdict = NULL;
	_cleanup_json_ struct json_object *migration = NULL;
	int r = await_end(run, err);
	double value;

	if (!r)
		r = hear_verdict(run, &verdict, err);
	if (!r)
		r = client_get(run->b->destination, run->id, NULL, &migration, err);
	if (r < 0)
		return r;
	if (json_count_or(verdict, "pages_bad", 1))
		return error_set(err, -EIO, "a guest beside it has bad pages");
	value = json_number_or(migration, "fault_us.p99", 0);
	*fault_p99_us = value > *fault_p99_us ? value : *fault_p99_us;
	value = json_number_or(migration, "total_ms", 0);
	*total_ms = value > *total_ms ? value : *total_ms;
	return finish(run, err);
}

/* All of them; the worst of what they met goes into @result. */
static int end_all_beside(struct run *others, size_t n, struct json_object *result,
                          struct error *err)
{
	struct json_object *beside = json_object_new_object();
	double fault_p99_us = 0, total_ms = 0;
	int r = 0;

	json_object_object_add(result, "beside", beside);
	for (size_t i = 0; !r && i < n; i++)
		r = end_beside(&others[i], &fault_p99_us, &total_ms, err);
	json_set_count(beside, "guests", n);
	json_set_number(beside, "fault_p99_us", fault_p99_us);
	json_set_number(beside, "total_ms", total_ms);
	return r < 0 ? error_prefix(err, "beside it") : 0;
}

/* A daemon that has closed its connection may have died: what of is the news, then. */
static int name_the_dead(struct run *run, struct error *err)
{
	struct process *const daemons[] = { &run->b->source_daemon, &run->b->destination_daemon };

	for (size_t i = 0; i < sizeof daemons / sizeof *daemons; i++) {
		struct error why = ERROR_INIT;

		if (process_wait(daemons[i], DEATH_MS, run->b->cancel_fd, &why) != -ECHILD)
			continue;
		*err = why;
		return -ECHILD;
	}
	return -EPIPE;
}

static int enter(struct run *run, unsigned int n, struct error *err)
{
	int r;

	if (run->guest)
		snprintf(run->id, sizeof run->id, "bench-%d-%u-%u", (int)getpid(), n, run->guest);
	else
		snprintf(run->id, sizeof run->id, "bench-%d-%u", (int)getpid(), n);
	r = bench_prepare(run->b, run->id, run->bulk_on, err);
	return r < 0 ? r : attach_vmms(run, err);
}

static int run_guests(struct run *runs, size_t n_guests, unsigned int n, struct json_object **ret,
                      struct error *err)
{
	_cleanup_json_ struct json_object *result = NULL;
	int r = 0;

	for (size_t i = n_guests; !r && i--;)
		r = enter(&runs[i], n, err);
	if (!r)
		r = watch_steady_state(runs, err);
	if (!r)
		r = migrate(runs, n_guests, err);
	if (!r)
		r = collect(runs, &result, err);
	/* Where pages are bad that is the news, not how the VMM ended. */
	if (!r && bench_result_good(result, NULL)) {
		r = finish(runs, err);
		if (!r)
			r = add_work(runs, result, err);
		if (!r && n_guests > 1)
			r = end_all_beside(runs + 1, n_guests - 1, result, err);
	}
	if (!r)
		*ret = steal_ptr(&result);
	return r;
}

int bench_migrate(struct bench *b, unsigned int n, struct json_object **ret, struct error *err)
{
	struct run runs[1 + BENCH_BESIDE_MAX];
	size_t n_guests = 1 + b->options->beside;
	int r;

	for (size_t i = 0; i < n_guests; i++)
		runs[i] = (struct run){
			.b = b,
			.guest = (unsigned int)i,
			.source_vmm = PROCESS_INIT,
			.destination_vmm = PROCESS_INIT,
			.bulk_on = !i ? !b->options->idle_faults : true,
		};
	r = run_guests(runs, n_guests, n, ret, err);
	if (r == -EPIPE)
		r = name_the_dead(runs, err);
	for (size_t i = n_guests; i--;) {
		process_stop(&runs[i].destination_vmm);
		process_stop(&runs[i].source_vmm);
	}
	return r;
}

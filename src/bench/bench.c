/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/commands.h"
#include "bench/floors.h"
#include "bench/qemu.h"
#include "bench/report_html.h"
#include "ctl/commands.h"
#include "ctl/interrupt.h"
#include "ctl/json.h"
#include "ctl/units.h"
#include "mem/probe.h"
#include "util/shards.h"

#define IDLE_FAULTS_WITH_FLOORS 500
#define DEFAULT_STREAMS_MAX 4
/* What a daemon, a VMM and the floors take beside the guest's memory. */
#define SPARE_BYTES (1ull << 30)

#define BENCH(field) offsetof(struct bench_options, field)

static const struct bench_options bench_defaults = {
	.backend = "memfd",
	.workload = "random",
	.map = "auto",
	.trace = "auto",
	.memory_bytes = 1ull << 30,
	.vcpus = 2,
	.write_percent = 50,
	.zero_percent = 10,
	.seed = 1,
	.runs = 1,
	.idle_faults = UINT64_MAX,
	.queue_ms = 20,
	.qdisc = "fifo",
	.dirty_log = "kvm",
	.vmm = "minivmm",
	.accel = "kvm",
};

static const struct option_spec bench_specs[] = {
	{ "backend", OPTION_CHOICE, BENCH(backend), "KIND",
	  "the guest's memory: memfd, hugetlb, hugetlb-1g, guest_memfd\nor anon (memfd)",
	  .choices = { "memfd", "hugetlb", "hugetlb-1g", "guest_memfd", "anon" } },
	{ "memory", OPTION_SIZE, BENCH(memory_bytes), "SIZE", "how much of it (1G)", 16ull << 20,
	  64ull << 30 },
	{ "workload", OPTION_CHOICE, BENCH(workload), "KIND",
	  "what the guest does: sequential, random, hotcold, stride or idle\n(random)",
	  .choices = { "sequential", "random", "hotcold", "stride", "idle" } },
	{ "vcpus", OPTION_UINT, BENCH(vcpus), "N", "of the guest, up to 8 (2)", 1, 8 },
	{ "streams", OPTION_UINT, BENCH(streams), "N",
	  "bulk connections (4, or the number of CPUs where\nthat is less)", 1, 16 },
	{ "bandwidth", OPTION_SIZE, BENCH(bandwidth_bytes_per_s), "BYTES",
	  "bytes/s that bulk may take (no cap)", 1, INT64_MAX },
	{ "map", OPTION_CHOICE, BENCH(map), "auto|eager|lazy",
	  "map pages into the guest ahead of its touch (auto)",
	  .choices = { "auto", "eager", "lazy" } },
	{ "write-percent", OPTION_UINT, BENCH(write_percent), "P",
	  "share of the guest's accesses that write (50)", 0, 100 },
	{ "zero-percent", OPTION_UINT, BENCH(zero_percent), "P",
	  "share of the guest's pages that are zero (10)", 0, 100 },
	WARM_OPTIONS(BENCH(warm)),
	{ "dirty-log", OPTION_CHOICE, BENCH(dirty_log), "HOW",
	  "who tells what the guest writes meanwhile: kvm (its log),\nring, wp (the kernel, by "
	  "write protection) or none (kvm)",
	  .choices = { "kvm", "ring", "wp", "none" } },
	{ "dirty-rate", OPTION_SIZE, BENCH(dirty_bytes_per_s), "BYTES",
	  "let the guest write so much in a second, by having it compute\nbetween accesses (as "
	  "fast "
	  "as it can)",
	  4096, 1ull << 40 },
	{ "seed", OPTION_UINT, BENCH(seed), "N", "of the guest's random numbers (1)", 0,
	  UINT32_MAX },
	{ "vmstate-pad", OPTION_SIZE, BENCH(vmstate_pad_bytes), "SIZE",
	  "make the device state so much larger (0)", 0, 1ull << 30 },
	{ "runs", OPTION_UINT, BENCH(runs), "N", "migrations, back to back (1)", 1, 10000 },
	{ "idle-faults", OPTION_UINT, BENCH(idle_faults), "N",
	  "keep bulk off until N remote faults were seen, or for 1 s\n(0; 500 with --floors)", 0,
	  1000000 },
	{ "link-mbit", OPTION_UINT, BENCH(link_mbit), "N",
	  "put a link of N Mbit/s between the two sides, each in a\nnetwork namespace (loopback); "
	  "as root",
	  1, 400000 },
	{ "rtt-us", OPTION_UINT, BENCH(rtt_us), "N", "the link's round trip when it is empty (0)",
	  0, 1000000 },
	{ "queue-ms", OPTION_UINT, BENCH(queue_ms), "N", "the queue before the link, in time (20)",
	  1, 1000 },
	{ "cross-mbit", OPTION_UINT, BENCH(cross_mbit), "N",
	  "foreign traffic on the link from source to destination, that\nyields to nobody (0)", 0,
	  400000 },
	{ "qdisc", OPTION_CHOICE, BENCH(qdisc), "fifo|prio",
	  "that queue: one, or three bands by priority (fifo)", .choices = { "fifo", "prio" } },
	{ "beside", OPTION_UINT, BENCH(beside), "N",
	  "move so many further guests of the same kind at the same\ntime; they are not measured, "
	  "but for their faults and total (0)",
	  0, BENCH_BESIDE_MAX },
	{ "fault-threads", OPTION_UINT, BENCH(fault_threads), "N",
	  "threads and userfaultfds that serve a guest's faults; 0: one for\nfour CPUs (0)", 0,
	  SHARDS_MAX },
	{ "trace", OPTION_CHOICE, BENCH(trace), "MODE",
	  "measure the guest's stalls by eBPF: auto, fentry, kprobe,\ntracepoint or off (auto)",
	  .choices = { "auto", "fentry", "kprobe", "tracepoint", "off" } },
	{ "floors", OPTION_FLAG, BENCH(floors), NULL,
	  "also measure what this host can do at best, and the ratios to it" },
	{ "report", OPTION_STRING, BENCH(report), "FILE.html",
	  "write a page with the timeline and the histogram\n(of several runs: the last)" },
	{ "hugepages", OPTION_FLAG, BENCH(hugepages), NULL,
	  "reserve the huge pages that are missing, and give them back" },
	{ "cold", OPTION_FLAG, BENCH(cold), NULL,
	  "don't touch this host's memory before each migration: on a VM\nthe hypervisor's page "
	  "faults are then measured as well" },
	{ "keep-logs", OPTION_STRING, BENCH(keep_logs), "DIR",
	  "leave the daemons' and VMMs' logs in DIR" },
	{ "vmm", OPTION_CHOICE, BENCH(vmm), "minivmm|qemu",
	  "whose guest: minivmm's, or one in QEMU, moved with\npostcopy-qemu (minivmm)",
	  .choices = { "minivmm", "qemu" } },
	{ "qemu", OPTION_STRING, BENCH(qemu), "PATH",
	  "with --vmm qemu, the program (qemu-system-x86_64)" },
	{ "accel", OPTION_CHOICE, BENCH(accel), "kvm|tcg",
	  "with --vmm qemu, how it runs its guest (kvm)", .choices = { "kvm", "tcg" } },
	{ "kernel", OPTION_STRING, BENCH(kernel), "FILE",
	  "with --vmm qemu, a Linux guest (tests/vmms/fetch-qemu makes\nit); by default one that "
	  "is "
	  "built in, of 1 vCPU" },
	{ "initrd", OPTION_STRING, BENCH(initrd), "FILE", "its initramfs" },
	{ "native", OPTION_FLAG, BENCH(native), NULL,
	  "with --vmm qemu, move it by QEMU's own postcopy, too" },
};

static const struct {
	const char *name;
	enum probe_backend_id probe;
	uint64_t huge_page_bytes; /* 0: ordinary memory */
} backends[] = {
	{ "memfd", PROBE_MEMFD, 0 },
	{ "hugetlb", PROBE_HUGETLB_2M, 2ull << 20 },
	{ "hugetlb-1g", PROBE_HUGETLB_1G, 1ull << 30 },
	{ "guest_memfd", PROBE_GUEST_MEMFD, 0 },
	{ "anon", PROBE_ANONYMOUS, 0 },
};

static size_t backend_index(const char *name)
{
	for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
		if (!strcmp(backends[i].name, name))
			return i;
	return 0;
}

static bool is_qemu(const struct bench *b)
{
	return !strcmp(b->options->vmm, "qemu");
}

/* What the host lacks, in the order in which a person would put it right. */
static int check_host(struct bench *b, struct error *err)
{
	const struct bench_options *o = b->options;
	size_t backend = backend_index(o->backend);
	uint64_t huge = backends[backend].huge_page_bytes;
	uint64_t bytes = 2 * (1 + o->beside) * o->memory_bytes; /* of all guests, on both sides */
	const struct probe_backend *can;
	struct probe probe;
	int r;

	if (is_qemu(b) && bench_qemu_check(o, err) < 0)
		return -EINVAL;
	if (o->memory_bytes % (huge ? huge : 4096))
		return error_set(err, -EINVAL, "--memory is no multiple of the page size, %s",
		                 text_bytes((double)(huge ? huge : 4096)).s);
	r = huge ? hugepages_ensure(huge, bytes / huge, o->hugepages, &b->hugepages, err)
	         : host_memory_check(bytes + SPARE_BYTES, err);
	if (!r && huge && !o->cold)
		host_memory_warm(bytes, huge);
	if (!r)
		r = probe_run(&probe, err);
	if (r < 0)
		return r;
	can = &probe.backends[backends[backend].probe];
	if (!probe.facts[PROBE_KVM].ok && !(is_qemu(b) && !strcmp(o->accel, "tcg")))
		return error_set(err, -EOPNOTSUPP, "%s", probe.facts[PROBE_KVM].detail);
	if (!can->destination.ok)
		return error_set(err, -EOPNOTSUPP, "--backend %s: %s", o->backend,
		                 can->destination.detail);
	if (!can->source.ok)
		return error_set(err, -EOPNOTSUPP, "--backend %s: %s", o->backend,
		                 can->source.detail);
	return 0;
}

static int make_link(struct bench *b, struct error *err)
{
	const struct bench_options *o = b->options;
	const struct link_options link = {
		.mbit = o->link_mbit,
		.rtt_us = o->rtt_us,
		.queue_ms = o->queue_ms,
		.cross_mbit = o->cross_mbit,
		.prio = !strcmp(o->qdisc, "prio"),
	};
	int r;

	if (!o->link_mbit && (o->rtt_us || o->cross_mbit))
		return error_set(err, -EINVAL,
		                 "--rtt-us and --cross-mbit are of a link: give --link-mbit");
	if (!o->link_mbit)
		return 0;
	r = link_up(&b->link, &link, err);
	b->source_daemon.netns_fd = b->link.source_ns;
	b->destination_daemon.netns_fd = b->link.destination_ns;
	return r;
}

static int make_directories(struct bench *b, struct error *err)
{
	const char *logs = b->options->keep_logs;
	const char *tmp = "/tmp/postcopy-bench-XXXXXX";

	/* Not $TMPDIR: a unix socket's path has room for 107 bytes. */
	strcpy(b->dir, tmp);
	if (!mkdtemp(b->dir)) {
		b->dir[0] = 0;
		return error_errno(err, -errno, "temporary directory \"%s\"", tmp);
	}
	if (logs && mkdir(logs, 0755) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "--keep-logs \"%s\"", logs);
	snprintf(b->log_dir, sizeof b->log_dir, "%s", logs ? logs : b->dir);
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	remove(path);
	return 0;
}

static int run_all(struct bench *b, const struct ctl_common *common, struct json_object *results,
                   struct error *err)
{
	int r = 0;

	for (uint64_t n = 0; !r && n < b->options->runs; n++) {
		struct json_object *result;

		r = bench_migrate(b, (unsigned int)n, &result, err);
		if (r < 0)
			return b->options->runs > 1
			               ? error_prefix(err, "run %u", (unsigned int)n + 1)
			               : r;
		json_object_array_add(results, result);
		if (!common->json && b->options->runs > 1)
			bench_print_run(result, n);
		/* Only the last run's are shown; a thousand runs' would be gigabytes. */
		if (n + 1 < b->options->runs)
			bench_result_drop_series(result);
	}
	return r;
}

static int add_floors(struct bench *b, struct json_object *results, struct error *err)
{
	_cleanup_json_ struct json_object *floors = NULL;
	int r = floors_measure(b->dir, (unsigned int)b->options->streams, &floors, err);

	for (size_t i = 0; !r && i < json_object_array_length(results); i++)
		bench_result_add_floors(json_object_array_get_idx(results, i), floors);
	return r;
}

/* Everything that is measured; the processes are gone when it returns. */
static int measure(struct bench *b, const struct ctl_common *common, struct json_object *results,
                   struct error *err)
{
	int r = make_directories(b, err);

	if (!r)
		r = bench_start(b, err);
	if (!r)
		r = is_qemu(b) ? bench_qemu(b, results, err) : run_all(b, common, results, err);
	bench_stop(b);
	if (!r && b->options->floors)
		r = add_floors(b, results, err);
	if (*b->dir)
		nftw(b->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	return r;
}

static int save_report(const struct bench *b, struct json_object *results, struct error *err)
{
	size_t n = json_object_array_length(results);
	struct json_object *last = json_object_array_get_idx(results, n - 1);

	if (!b->options->report)
		return 0;
	json_object_object_add(json_find(last, "host"), "checks", check_rows());
	return report_html_save(b->options->report, last, err);
}

static void print_results(const struct bench *b, const struct ctl_common *common,
                          struct json_object *results)
{
	size_t n = json_object_array_length(results);
	struct json_object *last = json_object_array_get_idx(results, n - 1);

	bench_result_drop_series(last);
	if (common->json) {
		json_print(n > 1 ? results : last);
	} else if (is_qemu(b)) {
		bench_qemu_print(last);
	} else {
		_cleanup_json_ struct json_object *median = bench_result_median(results);

		if (n > 1)
			putchar('\n');
		bench_print(median, n);
	}
}

static int bench_all(struct bench *b, const struct ctl_common *common)
{
	_cleanup_json_ struct json_object *results = json_object_new_array();
	struct error err = ERROR_INIT;
	bool good = true;

	/* It ends all waits. */
	b->cancel_fd = interrupt_fd(&err);
	if (b->cancel_fd < 0)
		return command_failed(&bench_command, &err);
	if (check_host(b, &err) < 0 || make_link(b, &err) < 0) {
		command_failed(&bench_command, &err);
		return CTL_USAGE;
	}
	if (process_find("postcopyd", "postcopyd", b->daemon_path, &err) < 0 ||
	    (is_qemu(b) ? bench_qemu_find(b, &err)
	                : process_find("minivmm", "minivmm", b->vmm_path, &err)) < 0)
		return command_failed(&bench_command, &err);
	if (measure(b, common, results, &err) < 0 || save_report(b, results, &err) < 0)
		return command_failed(&bench_command, &err);
	for (size_t i = 0; good && i < json_object_array_length(results); i++)
		good = (is_qemu(b) ? bench_qemu_good : bench_result_good)(
		        json_object_array_get_idx(results, i), &err);
	print_results(b, common, results);
	return good ? CTL_OK : command_failed(&bench_command, &err);
}

/* As the daemon's own default (PrepareRequest.limits). */
static uint64_t default_streams(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	return cpus > 0 && cpus < DEFAULT_STREAMS_MAX ? (uint64_t)cpus : DEFAULT_STREAMS_MAX;
}

static bool is_warm(const struct bench_options *o)
{
	struct client_warm warm;

	return warm_args_policy(&o->warm, &warm);
}

static int bench_run(const struct ctl_common *common, const char *operand, const void *args)
{
	struct bench_options options = *(const struct bench_options *)args;
	struct bench b = {
		.options = &options,
		.cancel_fd = -1,
		.quiet = common->json || !isatty(STDERR_FILENO),
		.source_daemon = PROCESS_INIT,
		.destination_daemon = PROCESS_INIT,
		.link = LINK_INIT,
	};
	int r;

	(void)operand;
	if (!options.streams)
		options.streams = default_streams();
	if (options.idle_faults == UINT64_MAX)
		options.idle_faults =
		        options.floors && !is_warm(&options) ? IDLE_FAULTS_WITH_FLOORS : 0;
	if (options.idle_faults && is_warm(&options))
		return command_misused(&bench_command,
		                       "--idle-faults keeps bulk off, and --warm needs it");
	r = bench_all(&b, common);
	link_down(&b.link);
	hugepages_give_back(&b.hugepages);
	close_fd(&b.cancel_fd);
	return r;
}

const struct command bench_command = {
	.name = "bench",
	.summary = "Migrate a real guest between two daemons on this host, and measure it.",
	.details =
	        "Exit status 0 where every page is right, 1 where one isn't or anything failed,\n"
	        "2 where this host lacks what the backend needs.",
	.options = bench_specs,
	.n_options = sizeof bench_specs / sizeof *bench_specs,
	.defaults = &bench_defaults,
	.args_size = sizeof bench_defaults,
	.local = true,
	.json = true,
	.run = bench_run,
};

/* SPDX-License-Identifier: Apache-2.0 */
#include "telemetry/fault_tracer.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <inttypes.h>
#include <linux/types.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "bpf/fault_latency.h"
#include "fault_latency.skel.h"
#include "util/cleanup.h"

_Static_assert(sizeof((struct fault_latency_histogram *)0)->buckets ==
                       sizeof((struct histogram *)0)->buckets,
               "merged bucket by bucket");
_Static_assert(FAULT_LATENCY_SLOTS == FAULT_TRACER_SLOTS, "one number");
_Static_assert(FAULT_LATENCY_RANGES == FAULT_TRACER_RANGES_MAX, "one number");
_Static_assert(FAULT_LATENCY_COMM == FAULT_TRACER_COMM_BYTES, "one number");

/* The initial pid namespace's (PROC_PID_INIT_INO). */
#define INITIAL_PID_NAMESPACE 0xeffffffc

struct fault_tracer {
	struct fault_latency *skel; /* NULL: the source is "daemon" */
	struct ring_buffer *ring;   /* NULL: no events */
	struct fault_tracer_config config;
	const char *source;
	char why[ERROR_TEXT_MAX];
	uint32_t last_epoch;
	uint32_t epochs[FAULT_TRACER_SLOTS]; /* 0: free */
	pid_t tgids[FAULT_TRACER_SLOTS];
};

/* What sched_switch has to know of the kernel's text. */
struct symbols {
	uint64_t userfault;
	uint64_t userfault_end;
	uint64_t wake_function;
};

static const struct way {
	enum fault_tracer_mode mode;
	const char *name;
	const char *programs[2];
} ways[] = {
	{ FAULT_TRACER_FENTRY, "fentry", { "fentry_userfault", "fexit_userfault" } },
	{ FAULT_TRACER_KPROBE, "kprobe", { "kprobe_userfault", "kretprobe_userfault" } },
	{ FAULT_TRACER_TRACEPOINT, "tracepoint", { "sched_switch", "sched_switch" } },
};

static const char *const common_programs[] = { "sched_waking", "sched_process_exit" };

static void destroy_p(struct fault_latency **skel)
{
	fault_latency__destroy(*skel);
}

static bool way_needs(const struct way *way, const char *program)
{
	for (size_t i = 0; i < sizeof common_programs / sizeof *common_programs; i++)
		if (!strcmp(program, common_programs[i]))
			return true;
	return !strcmp(program, way->programs[0]) || !strcmp(program, way->programs[1]);
}

/* A symbol's end is where the next one begins; the kernel lists them by address. */
static void symbol_take(struct symbols *s, uint64_t address, const char *name)
{
	if (s->userfault && !s->userfault_end && address > s->userfault)
		s->userfault_end = address;
	if (!strcmp(name, "handle_userfault"))
		s->userfault = address;
	else if (!strcmp(name, "userfaultfd_wake_function"))
		s->wake_function = address;
}

static int symbols_read(struct symbols *ret, struct error *err)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/kallsyms", "re");
	struct symbols s = { 0 };
	char line[256], name[128];
	uint64_t address;

	if (!f)
		return error_errno(err, -errno, "/proc/kallsyms");
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "%" SCNx64 " %*c %127s", &address, name) == 2)
			symbol_take(&s, address, name);
	if (!s.userfault || !s.userfault_end)
		return error_set(err, -ENOENT,
		                 "/proc/kallsyms hides handle_userfault (needs CAP_SYSLOG, see "
		                 "kernel.kptr_restrict)");
	*ret = s;
	return 0;
}

static int skeleton_prepare(struct fault_latency *skel, const struct way *way,
                            const struct fault_tracer_config *config, struct error *err)
{
	struct bpf_program *program;
	struct symbols s = { 0 };
	int code;

	bpf_object__for_each_program(program, skel->obj)
	        bpf_program__set_autoload(program, way_needs(way, bpf_program__name(program)));
	skel->rodata->slow_threshold_ns = config->event ? config->slow_threshold_ns : UINT64_MAX;
	if (config->ring_bytes) {
		code = bpf_map__set_max_entries(skel->maps.events, config->ring_bytes);
		if (code < 0)
			return error_errno(err, code, "ring buffer of %u bytes",
			                   config->ring_bytes);
	}
	if (way->mode != FAULT_TRACER_TRACEPOINT)
		return 0;
	code = symbols_read(&s, err);
	if (code < 0)
		return code;
	skel->rodata->userfault_begin = s.userfault;
	skel->rodata->userfault_len_bytes = s.userfault_end - s.userfault;
	skel->rodata->wake_function = s.wake_function;
	return 0;
}

static int way_try(const struct way *way, const struct fault_tracer_config *config,
                   struct fault_latency **ret, struct error *err)
{
	_cleanup_(destroy_p) struct fault_latency *skel = fault_latency__open();
	int code;

	if (!skel)
		return error_errno(err, -errno, "opening the program");
	code = skeleton_prepare(skel, way, config, err);
	if (code < 0)
		return code;
	code = fault_latency__load(skel);
	if (code < 0)
		return error_errno(err, code, "loading");
	code = fault_latency__attach(skel);
	if (code < 0)
		return error_errno(err, code, "attaching%s",
		                   code == -ENOENT ? " (a kernel without it?)" : "");
	*ret = steal_ptr(&skel);
	return 0;
}

__attribute__((format(printf, 2, 3))) static void why_add(struct fault_tracer *t, const char *fmt,
                                                          ...)
{
	size_t len = strlen(t->why);
	va_list ap;

	if (len && len + 2 < sizeof t->why) {
		strcpy(t->why + len, "; ");
		len += 2;
	}
	va_start(ap, fmt);
	vsnprintf(t->why + len, sizeof t->why - len, fmt, ap);
	va_end(ap);
}

/* What would keep all ways from working, and is better told once. */
static bool host_allows(struct fault_tracer *t)
{
	struct stat st;

	if (t->config.mode == FAULT_TRACER_OFF) {
		why_add(t, "turned off");
		return false;
	}
	if (access("/sys/kernel/btf/vmlinux", R_OK) < 0) {
		why_add(t,
		        "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF): /sys/kernel/btf/vmlinux: "
		        "%s",
		        strerror(errno));
		return false;
	}
	if (stat("/proc/self/ns/pid", &st) < 0 || st.st_ino != INITIAL_PID_NAMESPACE) {
		why_add(t,
		        "in a pid namespace of its own the daemon can't know the VMM's process id");
		return false;
	}
	return true;
}

static void attach_best(struct fault_tracer *t)
{
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
		struct error err = ERROR_INIT;

		if (t->config.mode != FAULT_TRACER_AUTO && t->config.mode != ways[i].mode)
			continue;
		if (way_try(&ways[i], &t->config, &t->skel, &err) == 0) {
			t->source = ways[i].name;
			return;
		}
		why_add(t, "%s: %s", ways[i].name, err.text);
	}
	if (geteuid() != 0)
		why_add(t, "not root: CAP_BPF, CAP_PERFMON and CAP_SYSLOG are needed (trace.conf "
		           "gives "
		           "them to the unit)");
}

static int ring_event(void *arg, void *data, size_t len_bytes)
{
	const struct fault_latency_event *raw = data;
	struct fault_tracer *t = arg;
	struct fault_tracer_event event;

	/* of a VMM that is gone: its slot is free, or somebody else's */
	if (len_bytes < sizeof *raw || raw->slot >= FAULT_TRACER_SLOTS ||
	    raw->epoch != t->epochs[raw->slot])
		return 0;
	event = (struct fault_tracer_event){
		.slot = (int)raw->slot,
		.tid = (pid_t)raw->tid,
		.ns_tid = raw->ns_tid,
		.address = raw->address,
		.start_ns = raw->start_ns,
		.woken_ns = raw->woken_ns,
		.end_ns = raw->end_ns,
	};
	memcpy(event.comm, raw->comm, sizeof event.comm);
	event.comm[sizeof event.comm - 1] = '\0';
	t->config.event(t->config.arg, &event);
	return 0;
}

static int ring_open(struct fault_tracer *t, struct error *err)
{
	if (!t->skel || !t->config.event)
		return 0;
	t->ring = ring_buffer__new(bpf_map__fd(t->skel->maps.events), ring_event, t, NULL);
	if (!t->ring)
		return error_errno(err, -errno, "the fault tracer's ring buffer");
	return 0;
}

static void free_tracer_p(struct fault_tracer **t)
{
	fault_tracer_free(*t);
}

static int config_check(const struct fault_tracer_config *config, struct error *err)
{
	uint32_t bytes = config->ring_bytes;

	if (bytes && (bytes & (bytes - 1) || bytes % (uint32_t)getpagesize()))
		return error_set(err, -EINVAL,
		                 "a ring buffer of %u bytes: must be a power of two of whole pages",
		                 bytes);
	return 0;
}

int fault_tracer_new(const struct fault_tracer_config *config, struct fault_tracer **ret,
                     struct error *err)
{
	_cleanup_(free_tracer_p) struct fault_tracer *t = NULL;
	int code = config_check(config, err);

	if (code < 0)
		return code;
	t = calloc(1, sizeof *t);
	if (!t)
		return error_set(err, -ENOMEM, "no memory for the fault tracer");
	t->config = *config;
	t->source = "daemon";
	/* it would write to stderr what `why` says */
	libbpf_set_print(NULL);
	if (host_allows(t))
		attach_best(t);
	code = ring_open(t, err);
	if (code < 0)
		return code;
	*ret = steal_ptr(&t);
	return 0;
}

struct fault_tracer *fault_tracer_free(struct fault_tracer *t)
{
	if (!t)
		return NULL;
	ring_buffer__free(t->ring);
	fault_latency__destroy(t->skel);
	free(t);
	return NULL;
}

const char *fault_tracer_source(const struct fault_tracer *t)
{
	return t->source;
}

const char *fault_tracer_why(const struct fault_tracer *t)
{
	return t->why;
}

int fault_tracer_fd(const struct fault_tracer *t)
{
	return t->ring ? bpf_map__fd(t->skel->maps.events) : -1;
}

int fault_tracer_poll(struct fault_tracer *t)
{
	return t->ring ? ring_buffer__consume(t->ring) : 0;
}

static int slot_find(const struct fault_tracer *t, pid_t tgid, int *ret, struct error *err)
{
	int slot = -1;

	for (int i = FAULT_TRACER_SLOTS - 1; i >= 0; i--) {
		if (!t->epochs[i])
			slot = i;
		else if (t->tgids[i] == tgid)
			return error_set(err, -EEXIST, "process %d is traced already", (int)tgid);
	}
	if (slot < 0)
		return error_set(err, -ENOSPC, "%d VMMs are traced, no more can be",
		                 FAULT_TRACER_SLOTS);
	*ret = slot;
	return 0;
}

static int slot_write(struct fault_tracer *t, uint32_t slot, uint32_t epoch,
                      const struct fault_tracer_range *ranges, size_t n)
{
	_cleanup_free_ struct fault_latency_slot *value = calloc(1, sizeof *value);

	if (!value)
		return -ENOMEM;
	value->epoch = epoch;
	value->n_ranges = (__u32)n;
	for (size_t i = 0; i < n; i++)
		value->ranges[i] =
		        (struct fault_latency_range){ ranges[i].start, ranges[i].len_bytes };
	return bpf_map__update_elem(t->skel->maps.slots, &slot, sizeof slot, value, sizeof *value,
	                            BPF_ANY);
}

int fault_tracer_add(struct fault_tracer *t, pid_t tgid, const struct fault_tracer_range *ranges,
                     size_t n, int *ret_slot, struct error *err)
{
	struct fault_latency_owner owner = { 0 };
	__u32 key = (__u32)tgid;
	int slot = -1, code;

	if (!t->skel)
		return error_set(err, -EOPNOTSUPP, "the kernel can't be asked: %s", t->why);
	if (n > FAULT_TRACER_RANGES_MAX)
		return error_set(err, -EINVAL, "%zu ranges to trace, at most %d can be", n,
		                 FAULT_TRACER_RANGES_MAX);
	code = slot_find(t, tgid, &slot, err);
	if (code < 0)
		return code;
	if (++t->last_epoch == 0)
		t->last_epoch = 1;
	owner = (struct fault_latency_owner){ .slot = (__u32)slot, .epoch = t->last_epoch };
	code = slot_write(t, owner.slot, owner.epoch, ranges, n);
	if (code == 0)
		code = bpf_map__update_elem(t->skel->maps.processes, &key, sizeof key, &owner,
		                            sizeof owner, BPF_ANY);
	if (code < 0)
		return error_errno(err, code, "tracing process %d", (int)tgid);
	t->epochs[slot] = owner.epoch;
	t->tgids[slot] = tgid;
	__atomic_fetch_add(&t->skel->bss->slots_in_use, 1, __ATOMIC_RELAXED);
	*ret_slot = slot;
	return 0;
}

static bool slot_in_use(const struct fault_tracer *t, int slot)
{
	return slot >= 0 && slot < FAULT_TRACER_SLOTS && t->epochs[slot];
}

/* Faults that will never end: their VMM is gone, or their end would count for nobody. */
static void threads_forget(struct fault_tracer *t, uint32_t slot)
{
	struct bpf_map *threads = t->skel->maps.threads;
	__u32 stale[FAULT_LATENCY_SLOTS], tid, n;
	struct fault_latency_thread thread;

	/* a batch at a time: to delete the key that the walk stands on would start it anew */
	do {
		const __u32 *at = NULL;

		n = 0;
		while (n < sizeof stale / sizeof *stale &&
		       bpf_map__get_next_key(threads, at, &tid, sizeof tid) == 0) {
			at = &tid;
			if (bpf_map__lookup_elem(threads, &tid, sizeof tid, &thread, sizeof thread,
			                         0) == 0 &&
			    thread.owner.slot == slot)
				stale[n++] = tid;
		}
		for (__u32 i = 0; i < n; i++)
			bpf_map__delete_elem(threads, &stale[i], sizeof stale[i], 0);
	} while (n == sizeof stale / sizeof *stale);
}

void fault_tracer_remove(struct fault_tracer *t, int slot)
{
	__u32 key;

	if (!slot_in_use(t, slot))
		return;
	key = (__u32)t->tgids[slot];
	bpf_map__delete_elem(t->skel->maps.processes, &key, sizeof key, 0);
	t->epochs[slot] = 0;
	slot_write(t, (uint32_t)slot, 0, NULL, 0);
	threads_forget(t, (uint32_t)slot);
	__atomic_fetch_sub(&t->skel->bss->slots_in_use, 1, __ATOMIC_RELAXED);
}

static void histogram_take(struct histogram *to, const struct fault_latency_histogram *from)
{
	uint64_t count = 0;

	for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
		count += from->buckets[i];
		atomic_store_explicit(&to->buckets[i], from->buckets[i], memory_order_relaxed);
	}
	atomic_store_explicit(&to->sum, from->sum, memory_order_relaxed);
	atomic_store_explicit(&to->max, from->max, memory_order_relaxed);
	atomic_store_explicit(&to->count, count, memory_order_relaxed);
}

int fault_tracer_read(const struct fault_tracer *t, int slot, struct histogram *ret_stall,
                      struct histogram *ret_wakeup_delay,
                      struct fault_tracer_counters *ret_counters)
{
	_cleanup_free_ struct fault_latency_slot *value = NULL;
	__u32 key = (__u32)slot;
	int code;

	if (!slot_in_use(t, slot))
		return -ENOENT;
	value = malloc(sizeof *value);
	if (!value)
		return -ENOMEM;
	code = bpf_map__lookup_elem(t->skel->maps.slots, &key, sizeof key, value, sizeof *value, 0);
	if (code < 0)
		return code;
	if (ret_stall)
		histogram_take(ret_stall, &value->stall);
	if (ret_wakeup_delay)
		histogram_take(ret_wakeup_delay, &value->wakeup_delay);
	if (ret_counters)
		*ret_counters = (struct fault_tracer_counters){
			.faults = value->faults,
			.unpaired = value->unpaired,
			.lost_faults = value->lost_faults,
			.lost_events = value->lost_events,
		};
	return 0;
}

void fault_tracer_probe(struct fault_tracer_probe *ret)
{
	_cleanup_(free_tracer_p) struct fault_tracer *t = NULL;
	struct fault_tracer_config config = { .mode = FAULT_TRACER_AUTO };
	struct error err = ERROR_INIT;

	*ret = (struct fault_tracer_probe){ .source = "daemon" };
	if (fault_tracer_new(&config, &t, &err) < 0) {
		memcpy(ret->why, err.text, sizeof ret->why);
		return;
	}
	ret->source = t->source;
	memcpy(ret->why, t->why, sizeof ret->why);
}

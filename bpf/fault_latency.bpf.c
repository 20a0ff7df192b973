// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * How long threads stand still in userfaultfd.
 *
 * A fault begins and ends where handle_userfault() is entered and left (fentry, or kprobe). Where
 * neither can be had, it is the time that a thread is off its CPU with handle_userfault() on
 * its stack (sched_switch): a little less than the whole, and nothing is seen of a fault
 * that did not sleep. Either way sched_waking tells when the thread was woken.
 *
 * The loader picks one of the three pairs of programs (autoload). All of them first look at
 * slots_in_use, so that a host that traces nothing pays next to nothing.
 */
#include "bpf/kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "bpf/fault_latency.h"

/* The scheduler's frames, and the program's own, are the few above handle_userfault(). */
#define STACK_DEPTH 12
/* Where the wait queue's entry lies: in handle_userfault()'s frame, this far up at most. */
#define STACK_WORDS 96
/* Another CPU raises the maximum at the same moment: how often to try again. */
#define MAX_TRIES 4

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FAULT_LATENCY_SLOTS);
	__type(key, __u32);
	__type(value, struct fault_latency_slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FAULT_LATENCY_SLOTS);
	__type(key, __u32);
	__type(value, struct fault_latency_owner);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FAULT_LATENCY_THREADS);
	__type(key, __u32);
	__type(value, struct fault_latency_thread);
} threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

/* Set before loading. */
const volatile __u64 slow_threshold_ns = 0;
/* Addresses in the kernel's text, for sched_switch alone. */
const volatile __u64 userfault_begin = 0;
const volatile __u64 userfault_len_bytes = 0;
const volatile __u64 wake_function = 0; /* 0: addresses of faults can't be told */

/* Set while it runs. */
volatile __u32 slots_in_use = 0;

static struct fault_latency_slot *slot_of(const struct fault_latency_owner *owner)
{
	__u32 i = owner->slot;
	struct fault_latency_slot *slot = bpf_map_lookup_elem(&slots, &i);

	return slot && slot->epoch == owner->epoch ? slot : NULL;
}

static bool address_counts(const struct fault_latency_slot *slot, __u64 address)
{
	if (!slot->n_ranges || !address)
		return true;
	for (__u32 i = 0; i < FAULT_LATENCY_RANGES && i < slot->n_ranges; i++)
		if (address - slot->ranges[i].start < slot->ranges[i].len_bytes)
			return true;
	return false;
}

static void histogram_add(struct fault_latency_histogram *h, __u64 value)
{
	__u32 bucket = fault_latency_bucket(value);

	if (bucket < FAULT_LATENCY_BUCKETS)
		__sync_fetch_and_add(&h->buckets[bucket], 1);
	__sync_fetch_and_add(&h->sum, value);
	for (int i = 0; i < MAX_TRIES; i++) {
		__u64 max = h->max;

		if (value <= max || __sync_val_compare_and_swap(&h->max, max, value) == max)
			break;
	}
}

static void fault_begin(const struct fault_latency_owner *owner, struct fault_latency_slot *slot,
                        __u32 tid, __u64 address)
{
	struct fault_latency_thread thread = { .owner = *owner,
		                               .address = address,
		                               .start_ns = bpf_ktime_get_ns() };

	if (bpf_map_update_elem(&threads, &tid, &thread, BPF_ANY))
		__sync_fetch_and_add(&slot->lost_faults, 1);
}

/* The thread is seen elsewhere, so that its last fault has ended; that was missed. */
static void fault_drop(__u32 tid)
{
	struct fault_latency_thread *thread = bpf_map_lookup_elem(&threads, &tid);
	struct fault_latency_slot *slot;

	if (!thread)
		return;
	slot = slot_of(&thread->owner);
	if (slot)
		__sync_fetch_and_add(&slot->unpaired, 1);
	bpf_map_delete_elem(&threads, &tid);
}

/*
 * The thread's number in its own pid namespace: so the userfaultfd's events name it, and so does
 * the daemon's record. A VMM in a container has others than we see.
 */
static __u32 namespace_tid(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 level = BPF_CORE_READ(pid, level);
	__u64 own = (__u64)pid + bpf_core_field_offset(struct pid, numbers) +
	            (__u64)level * bpf_core_type_size(struct upid);
	int nr;

	if (!pid || bpf_probe_read_kernel(&nr, sizeof nr,
	                                  (void *)(own + bpf_core_field_offset(struct upid, nr))))
		return 0;
	return nr;
}

static void event_send(struct fault_latency_slot *slot, const struct fault_latency_thread *thread,
                       struct task_struct *task, __u32 tid, __u64 end_ns)
{
	struct fault_latency_event *event = bpf_ringbuf_reserve(&events, sizeof *event, 0);

	if (!event) {
		__sync_fetch_and_add(&slot->lost_events, 1);
		return;
	}
	event->address = thread->address;
	event->start_ns = thread->start_ns;
	event->woken_ns = thread->woken_ns;
	event->end_ns = end_ns;
	event->slot = thread->owner.slot;
	event->epoch = thread->owner.epoch;
	event->tid = tid;
	event->ns_tid = namespace_tid(task);
	bpf_probe_read_kernel(event->comm, sizeof event->comm, &task->comm);
	bpf_ringbuf_submit(event, 0);
}

static void fault_end(struct fault_latency_thread *thread, struct task_struct *task, __u32 tid)
{
	struct fault_latency_slot *slot = slot_of(&thread->owner);
	__u64 now = bpf_ktime_get_ns();

	if (slot && address_counts(slot, thread->address)) {
		__sync_fetch_and_add(&slot->faults, 1);
		histogram_add(&slot->stall, now - thread->start_ns);
		if (thread->woken_ns)
			histogram_add(&slot->wakeup_delay, now - thread->woken_ns);
		if (now - thread->start_ns >= slow_threshold_ns)
			event_send(slot, thread, task, tid, now);
	}
	bpf_map_delete_elem(&threads, &tid);
}

/*
 * The process whose memory it is, which need not be the one that faults: KVM takes some
 * faults of a vCPU to a kernel thread (asynchronous page faults).
 */
static __u32 fault_tgid(struct vm_fault *vmf)
{
	struct mm_struct *mm = BPF_CORE_READ(vmf, vma, vm_mm);

	if (bpf_core_field_exists(mm->owner)) {
		struct task_struct *owner = BPF_CORE_READ(mm, owner);

		if (owner)
			return BPF_CORE_READ(owner, tgid);
	}
	return bpf_get_current_pid_tgid() >> 32;
}

static void userfault_entered(struct vm_fault *vmf)
{
	struct fault_latency_owner *owner;
	struct fault_latency_slot *slot;
	__u64 address;
	__u32 tgid, tid;

	if (!slots_in_use)
		return;
	tgid = fault_tgid(vmf);
	owner = bpf_map_lookup_elem(&processes, &tgid);
	if (!owner)
		return;
	tid = (__u32)bpf_get_current_pid_tgid();
	fault_drop(tid);
	slot = slot_of(owner);
	address = BPF_CORE_READ(vmf, address);
	/* An attempt that may not sleep; somebody else will come and wait. */
	if (!slot || BPF_CORE_READ(vmf, flags) & FAULT_FLAG_RETRY_NOWAIT)
		return;
	if (address_counts(slot, address))
		fault_begin(owner, slot, tid, address);
}

static void userfault_left(void)
{
	struct fault_latency_thread *thread;
	__u32 tid;

	if (!slots_in_use)
		return;
	tid = (__u32)bpf_get_current_pid_tgid();
	thread = bpf_map_lookup_elem(&threads, &tid);
	if (thread)
		fault_end(thread, (struct task_struct *)bpf_get_current_task(), tid);
}

SEC("fentry/handle_userfault")
int BPF_PROG(fentry_userfault, struct vm_fault *vmf)
{
	userfault_entered(vmf);
	return 0;
}

SEC("fexit/handle_userfault")
int BPF_PROG(fexit_userfault)
{
	userfault_left();
	return 0;
}

SEC("kprobe/handle_userfault")
int BPF_KPROBE(kprobe_userfault, struct vm_fault *vmf)
{
	userfault_entered(vmf);
	return 0;
}

SEC("kretprobe/handle_userfault")
int BPF_KRETPROBE(kretprobe_userfault)
{
	userfault_left();
	return 0;
}

static bool in_handle_userfault(void *ctx)
{
	__u64 ips[STACK_DEPTH];
	long n = bpf_get_stack(ctx, ips, sizeof ips, 0) / (long)sizeof *ips;

	for (int i = 0; i < STACK_DEPTH; i++) {
		if (i >= n)
			break;
		if (ips[i] - userfault_begin < userfault_len_bytes)
			return true;
	}
	return false;
}

/*
 * On the CPU that is about to leave @task; its stack is the one we run on. Who runs here next
 * waits for us, the daemon's answer to this very fault perhaps: so whether it is a fault is looked
 * at when the thread comes back, where its stack tells.
 */
static void task_left(void *ctx, struct task_struct *task, bool sleeps)
{
	struct fault_latency_owner *owner;
	struct fault_latency_slot *slot;
	__u32 tgid = task->tgid;

	owner = bpf_map_lookup_elem(&processes, &tgid);
	if (!owner)
		return;
	fault_drop(task->pid);
	slot = slot_of(owner);
	if (slot && sleeps && (wake_function || in_handle_userfault(ctx)))
		fault_begin(owner, slot, task->pid, 0);
}

struct stack_words {
	__u64 words[STACK_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct stack_words);
} scratch SEC(".maps");

/*
 * The address is in no argument of sched_switch, but near the top of the stack of the thread that
 * sleeps: in the entry that handle_userfault() has put into the wait queue, to be known by
 * two pointers side by side, the thread and the function that wakes it. Return: 0 where the thread
 * does not sleep there.
 */
static __u64 sleeper_address(struct task_struct *task)
{
	const __u32 private = bpf_core_field_offset(struct userfaultfd_wait_queue, wq.private);
	struct userfaultfd_wait_queue *entry;
	unsigned long sp = task->thread.sp;
	struct stack_words *stack;
	bool inside = false;
	__u32 zero = 0;

	stack = bpf_map_lookup_elem(&scratch, &zero);
	if (!wake_function || !stack || bpf_probe_read_kernel(stack, sizeof *stack, (void *)sp))
		return 0;
	for (__u32 i = 0; i < STACK_WORDS - 1; i++) {
		/* Where the sleep returns to, below the entry. */
		inside |= stack->words[i] - userfault_begin < userfault_len_bytes;
		if (!inside || stack->words[i + 1] != wake_function ||
		    stack->words[i] != (__u64)task)
			continue;
		entry = (void *)(sp + i * sizeof(__u64) - private);
		return BPF_CORE_READ(entry, msg.arg.pagefault.address);
	}
	return 0;
}

static void task_came(struct task_struct *task)
{
	__u32 tid = task->pid;
	struct fault_latency_thread *thread = bpf_map_lookup_elem(&threads, &tid);

	if (!thread)
		return;
	thread->address = sleeper_address(task);
	if (thread->address || !wake_function)
		fault_end(thread, task, tid);
	else
		bpf_map_delete_elem(&threads, &tid);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	if (!slots_in_use)
		return 0;
	/* Not one that ends: it never comes back. */
	task_left(ctx, prev, !preempt && prev->__state & TASK_NORMAL);
	task_came(next);
	return 0;
}

SEC("tp_btf/sched_waking")
int BPF_PROG(sched_waking, struct task_struct *task)
{
	struct fault_latency_thread *thread;
	__u32 tid;

	if (!slots_in_use)
		return 0;
	tid = task->pid;
	thread = bpf_map_lookup_elem(&threads, &tid);
	if (thread && !thread->woken_ns)
		thread->woken_ns = bpf_ktime_get_ns();
	return 0;
}

/* A thread that was killed while it stood in a fault. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	if (slots_in_use)
		fault_drop(task->pid);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";

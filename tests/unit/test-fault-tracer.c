/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault tracer on real faults: threads touch memory that is registered with userfaultfd, a
 * handler answers after a known time. In each way that this kernel allows; which ways it
 * must allow, the environment may say (POSTCOPYD_EXPECT_TRACER, a list of names).
 *
 * A switch-in may be missed now and then, so that no count of faults is expected exactly.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"
#include "telemetry/fault_tracer.h"
#include "util/clock.h"
#include "util/kernel_abi.h"

#include <linux/types.h>
#include "bpf/fault_latency.h"

#define PAGES 128u
#define PAGE_BYTES 4096u
#define TIMEOUT_MS 20000
#define EVENTS_MAX 512u
#define NOTHING_TO_TRACE_WITH 77
#define VCPU_NAME "test-vcpu"

/* Memory, and who answers its faults. */
struct vmm {
	uint8_t *memory;
	int uffd;
	int stop;    /* eventfd: the handler ends */
	int taken;   /* eventfd: counts the events that were read */
	int release; /* eventfd: with @hold, one answer for each count */
	bool hold;
	uint64_t delay_ns;     /* before each answer, else */
	_Atomic uint32_t ptid; /* whom the last event named */
	pthread_t handler;
};

/* A thread that touches pages, and what it saw of the time. */
struct vcpu {
	const struct vmm *vmm;
	unsigned int first, n;
	pid_t tid;
	uint64_t before_ns[PAGES], after_ns[PAGES];
	pthread_t thread;
};

struct events {
	unsigned int n;
	struct fault_tracer_event list[EVENTS_MAX];
};

static struct vmm vmm;
static struct vcpu vcpu;
static struct events events;

static void take_event(void *arg, const struct fault_tracer_event *event)
{
	struct events *e = arg;

	if (e->n < EVENTS_MAX)
		e->list[e->n] = *event;
	e->n++;
}

static void wait_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	assert_int_equal(poll(&p, 1, TIMEOUT_MS), 1);
}

static void count_up(int fd)
{
	if (eventfd_write(fd, 1) < 0)
		abort();
}

static void answer(const struct vmm *v, uint64_t address)
{
	struct uffdio_zeropage zero = { .range = { .start = address & ~(uint64_t)(PAGE_BYTES - 1),
		                                   .len = PAGE_BYTES } };
	eventfd_t one;

	if (v->hold && eventfd_read(v->release, &one) < 0)
		abort();
	if (v->delay_ns) {
		struct timespec t = { .tv_nsec = (long)v->delay_ns };

		nanosleep(&t, NULL);
	}
	ioctl(v->uffd, UFFDIO_ZEROPAGE, &zero);
}

static void *handler_main(void *arg)
{
	struct vmm *v = arg;
	struct pollfd fds[] = { { .fd = v->uffd, .events = POLLIN },
		                { .fd = v->stop, .events = POLLIN } };
	struct uffd_msg msg;

	while (!fds[1].revents) {
		/* EINTR: a change of user goes by a signal to each thread */
		if (poll(fds, 2, -1) < 0 || read(v->uffd, &msg, sizeof msg) != sizeof msg)
			continue;
		v->ptid = msg.arg.pagefault.feat.ptid;
		count_up(v->taken);
		answer(v, msg.arg.pagefault.address);
	}
	return NULL;
}

/* Return: false where there is no userfaultfd; why is printed then. */
static bool vmm_init(struct vmm *v, bool hold, uint64_t delay_ns)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_THREAD_ID };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	*v = (struct vmm){ .hold = hold, .delay_ns = delay_ns };
	v->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (v->uffd < 0 || ioctl(v->uffd, UFFDIO_API, &api) < 0) {
		printf("no userfaultfd: %s\n", strerror(errno));
		return false;
	}
	v->memory = mmap(NULL, (size_t)PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
	                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(v->memory, MAP_FAILED);
	range.range.start = (uintptr_t)v->memory;
	range.range.len = (uint64_t)PAGES * PAGE_BYTES;
	assert_int_equal(ioctl(v->uffd, UFFDIO_REGISTER, &range), 0);
	v->stop = eventfd(0, EFD_CLOEXEC);
	v->taken = eventfd(0, EFD_CLOEXEC);
	v->release = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
	assert_int_equal(pthread_create(&v->handler, NULL, handler_main, v), 0);
	return true;
}

static void vmm_deinit(struct vmm *v)
{
	count_up(v->stop);
	count_up(v->release);
	pthread_join(v->handler, NULL);
	close(v->uffd);
	munmap(v->memory, (size_t)PAGES * PAGE_BYTES);
	close(v->stop);
	close(v->taken);
	close(v->release);
}

static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;

	prctl(PR_SET_NAME, VCPU_NAME);
	c->tid = (pid_t)syscall(SYS_gettid);
	for (unsigned int i = c->first; i < c->first + c->n; i++) {
		const volatile uint8_t *page = c->vmm->memory + (size_t)i * PAGE_BYTES;

		c->before_ns[i] = clock_now_ns();
		(void)*page;
		c->after_ns[i] = clock_now_ns();
	}
	return NULL;
}

static void vcpu_start(struct vcpu *c, const struct vmm *v, unsigned int first, unsigned int n)
{
	*c = (struct vcpu){ .vmm = v, .first = first, .n = n };
	assert_int_equal(pthread_create(&c->thread, NULL, vcpu_main, c), 0);
}

static void touch(struct vcpu *c, const struct vmm *v, unsigned int first, unsigned int n)
{
	vcpu_start(c, v, first, n);
	pthread_join(c->thread, NULL);
}

static bool expected(const char *name)
{
	const char *list = getenv("POSTCOPYD_EXPECT_TRACER");

	return list && strstr(list, name);
}

/* Return: NULL where this host can't trace that way; why is printed then. */
static struct fault_tracer *tracer_open(enum fault_tracer_mode mode, const char *name,
                                        uint64_t threshold_ns, uint32_t ring_bytes)
{
	struct fault_tracer_config config = { .mode = mode,
		                              .slow_threshold_ns = threshold_ns,
		                              .ring_bytes = ring_bytes,
		                              .event = take_event,
		                              .arg = &events };
	struct error err = ERROR_INIT;
	struct fault_tracer *t = NULL;

	events.n = 0;
	if (fault_tracer_new(&config, &t, &err) < 0)
		fail_msg("%s", err.text);
	if (strcmp(fault_tracer_source(t), "daemon") != 0)
		return t;
	printf("nothing to trace with here: %s\n", fault_tracer_why(t));
	if (expected(name))
		fail_msg("this host was expected to have %s", name);
	return fault_tracer_free(t);
}

static struct fault_tracer *tracer_open_auto(uint64_t threshold_ns, uint32_t ring_bytes)
{
	return tracer_open(FAULT_TRACER_AUTO, "auto", threshold_ns, ring_bytes);
}

static int trace(struct fault_tracer *t, pid_t tgid, const struct fault_tracer_range *ranges,
                 size_t n)
{
	struct error err = ERROR_INIT;
	int slot = -1;

	if (fault_tracer_add(t, tgid, ranges, n, &slot, &err) < 0)
		fail_msg("%s", err.text);
	return slot;
}

static struct fault_tracer_counters counters(struct fault_tracer *t, int slot)
{
	struct fault_tracer_counters c;

	assert_int_equal(fault_tracer_read(t, slot, NULL, NULL, &c), 0);
	return c;
}

/* By tracepoint any sleep may have been one, so that nothing is known of faults alone. */
static uint64_t unpaired_faults(const struct fault_tracer *t, const struct fault_tracer_counters *c)
{
	return strcmp(fault_tracer_source(t), "tracepoint") != 0 ? c->unpaired : 0;
}

static void check_event(const struct fault_tracer_event *e, int slot, uint64_t delay_ns)
{
	unsigned int page = (unsigned int)((e->address - (uintptr_t)vmm.memory) / PAGE_BYTES);

	assert_int_equal(e->slot, slot);
	assert_int_equal(e->tid, vcpu.tid);
	assert_int_equal(e->ns_tid, vmm.ptid);
	assert_string_equal(e->comm, VCPU_NAME);
	assert_true(page < PAGES);
	assert_true(e->start_ns >= vcpu.before_ns[page]);
	assert_true(e->end_ns <= vcpu.after_ns[page]);
	/* In sched_switch the clock begins when the thread leaves its CPU, which the event does not
	 * wait for; the delay is long against that. */
	assert_true(e->end_ns - e->start_ns >= delay_ns / 2);
	assert_true(e->woken_ns > e->start_ns && e->woken_ns <= e->end_ns);
}

/* What the kernel saw lies within what the thread saw, and takes in the handler's delay. */
static void check_stall(enum fault_tracer_mode mode, const char *name)
{
	const uint64_t delay_ns = 5 * NSEC_PER_MSEC;
	static struct histogram stall, wakeup_delay;
	struct fault_tracer *t = tracer_open(mode, name, 0, 0);
	struct fault_tracer_counters c;
	uint64_t longest = 0;
	int slot;

	if (!t || !vmm_init(&vmm, false, delay_ns)) {
		fault_tracer_free(t);
		skip();
	}
	if (mode != FAULT_TRACER_AUTO)
		assert_string_equal(fault_tracer_source(t), name);
	slot = trace(t, getpid(), NULL, 0);
	touch(&vcpu, &vmm, 0, 16);
	wait_readable(fault_tracer_fd(t));
	assert_true(fault_tracer_poll(t) > 0);
	for (unsigned int i = 0; i < events.n; i++) {
		check_event(&events.list[i], slot, delay_ns);
		if (events.list[i].end_ns - events.list[i].start_ns > longest)
			longest = events.list[i].end_ns - events.list[i].start_ns;
	}
	assert_int_equal(fault_tracer_read(t, slot, &stall, &wakeup_delay, &c), 0);
	assert_in_range(c.faults, 8, 16);
	assert_int_equal(c.faults, events.n);
	assert_true(c.faults + unpaired_faults(t, &c) <= 16);
	assert_int_equal(stall.count, c.faults);
	assert_int_equal(wakeup_delay.count, c.faults);
	assert_true(histogram_quantile(&stall, 1000) == longest);
	assert_true(histogram_quantile(&stall, 0) >= delay_ns / 2);
	assert_true(histogram_quantile(&wakeup_delay, 1000) < longest);
	vmm_deinit(&vmm);
	fault_tracer_free(t);
}

static void test_stall_by_fentry(void **state)
{
	(void)state;
	check_stall(FAULT_TRACER_FENTRY, "fentry");
}

static void test_stall_by_kprobe(void **state)
{
	(void)state;
	check_stall(FAULT_TRACER_KPROBE, "kprobe");
}

static void test_stall_by_tracepoint(void **state)
{
	(void)state;
	check_stall(FAULT_TRACER_TRACEPOINT, "tracepoint");
}

/* A VMM in a container: its vCPU faults when it is told to. Says whom the event named. */
static _Noreturn void be_contained_vmm(int go, int told)
{
	uint32_t ptid;
	struct vmm v;
	struct vcpu c;
	char byte;

	if (!vmm_init(&v, false, 5 * NSEC_PER_MSEC) || read(go, &byte, 1) != 1)
		_exit(1);
	/* A switch-in may be missed now and then. */
	touch(&c, &v, 0, 16);
	ptid = v.ptid;
	if (write(told, &ptid, sizeof ptid) != sizeof ptid || write(told, &c.tid, sizeof c.tid) < 0)
		_exit(1);
	(void)!read(go, &byte, 1);
	_exit(0);
}

/*
 * userfaultfd names threads as their own pid namespace counts them: the stalls of a VMM in a
 * container found no record of the daemon's, and had no phases.
 */
static void test_thread_in_a_pid_namespace_is_named_as_userfaultfd_does(void **state)
{
	struct fault_tracer *t = tracer_open_auto(0, 0);
	uint32_t ptid;
	int go[2], told[2];
	pid_t child, tid;

	(void)state;
	if (!t)
		skip();
	assert_true(!pipe(go) && !pipe(told));
	child = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		close(go[1]);
		be_contained_vmm(go[0], told[1]);
	}
	close(told[1]);
	if (child < 0) {
		print_message("skipped: no pid namespace: %s\n", strerror(errno));
		fault_tracer_free(t);
		skip();
	}
	trace(t, child, NULL, 0);
	assert_int_equal(write(go[1], "", 1), 1);
	assert_int_equal(read(told[0], &ptid, sizeof ptid), sizeof ptid);
	assert_int_equal(read(told[0], &tid, sizeof tid), sizeof tid);
	assert_int_equal(ptid, tid);
	wait_readable(fault_tracer_fd(t));
	assert_true(fault_tracer_poll(t) > 0);
	for (unsigned int i = 0; i < events.n; i++) {
		assert_int_equal(events.list[i].ns_tid, ptid);
		assert_int_not_equal(events.list[i].tid, ptid);
	}
	close(go[1]);
	assert_int_equal(waitpid(child, NULL, 0), child);
	close(go[0]);
	close(told[0]);
	fault_tracer_free(t);
}

static void test_best_way_is_taken_and_says_why_none_is_better(void **state)
{
	struct fault_tracer *t = tracer_open_auto(0, 0);
	struct fault_tracer_probe probe;

	(void)state;
	if (!t)
		skip();
	printf("source %s\n%s\n", fault_tracer_source(t), fault_tracer_why(t));
	fault_tracer_probe(&probe);
	assert_string_equal(probe.source, fault_tracer_source(t));
	assert_string_equal(probe.why, fault_tracer_why(t));
	assert_int_equal(!strcmp(probe.source, "fentry"), probe.why[0] == '\0');
	assert_null(strchr(probe.why, '\n'));
	fault_tracer_free(t);
}

static void test_only_slow_faults_send_events(void **state)
{
	struct fault_tracer *t = tracer_open_auto(NSEC_PER_SEC, 0);
	int slot;

	(void)state;
	if (!t || !vmm_init(&vmm, false, 0)) {
		fault_tracer_free(t);
		skip();
	}
	slot = trace(t, getpid(), NULL, 0);
	touch(&vcpu, &vmm, 0, 32);
	assert_int_equal(fault_tracer_poll(t), 0);
	assert_true(counters(t, slot).faults > 0);
	assert_int_equal(counters(t, slot).lost_events, 0);
	vmm_deinit(&vmm);
	fault_tracer_free(t);
}

static void test_only_faults_in_the_ranges_count(void **state)
{
	struct fault_tracer *t = tracer_open_auto(0, 0);
	struct fault_tracer_range ranges[2];
	int slot;

	(void)state;
	if (!t || !vmm_init(&vmm, false, 0)) {
		fault_tracer_free(t);
		skip();
	}
	for (unsigned int i = 0; i < 2; i++)
		ranges[i] = (struct fault_tracer_range){
			.start = (uintptr_t)vmm.memory + (uint64_t)(32 + 32 * i) * PAGE_BYTES,
			.len_bytes = (uint64_t)16 * PAGE_BYTES,
		};
	slot = trace(t, getpid(), ranges, 2);
	touch(&vcpu, &vmm, 0, PAGES);
	fault_tracer_poll(t);
	assert_in_range(events.n, 1, 32);
	for (unsigned int i = 0; i < events.n; i++) {
		uint64_t page = (events.list[i].address - ranges[0].start) / PAGE_BYTES;

		assert_true(page < 16 || (page >= 32 && page < 48));
	}
	assert_int_equal(counters(t, slot).faults, events.n);
	vmm_deinit(&vmm);
	fault_tracer_free(t);
}

static void test_full_ring_buffer_is_counted(void **state)
{
	struct fault_tracer *t = tracer_open_auto(0, PAGE_BYTES);
	struct fault_tracer_counters c;
	int slot;

	(void)state;
	if (!t || !vmm_init(&vmm, false, 0)) {
		fault_tracer_free(t);
		skip();
	}
	slot = trace(t, getpid(), NULL, 0);
	touch(&vcpu, &vmm, 0, PAGES);
	c = counters(t, slot);
	fault_tracer_poll(t);
	assert_true(events.n > 0);
	assert_true(c.lost_events > 0);
	assert_int_equal(c.lost_events + events.n, c.faults);
	vmm_deinit(&vmm);
	fault_tracer_free(t);
}

/* A slot is given back and taken anew while a fault of its first VMM goes on. */
static void test_slot_that_is_taken_anew_knows_nothing_of_the_old_vmm(void **state)
{
	struct fault_tracer *t = tracer_open_auto(0, 0);
	struct fault_tracer_counters c;
	int slot;

	(void)state;
	if (!t || !vmm_init(&vmm, true, 0)) {
		fault_tracer_free(t);
		skip();
	}
	slot = trace(t, getpid(), NULL, 0);
	vcpu_start(&vcpu, &vmm, 0, 1);
	wait_readable(vmm.taken);
	fault_tracer_remove(t, slot);
	assert_int_equal(fault_tracer_read(t, slot, NULL, NULL, &c), -ENOENT);
	assert_int_equal(trace(t, getppid(), NULL, 0), slot);
	count_up(vmm.release);
	pthread_join(vcpu.thread, NULL);
	fault_tracer_poll(t);
	c = counters(t, slot);
	assert_int_equal(c.faults + unpaired_faults(t, &c) + events.n, 0);
	vmm_deinit(&vmm);
	fault_tracer_free(t);
}

/* In a child: a VMM with its handler, which touches @n pages when it is told to. */
static int child_run(int go, int said, bool hold, unsigned int n)
{
	char byte = 'r';

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!vmm_init(&vmm, hold, 0) || write(said, &byte, 1) != 1 || read(go, &byte, 1) != 1)
		return 1;
	vcpu_start(&vcpu, &vmm, 0, n);
	if (hold)
		wait_readable(vmm.taken);
	else
		pthread_join(vcpu.thread, NULL);
	if (write(said, &byte, 1) != 1)
		return 1;
	/* until the parent has looked, and kills it */
	return read(go, &byte, 1) != 1;
}

struct child {
	pid_t pid;
	int go, said; /* ours */
};

static void child_start(struct child *c, bool hold, unsigned int n)
{
	int go[2], said[2];

	assert_int_equal(pipe2(go, O_CLOEXEC), 0);
	assert_int_equal(pipe2(said, O_CLOEXEC), 0);
	c->pid = fork();
	assert_true(c->pid >= 0);
	if (!c->pid) {
		close(go[1]);
		close(said[0]);
		_exit(child_run(go[0], said[1], hold, n));
	}
	close(go[0]);
	close(said[1]);
	c->go = go[1];
	c->said = said[0];
}

static void child_heard(const struct child *c)
{
	char byte;

	wait_readable(c->said);
	assert_int_equal(read(c->said, &byte, 1), 1);
}

static void child_go(const struct child *c)
{
	assert_int_equal(write(c->go, "g", 1), 1);
}

/* By force, which is also quick: under TSan an exit takes a second. */
static void child_end(struct child *c)
{
	kill(c->pid, SIGKILL);
	close(c->go);
	close(c->said);
	assert_int_equal(waitpid(c->pid, NULL, 0), c->pid);
}

static void test_vmm_that_dies_in_a_fault_leaves_nothing(void **state)
{
	struct fault_tracer *t = tracer_open_auto(0, 0);
	struct fault_tracer_counters c;
	struct child child;
	int slot;

	(void)state;
	if (!t)
		skip();
	for (unsigned int i = 0; i < 8; i++) {
		child_start(&child, true, 1);
		child_heard(&child);
		slot = trace(t, child.pid, NULL, 0);
		assert_int_equal(slot, 0);
		c = counters(t, slot);
		assert_int_equal(c.faults + unpaired_faults(t, &c) + c.lost_faults, 0);
		child_go(&child);
		child_heard(&child);
		child_end(&child);
		c = counters(t, slot);
		assert_true(c.faults + unpaired_faults(t, &c) <= 1);
		fault_tracer_remove(t, slot);
	}
	fault_tracer_free(t);
}

static void *end_at_once(void *arg)
{
	return arg;
}

static void test_threads_that_end_take_no_room(void **state)
{
	struct fault_tracer *t = tracer_open_auto(0, 0);
	struct fault_tracer_counters c;
	int slot;

	(void)state;
	if (!t || !vmm_init(&vmm, false, NSEC_PER_MSEC)) {
		fault_tracer_free(t);
		skip();
	}
	slot = trace(t, getpid(), NULL, 0);
	for (unsigned int i = 0; i < FAULT_LATENCY_THREADS + 100; i++) {
		pthread_t thread;

		assert_int_equal(pthread_create(&thread, NULL, end_at_once, NULL), 0);
		pthread_join(thread, NULL);
	}
	touch(&vcpu, &vmm, 0, 16);
	c = counters(t, slot);
	assert_in_range(c.faults, 8, 16);
	assert_int_equal(c.lost_faults, 0);
	vmm_deinit(&vmm);
	fault_tracer_free(t);
}

static void trace_as_many_as_can_be(struct fault_tracer *t)
{
	struct child children[FAULT_TRACER_SLOTS];
	struct error err = ERROR_INIT;
	int slot;

	for (int i = 0; i < FAULT_TRACER_SLOTS; i++) {
		child_start(&children[i], false, 16);
		child_heard(&children[i]);
		assert_int_equal(trace(t, children[i].pid, NULL, 0), i);
	}
	assert_int_equal(fault_tracer_add(t, getpid(), NULL, 0, &slot, &err), -ENOSPC);
	for (int i = 0; i < FAULT_TRACER_SLOTS; i++)
		child_go(&children[i]);
	for (int i = 0; i < FAULT_TRACER_SLOTS; i++) {
		struct fault_tracer_counters c;

		child_heard(&children[i]);
		c = counters(t, i);
		assert_in_range(c.faults, 1, 16);
		assert_int_equal(c.lost_faults, 0);
		child_end(&children[i]);
		fault_tracer_remove(t, i);
	}
}

static void test_all_slots_at_once_and_again(void **state)
{
	struct fault_tracer *t = tracer_open_auto(0, 0);

	(void)state;
	if (!t)
		skip();
	trace_as_many_as_can_be(t);
	trace_as_many_as_can_be(t);
	fault_tracer_free(t);
}

static void test_wrong_calls_are_refused(void **state)
{
	struct fault_tracer_range range = { .start = PAGE_BYTES, .len_bytes = PAGE_BYTES };
	struct fault_tracer_config config = { .ring_bytes = PAGE_BYTES + 1 };
	struct fault_tracer *t = tracer_open_auto(0, 0), *none = NULL;
	struct error err = ERROR_INIT;
	int slot = -1;

	(void)state;
	if (!t)
		skip();
	assert_int_equal(fault_tracer_new(&config, &none, &err), -EINVAL);
	assert_int_equal(
	        fault_tracer_add(t, getpid(), &range, FAULT_TRACER_RANGES_MAX + 1, &slot, &err),
	        -EINVAL);
	slot = trace(t, getpid(), &range, 1);
	assert_int_equal(fault_tracer_add(t, getpid(), &range, 1, &slot, &err), -EEXIST);
	assert_int_equal(fault_tracer_read(t, slot + 1, NULL, NULL, NULL), -ENOENT);
	assert_int_equal(fault_tracer_read(t, FAULT_TRACER_SLOTS, NULL, NULL, NULL), -ENOENT);
	fault_tracer_remove(t, -1);
	fault_tracer_remove(t, slot);
	fault_tracer_remove(t, slot);
	fault_tracer_free(t);
}

static void check_that_it_is_the_daemon(struct fault_tracer *t)
{
	struct error err = ERROR_INIT;
	int slot = -1;

	assert_string_equal(fault_tracer_source(t), "daemon");
	assert_true(fault_tracer_why(t)[0]);
	assert_int_equal(fault_tracer_fd(t), -1);
	assert_int_equal(fault_tracer_poll(t), 0);
	assert_int_equal(fault_tracer_add(t, getpid(), NULL, 0, &slot, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, fault_tracer_why(t)));
	assert_int_equal(slot, -1);
	assert_int_equal(fault_tracer_read(t, slot, NULL, NULL, NULL), -ENOENT);
	fault_tracer_remove(t, slot);
}

static void test_tracer_that_is_off_is_one_all_the_same(void **state)
{
	struct fault_tracer_config config = { .mode = FAULT_TRACER_OFF };
	struct fault_tracer *t;

	(void)state;
	assert_int_equal(fault_tracer_new(&config, &t, NULL), 0);
	check_that_it_is_the_daemon(t);
	assert_null(fault_tracer_free(t));
	assert_null(fault_tracer_free(NULL));
}

/* What a daemon without capabilities gets. */
static void test_tracer_without_the_right_to_trace_works_on(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0) {
		printf("not root: has no rights to give up\n");
		skip();
	}
	pid = fork();
	if (!pid) {
		struct fault_tracer_config config = { .mode = FAULT_TRACER_AUTO };
		struct fault_tracer *t;

		if (setresuid(65534, 65534, 65534) < 0 || fault_tracer_new(&config, &t, NULL) < 0)
			_exit(2);
		if (strcmp(fault_tracer_source(t), "daemon") != 0)
			_exit(3);
		printf("%s\n", fault_tracer_why(t));
		fflush(stdout);
		_exit(fault_tracer_why(t)[0] ? 0 : 4);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* Return: an exit status. */
static int child_trace_itself_as_nobody(void)
{
	struct fault_tracer *t = tracer_open_auto(0, 0);
	struct fault_tracer_counters c = { 0 };
	struct error err = ERROR_INIT;
	int slot;

	if (!t || !vmm_init(&vmm, false, 0))
		return NOTHING_TO_TRACE_WITH;
	if (setresuid(65534, 65534, 65534) < 0)
		return 1;
	if (fault_tracer_add(t, getpid(), NULL, 0, &slot, &err) < 0) {
		printf("%s\n", err.text);
		return 1;
	}
	touch(&vcpu, &vmm, 0, 16);
	fault_tracer_poll(t);
	if (fault_tracer_read(t, slot, NULL, NULL, &c) < 0 || !c.faults || c.faults != events.n)
		return 1;
	fault_tracer_remove(t, slot);
	fault_tracer_free(t);
	return 0;
}

static void test_rights_are_needed_at_the_start_only(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0) {
		printf("not root: has no rights to give up\n");
		skip();
	}
	pid = fork();
	if (!pid) {
		status = child_trace_itself_as_nobody();
		fflush(stdout);
		_exit(status);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == NOTHING_TO_TRACE_WITH)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_bucket_is_that_of_the_histogram(void **state)
{
	uint64_t seed = 1;

	(void)state;
	for (unsigned int shift = 0; shift < 64; shift++) {
		uint64_t power = (uint64_t)1 << shift;

		assert_int_equal(fault_latency_bucket(power - 1), histogram_bucket(power - 1));
		assert_int_equal(fault_latency_bucket(power), histogram_bucket(power));
	}
	for (unsigned int i = 0; i < 100000; i++) {
		uint64_t value = random_next(&seed) >> (random_next(&seed) % 64);

		assert_int_equal(fault_latency_bucket(value), histogram_bucket(value));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bucket_is_that_of_the_histogram),
		cmocka_unit_test(test_thread_in_a_pid_namespace_is_named_as_userfaultfd_does),
		cmocka_unit_test(test_best_way_is_taken_and_says_why_none_is_better),
		cmocka_unit_test(test_stall_by_fentry),
		cmocka_unit_test(test_stall_by_kprobe),
		cmocka_unit_test(test_stall_by_tracepoint),
		cmocka_unit_test(test_only_slow_faults_send_events),
		cmocka_unit_test(test_only_faults_in_the_ranges_count),
		cmocka_unit_test(test_full_ring_buffer_is_counted),
		cmocka_unit_test(test_slot_that_is_taken_anew_knows_nothing_of_the_old_vmm),
		cmocka_unit_test(test_vmm_that_dies_in_a_fault_leaves_nothing),
		cmocka_unit_test(test_threads_that_end_take_no_room),
		cmocka_unit_test(test_all_slots_at_once_and_again),
		cmocka_unit_test(test_wrong_calls_are_refused),
		cmocka_unit_test(test_tracer_that_is_off_is_one_all_the_same),
		cmocka_unit_test(test_rights_are_needed_at_the_start_only),
		cmocka_unit_test(test_tracer_without_the_right_to_trace_works_on),
	};

	return cmocka_run_group_tests_name("fault-tracer", tests, NULL, NULL);
}

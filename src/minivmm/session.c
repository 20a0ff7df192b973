/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "minivmm/dirty.h"
#include "minivmm/fail.h"
#include "minivmm/image.h"
#include "minivmm/pv_clock.h"
#include "minivmm/report.h"
#include "minivmm/userfault.h"

#define PRIVATE_BYTES (2ull << 20)

static int catch_signals(int *ret_fd, struct postcopy_error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL); /* before the vCPU threads, which inherit it */
	signal(SIGPIPE, SIG_IGN);
	*ret_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (*ret_fd < 0)
		return fail_errno(err, -errno, "can't create a signalfd");
	return 0;
}

/* A region above the guest's memory, of its kind. It is only ever talked about. */
static int add_private(struct session *s, struct postcopy_error *err)
{
	const struct memory *m = &s->vm.memory;
	uint64_t size = m->page_size > PRIVATE_BYTES ? m->page_size : PRIVATE_BYTES;
	int rc = memory_new(m->kind, size, m->page_size, false, s->vm.vm_fd, &s->private_memory,
	                    err);

	s->private_memory.guest_phys_addr = m->size;
	s->private_memory.flags = POSTCOPY_REGION_PRIVATE;
	return rc;
}

int session_init(struct session *s, const struct options *o, struct postcopy_error *err)
{
	int rc;

	*s = (struct session){
		.options = *o,
		.boot = { .memory_bytes = o->memory_bytes,
		          .seed = o->seed,
		          .workload = (uint32_t)o->workload,
		          .write_percent = (uint32_t)o->write_percent,
		          .zero_percent = (uint32_t)o->zero_percent,
		          .vcpus = (uint32_t)o->vcpus },
		.signal_fd = -1,
	};
	image_layout(&s->boot);
	rc = catch_signals(&s->signal_fd, err);
	if (!rc)
		rc = vm_open(&s->vm, err);
	if (!rc)
		rc = memory_new((enum postcopy_memory)o->backend, o->memory_bytes, o->page_size,
		                o->no_direct_map, s->vm.vm_fd, &s->vm.memory, err);
	if (!rc)
		rc = o->bound ? userfault_add_memory(&s->vm, o->role == ROLE_DESTINATION, err)
		              : vm_add_memory(&s->vm, err);
	if (!rc && o->role == ROLE_SOURCE)
		rc = dirty_prepare(&s->vm, (enum dirty_log)o->dirty_log, err);
	if (!rc && o->private_region)
		rc = add_private(s, err);
	return rc;
}

size_t session_regions(const struct session *s, struct postcopy_region ret[2])
{
	ret[0] = memory_region(&s->vm.memory);
	if (!s->options.private_region)
		return 1;
	ret[1] = memory_region(&s->private_memory);
	return 2;
}

static int load_initial(struct vm *vm, struct postcopy_error *err)
{
	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		struct vcpu_state state;
		int rc = vcpu_initial_state(&vm->vcpus[i], &state, err);

		if (!rc)
			rc = vcpu_load(&vm->vcpus[i], &state, err);
		if (rc)
			return rc;
	}
	return 0;
}

int session_start_clocks(struct session *s, struct postcopy_error *err)
{
	int rc = 0;

	for (unsigned int i = 0; !rc && s->options.pv_clock && i < s->vm.n_vcpus; i++)
		rc = pv_clock_start(&s->vm.vcpus[i], err);
	return rc;
}

int session_start_guest(struct session *s, struct postcopy_error *err)
{
	struct vm_status status = { 0 };
	int rc;

	rc = vm_add_vcpus(&s->vm, s->boot.vcpus, err);
	if (rc)
		return rc;
	s->boot.think_ticks = s->options.think_us * s->vm.tsc_khz / 1000;
	image_load(&s->vm.memory, &s->boot);
	rc = load_initial(&s->vm, err);
	if (s->options.pv_clock)
		pv_clock_mark(&s->vm, s->boot.seed);
	if (!rc)
		rc = session_start_clocks(s, err);
	if (!rc)
		rc = vm_run(&s->vm, err);
	while (!rc && status.ready < s->vm.n_vcpus) {
		struct wake wake;

		rc = session_wait(s, SESSION_FOREVER, &wake, err);
		if (!rc && wake.stop)
			rc = fail(err, -EINTR, "ended while the guest was starting");
		if (!rc)
			rc = vm_status(&s->vm, &status, err);
	}
	return rc;
}

uint64_t session_now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int timeout_of(uint64_t deadline_ms)
{
	uint64_t now = session_now_ms();

	if (deadline_ms == SESSION_FOREVER)
		return -1;
	if (deadline_ms <= now)
		return 0;
	return deadline_ms - now < INT32_MAX ? (int)(deadline_ms - now) : INT32_MAX;
}

int session_wait(struct session *s, uint64_t deadline_ms, struct wake *ret,
                 struct postcopy_error *err)
{
	bool listen = s->postcopy && !s->daemon_gone;
	struct pollfd fds[] = {
		{ .fd = s->signal_fd, .events = POLLIN },
		{ .fd = s->vm.event_fd, .events = POLLIN },
		{ .fd = listen ? postcopy_fd(s->postcopy) : -1, .events = POLLIN },
	};
	struct signalfd_siginfo info;
	struct vm_status status;
	eventfd_t told;
	int n;

	do
		n = poll(fds, sizeof fds / sizeof *fds, timeout_of(deadline_ms));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return fail_errno(err, -errno, "poll");
	*ret = (struct wake){ .timeout = n == 0, .daemon = fds[2].revents };
	if (fds[0].revents)
		ret->stop = read(s->signal_fd, &info, sizeof info) == sizeof info;
	if (fds[1].revents)
		eventfd_read(s->vm.event_fd, &told);
	return vm_status(&s->vm, &status, err);
}

int session_follow_progress(struct session *s, unsigned int phase, struct postcopy_error *err)
{
	if (!s->options.progress)
		return 0;
	return progress_start(&s->progress, s->options.progress, s->options.progress_ms, &s->vm,
	                      phase, err);
}

int session_report(struct session *s, const char *event, const char *reason,
                   struct postcopy_error *err)
{
	return session_report_at(s, event, report_now_us(), reason, err);
}

int session_report_at(struct session *s, const char *event, uint64_t at_us, const char *reason,
                      struct postcopy_error *err)
{
	return report_event((int)s->options.status_fd, event, at_us, reason, err);
}

void session_detach(struct session *s)
{
	s->postcopy = postcopy_detach(s->postcopy);
}

int session_verify(struct session *s, struct postcopy_error *err)
{
	struct vm_status status = { 0 };
	int rc = 0;

	vm_stop_workload(&s->vm);
	while (!rc && status.done < s->vm.n_vcpus) {
		struct wake wake;

		/* Another SIGTERM asks for nothing new: this ends by itself. */
		rc = session_wait(s, SESSION_FOREVER, &wake, err);
		if (!rc)
			rc = vm_status(&s->vm, &status, err);
	}
	return rc;
}

int session_finish(struct session *s, const char *role, unsigned int phase, uint64_t bad,
                   uint64_t first_bad, struct postcopy_error *err)
{
	struct result result;
	uint64_t image_first = GUEST_NO_PAGE, image_bad;
	uint64_t clock_first = GUEST_NO_PAGE, clock_bad = 0;
	int rc;

	result_collect(&s->vm, phase, &result);
	result.role = role;
	result.fetched = s->fetched;
	result.prefaulted = s->prefaulted;
	result.touched = s->touched;
	image_bad = image_check(&s->vm.memory, &s->boot, &image_first);
	result_add_bad(&result, image_bad, image_first);
	if (s->options.pv_clock)
		clock_bad = pv_clock_check(&s->vm, s->boot.seed, &clock_first);
	result_add_bad(&result, clock_bad, clock_first);
	result_add_bad(&result, bad, first_bad);
	if (result.pages_checked != s->boot.data_pages)
		return fail(err, -EIO, "the guest has checked %llu of its %llu pages",
		            (unsigned long long)result.pages_checked,
		            (unsigned long long)s->boot.data_pages);
	rc = report_result((int)s->options.status_fd, &result, err);
	if (!rc && result.pages_bad)
		rc = fail(err, -EIO, "%llu of the guest's pages are bad, the first is frame %llu",
		          (unsigned long long)result.pages_bad,
		          (unsigned long long)result.first_bad);
	return rc;
}

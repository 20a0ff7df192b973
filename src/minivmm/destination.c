/* SPDX-License-Identifier: Apache-2.0 */
/* The destination: empty memory, a guest that comes into it. */
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "minivmm/fail.h"
#include "minivmm/fetch.h"
#include "minivmm/image.h"
#include "minivmm/report.h"
#include "minivmm/session.h"
#include "minivmm/spare.h"
#include "minivmm/userfault.h"
#include "minivmm/vmstate.h"

struct destination {
	struct session *session;
	struct vmstate state;
	struct postcopy_channel *channel; /* to fetch ahead; NULL where nothing is */
	struct spare spare;
	bool running;
	bool complete;
};

/*
 * Attach first, then make the vCPUs: nothing may touch guest memory that is not yet
 * registered, and the vCPUs are ready before the downtime begins.
 */
static int prepare(struct destination *dst, struct postcopy_error *err)
{
	struct session *s = dst->session;
	struct postcopy_region regions[2];
	size_t n = session_regions(s, regions);
	int rc = postcopy_destination_attach(s->options.socket, s->options.id, regions, n,
	                                     &s->postcopy, err);

	if (!rc)
		rc = vm_add_vcpus(&s->vm, s->boot.vcpus, err);
	for (unsigned int i = 0; !rc && s->options.bound && i < s->vm.n_vcpus; i++)
		rc = postcopy_channel_open(s->postcopy, &s->vm.vcpus[i].channel, err);
	if (!rc && s->options.fetch_pages)
		rc = postcopy_channel_open(s->postcopy, &dst->channel, err);
	if (!rc)
		rc = session_report(s, "attached", NULL, err);
	return rc;
}

static int decode(const struct postcopy_event *event, struct vmstate *ret,
                  struct postcopy_error *err)
{
	size_t len = event->vmstate_len;
	void *data = mmap(NULL, len, PROT_READ, MAP_PRIVATE, event->vmstate_fd, 0);
	int rc;

	if (data == MAP_FAILED)
		return fail_errno(err, -errno, "can't map a vmstate of %zu bytes", len);
	rc = vmstate_decode(data, len, ret, err);
	munmap(data, len);
	return rc;
}

static int check_shape(const struct session *s, const struct vmstate *state,
                       struct postcopy_error *err)
{
	if (state->boot.vcpus != s->vm.n_vcpus)
		return fail(err, -EINVAL, "the guest has %u vCPUs, but --vcpus is %u",
		            state->boot.vcpus, s->vm.n_vcpus);
	if (state->boot.memory_bytes != s->vm.memory.size)
		return fail(err, -EINVAL,
		            "the guest has %llu bytes of memory, but --memory is %llu",
		            (unsigned long long)state->boot.memory_bytes,
		            (unsigned long long)s->vm.memory.size);
	return 0;
}

static int load(struct destination *dst, const struct postcopy_event *event,
                struct postcopy_error *err)
{
	struct session *s = dst->session;
	int rc = decode(event, &dst->state, err);

	if (!rc)
		rc = check_shape(s, &dst->state, err);
	for (unsigned int i = 0; !rc && i < s->vm.n_vcpus; i++)
		rc = vcpu_load(&s->vm.vcpus[i], &dst->state.vcpus[i], err);
	if (rc)
		return rc;
	s->boot = dst->state.boot;
	spare_take(&dst->spare, &s->vm.memory, dst->state.spare);
	return session_start_clocks(s, err);
}

static int name_range(struct session *s, struct image_range r, struct postcopy_error *err)
{
	return postcopy_destination_hot(s->postcopy, r.start, r.len, err);
}

/* What the vCPUs touch before anything else, and with everything. */
static int name_hot(struct session *s, struct postcopy_error *err)
{
	struct image_range needed[IMAGE_NEEDED_MAX];
	unsigned int n = image_needed(&s->boot, needed);
	int rc = 0;

	for (unsigned int i = 0; !rc && i < n; i++)
		rc = name_range(s, needed[i], err);
	return rc ? rc : name_range(s, image_generations(&s->boot), err);
}

static int resume(struct destination *dst, const struct postcopy_event *event,
                  struct postcopy_error *err)
{
	struct session *s = dst->session;
	uint64_t resumed_us;
	int rc = load(dst, event, err);

	close(event->vmstate_fd);
	if (!rc && s->options.hot)
		rc = name_hot(s, err);
	if (!rc && dst->channel)
		rc = fetch_ahead(s, dst->channel, err);
	dst->channel = postcopy_channel_close(dst->channel);
	if (rc) { /* no vCPU has run: the source may go on */
		postcopy_destination_load_failed(s->postcopy, err->text, NULL);
		return rc;
	}
	rc = postcopy_destination_loaded(s->postcopy, err);
	dst->running = !rc;
	if (!rc)
		rc = vm_run(&s->vm, err);
	resumed_us = report_now_us();
	if (!rc)
		rc = postcopy_destination_resumed(s->postcopy, err);
	if (!rc)
		rc = session_follow_progress(s, 1, err);
	if (!rc && s->options.discard)
		rc = spare_start(&dst->spare, &s->vm.memory, s->postcopy, s->options.seed, err);
	if (!rc)
		rc = session_report_at(s, "resumed", resumed_us, NULL, err);
	return rc;
}

/*
 * Pages are missing and nobody brings them. The attachment stays, for with it absent
 * pages block their reader; without it they would read as zeroes.
 */
static int daemon_gone(struct destination *dst, const char *reason, struct postcopy_error *err)
{
	dst->session->daemon_gone = true;
	return session_report(dst->session, "daemon-gone", reason, err);
}

/* What a VMM with private memory would set up; this one only tells of it. */
static int report_attributes(struct session *s, const struct postcopy_event *event,
                             struct postcopy_error *err)
{
	char text[POSTCOPY_REGIONS_MAX * 3 + 1];
	size_t len = 0;

	for (uint32_t i = 0; i < event->n_regions; i++)
		len += (size_t)snprintf(text + len, sizeof text - len, "%s%x", i ? " " : "",
		                        event->region_flags[i] & 0xffu);
	return session_report(s, "attributes", text, err);
}

static int handle_event(struct destination *dst, struct postcopy_error *err)
{
	struct session *s = dst->session;
	struct postcopy_error why;
	struct postcopy_event event;
	int rc = postcopy_next_event(s->postcopy, 0, &event, &why);

	if (rc == -EPIPE || (rc && dst->running))
		return daemon_gone(dst, why.text, err);
	if (rc) /* the guest has not run here, so it is not lost */
		return fail(err, rc, "%.300s", why.text);
	switch (event.type) {
	case POSTCOPY_EVENT_VMSTATE:
		rc = resume(dst, &event, err);
		return rc == -EPIPE ? daemon_gone(dst, err->text, err) : rc;
	case POSTCOPY_EVENT_COMPLETE:
		dst->complete = true;
		s->touched = image_touched(&s->vm.memory, s->vm.n_vcpus);
		rc = userfault_all_present(&s->vm, err);
		if (!rc)
			rc = spare_stop(&dst->spare, err);
		session_detach(s);
		return rc ? rc : session_report(s, "complete", NULL, err);
	case POSTCOPY_EVENT_FAILED:
		return fail(err, -ECANCELED, "the migration failed: %.200s", event.reason);
	case POSTCOPY_EVENT_ATTRIBUTES:
		return report_attributes(s, &event, err);
	case POSTCOPY_EVENT_NONE:
	case POSTCOPY_EVENT_PAUSE:
	case POSTCOPY_EVENT_RESUME:
	case POSTCOPY_EVENT_DIRTY_LOG_START:
	case POSTCOPY_EVENT_DIRTY:
	case POSTCOPY_EVENT_DIRTY_LOG_STOP:
	case POSTCOPY_EVENT_VMSTATE_AHEAD: /* its vmstate is small */
		break;
	}
	return 0;
}

/* The control blocks came as the source left them at the pause, not as they were before. */
static uint64_t check_control_blocks(const struct destination *dst, uint64_t *ret_first)
{
	uint64_t bad = 0;

	for (unsigned int i = 0; i < dst->session->vm.n_vcpus; i++) {
		const struct guest_vcpu *v = image_vcpu(&dst->session->vm.memory, i);

		if (v->phase == 1 && v->digest_at_pause == dst->state.digests[i])
			continue;
		if (!bad++)
			*ret_first = (GUEST_VCPU + i * GUEST_VCPU_STRIDE) / GUEST_PAGE_BYTES;
	}
	return bad;
}

static int finish(struct destination *dst, struct postcopy_error *err)
{
	struct session *s = dst->session;
	uint64_t deadline_ms = session_now_ms() + s->options.run_after_complete_ms;
	uint64_t bad, spare_bad, first_bad = GUEST_NO_PAGE;
	struct wake wake = { 0 };
	int rc = 0;

	while (!rc && !wake.timeout && !wake.stop)
		rc = session_wait(s, deadline_ms, &wake, err);
	if (!rc)
		rc = session_verify(s, err);
	if (rc)
		return rc;
	bad = check_control_blocks(dst, &first_bad);
	spare_bad = spare_check(&dst->spare, &first_bad);
	return session_finish(s, "destination", 1, bad + spare_bad, first_bad, err);
}

int destination_run(struct session *s, struct postcopy_error *err)
{
	struct destination dst = { .session = s };
	int rc = prepare(&dst, err);

	while (!rc && !dst.complete) {
		struct wake wake;

		rc = session_wait(s, SESSION_FOREVER, &wake, err);
		if (!rc && wake.stop)
			rc = fail(err, -EINTR, "ended before all of the guest's memory was here");
		if (!rc && wake.daemon)
			rc = handle_event(&dst, err);
	}
	return rc ? rc : finish(&dst, err);
}

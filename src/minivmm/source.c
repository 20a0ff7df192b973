/* SPDX-License-Identifier: Apache-2.0 */
/* The source: a running guest that is handed over when the daemon asks for it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "minivmm/dirty.h"
#include "minivmm/fail.h"
#include "minivmm/image.h"
#include "minivmm/report.h"
#include "minivmm/session.h"
#include "minivmm/spare.h"
#include "minivmm/vmstate.h"

struct source {
	struct session *session;
	struct spare spare;
	bool logging;     /* KVM logs what the guest writes */
	bool handed_over; /* the guest may run at the destination: not here */
	bool complete;
};

/* Discards of private memory are seen by the kernel, of shared memory by nobody. */
static uint32_t writers_of(const struct session *s)
{
	return s->options.discard && s->vm.memory.kind != POSTCOPY_MEMORY_ANONYMOUS
	               ? POSTCOPY_WRITER_DISCARD
	               : 0;
}

/* What the guest writes while it runs: who tells it. That nobody can is no failure. */
static int offer_dirty_log(struct session *s, struct postcopy_error *err)
{
	struct postcopy_error why;
	int rc = 0;

	switch ((enum dirty_log)s->options.dirty_log) {
	case DIRTY_LOG_NONE:
		return postcopy_source_refuse_dirty_log(s->postcopy,
		                                        "minivmm runs with --dirty-log none", err);
	case DIRTY_LOG_WP:
		rc = postcopy_source_offer_write_protection(s->postcopy, -1, writers_of(s), &why);
		return rc ? session_report(s, "no-dirty-log", why.text, err) : 0;
	case DIRTY_LOG_KVM:
	case DIRTY_LOG_RING:
		break;
	}
	if (s->options.bound)
		return postcopy_source_refuse_dirty_log(
		        s->postcopy,
		        "KVM has no dirty log of a memslot that is bound to guest_memfd", err);
	return postcopy_source_offer_dirty_log(s->postcopy, err);
}

static int source_attach(struct session *s, struct postcopy_error *err)
{
	struct postcopy_region regions[2];
	size_t n = session_regions(s, regions);
	int rc = postcopy_source_attach(s->options.socket, s->options.id, regions, n, &s->postcopy,
	                                err);

	return rc ? rc : offer_dirty_log(s, err);
}

static int harvest(struct source *src, bool runs_on, struct postcopy_error *err)
{
	size_t words;
	uint64_t *bitmap = postcopy_source_dirty_bitmap(src->session->postcopy, 0, &words);

	spare_report(&src->spare, bitmap);
	return dirty_harvest(&src->session->vm, runs_on, bitmap, words, err);
}

/* The first and each further time that the daemon asks. */
static int report_dirty(struct source *src, bool start, struct postcopy_error *err)
{
	struct session *s = src->session;
	struct postcopy_error why;
	int rc = start && !src->logging ? dirty_start(&s->vm, &why) : 0;

	if (!rc && start)
		src->logging = true;
	if (!rc)
		rc = harvest(src, true, &why);
	rc = rc ? postcopy_source_dirty_failed(s->postcopy, why.text, &why)
	        : postcopy_source_dirty_reported(s->postcopy, &why);
	/* Whoever is gone is noticed by its next event. */
	if (rc && rc != -EPIPE)
		return fail(err, rc, "%.300s", why.text);
	return start ? session_report(s, "logging", NULL, err) : 0;
}

static int stop_logging(struct source *src, struct postcopy_error *err)
{
	if (!src->logging)
		return 0;
	src->logging = false;
	if (dirty_stop(&src->session->vm, err))
		return err->code;
	return session_report(src->session, "logging-off", NULL, err);
}

/*
 * Of a guest that is stopped: also what was written by us, into its control blocks, and not by it.
 * The log stays on, for switching it off takes long: who runs on does that.
 */
static int report_last(struct source *src, struct postcopy_error *err)
{
	struct session *s = src->session;
	size_t words;
	uint64_t *bitmap = postcopy_source_dirty_bitmap(s->postcopy, 0, &words);
	int rc = harvest(src, false, err);

	for (unsigned int i = 0; !rc && i < s->vm.n_vcpus; i++)
		for (uint64_t at = 0; at < GUEST_VCPU_STRIDE; at += GUEST_PAGE_BYTES)
			dirty_mark(bitmap, GUEST_VCPU + i * GUEST_VCPU_STRIDE + at);
	return rc ? rc : postcopy_source_dirty_reported(s->postcopy, err);
}

/* Only while the vCPUs are parked. */
static void set_phase(struct session *s, uint32_t phase)
{
	for (unsigned int i = 0; i < s->vm.n_vcpus; i++) {
		struct guest_vcpu *v = image_vcpu(&s->vm.memory, i);

		v->phase = phase;
		v->digest_at_pause = v->digest;
	}
}

static int save(const struct source *src, void **ret_data, uint64_t *ret_len,
                struct postcopy_error *err)
{
	struct session *s = src->session;
	struct vmstate state = { .boot = s->boot, .pad_bytes = s->options.vmstate_pad_bytes };

	memcpy(state.spare, src->spare.states, sizeof state.spare);
	for (unsigned int i = 0; i < s->vm.n_vcpus; i++) {
		int rc = vcpu_save(&s->vm.vcpus[i], &state.vcpus[i], err);

		if (rc)
			return rc;
		state.digests[i] = image_vcpu(&s->vm.memory, i)->digest_at_pause;
	}
	return vmstate_encode(&state, ret_data, ret_len, err);
}

/* The VMM works, too, while its guest does. */
static int discard(struct source *src, struct postcopy_error *err)
{
	struct session *s = src->session;

	if (!s->options.discard || src->spare.running)
		return 0;
	return spare_start(&src->spare, &s->vm.memory, NULL, s->options.seed, err);
}

static int run_on(struct source *src, const char *reason, struct postcopy_error *err)
{
	int rc;

	src->handed_over = false;
	set_phase(src->session, 0);
	rc = stop_logging(src, err);
	if (!rc)
		rc = vm_run(&src->session->vm, err);
	if (!rc)
		rc = discard(src, err);
	if (!rc)
		rc = session_report(src->session, "running-on", reason, err);
	return rc;
}

/*
 * Nothing more comes from the daemon. The guest is where it was: it runs on, unless it
 * is handed over; then its memory stays as it is until SIGTERM, for it may be the last copy.
 */
static int part_from_daemon(struct source *src, const char *event, const char *reason,
                            struct postcopy_error *err)
{
	int rc = stop_logging(src, err);

	if (rc)
		return rc;
	src->session->daemon_gone = true;
	if (!src->handed_over)
		session_detach(src->session);
	return session_report(src->session, event, reason, err);
}

static int pause(struct source *src, struct postcopy_error *err)
{
	struct session *s = src->session;
	struct postcopy_error why = { 0 };
	uint64_t len, paused_us;
	void *data = NULL;
	int rc;

	rc = vm_pause(&s->vm, err);
	if (!rc)
		rc = spare_stop(&src->spare, err);
	if (rc)
		return rc;
	paused_us = report_now_us();
	set_phase(s, 1);
	rc = src->logging ? report_last(src, &why) : 0;
	if (!rc)
		rc = save(src, &data, &len, &why);
	if (!rc)
		rc = spare_lose(&s->vm.memory, s->options.lose_pages, &why);
	if (rc) {
		postcopy_source_pause_failed(s->postcopy, why.text, NULL);
		return run_on(src, why.text, err);
	}
	rc = postcopy_source_paused(s->postcopy, data, len, &why);
	free(data);
	if (rc) { /* it was not taken, so nobody else can run the guest */
		rc = part_from_daemon(src, "daemon-gone", why.text, err);
		return rc ? rc : run_on(src, why.text, err);
	}
	src->handed_over = true;
	return session_report_at(s, "paused", paused_us, NULL, err);
}

static int handle_event(struct source *src, struct postcopy_error *err)
{
	struct session *s = src->session;
	struct postcopy_error why;
	struct postcopy_event event;

	if (postcopy_next_event(s->postcopy, 0, &event, &why))
		return part_from_daemon(src, "daemon-gone", why.text, err);
	switch (event.type) {
	case POSTCOPY_EVENT_PAUSE:
		return pause(src, err);
	case POSTCOPY_EVENT_RESUME:
		return run_on(src, event.reason, err);
	case POSTCOPY_EVENT_COMPLETE:
		src->complete = true;
		return session_report(s, "complete", NULL, err);
	case POSTCOPY_EVENT_FAILED:
		return part_from_daemon(src, "failed", event.reason, err);
	case POSTCOPY_EVENT_DIRTY_LOG_START:
	case POSTCOPY_EVENT_DIRTY:
		return report_dirty(src, event.type == POSTCOPY_EVENT_DIRTY_LOG_START, err);
	case POSTCOPY_EVENT_DIRTY_LOG_STOP:
		return stop_logging(src, err);
	case POSTCOPY_EVENT_NONE:
	case POSTCOPY_EVENT_VMSTATE:
	case POSTCOPY_EVENT_VMSTATE_AHEAD:
	case POSTCOPY_EVENT_ATTRIBUTES:
		break;
	}
	return 0;
}

static int stopped(struct source *src, struct postcopy_error *err)
{
	uint64_t bad, first_bad = GUEST_NO_PAGE;
	int rc;

	if (src->handed_over)
		return fail(err, -EINTR, "ended with the guest handed over, but not yet complete");
	rc = session_verify(src->session, err);
	if (!rc)
		rc = spare_stop(&src->spare, err);
	if (rc)
		return rc;
	bad = spare_check(&src->spare, &first_bad);
	return session_finish(src->session, "source", 0, bad, first_bad, err);
}

int source_run(struct session *s, struct postcopy_error *err)
{
	struct source src = { .session = s };
	int rc = session_start_guest(s, err);

	if (!rc)
		rc = session_follow_progress(s, 0, err);
	if (!rc)
		rc = discard(&src, err);
	if (!rc)
		rc = session_report(s, "ready", NULL, err);
	if (!rc)
		rc = source_attach(s, err);
	if (!rc)
		rc = session_report(s, "attached", NULL, err);
	while (!rc && !src.complete) {
		struct wake wake;

		rc = session_wait(s, SESSION_FOREVER, &wake, err);
		if (!rc && wake.stop)
			return stopped(&src, err);
		if (!rc && wake.daemon)
			rc = handle_event(&src, err);
	}
	return rc;
}

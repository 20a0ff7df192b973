/* SPDX-License-Identifier: Apache-2.0 */
/* The source: a running guest that is handed over when the daemon asks for it. */
#include <errno.h>
#include <stdlib.h>

#include "minivmm/fail.h"
#include "minivmm/image.h"
#include "minivmm/session.h"
#include "minivmm/spare.h"
#include "minivmm/vmstate.h"

struct source {
	struct session *session;
	bool handed_over; /* the guest may run at the destination: not here */
	bool complete;
};

static int source_attach(struct session *s, struct postcopy_error *err)
{
	struct postcopy_region regions[2];
	size_t n = session_regions(s, regions);

	return postcopy_source_attach(s->options.socket, s->options.id, regions, n, &s->postcopy,
	                              err);
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

static int save(struct session *s, void **ret_data, uint64_t *ret_len, struct postcopy_error *err)
{
	struct vmstate state = { .boot = s->boot, .pad_bytes = s->options.vmstate_pad_bytes };

	for (unsigned int i = 0; i < s->vm.n_vcpus; i++) {
		int rc = vcpu_save(&s->vm.vcpus[i], &state.vcpus[i], err);

		if (rc)
			return rc;
		state.digests[i] = image_vcpu(&s->vm.memory, i)->digest_at_pause;
	}
	return vmstate_encode(&state, ret_data, ret_len, err);
}

static int run_on(struct source *src, const char *reason, struct postcopy_error *err)
{
	int rc;

	src->handed_over = false;
	set_phase(src->session, 0);
	rc = vm_run(&src->session->vm, err);
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
	src->session->daemon_gone = true;
	if (!src->handed_over)
		session_detach(src->session);
	return session_report(src->session, event, reason, err);
}

static int pause(struct source *src, struct postcopy_error *err)
{
	struct session *s = src->session;
	struct postcopy_error why = { 0 };
	void *data = NULL;
	uint64_t len;
	int rc;

	rc = vm_pause(&s->vm, err);
	if (rc)
		return rc;
	set_phase(s, 1);
	rc = save(s, &data, &len, &why);
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
	return session_report(s, "paused", NULL, err);
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
	case POSTCOPY_EVENT_NONE:
	case POSTCOPY_EVENT_VMSTATE:
	case POSTCOPY_EVENT_ATTRIBUTES:
		break;
	}
	return 0;
}

static int stopped(struct source *src, struct postcopy_error *err)
{
	int rc;

	if (src->handed_over)
		return fail(err, -EINTR, "ended with the guest handed over, but not yet complete");
	rc = session_verify(src->session, err);
	if (rc)
		return rc;
	return session_finish(src->session, "source", 0, 0, GUEST_NO_PAGE, err);
}

int source_run(struct session *s, struct postcopy_error *err)
{
	struct source src = { .session = s };
	int rc = session_start_guest(s, err);

	if (!rc)
		rc = session_follow_progress(s, 0, err);
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

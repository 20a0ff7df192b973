/* SPDX-License-Identifier: Apache-2.0 */
/*
 * minivmm: a small virtual machine monitor, as an example of libpostcopy and as the
 * guest of postcopyd's tests and benchmark.
 *
 *   options  the command line           vm, vcpu   KVM, threads, pausing
 *   memory   guest memory's backends    vmstate    what moves beside the memory
 *   image    what lies in guest memory  source, destination   libpostcopy's two sides
 *   report   the status lines              progress   what the guest gets done, over time
 *   dirty    what the guest writes while it runs
 *   fetch    asking for pages           userfault  vCPU faults as KVM exits
 *   spare    memory that the guest does not use: discarded, or lost
 *   pv_clock memory that KVM itself writes
 *   guest/   the code that runs in the guest; guest/abi.h says how they talk
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "minivmm/options.h"
#include "minivmm/session.h"

#define EXIT_HOST_CANT 2

/* Without a migration: to see that the guest works here, and that it finds its pages right. */
static int alone_run(struct session *s, struct postcopy_error *err)
{
	struct wake wake = { 0 };
	uint64_t deadline_ms;
	int rc = session_start_guest(s, err);

	if (!rc)
		rc = session_follow_progress(s, 0, err);
	if (!rc)
		rc = session_report(s, "ready", NULL, err);
	deadline_ms = session_now_ms() + s->options.duration_ms;
	while (!rc && !wake.timeout && !wake.stop)
		rc = session_wait(s, deadline_ms, &wake, err);
	if (!rc)
		rc = session_verify(s, err);
	return rc ? rc : session_finish(s, "alone", 0, 0, GUEST_NO_PAGE, err);
}

static int run_role(struct session *s, struct postcopy_error *err)
{
	switch (s->options.role) {
	case ROLE_SOURCE:
		return source_run(s, err);
	case ROLE_DESTINATION:
		return destination_run(s, err);
	default:
		return alone_run(s, err);
	}
}

static int run(const struct options *options, struct postcopy_error *err)
{
	static struct session session;
	int rc = session_init(&session, options, err);

	if (!rc)
		rc = run_role(&session, err);
	/* After a failure pages may be missing for good, and who looks at the guest waits for them.
	 */
	return rc ? rc : progress_stop(&session.progress, err);
}

int main(int argc, char **argv)
{
	struct options options;
	struct postcopy_error err = { 0 };
	int rc = options_parse(argc, argv, &options, &err);

	if (rc > 0)
		return EXIT_SUCCESS;
	if (!rc)
		rc = run(&options, &err);
	if (!rc)
		return EXIT_SUCCESS;
	fprintf(stderr, "minivmm: %s\n", err.text);
	return rc == -EOPNOTSUPP ? EXIT_HOST_CANT : EXIT_FAILURE;
}

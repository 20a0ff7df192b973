/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postcopy-qemu: speaks for a QEMU that knows nothing of postcopyd.
 *
 *   options   the command line            qmp       QEMU's monitor
 *   session   QEMU and the daemon         qemu      what is asked of QEMU
 *   source    a guest that goes           ramblock, mapping, blocks   its memory
 *   destination  a guest that comes       inject, userfault   the userfaultfd in QEMU
 *   check     reasons against
 *
 * On the public header alone: it needs nothing of the daemon but its VMM socket.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "adapter/command_line.h"
#include "qemu/check.h"
#include "qemu/destination.h"
#include "qemu/qemu.h"
#include "qemu/source.h"
#include "util/log.h"
#include "util/thread.h"

/* As what it stands there for. */
static int run_check(struct session *s, struct error *err)
{
	static struct check check;
	struct qemu_state state;
	int rc = qemu_state(s->qmp, &state, err);

	if (!rc)
		rc = check_run(s, state.status != QEMU_INCOMING, &check, err);
	if (rc)
		return rc;
	check_print(s, &check, stdout);
	blocks_close(&check.blocks);
	return check.n_reasons ? -EOPNOTSUPP : 0;
}

static int run(struct session *s, struct error *err)
{
	switch (s->options->command) {
	case COMMAND_CHECK:
		return run_check(s, err);
	case COMMAND_SOURCE:
		return source_run(s, err);
	case COMMAND_DESTINATION:
		return destination_run(s, err);
	}
	return 0;
}

/* Told once, in the way that is read: a check has said all. */
static int report(struct session *s, int rc, struct error *err)
{
	const char *id = s->options->id;

	if (!rc)
		return EXIT_SUCCESS;
	if (rc == -ECONNRESET && s->pidfd >= 0 && session_has_ended(s, true))
		rc = error_set(err, -ESRCH, "QEMU (pid %d) has ended", (int)s->pid);
	if (rc == -EINTR) {
		log_migration_info(id, "told to end: the migration goes on; start it again for its "
		                       "end");
		return EXIT_SUCCESS;
	}
	if (err->code)
		log_migration_error(id, "%s", err->text);
	/* QEMU lives, but does not answer; or a failure of ours. */
	return session_is_lost(rc) || rc == -ENOMEM ? EXIT_AGAIN : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	struct error err = ERROR_INIT;
	struct options options;
	struct session session;
	int rc = options_parse(argc, argv, &options, &err), status;

	if (rc > 0)
		return EXIT_SUCCESS;
	if (rc) {
		fprintf(stderr, "postcopy-qemu: %s\n", err.text);
		return EXIT_ARGUMENTS;
	}
	log_init("postcopy-qemu", LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
	/* While a guest stands still it waits for this; the guests beside it can wait. */
	thread_prefer_promptness();
	rc = session_open(&session, &options, &err);
	if (!rc)
		rc = run(&session, &err);
	status = report(&session, rc, &err);
	session_close(&session);
	return status;
}

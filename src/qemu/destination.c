/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/destination.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>

#include "qemu/check.h"
#include "qemu/qemu.h"
#include "qemu/userfault.h"
#include "util/cleanup.h"
#include "util/log.h"

/* What an unprivileged user may have: most of a vmstate. */
#define PIPE_BYTES (1 << 20)

struct destination {
	struct session *session;
	bool is_new;    /* this process has attached: nothing was begun before */
	bool may_run;   /* LOADED has been said */
	bool is_here;   /* all of it */
	bool as_before; /* QEMU's settings have been put back */
	int pipe;       /* QEMU expects the vmstate from its other end; -1: not yet, or no more */
};

static const char *id_of(const struct destination *d)
{
	return d->session->options->id;
}

/* All that QEMU takes of it: whether that is enough it says itself. */
static int pass_on(int vmstate, int pipe, uint64_t len, struct error *err)
{
	off_t at = 0;

	while ((uint64_t)at < len) {
		ssize_t n = splice(vmstate, &at, pipe, NULL, len - (uint64_t)at, 0);

		if (n < 0 && errno == EPIPE)
			return 0;
		if (n == 0 || (n < 0 && errno != EINTR))
			return error_errno(err, n ? -errno : -EIO, "can't read the vmstate");
	}
	return 0;
}

static int expect(struct destination *d, struct error *err)
{
	_cleanup_close_ int from = -1, to = -1;
	int ends[2], rc;

	if (pipe2(ends, O_CLOEXEC))
		return error_errno(err, -errno, "can't make a pipe");
	from = ends[0];
	to = ends[1];
	(void)fcntl(to, F_SETPIPE_SZ, PIPE_BYTES);
	rc = qemu_expect(d->session->qmp, from, err);
	if (!rc)
		d->pipe = steal_fd(&to);
	return rc;
}

/*
 * Where the kernel lets a pipe be so large QEMU has all of it before it begins; else it has to wait
 * for us, and ends where we do: before LOADED, so that the guest runs on at the source.
 */
static int begin_load(struct destination *d, int vmstate, uint64_t len, struct error *err)
{
	/* The process before this one may have been killed before QEMU had all. */
	int rc = d->pipe < 0 ? expect(d, err) : 0, size;
	bool fits;

	if (rc)
		return rc;
	size = fcntl(d->pipe, F_GETPIPE_SZ);
	fits = size > 0 && len <= (uint64_t)size;
	if (!fits)
		fits = len <= INT32_MAX && fcntl(d->pipe, F_SETPIPE_SZ, (int)len) >= (int)len;
	if (fits)
		rc = pass_on(vmstate, d->pipe, len, err);
	if (fits)
		close_fd(&d->pipe);
	if (!rc)
		rc = qemu_begin_load(d->session->qmp, err);
	if (!rc && !fits)
		rc = pass_on(vmstate, d->pipe, len, err);
	close_fd(&d->pipe);
	return rc;
}

/* Begun by this process or the one before; ended when it returns 0. */
static int await_load(struct destination *d, int vmstate, uint64_t len, struct error *err)
{
	enum qemu_migration migration = QEMU_MIGRATION_NONE;
	struct qmp *q = d->session->qmp;
	char why[QEMU_WHY_BYTES];
	int rc = d->is_new ? 0 : qemu_migration(q, &migration, why, err);

	if (!rc && migration == QEMU_MIGRATION_NONE)
		rc = begin_load(d, vmstate, len, err);
	d->is_new = false;
	if (!rc)
		rc = qemu_await_migration(q, &migration, why, err);
	if (!rc && migration != QEMU_MIGRATION_COMPLETED)
		rc = error_set(err, -EIO, "%s", why);
	return rc;
}

/* No vCPU of it has run, and none will. */
static void quit(struct destination *d)
{
	(void)qmp_tell(d->session->qmp, "quit", NULL);
}

/*
 * As soon as the guest runs, though QEMU has better use of its main thread: a save of QEMU's own
 * would leave its RAM out. And in any case at the end.
 */
static void put_back(struct destination *d)
{
	if (d->as_before)
		return;
	qemu_restore(d->session->qmp, &d->session->settings);
	d->as_before = true;
}

/* After LOADED. */
static int run_guest(struct destination *d, struct error *err)
{
	struct qmp *q = d->session->qmp;
	struct postcopy_error why = { 0 };
	struct error refused = ERROR_INIT;
	/* Nothing happens where it runs. */
	int rc = qmp_tell(q, "cont", &refused);

	if (rc == -EREMOTEIO) {
		rc = postcopy_destination_could_not_run(d->session->postcopy, refused.text, &why);
		if (!rc)
			quit(d);
		return rc ? daemon_error(rc, &why, err)
		          : error_set(err, -ECANCELED, "%s", refused.text);
	}
	if (rc)
		return error_set(err, rc, "%s", refused.text);
	rc = postcopy_destination_resumed(d->session->postcopy, &why);
	put_back(d);
	if (!rc)
		log_migration_info(id_of(d), "the guest runs here");
	return daemon_error(rc, &why, err);
}

static int load(struct destination *d, const struct postcopy_event *event, struct error *err)
{
	struct postcopy *p = d->session->postcopy;
	struct postcopy_error why = { 0 };
	struct error failed = ERROR_INIT;
	int rc = await_load(d, event->vmstate_fd, event->vmstate_len, &failed);

	if (session_is_lost(rc))
		return error_set(err, rc, "%s", failed.text);
	if (rc) {
		/* First: once it has said so the source's guest may run. */
		quit(d);
		(void)postcopy_destination_load_failed(p, failed.text, NULL);
		return error_set(err, -ECANCELED, "QEMU can't load the guest: %s", failed.text);
	}
	rc = postcopy_destination_loaded(p, &why);
	if (rc)
		return daemon_error(rc, &why, err);
	d->may_run = true;
	return run_guest(d, err);
}

/* What was loaded, and did not run, is of no use to anybody; what has run is the operator's. */
static int give_up(struct destination *d, const char *reason, struct error *err)
{
	struct qmp *q = d->session->qmp;
	enum qemu_migration migration;
	char why[QEMU_WHY_BYTES];

	if (!d->may_run && !qemu_migration(q, &migration, why, NULL) &&
	    migration != QEMU_MIGRATION_NONE)
		quit(d);
	return error_set(err, -ECANCELED, "the guest does not come: %s", reason);
}

static int arrive(struct destination *d)
{
	d->is_here = true;
	log_migration_info(id_of(d), "complete: all of the guest's memory is here");
	return 0;
}

static int obey(struct destination *d, const struct postcopy_event *event, struct error *err)
{
	int rc;

	switch (event->type) {
	case POSTCOPY_EVENT_VMSTATE:
		rc = load(d, event, err);
		close(event->vmstate_fd);
		return rc;
	case POSTCOPY_EVENT_COMPLETE:
		return arrive(d);
	case POSTCOPY_EVENT_FAILED:
		return give_up(d, event->reason, err);
	default: /* nothing that this has offered to do */
		return 0;
	}
}

static int hand_over(struct destination *d, const struct blocks *blocks, struct error *err)
{
	struct session *s = d->session;
	struct postcopy_region regions[POSTCOPY_REGIONS_MAX];
	size_t n = blocks_regions(blocks, regions);
	struct postcopy_error why = { 0 };
	_cleanup_close_ int uffd = -1;
	int rc = userfault_get(s, &uffd, err);

	if (rc)
		return rc;
	rc = postcopy_destination_register(s->pidfd, uffd, regions, n, &s->postcopy, &why);
	if (!rc)
		rc = postcopy_destination_attach_registered(s->postcopy, s->options->socket,
		                                            s->options->id, &why);
	return daemon_error(rc, &why, err);
}

static int attach_new(struct destination *d, struct error *err)
{
	static struct check check;
	struct session *s = d->session;
	int rc = check_run(s, false, &check, err);

	if (rc)
		return rc;
	rc = check_refuse(&check, err);
	if (!rc)
		rc = hand_over(d, &check.blocks, err);
	blocks_close(&check.blocks);
	d->is_new = !rc;
	if (!rc)
		rc = expect(d, err);
	if (!rc)
		log_migration_info(id_of(d), "attached, QEMU is process %d", (int)s->pid);
	return rc;
}

static int attach_again(struct destination *d, struct error *err)
{
	enum postcopy_standing standing;
	int rc = session_attach_again(d->session, &standing, err);

	if (rc)
		return rc;
	d->may_run = standing == POSTCOPY_STANDS_LOADED || standing == POSTCOPY_STANDS_RESUMED;
	log_migration_info(id_of(d), "attached again: the guest %s",
	                   standing == POSTCOPY_STANDS_RESUMED ? "runs here"
	                   : d->may_run                        ? "is loaded"
	                                                       : "has not come yet");
	/* Who said so may have been killed before it had put them back. */
	if (standing == POSTCOPY_STANDS_RESUMED)
		put_back(d);
	return standing == POSTCOPY_STANDS_LOADED ? run_guest(d, err) : 0;
}

/* Again first: memory that a guest may run in must never be emptied. */
static int attach(struct destination *d, struct error *err)
{
	int rc = attach_again(d, err);

	return rc == -ENOENT ? attach_new(d, err) : rc;
}

static int hear(struct destination *d, struct error *err)
{
	struct postcopy_event event;
	int rc = postcopy_next_event(d->session->postcopy, 0, &event, NULL);

	return rc ? rc : obey(d, &event, err);
}

/* The daemon is gone, and comes again. */
static bool is_daemon_gone(int rc)
{
	return rc == -EPIPE || rc == -EPROTO;
}

/* To its end, as far as this process lives; @rc of having attached. */
static int follow(struct destination *d, int rc, struct error *err)
{
	while (!d->is_here) {
		struct wake wake;

		while (is_daemon_gone(rc))
			rc = attach_again(d, err);
		if (!rc)
			rc = session_wait(d->session, -1, &wake, err);
		if (!rc && wake.daemon)
			rc = hear(d, err);
		if (rc && !is_daemon_gone(rc))
			break;
	}
	return rc;
}

int destination_run(struct session *s, struct error *err)
{
	struct destination d = { .session = s, .pipe = -1 };
	int rc;

	/* A QEMU that exits does not read the vmstate. */
	signal(SIGPIPE, SIG_IGN);
	rc = attach(&d, err);
	while (rc == -ENOENT && !(rc = session_await_prepared(s, err)))
		rc = attach(&d, err);
	if (!rc || is_daemon_gone(rc))
		rc = follow(&d, rc, err);
	close_fd(&d.pipe);
	if (!session_is_lost(rc))
		put_back(&d);
	return rc;
}

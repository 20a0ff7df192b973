/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/destination.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include "qemu/check.h"
#include "qemu/qemu.h"
#include "qemu/userfault.h"
#include "qemu/vmstate_pipe.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/pidfd.h"

/* To answer, of a QEMU that is to end: one that has loaded a part may stand in a page fault, for
 * good. */
#define END_MS 2000

struct destination {
	struct session *session;
	bool is_new;    /* this process has attached: nothing was begun before */
	bool may_run;   /* LOADED has been said */
	bool is_here;   /* all of it */
	bool as_before; /* QEMU's settings have been put back */
	int pipe;       /* QEMU expects the vmstate from its other end; -1: not yet, or no more */
	int ahead; /* what there was of it first, by now in the pipe, or some of it; -1: nothing */
	bool is_loading; /* by that, and by this process */
};

static const char *id_of(const struct destination *d)
{
	return d->session->options->id;
}

static int expect(struct destination *d, struct error *err)
{
	_cleanup_close_ int from = -1, to = -1, own = -1;
	int rc = vmstate_pipe_make(&from, &to, &own, err);

	if (!rc)
		rc = qemu_expect(d->session->qmp, from, to, err);
	if (!rc)
		d->pipe = steal_fd(&own);
	return rc;
}

static bool is_same_file(int a, int b)
{
	struct stat x, y;

	return !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/*
 * What QEMU loads while it is still being saved. It can't come to its end by that: the last byte is
 * not among it. A process that comes after one that was killed waits for all of it.
 */
static int load_ahead(struct destination *d, const struct postcopy_event *event, struct error *err)
{
	struct error refused = ERROR_INIT;
	int rc;

	if (!d->is_new || d->pipe < 0)
		return 0;
	if (d->ahead < 0)
		d->ahead = fcntl(event->vmstate_fd, F_DUPFD_CLOEXEC, 0);
	/* The daemon, or the source, has begun again: then it is seen in the end what is true. */
	if (d->ahead < 0 || !is_same_file(d->ahead, event->vmstate_fd))
		return 0;
	/* First: a QEMU that loads has some of it, and who comes after this process counts on that.
	 */
	rc = vmstate_pipe_fill(d->pipe, d->ahead, event->vmstate_len, false, err);
	if (rc || d->is_loading)
		return rc;
	rc = qemu_begin_load(d->session->qmp, &refused);
	d->is_loading = !rc;
	/* It is asked again when all is there, and its answer told. */
	return rc == -EREMOTEIO || !rc ? 0 : error_set(err, rc, "%s", refused.text);
}

/* By this process, and maybe ahead: what is in the pipe must be what it begins with. */
static int begin_load(struct destination *d, int vmstate, uint64_t len, struct error *err)
{
	uint64_t filled = d->ahead < 0 ? 0 : vmstate_pipe_filled(d->ahead);
	int rc = d->pipe < 0 ? expect(d, err) : 0;

	if (rc)
		return rc;
	if (filled > len || (filled && !vmstate_begins_alike(d->ahead, vmstate, filled)))
		return error_set(err, -EIO,
		                 "the guest was saved a second time at the source while QEMU "
		                 "loaded it here (something was killed there): try again with "
		                 "another QEMU here");
	/* The same open file has it so; of any other this is said now. */
	if (lseek(vmstate, (off_t)filled, SEEK_SET) < 0)
		return error_errno(err, -errno, "the vmstate");
	rc = vmstate_pipe_fill(d->pipe, vmstate, len, false, err);
	return rc || d->is_loading ? rc : qemu_begin_load(d->session->qmp, err);
}

/* By a process that was killed. One of a release before had put all of it into its pipe. */
static int go_on_loading(struct destination *d, int vmstate, uint64_t len, struct error *err)
{
	uint64_t filled = vmstate_pipe_filled(vmstate);
	_cleanup_close_ int pipe = -1;

	close_fd(&d->pipe);
	if (filled == len)
		return 0;
	pipe = vmstate_pipe_find(d->session->pid);
	if (pipe == -ENOENT)
		return 0;
	if (pipe < 0)
		return error_errno(err, pipe, "can't look at QEMU's descriptors");
	/* None: it has begun with another one, for it is told to load when there is some. */
	if (!filled || filled > len)
		return error_set(err, -EIO,
		                 "nobody knows any more how much of the guest QEMU has loaded: try "
		                 "again with another QEMU here");
	d->pipe = steal_fd(&pipe);
	return 0;
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
	else if (!rc && migration == QEMU_MIGRATION_ACTIVE)
		rc = go_on_loading(d, vmstate, len, err);
	d->is_new = false;
	if (!rc && d->pipe >= 0)
		rc = vmstate_pipe_fill(d->pipe, vmstate, len, true, err);
	close_fd(&d->pipe);
	if (rc)
		return rc;
	/* It is to see the end, should it want more than there is. */
	qemu_end_input(q);
	rc = qemu_await_migration(q, &migration, why, err);
	if (!rc && migration != QEMU_MIGRATION_COMPLETED)
		rc = error_set(err, -EIO, "%s", why);
	return rc;
}

/* No vCPU of it has run, and none will. @rc: of having asked it something before. */
static void quit(struct destination *d, int rc)
{
	if (rc != -ETIMEDOUT)
		rc = qmp_tell(d->session->qmp, "quit", NULL);
	if (rc == -ETIMEDOUT)
		(void)pidfd_kill(d->session->pidfd);
	/* There is nobody any more who has settings. */
	d->as_before = true;
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
			quit(d, 0);
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
		qmp_set_patience(d->session->qmp, END_MS);
		quit(d, 0);
		(void)postcopy_destination_load_failed(p, failed.text, NULL);
		return error_set(err, -ECANCELED,
		                 "QEMU can't load the guest: %s (machine type and devices must be "
		                 "those of the source's, and this QEMU not older: compare what "
		                 "postcopy-qemu check prints first on both hosts)",
		                 failed.text);
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
	enum qemu_migration migration = QEMU_MIGRATION_NONE;
	char why[QEMU_WHY_BYTES];
	int rc;

	qmp_set_patience(q, END_MS);
	rc = d->may_run ? 0 : qemu_migration(q, &migration, why, NULL);
	if (rc == -ETIMEDOUT || migration != QEMU_MIGRATION_NONE)
		quit(d, rc);
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
	case POSTCOPY_EVENT_VMSTATE_AHEAD:
		return load_ahead(d, event, err);
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
	struct destination d = { .session = s, .pipe = -1, .ahead = -1 };
	int rc;

	/* A QEMU that exits does not read the vmstate. */
	signal(SIGPIPE, SIG_IGN);
	rc = attach(&d, err);
	while (rc == -ENOENT && !(rc = session_await_prepared(s, err)))
		rc = attach(&d, err);
	if (!rc || is_daemon_gone(rc))
		rc = follow(&d, rc, err);
	close_fd(&d.pipe);
	close_fd(&d.ahead);
	if (!session_is_lost(rc))
		put_back(&d);
	return rc;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/source.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "qemu/check.h"
#include "qemu/qemu.h"
#include "util/cleanup.h"
#include "util/log.h"

/* What an unprivileged user may have: most of a vmstate, so that QEMU seldom waits. */
#define PIPE_BYTES (1 << 20)
#define COPY_BYTES (256u << 10)
/* A QEMU that writes nothing for so long waits for something: a disk, mostly. */
#define SILENT_MS 10000
/* Above what any daemon takes: no QEMU fills this host's memory by it. */
#define VMSTATE_MAX (1ull << 30)

struct source {
	struct session *session;
	int saved;        /* its vmstate, as long as the daemon has not taken it; -1: none */
	bool was_paused;  /* by us, as far as is known: a guest that others have paused stays so */
	bool handed_over; /* the guest may run at the destination: not here */
	bool gone;        /* and all of its pages with it */
};

static const char *id_of(const struct source *src)
{
	return src->session->options->id;
}

/* The guest runs on, if it does not run. */
static int cont(struct source *src, struct error *err)
{
	struct qmp *q = src->session->qmp;
	enum qemu_migration migration;
	char why[QEMU_WHY_BYTES];
	struct qemu_state state;
	/* One that was begun by the process before this one. */
	int rc = qemu_await_migration(q, &migration, why, err);

	if (!rc)
		rc = qemu_state(q, &state, err);
	if (!rc && state.status != QEMU_RUNNING)
		rc = qmp_tell(q, "cont", err);
	/* That was us. */
	qmp_news(q)->resumed = false;
	return rc;
}

/* What QEMU has written; 0 at its end. Return: how many bytes, or -errno. */
static ssize_t read_some(int from, char *buf, size_t size)
{
	struct pollfd pfd = { .fd = from, .events = POLLIN };
	ssize_t n;
	int ready;

	do {
		ready = poll(&pfd, 1, SILENT_MS);
		n = ready > 0 ? read(from, buf, size) : -1;
	} while (ready && n < 0 && errno == EINTR);
	if (!ready)
		return -ETIMEDOUT;
	return n < 0 ? -errno : n;
}

/*
 * All that QEMU writes, up to its end. The destination's QEMU loads it meanwhile, if the daemons
 * pass it on; all but the last byte, without which it does not come to its end.
 */
static int copy_to_end(struct source *src, int from, int to, struct error *err)
{
	_cleanup_free_ char *buf = malloc(COPY_BYTES);
	uint64_t all = 0;
	ssize_t n;

	if (!buf)
		return error_set(err, -ENOMEM, "out of memory");
	while ((n = read_some(from, buf, COPY_BYTES)) != 0) {
		if (n == -ETIMEDOUT)
			return error_set(err, -ETIMEDOUT,
			                 "QEMU has written nothing of its vmstate for %u s: it "
			                 "waits, for a disk that does not answer perhaps (info "
			                 "block, query-block-jobs), and its guest with it",
			                 SILENT_MS / 1000);
		if (n > 0 && (all += (uint64_t)n) > VMSTATE_MAX)
			return error_set(err, -EFBIG,
			                 "QEMU's vmstate is larger than %u MiB: has it RAM that is "
			                 "not shared?",
			                 (unsigned int)(VMSTATE_MAX >> 20));
		if (n < 0 || write(to, buf, (size_t)n) != n)
			return error_errno(err, n < 0 ? (int)n : -ENOSPC, "the vmstate");
		/* A hint: who does not hear it has all of it later. */
		(void)postcopy_source_vmstate_ahead(src->session->postcopy, to, all - 1, NULL);
	}
	/* It closes the pipe also where it fails. */
	return qmp_wait(src->session->qmp, 0, err);
}

/* The guest is stopped, though not at once, and its vmstate comes into @memfd. */
static int save_into(struct source *src, int memfd, struct error *err)
{
	struct qmp *q = src->session->qmp;
	_cleanup_close_ int from = -1, to = -1;
	enum qemu_migration migration;
	char why[QEMU_WHY_BYTES];
	int ends[2], rc;

	if (pipe2(ends, O_CLOEXEC))
		return error_errno(err, -errno, "can't make a pipe");
	from = ends[0];
	to = ends[1];
	(void)fcntl(to, F_SETPIPE_SZ, PIPE_BYTES);
	rc = qemu_begin_save(q, to, err);
	close_fd(&to);
	if (!rc)
		rc = copy_to_end(src, from, memfd, err);
	if (!rc)
		rc = qemu_await_migration(q, &migration, why, err);
	if (!rc && migration != QEMU_MIGRATION_COMPLETED)
		rc = error_set(err, -EIO, "QEMU has not saved its devices: %s", why);
	return rc;
}

/* Whether it is, by this process, for a daemon that was gone; and the guest has not run since. */
static bool is_saved(struct source *src)
{
	struct qemu_state state;

	return src->saved >= 0 && !qemu_state(src->session->qmp, &state, NULL) &&
	       !strcmp(state.name, "postmigrate");
}

static int save(struct source *src, int memfd, struct error *err)
{
	int rc = save_into(src, memfd, err);

	if (rc != -EREMOTEIO)
		return rc;
	/* It was saved, or is being saved, for a process that has ended, and what was saved is gone
	 * with that. QEMU does not save a guest again that has not run since. */
	rc = cont(src, err);
	return rc ? rc : save_into(src, memfd, err);
}

static int stay(struct source *src, const char *reason, struct error *err)
{
	int rc = src->was_paused ? cont(src, err) : 0;

	return rc ? rc : error_set(err, -ECANCELED, "the guest runs on here: %s", reason);
}

/* @rc: why it was not saved. */
static int give_up_pause(struct source *src, int rc, const struct error *failed, struct error *err)
{
	struct postcopy *p = src->session->postcopy;

	close_fd(&src->saved);
	/* When it goes on it finds that nobody reads, and has its guest run on by itself. */
	if (rc == -ETIMEDOUT)
		(void)postcopy_source_pause_failed(p, failed->text, NULL);
	if (session_is_lost(rc))
		return error_set(err, rc, "%s", failed->text);
	rc = cont(src, err);
	if (!rc)
		(void)postcopy_source_pause_failed(p, failed->text, NULL);
	return rc;
}

/* Return: -EPIPE where the daemon is gone: it may have heard, or not, and says so later. */
static int pause_guest(struct source *src, struct error *err)
{
	struct postcopy *p = src->session->postcopy;
	struct postcopy_error why = { 0 };
	struct error failed = ERROR_INIT;
	int rc = 0;

	src->was_paused = true;
	if (!is_saved(src)) {
		close_fd(&src->saved);
		src->saved = memfd_create("postcopy-vmstate", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		rc = src->saved < 0 ? error_errno(&failed, -errno, "memfd_create")
		                    : save(src, src->saved, &failed);
	}
	if (rc)
		return give_up_pause(src, rc, &failed, err);
	src->handed_over = true;
	rc = postcopy_source_paused_fd(p, src->saved, &why);
	if (!rc) {
		log_migration_info(id_of(src), "paused, vmstate of %lld bytes",
		                   (long long)lseek(src->saved, 0, SEEK_CUR));
		close_fd(&src->saved);
	}
	return daemon_error(rc, &why, err);
}

static int leave(struct source *src, struct error *err)
{
	int rc = qmp_tell(src->session->qmp, "quit", err);

	src->gone = true;
	log_migration_info(id_of(src), "complete: the guest is at the destination, and QEMU ends");
	/* It may close before it answers. */
	return rc == -ECONNRESET ? 0 : rc;
}

static int obey(struct source *src, const struct postcopy_event *event, struct error *err)
{
	switch (event->type) {
	case POSTCOPY_EVENT_PAUSE:
		return pause_guest(src, err);
	case POSTCOPY_EVENT_RESUME:
		src->handed_over = false;
		return stay(src, event->reason, err);
	case POSTCOPY_EVENT_COMPLETE:
		return leave(src, err);
	case POSTCOPY_EVENT_FAILED:
		if (!src->handed_over)
			return stay(src, event->reason, err);
		return error_set(err, -ECANCELED,
		                 "the guest stays stopped here, and is not to be "
		                 "continued: %s",
		                 event->reason);
	default: /* nothing that this has offered to do */
		return 0;
	}
}

/* Somebody has continued a guest that is not here any more. */
static int fence(struct source *src, struct error *err)
{
	struct qemu_state state;
	int rc;

	if (!src->handed_over || !qmp_news(src->session->qmp)->resumed)
		return 0;
	qmp_news(src->session->qmp)->resumed = false;
	rc = qemu_state(src->session->qmp, &state, err);
	if (rc || state.status != QEMU_RUNNING)
		return rc;
	rc = qmp_tell(src->session->qmp, "stop", err);
	log_migration_error(
	        id_of(src),
	        "the guest was continued here by somebody, though it may run at the "
	        "destination: stopped again. It ran twice for a moment: look at what both "
	        "share (disks, network)");
	return rc;
}

static int attach_new(struct source *src, struct error *err)
{
	static struct check check;
	struct session *s = src->session;
	struct postcopy_region regions[POSTCOPY_REGIONS_MAX];
	struct postcopy_error why = { 0 };
	int rc = check_run(s, true, &check, err);
	size_t n;

	if (rc)
		return rc;
	n = blocks_regions(&check.blocks, regions);
	rc = check_refuse(&check, err);
	if (!rc) {
		rc = postcopy_source_attach_for(s->options->socket, s->options->id, s->pidfd,
		                                regions, n, &s->postcopy, &why);
		daemon_error(rc, &why, err);
	}
	blocks_close(&check.blocks);
	return rc;
}

static int attach_again(struct source *src, struct error *err)
{
	enum postcopy_standing standing;
	int rc = session_attach_again(src->session, &standing, err);

	if (rc)
		return rc;
	src->handed_over = standing == POSTCOPY_STANDS_PAUSED;
	src->was_paused = true;
	/* It may have been continued while nobody watched. */
	qmp_news(src->session->qmp)->resumed = true;
	log_migration_info(id_of(src), "attached again: the guest %s",
	                   src->handed_over ? "is handed over" : "is here");
	return fence(src, err);
}

/*
 * Anew first: the same QEMU may be about to go by an id by which it has tried before. Where it is
 * attached, or does not run, that changes nothing.
 */
static int attach(struct source *src, struct error *err)
{
	struct error first = ERROR_INIT;
	int rc = attach_new(src, &first);

	if (!rc) {
		log_migration_info(id_of(src), "attached, QEMU is process %d",
		                   (int)src->session->pid);
		return 0;
	}
	rc = attach_again(src, err);
	/* There was no daemon before; attach_again() has waited for it. */
	if (rc == -ENOENT && first.code == -ECONNREFUSED)
		return attach_new(src, err);
	return rc == -ENOENT ? error_set(err, first.code, "%s", first.text) : rc;
}

static int hear(struct source *src, struct error *err)
{
	struct postcopy_event event;
	int rc = postcopy_next_event(src->session->postcopy, 0, &event, NULL);

	if (!rc)
		rc = obey(src, &event, err);
	/* The daemon is gone, and comes again. */
	return rc == -EPIPE || rc == -EPROTO ? attach_again(src, err) : rc;
}

/* To its end, as far as this process lives. */
static int follow(struct source *src, struct error *err)
{
	struct session *s = src->session;
	int rc = 0;

	while (!rc && !src->gone) {
		struct wake wake;

		/* First: what was heard while the guest was paused nobody announces again. */
		rc = fence(src, err);
		if (!rc)
			rc = session_wait(s, -1, &wake, err);
		if (!rc)
			rc = fence(src, err);
		if (!rc && wake.daemon)
			rc = hear(src, err);
	}
	return rc;
}

int source_run(struct session *s, struct error *err)
{
	struct source src = { .session = s, .saved = -1 };
	int rc = attach(&src, err);

	while (rc == -ENOENT && !(rc = session_await_prepared(s, err)))
		rc = attach(&src, err);
	if (rc)
		return rc;
	rc = follow(&src, err);
	close_fd(&src.saved);
	/* Not when the vmstate has been handed over: the daemons have better use of the CPU. */
	if (!src.gone && !session_is_lost(rc))
		qemu_restore(s->qmp, &s->settings);
	return rc;
}

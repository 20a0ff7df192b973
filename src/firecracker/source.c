/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/source.h"

#include <errno.h>
#include <fcntl.h>
#include <json.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "firecracker/api.h"
#include "util/cleanup.h"
#include "util/log.h"

#define SOON_MS 10000
/* For a snapshot to be written. */
#define CREATE_MS 600000
/*
 * Of the memory file when the daemon has it. The sticky bit means nothing there, and no file that
 * Firecracker makes itself has it: so a process that comes after this one knows the file by it.
 */
#define ATTACHED_MODE (S_ISVTX | 0600)

/* What a process before this one has left there: it is removed before anything is written. */
static uint64_t left_bytes(const struct session *s, const char *name)
{
	char path[PATH_MAX];
	struct stat st;

	session_path(s, name, path);
	return !lstat(path, &st) && S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : 0;
}

static int check_room(const struct session *s, uint64_t bytes, struct error *err)
{
	const char *dir = s->options->dir;
	struct statfs fs;
	uint64_t room;

	if (fstatfs(s->dir_fd, &fs))
		return error_errno(err, -errno, "%s (--dir)", dir);
	if (fs.f_type != TMPFS_MAGIC)
		return error_set(err, -EINVAL,
		                 "%s (--dir) is no tmpfs: the daemon reads guest memory from "
		                 "memory, not from a disk",
		                 dir);
	room = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize + left_bytes(s, "memory") +
	       left_bytes(s, "vmstate");
	/* No blocks at all: a tmpfs without a limit. */
	if (fs.f_blocks && room < bytes)
		return error_set(err, -ENOSPC,
		                 "%s (--dir) has room for %llu MiB, and the guest has %llu MiB of "
		                 "memory: enlarge that tmpfs (size=), or name another",
		                 dir, (unsigned long long)(room >> 20),
		                 (unsigned long long)(bytes >> 20));
	return 0;
}

int source_check(const struct session *s, uint64_t *ret_bytes, struct error *err)
{
	enum api_state state;
	uint64_t bytes;
	int rc = api_get_state(s->options->api, SOON_MS, &state, err);

	if (!rc && state == API_NOT_STARTED)
		rc = error_set(err, -EINVAL, "the microVM has no guest");
	if (!rc && state == API_PAUSED)
		rc = error_set(
		        err, -EINVAL,
		        "the guest is paused, and would run at the destination: resume it first");
	if (!rc)
		rc = api_get_memory_bytes(s->options->api, &bytes, err);
	if (!rc)
		rc = check_room(s, bytes, err);
	if (!rc)
		*ret_bytes = bytes;
	return rc;
}

/* Whether the daemon may have heard what it has not answered. */
static bool is_daemon_gone(int rc)
{
	return rc == -EPIPE || rc == -EAGAIN || rc == -ETIMEDOUT;
}

/* As large as a snapshot of it will be, and with nothing in it yet. */
static int attach_anew(struct session *s, struct error *err)
{
	struct postcopy_region region = { .memory = POSTCOPY_MEMORY_MEMFD,
		                          .page_size = 4096,
		                          .host_addr = (void *)4096 };
	struct postcopy_error why = { 0 };
	_cleanup_close_ int fd = -1;
	int rc = source_check(s, &region.size, err);

	if (rc)
		return rc;
	fd = session_create(s, "memory", err);
	if (fd < 0)
		return fd;
	if (ftruncate(fd, (off_t)region.size))
		return error_errno(err, -errno, "the memory file");
	region.fd = fd;
	rc = postcopy_source_attach_for(s->options->socket, s->options->id, s->pidfd, &region, 1,
	                                &s->postcopy, &why);
	s->is_unprepared = rc == -ENOENT;
	if (rc && !is_daemon_gone(rc))
		session_remove(s, "memory");
	else if (fchmod(fd, ATTACHED_MODE))
		return error_errno(err, -errno, "the memory file");
	return daemon_error(rc, &why, err);
}

/* Firecracker writes the guest's state and all of its memory. */
static int create_snapshot(struct session *s, struct error *err)
{
	char memory[PATH_MAX], vmstate[PATH_MAX];
	json_object *o = json_object_new_object();
	int fd = session_create(s, "vmstate", err), rc;

	session_their_path(s, "memory", memory);
	session_their_path(s, "vmstate", vmstate);
	json_object_object_add(o, "snapshot_type", json_object_new_string("Full"));
	json_object_object_add(o, "snapshot_path", json_object_new_string(vmstate));
	json_object_object_add(o, "mem_file_path", json_object_new_string(memory));
	rc = fd < 0 ? fd
	            : api_do(s->options->api, "PUT", "/snapshot/create",
	                     json_object_to_json_string(o), CREATE_MS, err);
	json_object_put(o);
	close_fd(&fd);
	return rc;
}

/* The file that the daemon has. Firecracker would make another where it is not there. */
static int open_attached(const struct session *s, struct stat *ret, struct error *err)
{
	_cleanup_close_ int fd = session_open_file(s, "memory", err);

	if (fd < 0)
		return error_prefix(err, "the memory that was attached");
	if (fstat(fd, ret))
		return error_errno(err, -errno, "the memory file");
	if (!(ret->st_mode & S_ISVTX))
		return error_set(err, -EPROTO,
		                 "%s.memory in %s (--dir) is not the file that was attached: "
		                 "somebody has replaced it",
		                 s->options->id, s->options->dir);
	return steal_fd(&fd);
}

/* It must be all of what was attached, @before: else pages would read as zeroes. */
static int check_memory(struct session *s, const struct stat *before, struct error *err)
{
	_cleanup_close_ int fd = -1;
	uint64_t bytes;
	struct stat st;
	int rc = api_get_memory_bytes(s->options->api, &bytes, err);

	if (rc)
		return rc;
	fd = open_attached(s, &st, err);
	if (fd < 0)
		return fd;
	if (st.st_dev != before->st_dev || st.st_ino != before->st_ino)
		return error_set(err, -EPROTO, "the memory file was replaced meanwhile");
	if ((uint64_t)st.st_size != bytes)
		return error_set(err, -EPROTO,
		                 "the snapshot has %lld bytes of memory, the microVM %llu: "
		                 "attach it again",
		                 (long long)st.st_size, (unsigned long long)bytes);
	return 0;
}

/*
 * The process before this one may have done any part of it.
 * Return: the vmstate, for reading; or -errno with @err set.
 */
static int stop_guest(struct session *s, struct error *err)
{
	_cleanup_close_ int fd = -1; /* as long as it is open no other file has its st_ino */
	enum api_state state;
	struct stat st;
	int rc = api_get_state(s->options->api, CREATE_MS, &state, err);

	if (!rc && state == API_NOT_STARTED)
		rc = error_set(err, -EINVAL, "the microVM has no guest");
	if (!rc) {
		fd = open_attached(s, &st, err);
		rc = fd < 0 ? fd : 0;
	}
	if (!rc && state == API_RUNNING)
		rc = api_set_state(s->options->api, "Paused", err);
	if (!rc)
		rc = create_snapshot(s, err);
	if (!rc)
		rc = check_memory(s, &st, err);
	return rc ? rc : session_open_file(s, "vmstate", err);
}

static int run_on(struct session *s, struct error *err)
{
	enum api_state state;
	int rc = api_get_state(s->options->api, CREATE_MS, &state, err);

	return rc || state != API_PAUSED ? rc : api_set_state(s->options->api, "Resumed", err);
}

static void remove_files(const struct session *s)
{
	session_remove(s, "memory");
	session_remove(s, "vmstate");
}

/*
 * Return: 0; -EPIPE: the daemon is gone, and asks again when it is back; or why the guest can't be
 * paused, told to the daemon.
 */
static int pause_guest(struct session *s, struct error *err)
{
	struct postcopy_error told = { 0 };
	struct error later = ERROR_INIT;
	_cleanup_close_ int vmstate = stop_guest(s, err);
	int rc = vmstate;

	if (rc >= 0)
		return daemon_error(postcopy_source_paused_fd(s->postcopy, vmstate, &told), &told,
		                    err);
	if (run_on(s, &later))
		log_migration_error(s->options->id, "the guest stands still: %s", later.text);
	if (postcopy_source_pause_failed(s->postcopy, err->text, &told))
		return error_set(err, -EPIPE, "the daemon can't be told: %s", told.text);
	remove_files(s);
	return rc;
}

/* Return: 0 to go on; 1: the guest is elsewhere; or -errno. */
static int handle(struct session *s, const struct postcopy_event *event, struct error *err)
{
	switch (event->type) {
	case POSTCOPY_EVENT_PAUSE:
		return pause_guest(s, err);
	case POSTCOPY_EVENT_RESUME:
		if (run_on(s, err))
			return error_prefix(err, "the guest stands still");
		return error_set(err, -ECANCELED, "%.200s", event->reason);
	case POSTCOPY_EVENT_COMPLETE:
		/* Whoever resumed it would have two guests. */
		session_kill(s);
		return 1;
	case POSTCOPY_EVENT_FAILED:
		return error_set(err, -ECANCELED, "the migration failed: %.200s", event->reason);
	case POSTCOPY_EVENT_NONE:
		return session_check_alive(s, err);
	default: /* nothing that this has offered to do */
		return 0;
	}
}

/*
 * What was attached before has ended, in the life of a process before this one: then this one is
 * here for another migration of that id. Return: 0; or @err as it is, where there is none.
 */
static int attach_next(struct session *s, struct error *err)
{
	struct error none = ERROR_INIT;

	s->postcopy = postcopy_detach(s->postcopy);
	if (attach_anew(s, &none))
		return err->code;
	*err = ERROR_INIT;
	return 0;
}

static int follow(struct session *s, struct error *err)
{
	int rc = session_attach_again(s, NULL, err);
	bool again = rc != -ENOENT;

	if (!again) {
		*err = ERROR_INIT;
		rc = attach_anew(s, err);
	}
	if (!rc)
		log_migration_info(s->options->id, "attached for Firecracker, pid %d",
		                   (int)s->cred.pid);
	while (!rc) {
		struct postcopy_event event;

		rc = session_event(s, SOON_MS, &event, err);
		if (!rc)
			rc = handle(s, &event, err);
		if (rc == -ECANCELED && again)
			rc = attach_next(s, err);
		again = false;
	}
	return rc;
}

int source_run(struct session *s, struct error *err)
{
	int rc;

	do {
		s->postcopy = postcopy_detach(s->postcopy);
		*err = ERROR_INIT;
		s->is_unprepared = false;
		rc = follow(s, err);
		if (rc == -ENOENT && s->is_unprepared)
			rc = session_await_prepared(s, err);
	} while (rc == -EPIPE || rc == -EAGAIN);
	/* What else fails may be this process alone: the migration goes on, with that file. */
	if (rc >= 0 || rc == -ECANCELED || rc == -ESRCH)
		remove_files(s);
	return rc < 0 ? rc : 0;
}

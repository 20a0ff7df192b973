/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One Firecracker and the daemon, as both sides of a migration see them.
 *
 * Theory of operation
 * -------------------
 * Where a migration stands the daemon says (postcopy_*_attach_again()), and what its microVM is
 * Firecracker says ("GET /"). What this process needs besides lies in the directory (--dir). So it
 * begins the same way each time, and may end at any instruction. A daemon that is gone comes back:
 * it is waited for as long as Firecracker lives.
 *
 * Firecracker may be jailed: the directory is named as it sees it, and reached by /proc/PID/root.
 */
#ifndef FIRECRACKER_SESSION_H
#define FIRECRACKER_SESSION_H

#include <limits.h>
#include <postcopy/postcopy.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "adapter/daemon.h"
#include "firecracker/options.h"

struct session {
	const struct options *options;
	struct ucred cred; /* of Firecracker */
	int pidfd;
	int dir_fd; /* --dir, also when Firecracker has ended */
	struct postcopy *postcopy;
	bool is_unprepared; /* the daemon knows no such migration, or not yet */
	struct daemon_wait prepared;
};

/* Finds Firecracker's process by its API socket, and --dir, which is made where there is none. */
int session_open(struct session *s, const struct options *o, struct error *err);

/* The same, of one that is being started. */
int session_await_firecracker(struct session *s, const struct options *o, int timeout_ms,
                              struct error *err);
void session_close(struct session *s);

/* A file of the directory: as we reach it, and as Firecracker does. */
void session_path(const struct session *s, const char *name, char ret[PATH_MAX]);

/*
 * session_open_file() - one of them that Firecracker, or we, have written
 *
 * Firecracker may write the directory: what is there by a link is somebody else's, and not opened.
 *
 * Return: the descriptor, for reading; or -errno with @err set.
 */
int session_open_file(const struct session *s, const char *name, struct error *err);
void session_their_path(const struct session *s, const char *name, char ret[PATH_MAX]);

/* An empty file there, that Firecracker can write. Return: its descriptor; or -errno with @err. */
int session_create(const struct session *s, const char *name, struct error *err);
void session_remove(const struct session *s, const char *name);

/*
 * session_attach_again() - of the side that it is, where Firecracker has attached before
 * @ret_standing: may be NULL at a source
 *
 * Waits for a daemon that is not there. Return: 0; -ENOENT; -ESRCH where Firecracker has ended; and
 * others; with @err set.
 */
int session_attach_again(struct session *s, enum postcopy_standing *ret_standing,
                         struct error *err);

/*
 * session_await_prepared() - where it is unprepared, which @err tells
 *
 * Return: -EAGAIN: try again; -ENOENT: it was waited for long enough; -ESRCH.
 */
int session_await_prepared(struct session *s, struct error *err);

/* Return: 0; -ESRCH where Firecracker has ended, with @err set. */
int session_check_alive(const struct session *s, struct error *err);

/* The microVM is of no use to anybody: its guest is elsewhere, or never was whole. */
void session_kill(const struct session *s);

/* The next event; @ret of type NONE: nothing came in time. Return: 0; -EPIPE: the daemon is gone.
 */
int session_event(struct session *s, int timeout_ms, struct postcopy_event *ret, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's monitor: one client on its QMP socket.
 *
 * Theory of operation
 * -------------------
 * Commands are waited for; a few may be sent together, which QEMU obeys in their order: while a
 * guest stands still each answer waited for costs two switches of the CPU on either side. What QEMU
 * tells unasked meanwhile (RESUME, SHUTDOWN, MIGRATION) is folded into `struct qmp_news`: only the
 * last of each kind counts, so nothing queues up, however long nobody asks. Who acts on news asks
 * QEMU first how it stands, for news are old when they are read.
 *
 * A monitor serves one client. The socket of a QEMU that has ended is closed, which is its end
 * here; whether the process has ended its pidfd says.
 *
 * Threads: one.
 */
#ifndef QEMU_QMP_H
#define QEMU_QMP_H

#include <json-c/json.h>
#include <stdbool.h>
#include <sys/types.h>

#include "util/error.h"

#define QMP_NAME_BYTES 40

struct qmp;

struct qmp_version {
	int major, minor, micro;
	char package[96];
};

/* What QEMU has told; whoever has acted on it clears it. */
struct qmp_news {
	bool resumed;
	bool shut_down;
	char reason[QMP_NAME_BYTES];    /* of the shutdown */
	char migration[QMP_NAME_BYTES]; /* what MIGRATION said last; empty: nothing */
};

/*
 * qmp_open() - connect, and leave its negotiation mode
 *
 * Return: 0; -ECONNREFUSED and others of connect(2); -EPROTO where it is no QMP; -ETIMEDOUT where
 * it does not greet: another client has this monitor.
 */
int qmp_open(const char *path, struct qmp **ret, struct error *err);
struct qmp *qmp_close(struct qmp *q);
static inline void qmp_closep(struct qmp **q)
{
	qmp_close(*q);
}

/* Polls readable when there may be news. */
int qmp_fd(const struct qmp *q);

/* Who listens there, by SO_PEERCRED: QEMU, or whoever has made its socket for it. */
pid_t qmp_peer(const struct qmp *q);

const struct qmp_version *qmp_version(const struct qmp *q);

static inline bool qmp_is_at_least(const struct qmp *q, int major, int minor)
{
	const struct qmp_version *v = qmp_version(q);

	return v->major > major || (v->major == major && v->minor >= minor);
}

/*
 * qmp_ask() - one command
 * @arguments: taken over; NULL: none
 * @fd: goes with it; -1: none. Borrowed.
 * @ret: what it returns, the caller's; NULL: not wanted
 *
 * Return: 0; -EREMOTEIO with QEMU's own words in @err; -ECONNRESET where QEMU has closed;
 * -ETIMEDOUT, -EPROTO: then there is no more use of @q.
 */
int qmp_ask(struct qmp *q, const char *command, struct json_object *arguments, int fd,
            struct json_object **ret, struct error *err);

/* One of several. */
struct qmp_command {
	const char *name;
	struct json_object *arguments; /* taken over; NULL: none */
	int fd;                        /* goes with it; -1: none. Borrowed. */
};

#define QMP_TOGETHER_MAX 8

/*
 * qmp_tell_all() - commands whose answers are not wanted, sent together
 *
 * Each is obeyed, whatever becomes of those before it.
 *
 * Return: as qmp_ask(), of the first that fails.
 */
int qmp_tell_all(struct qmp *q, const struct qmp_command *list, size_t n, struct error *err);

/* A command without arguments, whose answer is not wanted. */
static inline int qmp_tell(struct qmp *q, const char *command, struct error *err)
{
	return qmp_ask(q, command, NULL, -1, NULL, err);
}

/*
 * qmp_wait() - until there is something to read, and read it
 * @timeout_ms: 0 to look, -1 to wait for good
 *
 * Return: 0, also where nothing came; -ECONNRESET.
 */
int qmp_wait(struct qmp *q, int timeout_ms, struct error *err);

struct qmp_news *qmp_news(struct qmp *q);

/* To answer a command, from now on; a minute at first, for "stop" waits for the guest's disks. */
void qmp_set_patience(struct qmp *q, unsigned int ms);

#endif

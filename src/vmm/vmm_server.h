/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VMM socket, the daemon's side.
 *
 * Theory of operation
 * -------------------
 * VMMs connect to a unix SEQPACKET socket and say ATTACH (libpostcopy/vmm_wire.h);
 * the owner looks at the table and descriptors and takes or refuses them. After that each
 * message goes to the owner, and the end of the connection too. A VMM that says
 * something impossible is told so and cut off; the others never notice. Whoever attaches as a
 * destination gets a guest's memory, so credentials decide who may, whatever the socket's mode.
 * An adapter speaks for a VMM that is another process (vmm/vmm_process.h).
 *
 * A connection costs a descriptor and says nothing until ATTACH: of one user only so many wait for
 * that, and not for long. Root's are let in where the limits are reached, a few more of them. Where
 * this process has no descriptor left, one that is kept for it lets the caller be told so.
 *
 * What a VMM brings is looked at in its own process, too, which may keep us waiting for up to 50 ms
 * beside what the host takes (mem/inspect.h). So one ATTACH is looked at in a turn of the loop, and
 * none in the next: however many come at once, who calls meanwhile waits for one of them and not
 * more.
 *
 * Threads: all of it runs on the loop's thread.
 */
#ifndef VMM_VMM_SERVER_H
#define VMM_VMM_SERVER_H

#include <uv.h>

#include "libpostcopy/vmm_wire.h"

/* Where the configuration names none. */
#define VMM_CONNS_MAX 256u
#define VMM_WAITING_MAX 32u
#define VMM_ATTACH_TIMEOUT_MS 10000u
/* More than the most, for root's alone. */
#define VMM_ROOT_SPARE 16u

/* Descriptors that a message after ATTACH has at most. */
#define VMM_MESSAGE_FDS (SHARDS_MAX - 1)

struct vmm_conn;
struct vmm_server;

/* An ATTACH with its descriptors: whom they go to takes them by setting entries to -1. */
struct vmm_attach {
	const struct vmm_wire_msg *msg;
	int *fds;
	size_t n_fds; /* of the region table and the userfaultfd */
	pid_t vmm;    /* its process; 0 where it is not known */
	int pidfd;    /* of the process that an adapter speaks for; -1: the VMM speaks itself */
	/* By the owner: what it has heard of it, where it had attached before. */
	enum vmm_wire_standing standing;
};

struct vmm_server_ops {
	/*
	 * A VMM wants in. Return: 0, and the owner for the calls below in *@ret_owner; or
	 * a negative errno with @err set, which the VMM is told.
	 */
	int (*attach)(void *arg, struct vmm_conn *conn, struct vmm_attach *attach, void **ret_owner,
	              struct error *err);
	/*
	 * It has been told that it is attached, where it had attached before: what waits for it can
	 * be said.
	 */
	void (*attached_again)(void *owner);
	/*
	 * A message after ATTACH. @fds are its descriptors, -1 for none; the owner takes one by
	 * setting it to -1. Return: 0, or -errno with @err set: the VMM is told and cut off.
	 */
	int (*message)(void *owner, const struct vmm_wire_msg *msg, int fds[VMM_MESSAGE_FDS],
	               struct error *err);
	/*
	 * MEMORY, of a VMM that has its memory late: as an ATTACH it has descriptors, and @attach
	 * is as above, but for its process and pidfd. Return: as message().
	 */
	int (*memory)(void *owner, struct vmm_attach *attach, struct error *err);
	/*
	 * A message of that type came, but not its descriptors: this process had no room for them
	 * (@why). The VMM is told and cut off after this, but for SHARDS, which can be asked again.
	 */
	void (*cut_message)(void *owner, enum vmm_wire_type type, const struct error *why);
	/* The VMM, or its adapter, is gone; @conn is void after this. */
	void (*closed)(void *owner);
};

/* Limits; 0: as above. */
struct vmm_limits {
	unsigned int conns;             /* at a time */
	unsigned int waiting;           /* of them of one user before ATTACH */
	unsigned int attach_timeout_ms; /* also to attach again, where somebody waits */
};

struct vmm_server_config {
	int fd; /* the socket, listening */
	struct vmm_limits limits;
	const gid_t *groups; /* who may connect besides root and our own user */
	size_t n_groups;
	const struct vmm_server_ops *ops;
	void *arg; /* for ops->attach */
};

/* @config: copied; its groups must outlive the server, its fd is taken over in any case. */
int vmm_server_new(uv_loop_t *loop, const struct vmm_server_config *config, struct vmm_server **ret,
                   struct error *err);

/* Other limits and groups, for connections to come and those that have not attached. Groups must
 * outlive the server. */
void vmm_server_set(struct vmm_server *server, const struct vmm_limits *limits, const gid_t *groups,
                    size_t n_groups);

/* Cuts all VMMs off, without telling their owners. Memory goes when the loop has run on. */
void vmm_server_close(struct vmm_server *server);

/* The VMM's process, as the kernel named it when it connected. */
pid_t vmm_conn_pid(const struct vmm_conn *conn);

/* And its user. */
uid_t vmm_conn_uid(const struct vmm_conn *conn);

/*
 * vmm_server_adopt() - go on with a VMM that another process of this daemon has let in
 * @fd: its socket; taken over in any case
 * @owner: for the calls above, from vmm_conn_catch_up() on
 *
 * Return: 0 or -ENOMEM.
 */
int vmm_server_adopt(struct vmm_server *server, int fd, void *owner, struct vmm_conn **ret);

/* Take what it has said by now, and nothing that it says meanwhile; @conn may be gone after that,
 * and closed() was called then. */
void vmm_conn_catch_up(struct vmm_conn *conn);

/* Its socket; borrowed. */
int vmm_conn_fd(const struct vmm_conn *conn);

/* Send a message; @fd is borrowed, -1 for none. Return: 0 or -errno (the VMM will be gone soon). */
int vmm_conn_send(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int fd);

/* Whether it has left a lot unread of what it was sent: hints would keep what matters out. */
bool vmm_conn_is_behind(const struct vmm_conn *conn);

/* A message with nothing but its type. */
int vmm_conn_send_type(struct vmm_conn *conn, enum vmm_wire_type type);

/* ERROR: the migration failed; the VMM reads why. */
void vmm_conn_send_error(struct vmm_conn *conn, const struct error *why);

/* The owner wants to hear no more of it; closed() will not be called. */
void vmm_conn_disown(struct vmm_conn *conn);

#endif

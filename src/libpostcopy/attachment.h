/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One attachment: what the library's files share of it, and how it speaks with the daemon.
 *
 * Its life: attach.c makes it and takes it back, postcopy.c has it go through its states.
 */
#ifndef LIBPOSTCOPY_ATTACHMENT_H
#define LIBPOSTCOPY_ATTACHMENT_H

#include <stdbool.h>
#include <sys/types.h>

#include "libpostcopy/arriving.h"
#include "libpostcopy/vmm_wire.h"

/* For the daemon to accept, answer an attach, or take a message. */
#define TIMEOUT_S 10

/* Where an attachment stands. What may come or be said next depends on it. */
enum attachment_state {
	STATE_RUNNING,  /* source: the guest runs here */
	STATE_STOPPING, /* source: asked to pause, has not answered */
	STATE_PAUSED,   /* source: handed over; runs on only if told so */
	STATE_WAITING,  /* destination: for the vmstate */
	STATE_LOADING,  /* destination: has the vmstate, has not answered */
	STATE_LOADED,   /* destination: has said so; the vCPUs may run */
	STATE_RESUMED,  /* destination: the guest runs here */
	STATE_COMPLETE, /* both: nothing more comes */
	STATE_FAILED,
	STATE_COUNT,
};

struct postcopy {
	int sock;
	enum vmm_wire_role role;
	enum attachment_state state;
	uint64_t pause_asked_ns;
	/* What was said last, to say it again: source, destination. */
	int vmstate_fd;
	int ahead_fd;  /* destination: of the last event; -1: it had none */
	int poison_fd; /* what is poisoned here; -1: nothing */
	uint64_t vmstate_len, pause_ns;
	/* source: what the guest writes, where this VMM tells it (dirty.c) */
	struct {
		uint64_t *bitmap; /* shared with the daemon; NULL: it does not tell */
		size_t bytes;
		bool logging;    /* from LOG_START on, to PAUSED or LOG_STOP */
		bool asked;      /* and not answered yet */
		bool last_is_in; /* the harvest of the guest that was stopped */
		uint64_t number; /* of what was asked */
	} dirty;
	int hot_sock; /* destination: by which hot ranges are named; -1: none were */
	char load_error[ERROR_TEXT_MAX];
	enum vmm_wire_type load_error_type; /* ERROR, or COULD_NOT_RUN */
	/* The VMM, where that is another process; -1, 0: it is this one. */
	int pidfd;
	pid_t vmm;
	bool attached;
	/* destination: its memory comes after the vmstate; it was handed over; and was taken. */
	bool late, handed, taken;
	char id[POSTCOPY_ID_MAX + 1]; /* of its migration, where its memory is or may be late */
	/* destination: our own copy. Were the daemon's the last one, its death would let
	   absent pages read as zeroes. */
	int uffd;
	bool uffd_is_own; /* made here, for the attach that is under way */
	uint64_t uffd_features;
	/* Where its memory is divided (split.c): how many have a part, 0: all is uffd's; and those
	   of shard 1, 2... */
	uint32_t n_shards;
	int shard_uffds[SHARDS_MAX - 1];
	struct postcopy_region regions[POSTCOPY_REGIONS_MAX]; /* by name, where they have any */
	size_t n_regions;
	/* destination: where units of private huge pages gather until the daemon can place a page,
	   of one region after the other; -1: there are none */
	int stage_fd;
	uint32_t place[POSTCOPY_REGIONS_MAX]; /* of each of them in the caller's table */
	struct arriving arriving;
	size_t n_registered;
	struct {
		void *addr;
		uint64_t size;
		uint32_t index, mode;
	} registered[POSTCOPY_REGIONS_MAX];
};

/* What was handed over late, said (again). Return: as send_message(). */
int say_memory(struct postcopy *p, struct error *err);

/* Return: 0, -EPIPE, -ETIMEDOUT and others with @err set. */
int send_message(struct postcopy *p, const struct vmm_wire_msg *msg, const int *fds, size_t n_fds,
                 struct error *err);

/* What the daemon has said of the dirty log, before its event is told. dirty.c */
void dirty_note(struct postcopy *p, const struct vmm_wire_msg *msg);
/* Asked of one who has no bitmap (any more): that. */
int dirty_say_none(struct postcopy *p, const struct vmm_wire_msg *msg, struct error *err);
/* Before PAUSED is said, and once it is. Return: 0 or -EINVAL with @err set. */
int dirty_check_last(const struct postcopy *p, struct error *err);
void dirty_end(struct postcopy *p);
void dirty_release(struct postcopy *p);

/*
 * receive_message() - a message from the daemon, and its descriptor where the type has one
 *
 * The daemon's types carry one descriptor at most: the codec has checked that.
 *
 * Return: 0, -ETIMEDOUT without @err, -EPIPE, -EPROTO or what recvmsg() gave
 */
int receive_message(struct postcopy *p, uint64_t deadline_ns, struct vmm_wire_msg *msg, int *ret_fd,
                    struct error *err);

/* The next message that says something new. Return: as receive_message(). */
int receive_news(struct postcopy *p, uint64_t deadline_ns, struct vmm_wire_msg *msg, int *ret_fd,
                 struct error *err);

/* Return: 0; -EINVAL with @err set: a call that does not fit sends nothing. */
int require_state(const struct postcopy *p, enum attachment_state state, const char *call,
                  struct error *err);

#endif

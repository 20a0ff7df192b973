/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libpostcopy and the daemon say to each other.
 *
 * A unix SEQPACKET socket; each packet is one message: a header of 8 bytes
 * (u16 type, u16 version, u32 payload length), then the payload, all
 * little-endian; descriptors travel beside it by SCM_RIGHTS. Both ends use
 * this codec and check every field, for neither trusts the other.
 *
 *   VMM                          daemon
 *   ATTACH (table, fds)     ->
 *                           <-   OFFER_SHARDS, to some destinations: how many userfaultfds may
 *   SHARDS (fds)            ->   watch the memory, instead of the one of ATTACH
 *                           <-   ATTACHED, or ERROR and the socket closes
 *   An adapter, that speaks for a VMM, names it by its pidfd. When it has lost its connection:
 *   ATTACH again (pidfd)    ->
 *                           <-   ATTACHED (where it stands); then what waits for an answer, or the
 *                                last word, as if it was said for the first time
 *   source:
 *   DIRTY_LOG, any time before ->
 *                           <-   LOG_START, LOG_HARVEST... (numbered), LOG_STOP: where the VMM
 *   HARVESTED (number)      ->   itself notes in its bitmap what the guest writes
 *                           <-   PAUSE: what was written until then is in the bitmap when it says
 *   VMSTATE_AHEAD (fd)...   ->   (a hint)
 *   POISONED (fd) where some of the guest is, PAUSED (vmstate) / ERROR ->
 *                           <-   RESUME (cancelled in time) or COMPLETE
 *   destination:
 *   CHANNEL (fd), any time  ->
 *                           <-   ATTRIBUTES, where the source's regions have any
 *                           <-   VMSTATE_AHEAD (fd)... (a hint)
 *                           <-   VMSTATE (fd)
 *   [where the memory is late: MEMORY (table, fds) -> and <- ATTACHED]
 *   LOADED / ERROR, RESUMED / COULD_NOT_RUN ->
 *                           <-   COMPLETE
 *   either:                 <-   ERROR: the migration failed
 *
 * A daemon that was started again, and found the socket in the service manager's store, asks
 * again where it does not know the answer: PAUSE, VMSTATE and COMPLETE may come twice, and
 * POISONED, PAUSED, MEMORY, LOADED, RESUMED and what failed to load or to run are then said again.
 *
 * Who answers OFFER_SHARDS has made that many userfaultfds in its own process, but one, and moved
 * to each its part of the memory (util/shards.h) from the one of ATTACH. It comes before ATTACHED,
 * and is dealt with before that is told to the VMM: for a moment a part is watched by none of them,
 * and who touched it then would read zeroes. Who does not know the offer, or can't do it, says
 * nothing, and all stays with the one. A daemon that could not keep the answer, or was started
 * again before it had, offers again at any time: who has moved its memory says so again, and nobody
 * moves it then. Who faults in a part whose userfaultfd the daemon has not got yet waits for that.
 *
 * Library and daemon may be of different releases. A type that one end does not know it passes
 * over, with its descriptors: so what is new is an offer or a hint, that a migration can do
 * without, or the answer to what is new. Anything else takes another version.
 */
#ifndef LIBPOSTCOPY_VMM_WIRE_H
#define LIBPOSTCOPY_VMM_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "postcopy/postcopy.h"
#include "util/error.h"
#include "util/shards.h"

#define VMM_WIRE_VERSION 1
#define VMM_WIRE_HEADER_BYTES 8
#define VMM_WIRE_PACKET_MAX 24576
/* The userfaultfd, one descriptor a region, and the VMM's pidfd. */
#define VMM_WIRE_FDS_MAX (2 + POSTCOPY_REGIONS_MAX)
#define VMM_WIRE_NO_FD UINT32_MAX

enum vmm_wire_type {
	VMM_WIRE_ATTACH = 1,
	VMM_WIRE_ATTACHED = 2,
	VMM_WIRE_ERROR = 3,
	VMM_WIRE_PAUSE = 4,
	VMM_WIRE_PAUSED = 5,
	VMM_WIRE_RESUME = 6,
	VMM_WIRE_VMSTATE = 7,
	VMM_WIRE_LOADED = 8,
	VMM_WIRE_RESUMED = 9,
	VMM_WIRE_COMPLETE = 10,
	VMM_WIRE_CHANNEL = 11,
	VMM_WIRE_ATTRIBUTES = 12,
	VMM_WIRE_POISONED = 13,
	VMM_WIRE_COULD_NOT_RUN = 14, /* after LOADED: no vCPU has run, nor will */
	VMM_WIRE_DIRTY_LOG = 15,     /* how it can be told what its guest writes */
	VMM_WIRE_LOG_START = 16,
	VMM_WIRE_LOG_HARVEST = 17,
	VMM_WIRE_LOG_STOP = 18,
	VMM_WIRE_HARVESTED = 19, /* the answer to START and HARVEST */
	VMM_WIRE_MEMORY = 20,    /* what an ATTACH with ATTACH_LATE has left out */
	/* Before PAUSED, and before VMSTATE: what there is of a vmstate already. A hint. */
	VMM_WIRE_VMSTATE_AHEAD = 21,
	VMM_WIRE_OFFER_SHARDS = 22, /* several userfaultfds may watch the memory */
	VMM_WIRE_SHARDS = 23,       /* they do */
	/* The last of those that are known here. */
	VMM_WIRE_TYPE_LAST = VMM_WIRE_SHARDS,
};

/* Of ATTACH. */
enum vmm_wire_attach_flags {
	VMM_WIRE_ATTACH_PIDFD = 1 << 0, /* the last of its descriptors is the VMM's pidfd */
	/* By the process of before: what it handed over then is there. No regions, only a pidfd. */
	VMM_WIRE_ATTACH_AGAIN = 1 << 1,
	/* Each region has a name; they come in their order, so that both sides have the same. */
	VMM_WIRE_ATTACH_NAMES = 1 << 2,
	/* A destination that has its memory only when it has read its vmstate. No regions. */
	VMM_WIRE_ATTACH_LATE = 1 << 3,
};
#define VMM_WIRE_ATTACH_FLAGS                                                                      \
	(VMM_WIRE_ATTACH_PIDFD | VMM_WIRE_ATTACH_AGAIN | VMM_WIRE_ATTACH_NAMES |                   \
	 VMM_WIRE_ATTACH_LATE) /* all */

/* What the daemon has heard of a VMM. */
enum vmm_wire_standing {
	VMM_WIRE_STANDS_NEW, /* it has just attached */
	VMM_WIRE_STANDS_RUNNING,
	VMM_WIRE_STANDS_PAUSED,
	VMM_WIRE_STANDS_WAITING,
	VMM_WIRE_STANDS_LOADED,
	VMM_WIRE_STANDS_RESUMED,
	VMM_WIRE_STANDS_LOADING, /* its late memory was taken, and it has not said LOADED */
};

/* Of DIRTY_LOG. */
enum vmm_wire_dirty_log {
	VMM_WIRE_LOG_NONE, /* it can't, for the reason that is told */
	/* One descriptor: a memfd sealed against shrinking, a bit a unit of 4 KiB, set when it was
	 * written; 64-bit words of this host, each region begins with a new one, and one more. */
	VMM_WIRE_LOG_BY_VMM,
	/* Two: a userfaultfd with WP_ASYNC, made in the VMM's process, and its /proc/PID/pagemap */
	VMM_WIRE_LOG_BY_KERNEL,
};

enum vmm_wire_role {
	VMM_WIRE_SOURCE = 1,
	VMM_WIRE_DESTINATION = 2,
};

/* One region as it travels. @memory is an enum postcopy_memory, unchecked. */
struct vmm_wire_region {
	uint32_t memory;
	uint32_t flags;
	uint64_t guest_phys_addr;
	uint64_t size;
	uint64_t page_size;
	uint64_t host_addr;
	uint64_t fd_offset;
	uint32_t fd_index;  /* into the packet's descriptors, or VMM_WIRE_NO_FD */
	uint32_t uffd_mode; /* destination: UFFDIO_REGISTER_MODE_* it is registered with */
	char name[POSTCOPY_REGION_NAME_MAX + 1]; /* with VMM_WIRE_ATTACH_NAMES; else empty */
};

/*
 * A decoded message. Which members hold something depends on the type:
 *   ATTACH:   role, id, uffd_features, regions. Descriptors: on the destination the
 *             userfaultfd first; then the memory, by fd_index (the index counts
 *             all of the packet's descriptors); none where its regions are flagged
 *             POSTCOPY_REGION_ASKED. For an anonymous region the source
 *             passes /proc/self/mem and fd_offset is the host address; the destination
 *             passes none. And attach_flags.
 *   MEMORY:   as ATTACH of a destination, without a pidfd
 *   ATTACHED: standing
 *   PAUSED:   vmstate_len, pause_ns (what stopping the vCPUs and saving took); one fd
 *   VMSTATE:  vmstate_len; one fd
 *   VMSTATE_AHEAD: vmstate_len, so much of it is there; one fd, of which that can be read, and
 *             which grows. Nothing is final: VMSTATE may be another.
 *   CHANNEL:  one fd: the daemon's end of a fetch channel (libpostcopy/fetch_wire.h)
 *   POISONED: one fd: a sealed memfd of ranges (libpostcopy/poison_wire.h)
 *   ATTRIBUTES: n_regions, and the flags of each of regions; nothing else of them
 *   ERROR, COULD_NOT_RUN: code (positive errno), text
 *   DIRTY_LOG: how; text, where it is NONE
 *   LOG_START, LOG_HARVEST: number
 *   HARVESTED: number; code (0: it is done; else positive errno), text
 *   OFFER_SHARDS: n_shards, 2 or more: so many at most
 *   SHARDS:   n_shards, 2..SHARDS_MAX and not more than were offered; n_shards - 1 descriptors, the
 *             userfaultfds of shard 1, 2...; that of ATTACH is shard 0's
 */
struct vmm_wire_msg {
	enum vmm_wire_type type;
	enum vmm_wire_role role;
	char id[POSTCOPY_ID_MAX + 1];
	uint64_t uffd_features;
	uint32_t attach_flags; /* enum vmm_wire_attach_flags */
	uint32_t standing;     /* enum vmm_wire_standing */
	uint32_t n_regions;
	struct vmm_wire_region regions[POSTCOPY_REGIONS_MAX];
	uint64_t vmstate_len;
	uint64_t pause_ns;
	uint32_t how; /* enum vmm_wire_dirty_log */
	uint64_t number;
	uint32_t n_shards;
	uint32_t code;
	char text[ERROR_TEXT_MAX];
};

/* Whether the first descriptor of an ATTACH, or of a record of one, is a userfaultfd. */
static inline bool vmm_wire_has_uffd(const struct vmm_wire_msg *msg)
{
	return msg->role == VMM_WIRE_DESTINATION && msg->n_regions &&
	       !(msg->regions[0].flags & POSTCOPY_REGION_ASKED);
}

/*
 * vmm_wire_encode() - one packet
 * @buf: VMM_WIRE_PACKET_MAX bytes
 *
 * Return: the packet's length. Text too long is cut; there is no other failure, for
 * the struct's arrays bound the rest.
 */
size_t vmm_wire_encode(const struct vmm_wire_msg *msg, void *buf);

/*
 * vmm_wire_decode() - check and take a packet apart
 *
 * Structure only: lengths, known type, version, known role, id's characters, count of
 * regions, fd_index below @n_fds, the number of descriptors the type carries. Whether
 * the table makes sense is the region table's business.
 *
 * Return: 0 or -EPROTO / -EINVAL, or -ENOMSG for a type that is not known here, with @err set;
 * @ret_msg is undefined on failure.
 */
int vmm_wire_decode(const void *buf, size_t len, size_t n_fds, struct vmm_wire_msg *ret_msg,
                    struct error *err);

/* 1..POSTCOPY_ID_MAX characters of [A-Za-z0-9._-], not starting with '.' */
int vmm_wire_id_check(const char *id, struct error *err);

/* Send one message with its descriptors (borrowed). Return: 0 or -errno. */
int vmm_wire_send(int sock, const struct vmm_wire_msg *msg, const int *fds, size_t n_fds);

/*
 * vmm_wire_recv() - one message and its descriptors
 * @flags: of recvmsg(), e.g. MSG_DONTWAIT
 * @fds: VMM_WIRE_FDS_MAX entries; on success the first *@ret_n_fds are the caller's,
 *       O_CLOEXEC. On failure none is left open.
 *
 * Return: 0; -EAGAIN; -EPIPE at end of file; -EPROTO (truncated packet or descriptors
 * too) / -EINVAL / -ENOMSG with @err set; -EMFILE where this process could not take its
 * descriptors, with @err set and nothing but @ret_msg->type of use; or the errno of recvmsg().
 */
int vmm_wire_recv(int sock, int flags, struct vmm_wire_msg *ret_msg, int *fds, size_t *ret_n_fds,
                  struct error *err);

/*
 * vmm_wire_recv_from() - the same from a stranger
 * @discard: closes a descriptor that is not handed over, and which may be of any kind
 */
int vmm_wire_recv_from(int sock, int flags, struct vmm_wire_msg *ret_msg, int *fds,
                       size_t *ret_n_fds, void (*discard)(int *fd), struct error *err);

/* What they do with what recvmsg() has brought: @hdr with one piece of memory, and @len bytes in
 * it. */
int vmm_wire_take(struct msghdr *hdr, size_t len, struct vmm_wire_msg *ret_msg, int *fds,
                  size_t *ret_n_fds, void (*discard)(int *fd), struct error *err);

#endif

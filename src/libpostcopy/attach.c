/* SPDX-License-Identifier: Apache-2.0 */
/* How an attachment begins, by the VMM itself or by an adapter for it, and how it ends. */
#include "libpostcopy/attachment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "libpostcopy/internal.h"
#include "libpostcopy/poison.h"
#include "libpostcopy/split.h"
#include "libpostcopy/table.h"
#include "libpostcopy/uffd.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/kvm_userfault.h"
#include "util/pidfd.h"

/* For late memory to be taken: also by a daemon that is started again, and asks the source again.
 */
#define MEMORY_TIMEOUT_S 60

#define NO_UFFD "no userfaultfd: only the VMM's own process can make one for its memory"

static int connect_daemon(const char *path, int *ret_sock, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct timeval timeout = { .tv_sec = TIMEOUT_S };
	_cleanup_close_ int sock = -1;

	if (!path)
		path = POSTCOPY_DEFAULT_SOCKET;
	if (!*path || strlen(path) >= sizeof addr.sun_path)
		return error_set(err, -EINVAL, "socket path \"%s\": give 1 to %zu bytes", path,
		                 sizeof addr.sun_path - 1);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return error_errno(err, -errno, "can't create a socket");
	if (setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout))
		return error_errno(err, -errno, "can't set the send timeout");
	if (connect(sock, (struct sockaddr *)&addr, sizeof addr)) {
		int rc = errno == EAGAIN ? -ETIMEDOUT : -errno;

		return error_errno(err, rc, "can't connect to %s; is postcopyd running?", path);
	}
	*ret_sock = steal_fd(&sock);
	return 0;
}

static void fill_region(const struct postcopy_region *r, struct vmm_wire_region *w)
{
	*w = (struct vmm_wire_region){
		.memory = r->memory,
		.flags = r->flags & ~POSTCOPY_REGION_BOUND, /* is between us and the VMM */
		.guest_phys_addr = r->guest_phys_addr,
		.size = r->size,
		.page_size = r->page_size,
		.host_addr = (uintptr_t)r->host_addr,
		.fd_offset = r->fd_offset,
		.fd_index = VMM_WIRE_NO_FD,
	};
}

/* One place in the packet for each descriptor, however many regions lie in it. */
static uint32_t fd_place(int fd, int *fds, size_t *n_fds, size_t first)
{
	for (size_t i = first; i < *n_fds; i++)
		if (fds[i] == fd)
			return (uint32_t)i;
	fds[*n_fds] = fd;
	return (uint32_t)(*n_fds)++;
}

/* On the source the daemon reads private memory through the VMM's /proc/PID/mem. */
static int open_vmm_memory(const struct postcopy *p, int *fd, struct error *err)
{
	char path[64];

	if (*fd >= 0)
		return 0;
	if (p->vmm)
		snprintf(path, sizeof path, "/proc/%d/mem", (int)p->vmm);
	else
		snprintf(path, sizeof path, "/proc/self/mem");
	*fd = open(path, O_RDONLY | O_CLOEXEC);
	if (*fd < 0)
		return error_errno(err, -errno,
		                   "can't open %s, by which postcopyd reads anonymous memory; use "
		                   "memfd memory instead",
		                   path);
	/* While it has not ended the number is its own. */
	return p->vmm && pidfd_has_ended(p->pidfd) ? error_set(err, -ESRCH, "the VMM has ended")
	                                           : 0;
}

/* Private huge pages are filled by UFFDIO_COPY of whole ones: they gather elsewhere first. */
static bool is_staged(const struct postcopy_region *r)
{
	return r->memory == POSTCOPY_MEMORY_ANONYMOUS && r->page_size != 4096;
}

static int make_stage(struct postcopy *p, struct error *err)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < p->n_regions; i++)
		bytes += is_staged(&p->regions[i]) ? p->regions[i].size : 0;
	if (!bytes)
		return 0;
	p->stage_fd = memfd_create("postcopy-stage", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (p->stage_fd < 0 || ftruncate(p->stage_fd, (off_t)bytes))
		return error_errno(err, -errno, "a memfd for huge pages that are on their way");
	return 0;
}

/* The table, with its descriptors in @fds from @*n_fds on. */
static int put_table(const struct postcopy *p, struct vmm_wire_msg *msg, int *own_memory, int *fds,
                     size_t *n_fds, struct error *err)
{
	size_t first = *n_fds;
	uint64_t staged = 0;

	msg->n_regions = (uint32_t)p->n_regions;
	for (size_t i = 0; i < p->n_regions; i++) {
		struct vmm_wire_region *w = &msg->regions[i];
		int fd = p->regions[i].fd;

		fill_region(&p->regions[i], w);
		if (p->regions[i].name) {
			msg->attach_flags |= VMM_WIRE_ATTACH_NAMES;
			snprintf(w->name, sizeof w->name, "%s", p->regions[i].name);
		}
		if (p->regions[i].memory == POSTCOPY_MEMORY_ANONYMOUS) {
			int rc;

			if (p->role == VMM_WIRE_DESTINATION && is_staged(&p->regions[i])) {
				w->fd_index = fd_place(p->stage_fd, fds, n_fds, first);
				w->fd_offset = staged;
				staged += w->size;
			}
			if (p->role == VMM_WIRE_DESTINATION)
				continue;
			rc = open_vmm_memory(p, own_memory, err);
			if (rc)
				return rc;
			fd = *own_memory;
			w->fd_offset = w->host_addr;
		}
		w->fd_index = fd_place(fd, fds, n_fds, first);
	}
	for (size_t i = 0; i < p->n_registered; i++)
		msg->regions[p->registered[i].index].uffd_mode = p->registered[i].mode;
	return 0;
}

static int send_attach(struct postcopy *p, struct vmm_wire_msg *msg, struct error *err)
{
	_cleanup_close_ int own_memory = -1;
	bool has_memory = !(msg->attach_flags & (VMM_WIRE_ATTACH_AGAIN | VMM_WIRE_ATTACH_LATE));
	int fds[VMM_WIRE_FDS_MAX];
	size_t n_fds = 0;
	int rc = 0;

	if (p->uffd >= 0 && has_memory) {
		msg->uffd_features = p->uffd_features;
		fds[n_fds++] = p->uffd;
	}
	if (has_memory)
		rc = put_table(p, msg, &own_memory, fds, &n_fds, err);
	if (rc)
		return rc;
	if (p->pidfd >= 0) {
		msg->attach_flags |= VMM_WIRE_ATTACH_PIDFD;
		fds[n_fds++] = p->pidfd;
	}
	return send_message(p, msg, fds, n_fds, err);
}

static int await_attached(struct postcopy *p, const char *id, enum vmm_wire_standing *ret,
                          struct error *err)
{
	uint64_t deadline_ns = clock_now_ns() + TIMEOUT_S * NSEC_PER_SEC;
	struct vmm_wire_msg msg;
	_cleanup_close_ int fd = -1;
	int rc;

	/* Before it returns, and the memory may be touched. */
	do {
		rc = receive_message(p, deadline_ns, &msg, &fd, err);
		if (!rc && msg.type == VMM_WIRE_OFFER_SHARDS)
			rc = split_memory(p, msg.n_shards, err);
	} while (!rc && msg.type == VMM_WIRE_OFFER_SHARDS);
	if (rc == -ETIMEDOUT)
		return error_set(err, rc,
		                 "postcopyd has not answered the attach of \"%s\" for %d s", id,
		                 TIMEOUT_S);
	if (rc)
		return rc;
	if (msg.type == VMM_WIRE_ERROR)
		return error_set(err, -(int)msg.code, "postcopyd refuses to attach \"%s\": %s", id,
		                 msg.text);
	if (msg.type != VMM_WIRE_ATTACHED)
		return error_set(err, -EPROTO, "postcopyd answers the attach with message type %d",
		                 (int)msg.type);
	*ret = msg.standing;
	return 0;
}

static void postcopy_freep(struct postcopy **p)
{
	postcopy_detach(*p);
}

/* Of the VMM itself (@pidfd -1), or of one that it is spoken for. */
static int make(enum vmm_wire_role role, int pidfd, struct postcopy **ret, struct error *err)
{
	_cleanup_(postcopy_freep) struct postcopy *p = calloc(1, sizeof *p);
	int pid = pidfd < 0 ? 0 : pidfd_pid(pidfd);

	if (!p)
		return error_set(err, -ENOMEM, "out of memory");
	p->role = role;
	p->state = role == VMM_WIRE_SOURCE ? STATE_RUNNING : STATE_WAITING;
	p->sock = p->uffd = p->vmstate_fd = p->ahead_fd = -1;
	p->poison_fd = p->pidfd = p->stage_fd = -1;
	p->hot_sock = -1;
	for (unsigned int i = 0; i < SHARDS_MAX - 1; i++)
		p->shard_uffds[i] = -1;
	if (pid < 0)
		return error_errno(err, pid, "the VMM's pidfd");
	p->vmm = pid;
	if (pidfd >= 0) {
		p->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
		if (p->pidfd < 0)
			return error_errno(err, -errno, "the VMM's pidfd");
	}
	*ret = steal_ptr(&p);
	return 0;
}

static int take_regions(struct postcopy *p, const struct postcopy_region *regions, size_t n_regions,
                        struct error *err)
{
	int rc = table_check(regions, n_regions, p->vmm, err);

	/* Also as a destination: what is arriving would be discarded. */
	if (!rc)
		rc = arriving_check(regions, n_regions, p->vmm, err);
	if (rc)
		return rc;
	/* By name: both sides have the same order then. */
	for (size_t i = 0; i < n_regions; i++) {
		size_t at = i;

		for (;
		     at && regions[i].name && strcmp(regions[i].name, p->regions[at - 1].name) < 0;
		     at--) {
			p->regions[at] = p->regions[at - 1];
			p->place[at] = p->place[at - 1];
		}
		p->regions[at] = regions[i];
		p->place[at] = (uint32_t)i;
	}
	p->n_regions = n_regions;
	return 0;
}

static bool is_asked(const struct postcopy_region *regions, size_t n_regions)
{
	return n_regions && regions[0].flags & POSTCOPY_REGION_ASKED;
}

/*
 * The vCPUs of such a memslot go around the userfaultfd: where KVM does not stop them they would
 * read zeroes for what is absent.
 */
static int check_bound(const struct postcopy *p, struct error *err)
{
	_cleanup_close_ int kvm = -1;
	uint32_t i = 0;
	int rc;

	while (i < p->n_regions && !(p->regions[i].flags & POSTCOPY_REGION_BOUND))
		i++;
	if (i == p->n_regions)
		return 0;
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	rc = kvm < 0 ? error_errno(err, -errno, "can't open /dev/kvm to try KVM userfault")
	             : kvm_userfault_try(kvm, err);
	return rc ? error_prefix(err, "region %u: its memslot is bound to guest_memfd", p->place[i])
	          : 0;
}

/* @uffd: borrowed; -1: it is made here, where any is wanted. */
static int register_regions(struct postcopy *p, int uffd, struct error *err)
{
	int rc = check_bound(p, err);

	if (rc)
		return rc;
	if (is_asked(p->regions, p->n_regions))
		return uffd < 0 ? 0
		                : error_set(err, -EINVAL,
		                            "a userfaultfd, for memory that is asked for");
	if (uffd >= 0) {
		p->uffd = fcntl(uffd, F_DUPFD_CLOEXEC, 0);
		rc = p->uffd < 0 ? error_errno(err, -errno, "the userfaultfd")
		                 : uffd_adopt(p->uffd, &p->uffd_features, err);
	} else {
		rc = uffd_open(&p->uffd, &p->uffd_features, err);
	}
	if (!rc)
		rc = make_stage(p, err);
	for (uint32_t i = 0; !rc && i < p->n_regions; i++) {
		const struct postcopy_region *r = &p->regions[i];
		uint32_t mode;

		/* It is not migrated; its mapping, if it has one, is no way to it. */
		if (r->flags & POSTCOPY_REGION_PRIVATE)
			continue;
		rc = p->vmm ? uffd_trap(p->uffd, r, p->place[i], &mode, err)
		            : uffd_register(p->uffd, r, p->place[i], &mode, err);
		if (rc)
			break;
		p->registered[p->n_registered].addr = r->host_addr;
		p->registered[p->n_registered].index = i;
		p->registered[p->n_registered].mode = mode;
		p->registered[p->n_registered++].size = r->size;
	}
	return rc;
}

static void unregister_regions(struct postcopy *p)
{
	split_unregister(p);
	close_fd(&p->stage_fd);
	close_fd(&p->uffd);
}

/* What the VMM, or whoever had the memory before, has left in its files. */
static int empty_files(const struct postcopy *p, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < p->n_regions && !rc; i++)
		if (p->regions[i].memory != POSTCOPY_MEMORY_ANONYMOUS &&
		    !(p->regions[i].flags & POSTCOPY_REGION_PRIVATE))
			rc = uffd_empty_file(&p->regions[i], p->place[i], err);
	return rc;
}

static int say_poisoned(struct postcopy *p, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_POISONED };
	int rc = p->poison_fd < 0 ? 0 : send_message(p, &msg, &p->poison_fd, 1, err);

	close_fd(&p->poison_fd);
	return rc;
}

/* Connected, and registered where it is a destination. */
static int hand_over(struct postcopy *p, const char *id, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ATTACH, .role = p->role };
	enum vmm_wire_standing standing;
	int rc;

	memcpy(msg.id, id, strlen(id));
	rc = send_attach(p, &msg, err);
	/* Where it has turned us away it has said why before it closed. */
	if (!rc || rc == -EPIPE)
		rc = await_attached(p, id, &standing, err);
	/* Not when it pauses: that is downtime. What poisons pages is a migration to here, and that
	 * was over before this one could begin. */
	if (!rc && p->role == VMM_WIRE_SOURCE)
		rc = poison_find(p->regions, p->n_regions, p->vmm, &p->poison_fd, err);
	/* Who comes again would not have it any more. */
	if (!rc && p->vmm)
		rc = say_poisoned(p, err);
	if (rc)
		return rc;
	p->attached = true;
	if (p->role == VMM_WIRE_DESTINATION)
		arriving_add(&p->arriving, id, p->regions, p->n_regions, p->vmm);
	return 0;
}

static int check_id(const char *id, struct error *err)
{
	return id ? vmm_wire_id_check(id, err) : error_set(err, -EINVAL, "migration_id is NULL");
}

static int attach(enum vmm_wire_role role, const char *path, const char *id, int pidfd,
                  const struct postcopy_region *regions, size_t n_regions, struct postcopy **ret,
                  struct error *err)
{
	_cleanup_(postcopy_freep) struct postcopy *p = NULL;
	int rc = check_id(id, err);

	if (!rc)
		rc = make(role, pidfd, &p, err);
	if (!rc)
		rc = take_regions(p, regions, n_regions, err);
	if (!rc)
		rc = connect_daemon(path, &p->sock, err);
	if (!rc && role == VMM_WIRE_DESTINATION)
		rc = register_regions(p, -1, err);
	p->uffd_is_own = !rc && p->uffd >= 0;
	if (!rc)
		rc = hand_over(p, id, err);
	if (!rc)
		*ret = steal_ptr(&p);
	return rc;
}

int postcopy_source_attach(const char *socket_path, const char *migration_id,
                           const struct postcopy_region *regions, size_t n_regions,
                           struct postcopy **ret, struct postcopy_error *err)
{
	return postcopy_source_attach_for(socket_path, migration_id, -1, regions, n_regions, ret,
	                                  err);
}

int postcopy_source_attach_for(const char *socket_path, const char *migration_id, int pidfd,
                               const struct postcopy_region *regions, size_t n_regions,
                               struct postcopy **ret, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err,
	                    attach(VMM_WIRE_SOURCE, socket_path, migration_id, pidfd, regions,
	                           n_regions, ret, &e),
	                    &e);
}

int postcopy_destination_attach(const char *socket_path, const char *migration_id,
                                const struct postcopy_region *regions, size_t n_regions,
                                struct postcopy **ret, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err,
	                    attach(VMM_WIRE_DESTINATION, socket_path, migration_id, -1, regions,
	                           n_regions, ret, &e),
	                    &e);
}

static int destination_register(int pidfd, int uffd, const struct postcopy_region *regions,
                                size_t n_regions, struct postcopy **ret, struct error *err)
{
	_cleanup_(postcopy_freep) struct postcopy *p = NULL;
	int rc = 0;

	if (pidfd >= 0 && uffd < 0 && regions && !is_asked(regions, n_regions))
		rc = error_set(err, -EINVAL, NO_UFFD);
	if (!rc)
		rc = make(VMM_WIRE_DESTINATION, pidfd, &p, err);
	if (!rc)
		rc = take_regions(p, regions, n_regions, err);
	if (!rc)
		rc = register_regions(p, uffd, err);
	if (!rc)
		*ret = steal_ptr(&p);
	return rc;
}

int postcopy_destination_register(int pidfd, int uffd, const struct postcopy_region *regions,
                                  size_t n_regions, struct postcopy **ret,
                                  struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, destination_register(pidfd, uffd, regions, n_regions, ret, &e),
	                    &e);
}

/* Return: 0; or -errno with @err set: it may be tried again, over another connection. */
static int connect_and_hand_over(struct postcopy *p, const char *path, const char *id,
                                 struct error *err)
{
	int rc = p->sock < 0 ? connect_daemon(path, &p->sock, err) : 0;

	if (!rc)
		rc = hand_over(p, id, err);
	if (rc && !p->attached)
		close_fd(&p->sock);
	return rc;
}

/*
 * Files are emptied by the daemon, when all else of the attach has been found good, and not before:
 * with the wrong id it may be a guest's memory that runs.
 */
static int attach_registered(struct postcopy *p, const char *path, const char *id,
                             struct error *err)
{
	int rc = check_id(id, err);

	if (!rc && (p->attached || p->role != VMM_WIRE_DESTINATION))
		rc = error_set(err, -EINVAL,
		               "it must come from postcopy_destination_register(), and is attached "
		               "once");
	if (!rc)
		rc = connect_and_hand_over(p, path, id, err);
	/* It is welcome, but for what its files hold, which is more than the daemon has time for.
	 */
	if (rc == -EFBIG && p->vmm) {
		*err = ERROR_INIT;
		rc = empty_files(p, err);
		if (!rc)
			rc = connect_and_hand_over(p, path, id, err);
	}
	return rc;
}

int postcopy_destination_attach_registered(struct postcopy *p, const char *socket_path,
                                           const char *migration_id, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, attach_registered(p, socket_path, migration_id, &e), &e);
}

static int attach_late(const char *path, const char *id, int pidfd, struct postcopy **ret,
                       struct error *err)
{
	_cleanup_(postcopy_freep) struct postcopy *p = NULL;
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ATTACH,
		                    .role = VMM_WIRE_DESTINATION,
		                    .attach_flags = VMM_WIRE_ATTACH_LATE };
	enum vmm_wire_standing standing;
	int rc = check_id(id, err);

	if (!rc)
		rc = make(VMM_WIRE_DESTINATION, pidfd, &p, err);
	if (!rc)
		rc = connect_daemon(path, &p->sock, err);
	if (rc)
		return rc;
	memcpy(msg.id, id, strlen(id));
	memcpy(p->id, id, strlen(id));
	rc = send_attach(p, &msg, err);
	if (!rc || rc == -EPIPE)
		rc = await_attached(p, id, &standing, err);
	if (rc)
		return rc;
	p->attached = p->late = true;
	*ret = steal_ptr(&p);
	return 0;
}

int postcopy_destination_attach_late(const char *socket_path, const char *migration_id, int pidfd,
                                     struct postcopy **ret, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, attach_late(socket_path, migration_id, pidfd, ret, &e), &e);
}

int say_memory(struct postcopy *p, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_MEMORY, .role = p->role };
	int fds[VMM_WIRE_FDS_MAX], none = -1;
	size_t n_fds = 0;
	int rc;

	memcpy(msg.id, p->id, strlen(p->id));
	if (p->uffd >= 0) {
		msg.uffd_features = p->uffd_features;
		fds[n_fds++] = p->uffd;
	}
	rc = put_table(p, &msg, &none, fds, &n_fds, err);
	return rc ? rc : send_message(p, &msg, fds, n_fds, err);
}

/* A daemon that is started again meanwhile asks again, and is told again. */
static int await_taken(struct postcopy *p, struct error *err)
{
	uint64_t deadline_ns = clock_now_ns() + MEMORY_TIMEOUT_S * NSEC_PER_SEC;
	_cleanup_close_ int fd = -1;
	struct vmm_wire_msg msg;
	int rc = receive_news(p, deadline_ns, &msg, &fd, err);

	if (rc == -ETIMEDOUT)
		return error_set(err, rc, "postcopyd has not taken the memory of \"%s\" for %d s",
		                 p->id, MEMORY_TIMEOUT_S);
	if (rc)
		return rc;
	if (msg.type == VMM_WIRE_ERROR)
		return error_set(err, -(int)msg.code, "%s", msg.text);
	if (msg.type != VMM_WIRE_ATTACHED)
		return error_set(err, -EPROTO, "postcopyd answers MEMORY with message type %d",
		                 (int)msg.type);
	return 0;
}

static int hand_over_late(struct postcopy *p, int uffd, const struct postcopy_region *regions,
                          size_t n_regions, struct error *err)
{
	int rc = require_state(p, STATE_LOADING, "postcopy_destination_memory", err);

	if (rc)
		return rc;
	if (p->handed || p->taken || p->n_regions)
		return error_set(err, -EINVAL, "its memory was handed over already");
	if (p->vmm && uffd < 0 && regions && !is_asked(regions, n_regions))
		rc = error_set(err, -EINVAL, NO_UFFD);
	if (!rc)
		rc = take_regions(p, regions, n_regions, err);
	if (!rc)
		rc = register_regions(p, uffd, err);
	if (!rc && p->vmm)
		rc = empty_files(p, err);
	if (rc) {
		unregister_regions(p);
		p->n_regions = 0;
		return rc;
	}
	p->handed = true;
	rc = say_memory(p, err);
	if (!rc)
		rc = await_taken(p, err);
	if (rc) {
		p->state = STATE_FAILED;
		return rc;
	}
	p->taken = true;
	arriving_add(&p->arriving, p->id, p->regions, p->n_regions, p->vmm);
	return 0;
}

int postcopy_destination_memory(struct postcopy *p, int uffd, const struct postcopy_region *regions,
                                size_t n_regions, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, hand_over_late(p, uffd, regions, n_regions, &e), &e);
}

_Static_assert((int)POSTCOPY_STANDS_RUNNING == VMM_WIRE_STANDS_RUNNING &&
                       (int)POSTCOPY_STANDS_LOADING == VMM_WIRE_STANDS_LOADING,
               "they are the same");

static const struct {
	enum vmm_wire_role role;
	enum attachment_state state;
} standings[] = {
	[VMM_WIRE_STANDS_RUNNING] = { VMM_WIRE_SOURCE, STATE_RUNNING },
	[VMM_WIRE_STANDS_PAUSED] = { VMM_WIRE_SOURCE, STATE_PAUSED },
	[VMM_WIRE_STANDS_WAITING] = { VMM_WIRE_DESTINATION, STATE_WAITING },
	[VMM_WIRE_STANDS_LOADED] = { VMM_WIRE_DESTINATION, STATE_LOADED },
	[VMM_WIRE_STANDS_RESUMED] = { VMM_WIRE_DESTINATION, STATE_RESUMED },
	[VMM_WIRE_STANDS_LOADING] = { VMM_WIRE_DESTINATION, STATE_WAITING },
};

static int attach_again(enum vmm_wire_role role, const char *path, const char *id, int pidfd,
                        struct postcopy **ret, enum postcopy_standing *ret_standing,
                        struct error *err)
{
	_cleanup_(postcopy_freep) struct postcopy *p = NULL;
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ATTACH,
		                    .role = role,
		                    .attach_flags = VMM_WIRE_ATTACH_AGAIN };
	enum vmm_wire_standing standing = VMM_WIRE_STANDS_NEW;
	int rc = check_id(id, err);

	if (!rc && pidfd < 0)
		rc = error_set(err, -EINVAL, "the VMM's pidfd is missing");
	if (!rc)
		rc = make(role, pidfd, &p, err);
	if (!rc)
		rc = connect_daemon(path, &p->sock, err);
	if (rc)
		return rc;
	memcpy(msg.id, id, strlen(id));
	memcpy(p->id, id, strlen(id));
	rc = send_attach(p, &msg, err);
	if (!rc || rc == -EPIPE)
		rc = await_attached(p, id, &standing, err);
	if (!rc && standings[standing].role != role)
		rc = error_set(err, -EPROTO, "postcopyd answers the attach with standing %d",
		               (int)standing);
	if (rc)
		return rc;
	p->attached = true;
	memcpy(p->id, id, strlen(id));
	p->taken = standing == VMM_WIRE_STANDS_LOADING;
	p->state = standings[standing].state;
	if (ret_standing)
		*ret_standing = (enum postcopy_standing)standing;
	*ret = steal_ptr(&p);
	return 0;
}

int postcopy_source_attach_again(const char *socket_path, const char *migration_id, int pidfd,
                                 struct postcopy **ret, enum postcopy_standing *ret_standing,
                                 struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err,
	                    attach_again(VMM_WIRE_SOURCE, socket_path, migration_id, pidfd, ret,
	                                 ret_standing, &e),
	                    &e);
}

int postcopy_destination_attach_again(const char *socket_path, const char *migration_id, int pidfd,
                                      struct postcopy **ret, enum postcopy_standing *ret_standing,
                                      struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err,
	                    attach_again(VMM_WIRE_DESTINATION, socket_path, migration_id, pidfd,
	                                 ret, ret_standing, &e),
	                    &e);
}

struct postcopy *postcopy_detach(struct postcopy *p)
{
	if (!p)
		return NULL;
	arriving_remove(&p->arriving);
	/*
	 * The daemon may still hold its copies, so closing ours would not unregister. An adapter
	 * that goes leaves all as it is.
	 */
	if (p->vmm && p->attached)
		p->n_registered = 0;
	unregister_regions(p);
	dirty_release(p);
	close_fd(&p->vmstate_fd);
	close_fd(&p->ahead_fd);
	close_fd(&p->hot_sock);
	close_fd(&p->poison_fd);
	close_fd(&p->pidfd);
	close_fd(&p->sock);
	free(p);
	return NULL;
}

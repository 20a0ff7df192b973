/* SPDX-License-Identifier: Apache-2.0 */
#include "libpostcopy/vmm_wire.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "util/bytes.h"
#include "util/cleanup.h"

#define REGION_BYTES 56
#define ERRNO_MAX 4095

_Static_assert(VMM_WIRE_HEADER_BYTES + 4 + 4 + 8 + 4 + POSTCOPY_ID_MAX +
                               POSTCOPY_REGIONS_MAX *
                                       (REGION_BYTES + 4 + POSTCOPY_REGION_NAME_MAX) +
                               4 <=
                       VMM_WIRE_PACKET_MAX,
               "the largest table fits one packet");

static const char *type_name(enum vmm_wire_type type)
{
	static const char *const names[] = {
		[VMM_WIRE_ATTACH] = "ATTACH",
		[VMM_WIRE_ATTACHED] = "ATTACHED",
		[VMM_WIRE_ERROR] = "ERROR",
		[VMM_WIRE_PAUSE] = "PAUSE",
		[VMM_WIRE_PAUSED] = "PAUSED",
		[VMM_WIRE_RESUME] = "RESUME",
		[VMM_WIRE_VMSTATE] = "VMSTATE",
		[VMM_WIRE_LOADED] = "LOADED",
		[VMM_WIRE_RESUMED] = "RESUMED",
		[VMM_WIRE_COMPLETE] = "COMPLETE",
		[VMM_WIRE_CHANNEL] = "CHANNEL",
		[VMM_WIRE_ATTRIBUTES] = "ATTRIBUTES",
		[VMM_WIRE_POISONED] = "POISONED",
		[VMM_WIRE_COULD_NOT_RUN] = "COULD_NOT_RUN",
		[VMM_WIRE_DIRTY_LOG] = "DIRTY_LOG",
		[VMM_WIRE_LOG_START] = "LOG_START",
		[VMM_WIRE_LOG_HARVEST] = "LOG_HARVEST",
		[VMM_WIRE_LOG_STOP] = "LOG_STOP",
		[VMM_WIRE_HARVESTED] = "HARVESTED",
		[VMM_WIRE_MEMORY] = "MEMORY",
		[VMM_WIRE_VMSTATE_AHEAD] = "VMSTATE_AHEAD",
		[VMM_WIRE_OFFER_SHARDS] = "OFFER_SHARDS",
		[VMM_WIRE_SHARDS] = "SHARDS",
	};

	return names[type];
}

static bool id_char_valid(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c == '.' || c == '_' || c == '-';
}

int vmm_wire_id_check(const char *id, struct error *err)
{
	size_t len = strnlen(id, POSTCOPY_ID_MAX + 1);

	if (!len || len > POSTCOPY_ID_MAX)
		return error_set(err, -EINVAL,
		                 "migration id \"%.*s\" is %s: give 1 to %d characters",
		                 POSTCOPY_ID_MAX, id, len ? "too long" : "empty", POSTCOPY_ID_MAX);
	if (id[0] == '.')
		return error_set(err, -EINVAL, "migration id \"%s\" starts with a dot", id);
	for (size_t i = 0; i < len; i++)
		if (!id_char_valid(id[i]))
			return error_set(err, -EINVAL,
			                 "migration id \"%s\" has a character other than "
			                 "A-Z a-z 0-9 . _ -",
			                 id);
	return 0;
}

static void *put_text(void *p, const char *text, size_t len)
{
	p = put_u32(p, (uint32_t)len);
	return (char *)memcpy(p, text, len) + len;
}

static void *put_attach(void *p, const struct vmm_wire_msg *msg)
{
	uint32_t n = msg->n_regions < POSTCOPY_REGIONS_MAX ? msg->n_regions : POSTCOPY_REGIONS_MAX;

	p = put_u32(p, msg->role);
	p = put_u32(p, n);
	p = put_u64(p, msg->uffd_features);
	p = put_text(p, msg->id, strnlen(msg->id, POSTCOPY_ID_MAX));
	for (uint32_t i = 0; i < n; i++) {
		const struct vmm_wire_region *r = &msg->regions[i];

		p = put_u32(p, r->memory);
		p = put_u32(p, r->flags);
		p = put_u64(p, r->guest_phys_addr);
		p = put_u64(p, r->size);
		p = put_u64(p, r->page_size);
		p = put_u64(p, r->host_addr);
		p = put_u64(p, r->fd_offset);
		p = put_u32(p, r->fd_index);
		p = put_u32(p, r->uffd_mode);
	}
	/* In ATTACH who has none speaks as before there were any. */
	if (msg->attach_flags || msg->type == VMM_WIRE_MEMORY)
		p = put_u32(p, msg->attach_flags);
	for (uint32_t i = 0; i < n && (msg->attach_flags & VMM_WIRE_ATTACH_NAMES); i++)
		p = put_text(p, msg->regions[i].name,
		             strnlen(msg->regions[i].name, POSTCOPY_REGION_NAME_MAX));
	return p;
}

static void *put_attributes(void *p, const struct vmm_wire_msg *msg)
{
	uint32_t n = msg->n_regions < POSTCOPY_REGIONS_MAX ? msg->n_regions : POSTCOPY_REGIONS_MAX;

	p = put_u32(p, n);
	for (uint32_t i = 0; i < n; i++)
		p = put_u32(p, msg->regions[i].flags);
	return p;
}

size_t vmm_wire_encode(const struct vmm_wire_msg *msg, void *buf)
{
	char *payload = (char *)buf + VMM_WIRE_HEADER_BYTES;
	void *p = payload;

	switch (msg->type) {
	case VMM_WIRE_ATTACH:
	case VMM_WIRE_MEMORY:
		p = put_attach(p, msg);
		break;
	case VMM_WIRE_ERROR:
	case VMM_WIRE_COULD_NOT_RUN:
		p = put_u32(p, msg->code);
		p = put_text(p, msg->text, strnlen(msg->text, sizeof msg->text - 1));
		break;
	case VMM_WIRE_PAUSED:
		p = put_u64(p, msg->vmstate_len);
		p = put_u64(p, msg->pause_ns);
		break;
	case VMM_WIRE_VMSTATE:
	case VMM_WIRE_VMSTATE_AHEAD:
		p = put_u64(p, msg->vmstate_len);
		break;
	case VMM_WIRE_ATTRIBUTES:
		p = put_attributes(p, msg);
		break;
	case VMM_WIRE_DIRTY_LOG:
		p = put_u32(p, msg->how);
		p = put_text(p, msg->text, strnlen(msg->text, sizeof msg->text - 1));
		break;
	case VMM_WIRE_HARVESTED:
		p = put_u64(p, msg->number);
		p = put_u32(p, msg->code);
		p = put_text(p, msg->text, strnlen(msg->text, sizeof msg->text - 1));
		break;
	case VMM_WIRE_LOG_START:
	case VMM_WIRE_LOG_HARVEST:
		p = put_u64(p, msg->number);
		break;
	case VMM_WIRE_OFFER_SHARDS:
	case VMM_WIRE_SHARDS:
		p = put_u32(p, msg->n_shards);
		break;
	case VMM_WIRE_ATTACHED:
		if (msg->standing)
			p = put_u32(p, msg->standing);
		break;
	case VMM_WIRE_PAUSE:
	case VMM_WIRE_RESUME:
	case VMM_WIRE_LOADED:
	case VMM_WIRE_RESUMED:
	case VMM_WIRE_COMPLETE:
	case VMM_WIRE_CHANNEL:
	case VMM_WIRE_POISONED:
	case VMM_WIRE_LOG_STOP:
		break;
	}
	put_u32(put_u16(put_u16(buf, (uint16_t)msg->type), VMM_WIRE_VERSION),
	        (uint32_t)((char *)p - payload));
	return (size_t)((char *)p - (char *)buf);
}

/* A counted text without NUL into @out of @size bytes. */
static int get_text(struct reader *r, char *out, size_t size, const char *what, struct error *err)
{
	uint32_t len = get_u32(r);
	const char *text;

	if (!r->failed && len >= size)
		return error_set(err, -EPROTO, "%s of %u bytes; at most %zu", what, len, size - 1);
	text = get_bytes(r, len);
	if (!text)
		return error_set(err, -EPROTO, "packet ends within the %s", what);
	if (memchr(text, '\0', len))
		return error_set(err, -EPROTO, "%s holds a NUL byte", what);
	memcpy(out, text, len);
	out[len] = '\0';
	return 0;
}

static void get_region(struct reader *r, struct vmm_wire_region *region)
{
	region->memory = get_u32(r);
	region->flags = get_u32(r);
	region->guest_phys_addr = get_u64(r);
	region->size = get_u64(r);
	region->page_size = get_u64(r);
	region->host_addr = get_u64(r);
	region->fd_offset = get_u64(r);
	region->fd_index = get_u32(r);
	region->uffd_mode = get_u32(r);
}

/*
 * Each region names one of the packet's descriptors or none, and each descriptor is
 * named: one that nobody refers to has no meaning, so the sender is confused. The
 * destination's first one is the userfaultfd, which is nobody's memory, nor is the pidfd, the last.
 */
static int check_fds(const struct vmm_wire_msg *msg, size_t n_fds, struct error *err)
{
	bool used[VMM_WIRE_FDS_MAX] = { false };
	size_t first = vmm_wire_has_uffd(msg);

	if (msg->attach_flags & VMM_WIRE_ATTACH_PIDFD) {
		if (n_fds < first + 1)
			return error_set(err, -EPROTO, "ATTACH without the pidfd that it tells of");
		n_fds--;
	}
	if (n_fds < first)
		return error_set(err, -EPROTO,
		                 "%s of a destination without a userfaultfd descriptor",
		                 type_name(msg->type));
	for (uint32_t i = 0; i < msg->n_regions; i++) {
		uint32_t index = msg->regions[i].fd_index;

		if (index == VMM_WIRE_NO_FD)
			continue;
		if (index >= n_fds || index < first)
			return error_set(err, -EPROTO,
			                 "region %u: descriptor index %u; the packet's memory "
			                 "descriptors are %zu to %zu",
			                 i, index, first, n_fds);
		used[index] = true;
	}
	for (size_t i = first; i < n_fds; i++)
		if (!used[i])
			return error_set(err, -EPROTO, "descriptor %zu belongs to no region", i);
	return 0;
}

/* Which of them go together. */
static int check_attach_flags(const struct vmm_wire_msg *msg, uint32_t flags, struct error *err)
{
	bool again = flags & VMM_WIRE_ATTACH_AGAIN, late = flags & VMM_WIRE_ATTACH_LATE;

	if (flags & ~(uint32_t)VMM_WIRE_ATTACH_FLAGS)
		return error_set(err, -EPROTO, "%s with unknown flags %#x", type_name(msg->type),
		                 flags);
	if (msg->type == VMM_WIRE_MEMORY &&
	    (flags & ~(uint32_t)VMM_WIRE_ATTACH_NAMES || msg->role != VMM_WIRE_DESTINATION))
		return error_set(err, -EPROTO, "MEMORY with role %d, flags %#x", (int)msg->role,
		                 flags);
	if (again && !(flags & VMM_WIRE_ATTACH_PIDFD))
		return error_set(err, -EPROTO, "ATTACH again without a pidfd");
	if (late && (again || msg->role != VMM_WIRE_DESTINATION))
		return error_set(err, -EPROTO, "ATTACH with late memory: role %d, flags %#x",
		                 (int)msg->role, flags);
	if ((again || late) && msg->n_regions)
		return error_set(err, -EPROTO, "ATTACH %s with regions",
		                 again ? "again" : "with late memory");
	if (!again && !late && !msg->n_regions)
		return error_set(err, -EINVAL, "0 regions; 1 to %d are possible",
		                 POSTCOPY_REGIONS_MAX);
	return 0;
}

/* Of a table that is whole. */
static int get_attach_flags(struct reader *r, struct vmm_wire_msg *msg, struct error *err)
{
	bool none = msg->type == VMM_WIRE_ATTACH && reader_done(r);
	uint32_t flags = none ? 0 : get_u32(r);

	if (check_attach_flags(msg, flags, err))
		return err->code;
	msg->attach_flags = flags;
	for (uint32_t i = 0; i < msg->n_regions && (flags & VMM_WIRE_ATTACH_NAMES); i++) {
		int rc = get_text(r, msg->regions[i].name, sizeof msg->regions[i].name,
		                  "name of a region", err);

		if (rc)
			return rc;
		if (!*msg->regions[i].name)
			return error_set(err, -EPROTO, "region %u: its name is empty", i);
	}
	return 0;
}

static int get_attach(struct reader *r, size_t n_fds, struct vmm_wire_msg *msg, struct error *err)
{
	uint32_t role = get_u32(r);
	uint32_t n_regions = get_u32(r);
	int rc;

	msg->uffd_features = get_u64(r);
	rc = get_text(r, msg->id, sizeof msg->id, "migration id", err);
	if (rc)
		return rc;
	if (role != VMM_WIRE_SOURCE && role != VMM_WIRE_DESTINATION)
		return error_set(err, -EPROTO, "unknown role %u", role);
	rc = vmm_wire_id_check(msg->id, err);
	if (rc)
		return rc;
	if (n_regions > POSTCOPY_REGIONS_MAX)
		return error_set(err, -EINVAL, "%u regions; 1 to %d are possible", n_regions,
		                 POSTCOPY_REGIONS_MAX);
	msg->role = role;
	msg->n_regions = n_regions;
	for (uint32_t i = 0; i < n_regions; i++)
		get_region(r, &msg->regions[i]);
	if (r->failed)
		return error_set(err, -EPROTO, "packet ends within its table of %u regions",
		                 n_regions);
	rc = get_attach_flags(r, msg, err);
	return rc ? rc : check_fds(msg, n_fds, err);
}

/* It ends in logs and on terminals: error_set() takes control characters out. */
static int get_reason(struct reader *r, struct vmm_wire_msg *msg, struct error *err)
{
	struct error clean = ERROR_INIT;
	int rc = get_text(r, msg->text, sizeof msg->text, "error text", err);

	if (rc)
		return rc;
	/* For its text alone: the code may be any number still. */
	error_set(&clean, -EPROTO, "%s", msg->text);
	memcpy(msg->text, clean.text, sizeof msg->text);
	return 0;
}

static int get_error(struct reader *r, struct vmm_wire_msg *msg, struct error *err)
{
	int rc;

	msg->code = get_u32(r);
	rc = get_reason(r, msg, err);
	if (rc)
		return rc;
	if (!msg->code || msg->code > ERRNO_MAX)
		return error_set(err, -EPROTO, "ERROR with the impossible errno %u", msg->code);
	return 0;
}

static int get_harvested(struct reader *r, struct vmm_wire_msg *msg, struct error *err)
{
	msg->number = get_u64(r);
	msg->code = get_u32(r);
	if (!r->failed && msg->code > ERRNO_MAX)
		return error_set(err, -EPROTO, "HARVESTED with the impossible errno %u", msg->code);
	return get_reason(r, msg, err);
}

static int get_dirty_log(struct reader *r, size_t n_fds, struct vmm_wire_msg *msg,
                         struct error *err)
{
	static const size_t fds[] = {
		[VMM_WIRE_LOG_NONE] = 0, [VMM_WIRE_LOG_BY_VMM] = 1, [VMM_WIRE_LOG_BY_KERNEL] = 2
	};

	msg->how = get_u32(r);
	if (!r->failed && msg->how > VMM_WIRE_LOG_BY_KERNEL)
		return error_set(err, -EPROTO, "DIRTY_LOG of the unknown kind %u", msg->how);
	if (!r->failed && n_fds != fds[msg->how])
		return error_set(err, -EPROTO,
		                 "DIRTY_LOG of kind %u came with %zu descriptors; it has %zu",
		                 msg->how, n_fds, fds[msg->how]);
	return get_reason(r, msg, err);
}

static int get_shards(struct reader *r, size_t n_fds, struct vmm_wire_msg *msg, struct error *err)
{
	uint32_t most = msg->type == VMM_WIRE_SHARDS ? SHARDS_MAX : UINT32_MAX;

	msg->n_shards = get_u32(r);
	if (r->failed)
		return 0;
	if (msg->n_shards < 2 || msg->n_shards > most)
		return error_set(err, -EPROTO, "%s of %u; 2 to %u are possible",
		                 type_name(msg->type), msg->n_shards, most);
	if (msg->type == VMM_WIRE_SHARDS && n_fds != msg->n_shards - 1)
		return error_set(err, -EPROTO, "SHARDS of %u came with %zu descriptors; it has %u",
		                 msg->n_shards, n_fds, msg->n_shards - 1);
	return 0;
}

static int get_attributes(struct reader *r, struct vmm_wire_msg *msg, struct error *err)
{
	uint32_t n = get_u32(r);

	if (!r->failed && (!n || n > POSTCOPY_REGIONS_MAX))
		return error_set(err, -EPROTO, "ATTRIBUTES of %u regions; 1 to %d are possible", n,
		                 POSTCOPY_REGIONS_MAX);
	msg->n_regions = n;
	for (uint32_t i = 0; !r->failed && i < n; i++)
		msg->regions[i].flags = get_u32(r);
	return 0;
}

static int get_standing(struct reader *r, struct vmm_wire_msg *msg, struct error *err)
{
	uint32_t standing = reader_done(r) ? VMM_WIRE_STANDS_NEW : get_u32(r);

	if (standing > VMM_WIRE_STANDS_LOADING)
		return error_set(err, -EPROTO, "ATTACHED with the unknown standing %u", standing);
	msg->standing = standing;
	return 0;
}

/* How many descriptors a type travels with; some say so themselves. */
static int check_fd_count(enum vmm_wire_type type, size_t n_fds, struct error *err)
{
	bool has_fd = type == VMM_WIRE_PAUSED || type == VMM_WIRE_VMSTATE ||
	              type == VMM_WIRE_CHANNEL || type == VMM_WIRE_POISONED ||
	              type == VMM_WIRE_VMSTATE_AHEAD;
	bool says_itself = type == VMM_WIRE_ATTACH || type == VMM_WIRE_DIRTY_LOG ||
	                   type == VMM_WIRE_MEMORY || type == VMM_WIRE_SHARDS;
	size_t want = has_fd ? 1 : 0;

	if (n_fds > VMM_WIRE_FDS_MAX || (!says_itself && n_fds != want))
		return error_set(err, -EPROTO, "%s came with %zu descriptors; it has %zu",
		                 type_name(type), n_fds, want);
	return 0;
}

static int get_header(struct reader *r, enum vmm_wire_type *ret_type, struct error *err)
{
	uint16_t type = get_u16(r);
	uint16_t version = get_u16(r);
	uint32_t len = get_u32(r);

	if (r->failed)
		return error_set(err, -EPROTO, "packet is shorter than its header");
	if (version != VMM_WIRE_VERSION)
		return error_set(err, -EPROTO,
		                 "the other side speaks version %u of the VMM protocol, this one "
		                 "%d: install libpostcopy and postcopyd of the same release",
		                 version, VMM_WIRE_VERSION);
	if (type < VMM_WIRE_ATTACH || type > VMM_WIRE_TYPE_LAST)
		return error_set(err, type ? -ENOMSG : -EPROTO, "unknown message type %u", type);
	if (len != (size_t)(r->end - r->pos))
		return error_set(err, -EPROTO, "%s says %u bytes of payload, but has %zu",
		                 type_name(type), len, (size_t)(r->end - r->pos));
	*ret_type = type;
	return 0;
}

int vmm_wire_decode(const void *buf, size_t len, size_t n_fds, struct vmm_wire_msg *ret_msg,
                    struct error *err)
{
	struct reader r = reader_init(buf, len);
	enum vmm_wire_type type = 0;
	int rc;

	rc = get_header(&r, &type, err);
	if (!rc)
		rc = check_fd_count(type, n_fds, err);
	if (rc)
		return rc;
	memset(ret_msg, 0, sizeof *ret_msg);
	ret_msg->type = type;
	if (type == VMM_WIRE_ATTACH || type == VMM_WIRE_MEMORY)
		rc = get_attach(&r, n_fds, ret_msg, err);
	else if (type == VMM_WIRE_ATTACHED)
		rc = get_standing(&r, ret_msg, err);
	else if (type == VMM_WIRE_ERROR || type == VMM_WIRE_COULD_NOT_RUN)
		rc = get_error(&r, ret_msg, err);
	else if (type == VMM_WIRE_ATTRIBUTES)
		rc = get_attributes(&r, ret_msg, err);
	else if (type == VMM_WIRE_DIRTY_LOG)
		rc = get_dirty_log(&r, n_fds, ret_msg, err);
	else if (type == VMM_WIRE_HARVESTED)
		rc = get_harvested(&r, ret_msg, err);
	else if (type == VMM_WIRE_OFFER_SHARDS || type == VMM_WIRE_SHARDS)
		rc = get_shards(&r, n_fds, ret_msg, err);
	else if (type == VMM_WIRE_LOG_START || type == VMM_WIRE_LOG_HARVEST)
		ret_msg->number = get_u64(&r);
	else if (type == VMM_WIRE_PAUSED || type == VMM_WIRE_VMSTATE ||
	         type == VMM_WIRE_VMSTATE_AHEAD)
		ret_msg->vmstate_len = get_u64(&r);
	if (type == VMM_WIRE_PAUSED)
		ret_msg->pause_ns = get_u64(&r);
	if (rc)
		return rc;
	if (!reader_done(&r))
		return error_set(err, -EPROTO, "%s is %s", type_name(type),
		                 r.failed ? "cut short" : "followed by bytes that mean nothing");
	return 0;
}

int vmm_wire_send(int sock, const struct vmm_wire_msg *msg, const int *fds, size_t n_fds)
{
	char buf[VMM_WIRE_PACKET_MAX];
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(VMM_WIRE_FDS_MAX * sizeof(int))];
	struct iovec iov = { .iov_base = buf, .iov_len = vmm_wire_encode(msg, buf) };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (n_fds > VMM_WIRE_FDS_MAX)
		return -EINVAL;
	if (n_fds) {
		struct cmsghdr *cmsg;

		memset(control, 0, sizeof control);
		hdr.msg_control = control;
		hdr.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&hdr);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
	}
	do
		n = sendmsg(sock, &hdr, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return 0;
}

/* Of a daemon that is ours: no harm in it. */
static void just_close(int *fd)
{
	close(*fd);
}

/* What became of a packet's descriptors. */
enum taken {
	TAKEN_ALL,
	TAKEN_TOO_MANY, /* for us */
	TAKEN_LOST, /* this process has as many open as it may, and the kernel closed the rest */
};

/*
 * The descriptors of a packet. There can be more than fit: the control buffer has
 * room for credentials too, which the kernel fills with descriptors where the socket
 * does not ask for any. Those beyond the limit are discarded.
 */
static enum taken take_fds(struct msghdr *hdr, int *fds, size_t *n_fds, void (*discard)(int *fd))
{
	bool too_many = false;

	*n_fds = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(hdr); c; c = CMSG_NXTHDR(hdr, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (*n_fds < VMM_WIRE_FDS_MAX) {
				fds[(*n_fds)++] = fd;
			} else {
				discard(&fd);
				too_many = true;
			}
		}
	}
	/* Fewer came than there was room for. */
	if ((hdr->msg_flags & MSG_CTRUNC) && *n_fds < VMM_WIRE_FDS_MAX)
		return TAKEN_LOST;
	return too_many || (hdr->msg_flags & MSG_CTRUNC) ? TAKEN_TOO_MANY : TAKEN_ALL;
}

/* A packet that came without all of its descriptors: at most its type is of use. */
static int lost_fds(const void *buf, size_t len, struct vmm_wire_msg *ret_msg, struct error *err)
{
	struct reader r = reader_init(buf, len);
	int rc;

	memset(ret_msg, 0, sizeof *ret_msg);
	rc = get_header(&r, &ret_msg->type, err);
	if (rc)
		return rc;
	return error_set(err, -EMFILE,
	                 "%s: its descriptors could not be taken, for this process has as many "
	                 "open as it may (RLIMIT_NOFILE; LimitNOFILE= of a unit)",
	                 type_name(ret_msg->type));
}

int vmm_wire_take(struct msghdr *hdr, size_t len, struct vmm_wire_msg *ret_msg, int *fds,
                  size_t *ret_n_fds, void (*discard)(int *fd), struct error *err)
{
	const void *buf = hdr->msg_iov->iov_base;
	size_t n_fds;
	enum taken taken = take_fds(hdr, fds, &n_fds, discard);
	int rc;

	if (!len)
		rc = -EPIPE;
	else if (taken == TAKEN_LOST)
		rc = lost_fds(buf, len, ret_msg, err);
	else if (taken == TAKEN_TOO_MANY)
		rc = error_set(err, -EPROTO, "packet with more than %d descriptors",
		               VMM_WIRE_FDS_MAX);
	else if (hdr->msg_flags & MSG_TRUNC)
		rc = error_set(err, -EPROTO, "packet of more than %d bytes", VMM_WIRE_PACKET_MAX);
	else
		rc = vmm_wire_decode(buf, len, n_fds, ret_msg, err);
	if (rc) {
		for (size_t i = 0; i < n_fds; i++)
			discard(&fds[i]);
		return rc;
	}
	*ret_n_fds = n_fds;
	return 0;
}

int vmm_wire_recv_from(int sock, int flags, struct vmm_wire_msg *ret_msg, int *fds,
                       size_t *ret_n_fds, void (*discard)(int *fd), struct error *err)
{
	char buf[VMM_WIRE_PACKET_MAX];
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(VMM_WIRE_FDS_MAX * sizeof(int)) +
	                                      CMSG_SPACE(sizeof(struct ucred))];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof buf };
	struct msghdr hdr = { .msg_iov = &iov,
		              .msg_iovlen = 1,
		              .msg_control = control,
		              .msg_controllen = sizeof control };
	unsigned int n_resets = 0;
	ssize_t n;

	/* A reset is reported once, before what the peer said until then: LOADED perhaps. */
	do
		n = recvmsg(sock, &hdr, flags | MSG_CMSG_CLOEXEC);
	while (n < 0 && (errno == EINTR || (errno == ECONNRESET && n_resets++ == 0)));
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return vmm_wire_take(&hdr, (size_t)n, ret_msg, fds, ret_n_fds, discard, err);
}

int vmm_wire_recv(int sock, int flags, struct vmm_wire_msg *ret_msg, int *fds, size_t *ret_n_fds,
                  struct error *err)
{
	return vmm_wire_recv_from(sock, flags, ret_msg, fds, ret_n_fds, just_close, err);
}

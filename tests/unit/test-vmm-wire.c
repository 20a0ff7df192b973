/* SPDX-License-Identifier: Apache-2.0 */
/* The VMM socket's protocol: the codec, and libpostcopy against a scripted daemon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "libpostcopy/vmm_wire.h"
#include "util/bytes.h"
#include "util/kernel_abi.h"
#include "util/shards.h"

#define MIB (1ull << 20)

static const enum vmm_wire_type all_types[] = {
	VMM_WIRE_ATTACH,        VMM_WIRE_ATTACHED,     VMM_WIRE_ERROR,     VMM_WIRE_PAUSE,
	VMM_WIRE_PAUSED,        VMM_WIRE_RESUME,       VMM_WIRE_VMSTATE,   VMM_WIRE_LOADED,
	VMM_WIRE_RESUMED,       VMM_WIRE_COMPLETE,     VMM_WIRE_CHANNEL,   VMM_WIRE_ATTRIBUTES,
	VMM_WIRE_COULD_NOT_RUN, VMM_WIRE_POISONED,     VMM_WIRE_DIRTY_LOG, VMM_WIRE_LOG_START,
	VMM_WIRE_LOG_HARVEST,   VMM_WIRE_LOG_STOP,     VMM_WIRE_HARVESTED, VMM_WIRE_MEMORY,
	VMM_WIRE_VMSTATE_AHEAD, VMM_WIRE_OFFER_SHARDS, VMM_WIRE_SHARDS,
};
#define N_TYPES (sizeof all_types / sizeof *all_types)

/* Three regions, which are all different. */
static void sample_table(enum vmm_wire_type type, struct vmm_wire_msg *m)
{
	m->role = VMM_WIRE_DESTINATION;
	strcpy(m->id, "vm-7.a_B");
	m->uffd_features = 0x123456789abcdef0;
	m->n_regions = 3;
	for (uint32_t i = 0; i < m->n_regions; i++)
		m->regions[i] = (struct vmm_wire_region){
			.memory = i + 1,
			.flags = 0xf0 + i,
			.guest_phys_addr = 0x1122334455667788 + i,
			.size = 0x2233445566778899 + i,
			.page_size = 4096 + i,
			.host_addr = 0x33445566778899aa + i,
			.fd_offset = 0x445566778899aabb + i,
			.fd_index = i < 2 ? i + 1 : VMM_WIRE_NO_FD,
			.uffd_mode = 5 + i,
		};
	m->attach_flags = VMM_WIRE_ATTACH_NAMES;
	if (type == VMM_WIRE_ATTACH)
		m->attach_flags |= VMM_WIRE_ATTACH_PIDFD;
	strcpy(m->regions[0].name, "/objects/mem0");
	memset(m->regions[1].name, 'n', POSTCOPY_REGION_NAME_MAX);
	strcpy(m->regions[2].name, "v");
}

/*
 * A message of the type with every one of its fields set, and all other bytes zero.
 *
 * Return: how many descriptors it travels with.
 */
static size_t sample(enum vmm_wire_type type, struct vmm_wire_msg *m)
{
	size_t n_fds = 0;

	memset(m, 0, sizeof *m);
	m->type = type;
	if (type == VMM_WIRE_ATTACH || type == VMM_WIRE_MEMORY) {
		sample_table(type, m);
		n_fds = type == VMM_WIRE_ATTACH ? 4 : 3;
	} else if (type == VMM_WIRE_ATTACHED) {
		m->standing = VMM_WIRE_STANDS_LOADED;
	} else if (type == VMM_WIRE_ERROR || type == VMM_WIRE_COULD_NOT_RUN) {
		m->code = EBUSY;
		strcpy(m->text, "one is attached already");
	} else if (type == VMM_WIRE_PAUSED || type == VMM_WIRE_VMSTATE ||
	           type == VMM_WIRE_VMSTATE_AHEAD) {
		m->vmstate_len = 0x8877665544332211;
		m->pause_ns = type == VMM_WIRE_PAUSED ? 0x99aabbccddeeff00 : 0;
		n_fds = 1;
	} else if (type == VMM_WIRE_CHANNEL || type == VMM_WIRE_POISONED) {
		n_fds = 1;
	} else if (type == VMM_WIRE_DIRTY_LOG) {
		m->how = VMM_WIRE_LOG_BY_KERNEL;
		strcpy(m->text, "reason");
		n_fds = 2;
	} else if (type == VMM_WIRE_LOG_START || type == VMM_WIRE_LOG_HARVEST) {
		m->number = 0x0123456789abcdef;
	} else if (type == VMM_WIRE_HARVESTED) {
		m->number = 0x0123456789abcdef;
		m->code = EIO;
		strcpy(m->text, "why");
	} else if (type == VMM_WIRE_OFFER_SHARDS) {
		m->n_shards = 0x89abcdef;
	} else if (type == VMM_WIRE_SHARDS) {
		m->n_shards = SHARDS_MAX;
		n_fds = SHARDS_MAX - 1;
	} else if (type == VMM_WIRE_ATTRIBUTES) {
		m->n_regions = 3;
		for (uint32_t i = 0; i < m->n_regions; i++)
			m->regions[i].flags = 0xf00 + i;
	}
	return n_fds;
}

static int decode(const void *buf, size_t len, size_t n_fds)
{
	struct vmm_wire_msg out;
	struct error err = ERROR_INIT;
	int rc = vmm_wire_decode(buf, len, n_fds, &out, &err);

	assert_true(rc == 0 || rc == -EPROTO || rc == -EINVAL || rc == -ENOMSG);
	assert_int_equal(err.code, rc); /* each refusal says why */
	assert_true(!rc == !err.text[0]);
	return rc;
}

static void test_each_type_round_trips(void **state)
{
	uint8_t buf[VMM_WIRE_PACKET_MAX];

	(void)state;
	for (size_t i = 0; i < N_TYPES; i++) {
		struct vmm_wire_msg in, out;
		struct error err = ERROR_INIT;
		size_t n_fds, len;

		n_fds = sample(all_types[i], &in);
		len = vmm_wire_encode(&in, buf);
		memset(&out, 0xa5, sizeof out);
		assert_int_equal(vmm_wire_decode(buf, len, n_fds, &out, &err), 0);
		assert_memory_equal(&in, &out, sizeof in);
	}
}

/* A pidfd alone, and all else refused. */
static void test_attach_again_is_a_pidfd(void **state)
{
	static const struct {
		uint32_t flags, n_regions, n_fds;
		bool good;
	} cases[] = {
		{ VMM_WIRE_ATTACH_PIDFD | VMM_WIRE_ATTACH_AGAIN, 0, 1, true },
		{ VMM_WIRE_ATTACH_PIDFD | VMM_WIRE_ATTACH_AGAIN, 0, 0, false },
		{ VMM_WIRE_ATTACH_PIDFD | VMM_WIRE_ATTACH_AGAIN, 0, 2, false },
		{ VMM_WIRE_ATTACH_PIDFD | VMM_WIRE_ATTACH_AGAIN, 1, 1, false },
		{ VMM_WIRE_ATTACH_AGAIN, 0, 1, false },
		{ VMM_WIRE_ATTACH_PIDFD, 0, 1, false },
		{ VMM_WIRE_ATTACH_PIDFD, 1, 1, false },
		{ VMM_WIRE_ATTACH_LATE, 0, 0, true },
		{ VMM_WIRE_ATTACH_LATE | VMM_WIRE_ATTACH_PIDFD, 0, 1, true },
		{ VMM_WIRE_ATTACH_LATE, 0, 1, false },
		{ VMM_WIRE_ATTACH_LATE, 1, 1, false },
		{ VMM_WIRE_ATTACH_LATE | VMM_WIRE_ATTACH_AGAIN | VMM_WIRE_ATTACH_PIDFD, 0, 1,
		  false },
		{ 1u << 20, 1, 1, false },
	};
	uint8_t buf[VMM_WIRE_PACKET_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct vmm_wire_msg m = { .type = VMM_WIRE_ATTACH, .role = VMM_WIRE_DESTINATION };

		strcpy(m.id, "a");
		m.attach_flags = cases[i].flags;
		m.n_regions = cases[i].n_regions;
		m.regions[0].fd_index = VMM_WIRE_NO_FD;
		assert_int_equal(!decode(buf, vmm_wire_encode(&m, buf), cases[i].n_fds),
		                 cases[i].good);
	}
}

/* It is a table and its descriptors, and neither a source's nor without one. */
static void test_late_memory_is_a_destination_table(void **state)
{
	uint8_t buf[VMM_WIRE_PACKET_MAX];
	struct vmm_wire_msg m;
	size_t n_fds = sample(VMM_WIRE_MEMORY, &m);

	(void)state;
	assert_int_equal(decode(buf, vmm_wire_encode(&m, buf), n_fds), 0);
	m.attach_flags |= VMM_WIRE_ATTACH_PIDFD;
	assert_int_not_equal(decode(buf, vmm_wire_encode(&m, buf), n_fds + 1), 0);
	m.attach_flags = VMM_WIRE_ATTACH_LATE;
	assert_int_not_equal(decode(buf, vmm_wire_encode(&m, buf), n_fds), 0);
	m.attach_flags = 0;
	m.role = VMM_WIRE_SOURCE;
	m.regions[0].fd_index = 0;
	assert_int_not_equal(decode(buf, vmm_wire_encode(&m, buf), n_fds), 0);
	m.role = VMM_WIRE_DESTINATION;
	m.n_regions = 0;
	assert_int_not_equal(decode(buf, vmm_wire_encode(&m, buf), 1), 0);
}

static void test_wire_format_is_fixed(void **state)
{
	static const uint8_t want[] = { 5,    0,    1,    0,    16,   0,    0,    0,
		                        0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
		                        0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99 };
	uint8_t buf[VMM_WIRE_PACKET_MAX];
	struct vmm_wire_msg m;

	(void)state;
	sample(VMM_WIRE_PAUSED, &m);
	assert_int_equal(vmm_wire_encode(&m, buf), sizeof want);
	assert_memory_equal(buf, want, sizeof want);
}

static void test_largest_messages_fit(void **state)
{
	uint8_t buf[VMM_WIRE_PACKET_MAX];
	struct vmm_wire_msg m = { .type = VMM_WIRE_ATTACH, .role = VMM_WIRE_SOURCE };
	struct vmm_wire_msg out;
	size_t len;

	(void)state;
	memset(m.id, 'x', POSTCOPY_ID_MAX);
	m.n_regions = POSTCOPY_REGIONS_MAX;
	for (uint32_t i = 0; i < m.n_regions; i++)
		m.regions[i].fd_index = i;
	len = vmm_wire_encode(&m, buf);
	assert_in_range(len, 1, sizeof buf);
	assert_int_equal(vmm_wire_decode(buf, len, POSTCOPY_REGIONS_MAX, &out, NULL), 0);
	assert_memory_equal(&m, &out, sizeof m);

	/* Text that fills its array to the last byte is cut, not run over. */
	m = (struct vmm_wire_msg){ .type = VMM_WIRE_ERROR, .code = EIO };
	memset(m.text, 'y', sizeof m.text);
	len = vmm_wire_encode(&m, buf);
	assert_int_equal(vmm_wire_decode(buf, len, 0, &out, NULL), 0);
	assert_int_equal(strlen(out.text), ERROR_TEXT_MAX - 1);
}

/* Cut, with the header saying so or not; and with bytes behind its end. */
static void test_truncation_at_every_length(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TYPES; i++) {
		uint8_t buf[VMM_WIRE_PACKET_MAX];
		struct vmm_wire_msg m;
		size_t n_fds, len;

		n_fds = sample(all_types[i], &m);
		len = vmm_wire_encode(&m, buf);
		for (size_t cut = 0; cut < len; cut++) {
			/* Of its own size, so that a sanitizer sees a read beyond the end. */
			uint8_t *copy = malloc(cut ? cut : 1);

			memcpy(copy, buf, cut);
			assert_int_equal(decode(copy, cut, n_fds), -EPROTO);
			if (cut >= VMM_WIRE_HEADER_BYTES) {
				put_u32(copy + 4, (uint32_t)(cut - VMM_WIRE_HEADER_BYTES));
				/* Who has just attached is told no standing. */
				if (all_types[i] != VMM_WIRE_ATTACHED ||
				    cut != VMM_WIRE_HEADER_BYTES)
					assert_int_not_equal(decode(copy, cut, n_fds), 0);
			}
			free(copy);
		}
		buf[len] = 0;
		put_u32(buf + 4, (uint32_t)(len + 1 - VMM_WIRE_HEADER_BYTES));
		assert_int_equal(decode(buf, len + 1, n_fds), -EPROTO);
	}
}

static void test_wrong_descriptor_counts(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TYPES; i++) {
		uint8_t buf[VMM_WIRE_PACKET_MAX];
		struct vmm_wire_msg m;
		size_t n_fds, len;

		n_fds = sample(all_types[i], &m);
		len = vmm_wire_encode(&m, buf);
		for (size_t n = 0; n <= VMM_WIRE_FDS_MAX + 1; n++)
			assert_int_equal(decode(buf, len, n), n == n_fds ? 0 : -EPROTO);
	}
}

static int decode_message(const struct vmm_wire_msg *m, size_t n_fds)
{
	uint8_t buf[VMM_WIRE_PACKET_MAX];

	return decode(buf, vmm_wire_encode(m, buf), n_fds);
}

static void test_header_bounds(void **state)
{
	uint8_t buf[VMM_WIRE_PACKET_MAX];
	struct vmm_wire_msg m = { .type = VMM_WIRE_PAUSE };
	size_t len = vmm_wire_encode(&m, buf);

	(void)state;
	for (unsigned int type = 0; type <= UINT16_MAX; type++) {
		put_u16(buf, (uint16_t)type);
		if (type < VMM_WIRE_ATTACH || type > VMM_WIRE_TYPE_LAST)
			assert_int_equal(decode(buf, len, 0), type ? -ENOMSG : -EPROTO);
	}
	put_u16(buf, VMM_WIRE_PAUSE);
	assert_int_equal(decode(buf, len, 0), 0);
	put_u16(buf + 2, VMM_WIRE_VERSION + 1);
	assert_int_equal(decode(buf, len, 0), -EPROTO);
	put_u16(buf + 2, VMM_WIRE_VERSION);
	put_u32(buf + 4, UINT32_MAX);
	assert_int_equal(decode(buf, len, 0), -EPROTO);
}

/* One is what there is without; and each of the others has its descriptor. */
static void test_shards_bounds(void **state)
{
	struct vmm_wire_msg m = { .type = VMM_WIRE_SHARDS };

	(void)state;
	for (uint32_t n = 0; n <= SHARDS_MAX + 2; n++) {
		bool good = n >= 2 && n <= SHARDS_MAX;

		m.n_shards = n;
		for (size_t n_fds = 0; n_fds <= SHARDS_MAX + 1; n_fds++)
			assert_int_equal(decode_message(&m, n_fds),
			                 good && n_fds + 1 == n ? 0 : -EPROTO);
	}
	m.n_shards = UINT32_MAX;
	assert_int_equal(decode_message(&m, 1), -EPROTO);
	/* A newer daemon may offer more than are possible here. */
	m.type = VMM_WIRE_OFFER_SHARDS;
	assert_int_equal(decode_message(&m, 0), 0);
	m.n_shards = 2;
	assert_int_equal(decode_message(&m, 0), 0);
	assert_int_equal(decode_message(&m, 1), -EPROTO);
	m.n_shards = 1;
	assert_int_equal(decode_message(&m, 0), -EPROTO);
}

static void test_attach_bounds(void **state)
{
	uint8_t buf[VMM_WIRE_PACKET_MAX];
	struct vmm_wire_msg m;
	size_t n_fds, len;

	(void)state;
	n_fds = sample(VMM_WIRE_ATTACH, &m);
	m.role = 0;
	assert_int_equal(decode_message(&m, n_fds), -EPROTO);
	m.role = VMM_WIRE_DESTINATION + 1;
	assert_int_equal(decode_message(&m, n_fds), -EPROTO);

	sample(VMM_WIRE_ATTACH, &m);
	m.n_regions = 0;
	assert_int_equal(decode_message(&m, 1), -EINVAL);
	n_fds = sample(VMM_WIRE_ATTACH, &m);
	len = vmm_wire_encode(&m, buf);
	put_u32(buf + VMM_WIRE_HEADER_BYTES + 4, POSTCOPY_REGIONS_MAX + 1);
	assert_int_equal(decode(buf, len, n_fds), -EINVAL);
	put_u32(buf + VMM_WIRE_HEADER_BYTES + 4, UINT32_MAX);
	assert_int_equal(decode(buf, len, n_fds), -EINVAL);
	put_u32(buf + VMM_WIRE_HEADER_BYTES + 4, m.n_regions);
	put_u32(buf + VMM_WIRE_HEADER_BYTES + 16, POSTCOPY_ID_MAX + 1); /* the id's length */
	assert_int_equal(decode(buf, len, n_fds), -EPROTO);
	put_u32(buf + VMM_WIRE_HEADER_BYTES + 16, UINT32_MAX);
	assert_int_equal(decode(buf, len, n_fds), -EPROTO);
}

static void test_descriptor_indexes(void **state)
{
	struct vmm_wire_msg m;
	size_t n_fds;

	(void)state;
	n_fds = sample(VMM_WIRE_ATTACH, &m);
	m.regions[0].fd_index = 0; /* the userfaultfd is nobody's memory */
	assert_int_equal(decode_message(&m, n_fds), -EPROTO);
	m.regions[0].fd_index = 3;
	assert_int_equal(decode_message(&m, n_fds), -EPROTO);
	m.regions[0].fd_index = UINT32_MAX - 1;
	assert_int_equal(decode_message(&m, n_fds), -EPROTO);
	m.regions[0].fd_index = 2; /* then nobody refers to descriptor 1 */
	assert_int_equal(decode_message(&m, n_fds), -EPROTO);
	m.regions[2].fd_index = 1;
	assert_int_equal(decode_message(&m, n_fds), 0);
	m.regions[0].fd_index = 0; /* all are used, but the userfaultfd as memory */
	m.regions[1].fd_index = 2;
	assert_int_equal(decode_message(&m, n_fds), -EPROTO);
	m.regions[0].fd_index = 2;
	m.role = VMM_WIRE_SOURCE; /* without a userfaultfd descriptor 0 must be used too */
	assert_int_equal(decode_message(&m, n_fds), -EPROTO);
	m.regions[1].fd_index = 0;
	assert_int_equal(decode_message(&m, n_fds), 0);
}

static void test_error_bounds(void **state)
{
	struct vmm_wire_msg m = { .type = VMM_WIRE_ERROR, .text = "a\nb\x1b[2J" }, out;
	uint8_t buf[VMM_WIRE_PACKET_MAX];
	size_t len;

	(void)state;
	assert_int_equal(decode_message(&m, 0), -EPROTO); /* errno 0 */
	m.code = 4096;
	assert_int_equal(decode_message(&m, 0), -EPROTO);
	m.code = UINT32_MAX;
	assert_int_equal(decode_message(&m, 0), -EPROTO);
	m.code = 4095;
	len = vmm_wire_encode(&m, buf);
	assert_int_equal(vmm_wire_decode(buf, len, 0, &out, NULL), 0);
	assert_string_equal(out.text, "a?b?[2J");
	buf[VMM_WIRE_HEADER_BYTES + 8 + 1] = '\0';
	assert_int_equal(decode(buf, len, 0), -EPROTO);
	put_u32(buf + VMM_WIRE_HEADER_BYTES + 4, ERROR_TEXT_MAX);
	memset(buf + VMM_WIRE_HEADER_BYTES + 8, 'z', ERROR_TEXT_MAX);
	put_u32(buf + 4, 8 + ERROR_TEXT_MAX);
	assert_int_equal(decode(buf, VMM_WIRE_HEADER_BYTES + 8 + ERROR_TEXT_MAX, 0), -EPROTO);
}

static void test_id_characters(void **state)
{
	char id[POSTCOPY_ID_MAX + 2];
	struct vmm_wire_msg m;
	size_t n_fds;

	(void)state;
	assert_int_equal(vmm_wire_id_check("a", NULL), 0);
	assert_int_equal(vmm_wire_id_check("-A.9_z", NULL), 0);
	assert_int_equal(vmm_wire_id_check("", NULL), -EINVAL);
	assert_int_equal(vmm_wire_id_check(".", NULL), -EINVAL);
	assert_int_equal(vmm_wire_id_check("..", NULL), -EINVAL);
	memset(id, 'a', sizeof id);
	id[POSTCOPY_ID_MAX] = '\0';
	assert_int_equal(vmm_wire_id_check(id, NULL), 0);
	id[POSTCOPY_ID_MAX] = 'a';
	id[POSTCOPY_ID_MAX + 1] = '\0';
	assert_int_equal(vmm_wire_id_check(id, NULL), -EINVAL);
	for (int c = 1; c < 256; c++) {
		int valid = strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
		                   "-_.",
		                   c) != NULL;

		id[0] = 'a';
		id[1] = (char)c;
		id[2] = '\0';
		assert_int_equal(vmm_wire_id_check(id, NULL), valid ? 0 : -EINVAL);
	}
	n_fds = sample(VMM_WIRE_ATTACH, &m);
	strcpy(m.id, "../etc");
	assert_int_equal(decode_message(&m, n_fds), -EINVAL);
	m.id[0] = '\0';
	assert_int_equal(decode_message(&m, n_fds), -EINVAL);
}

static size_t open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	size_t n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

struct pair {
	int a, b;
};

static struct pair make_pair(void)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	return (struct pair){ fds[0], fds[1] };
}

/* As a sender that does not use the codec may do. */
static void send_raw(int sock, const void *buf, size_t len, size_t n_fds)
{
	static _Alignas(struct cmsghdr) char control[CMSG_SPACE(253 * sizeof(int))];
	struct iovec iov = { .iov_base = (void *)buf, .iov_len = len };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n_fds) {
		struct cmsghdr *c;

		hdr.msg_control = control;
		hdr.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&hdr);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		for (size_t i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &sock, sizeof(int));
	}
	assert_int_equal(sendmsg(sock, &hdr, 0), len);
}

static void test_socket_round_trip_with_descriptors(void **state)
{
	struct pair p = make_pair();
	struct vmm_wire_msg m, out;
	int fds[VMM_WIRE_FDS_MAX], sent[VMM_WIRE_FDS_MAX];
	size_t n_fds, n = 0;

	(void)state;
	n_fds = sample(VMM_WIRE_ATTACH, &m);
	for (size_t i = 0; i < n_fds; i++)
		sent[i] = memfd_create("sent", MFD_CLOEXEC);
	assert_int_equal(vmm_wire_recv(p.b, MSG_DONTWAIT, &out, fds, &n, NULL), -EAGAIN);
	assert_int_equal(vmm_wire_send(p.a, &m, sent, n_fds), 0);
	assert_int_equal(vmm_wire_recv(p.b, 0, &out, fds, &n, NULL), 0);
	assert_memory_equal(&m, &out, sizeof m);
	assert_int_equal(n, n_fds);
	for (size_t i = 0; i < n; i++) {
		assert_true(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
		close(fds[i]);
		close(sent[i]);
	}
	close(p.a);
	assert_int_equal(vmm_wire_recv(p.b, 0, &out, fds, &n, NULL), -EPIPE);
	assert_int_equal(vmm_wire_send(p.b, &m, NULL, 0), -EPIPE);
	close(p.b);
}

/* One failing receive: it must leave no descriptor open. */
static void recv_fails(const void *buf, size_t len, size_t n_fds, int want, const char *why)
{
	struct pair p = make_pair();
	struct vmm_wire_msg out;
	struct error err = ERROR_INIT;
	int fds[VMM_WIRE_FDS_MAX];
	size_t n = 77, before;

	send_raw(p.a, buf, len, n_fds);
	before = open_fds();
	assert_int_equal(vmm_wire_recv(p.b, 0, &out, fds, &n, &err), want);
	assert_non_null(strstr(err.text, why));
	assert_int_equal(open_fds(), before);
	assert_int_equal(n, 77);
	close(p.a);
	close(p.b);
}

static void test_failed_receive_leaks_nothing(void **state)
{
	static uint8_t large[VMM_WIRE_PACKET_MAX + 1];
	uint8_t buf[VMM_WIRE_PACKET_MAX];
	struct vmm_wire_msg m;
	size_t len;

	(void)state;
	sample(VMM_WIRE_PAUSED, &m);
	len = vmm_wire_encode(&m, buf);
	recv_fails(buf, len, 0, -EPROTO, "0 descriptors");
	recv_fails(buf, len, 2, -EPROTO, "2 descriptors");
	recv_fails(buf, len - 1, 1, -EPROTO, "bytes of payload");
	recv_fails("x", 1, 3, -EPROTO, "shorter than its header");
	recv_fails("", 0, 3, -EPIPE,
	           ""); /* an empty packet reads as the end, but has descriptors */
	recv_fails(large, sizeof large, 5, -EPROTO, "packet of more than");
	/* Past the limit, within the room that is there for credentials, and past that. */
	for (size_t n = VMM_WIRE_FDS_MAX + 1; n < VMM_WIRE_FDS_MAX + 12; n++)
		recv_fails(buf, len, n, -EPROTO, "more than 66");
	recv_fails(buf, len, 253, -EPROTO, "more than 66");
}

static void test_credentials_do_not_crowd_out_descriptors(void **state)
{
	struct pair p = make_pair();
	struct vmm_wire_msg m = { .type = VMM_WIRE_ATTACH, .role = VMM_WIRE_DESTINATION }, out;
	int fds[VMM_WIRE_FDS_MAX], sent[VMM_WIRE_FDS_MAX], on = 1;
	uint8_t buf[VMM_WIRE_PACKET_MAX];
	size_t n = 0, len, before;

	(void)state;
	assert_int_equal(setsockopt(p.b, SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
	strcpy(m.id, "a");
	m.attach_flags = VMM_WIRE_ATTACH_PIDFD;
	m.n_regions = POSTCOPY_REGIONS_MAX;
	for (uint32_t i = 0; i < m.n_regions; i++)
		m.regions[i].fd_index = i + 1;
	for (size_t i = 0; i < VMM_WIRE_FDS_MAX; i++)
		sent[i] = p.a;
	assert_int_equal(vmm_wire_send(p.a, &m, sent, VMM_WIRE_FDS_MAX), 0);
	assert_int_equal(vmm_wire_recv(p.b, 0, &out, fds, &n, NULL), 0);
	assert_int_equal(n, VMM_WIRE_FDS_MAX);
	for (size_t i = 0; i < n; i++)
		close(fds[i]);
	assert_int_equal(vmm_wire_send(p.a, &m, sent, VMM_WIRE_FDS_MAX + 1), -EINVAL);

	/* The right ones and then some: what did not fit was cut off, and that is refused. */
	len = vmm_wire_encode(&m, buf);
	send_raw(p.a, buf, len, VMM_WIRE_FDS_MAX + 20);
	before = open_fds();
	assert_int_equal(vmm_wire_recv(p.b, 0, &out, fds, &n, NULL), -EPROTO);
	assert_int_equal(open_fds(), before);
	close(p.a);
	close(p.b);
}

/* A peer that goes without having read all is told as one that goes. */
static void test_peer_that_dies_is_end_of_file(void **state)
{
	struct vmm_wire_msg m = { .type = VMM_WIRE_PAUSE }, out;
	int fds[VMM_WIRE_FDS_MAX];
	size_t n = 0;

	(void)state;
	for (int sends = 0; sends < 2; sends++) {
		struct pair p = make_pair();

		assert_int_equal(vmm_wire_send(p.b, &m, NULL, 0), 0);
		close(p.a);
		if (sends)
			assert_int_equal(vmm_wire_send(p.b, &m, NULL, 0), -EPIPE);
		else
			assert_int_equal(vmm_wire_recv(p.b, 0, &out, fds, &n, NULL), -EPIPE);
		close(p.b);
	}
}

/* It had not read all that was said to it, so the socket is reset; what it said last counts. */
static void test_last_words_come_through_a_reset(void **state)
{
	struct vmm_wire_msg vmstate = { .type = VMM_WIRE_PAUSE }, out;
	struct vmm_wire_msg loaded = { .type = VMM_WIRE_LOADED };
	struct pair p = make_pair();
	int fds[VMM_WIRE_FDS_MAX];
	size_t n = 0;

	(void)state;
	assert_int_equal(vmm_wire_send(p.a, &vmstate, NULL, 0), 0);
	assert_int_equal(vmm_wire_send(p.b, &loaded, NULL, 0), 0);
	close(p.b);
	assert_int_equal(vmm_wire_recv(p.a, MSG_DONTWAIT, &out, fds, &n, NULL), 0);
	assert_int_equal(out.type, VMM_WIRE_LOADED);
	assert_int_equal(vmm_wire_recv(p.a, MSG_DONTWAIT, &out, fds, &n, NULL), -EPIPE);
	close(p.a);
}

/* libpostcopy's side */

static struct postcopy_region memfd_region(void)
{
	int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *addr;

	assert_int_equal(ftruncate(fd, (off_t)MIB), 0);
	addr = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(addr, MAP_FAILED);
	return (struct postcopy_region){ .memory = POSTCOPY_MEMORY_MEMFD,
		                         .size = MIB,
		                         .page_size = 4096,
		                         .host_addr = addr,
		                         .fd = fd };
}

static void region_deinit(struct postcopy_region *r)
{
	munmap(r->host_addr, MIB);
	close(r->fd);
}

static int try_table(const struct postcopy_region *regions, size_t n)
{
	struct postcopy_error err = { 0 };
	struct postcopy *p = NULL;
	int rc = postcopy_source_attach("/nonexistent/socket", "a", regions, n, &p, &err);

	assert_null(p);
	assert_int_equal(err.code, rc);
	assert_true(err.text[0]);
	return rc;
}

/* A table that passes gets as far as the socket, which is not there. */
#define TABLE_PASSES (-ENOENT)

static void test_region_table_is_checked(void **state)
{
	struct postcopy_region good = memfd_region(), r[2];

	(void)state;
	assert_int_equal(try_table(&good, 1), TABLE_PASSES);
	assert_int_equal(try_table(&good, 0), -EINVAL);
	assert_int_equal(try_table(NULL, 1), -EINVAL);
	assert_int_equal(try_table(&good, POSTCOPY_REGIONS_MAX + 1), -EINVAL);
#define BAD(change)                                                                                \
	do {                                                                                       \
		r[0] = good;                                                                       \
		change;                                                                            \
		assert_int_equal(try_table(r, 1), -EINVAL);                                        \
	} while (0)
	BAD(r[0].memory = 0);
	BAD(r[0].memory = 5);
	BAD(r[0].flags = 2);
	BAD(r[0].flags = POSTCOPY_REGION_BOUND);
	BAD(r[0].page_size = 0);
	BAD(r[0].page_size = 8192);
	BAD(r[0].page_size = 2 * MIB);
	BAD(r[0].memory = POSTCOPY_MEMORY_HUGETLB);
	BAD(r[0].size = 0);
	BAD(r[0].size = 4097);
	BAD(r[0].host_addr = NULL);
	BAD(r[0].host_addr = (char *)good.host_addr + 8);
	BAD(r[0].guest_phys_addr = 512);
	BAD(r[0].guest_phys_addr = -4096ull);
	BAD(r[0].fd_offset = 1);
	BAD(r[0].fd_offset = -4096ull);
	BAD(r[0].fd = -1);
	BAD(r[0].memory = POSTCOPY_MEMORY_ANONYMOUS);
	BAD(r[0].size = -4096ull);
#undef BAD
	r[0] = r[1] = good;
	r[1].host_addr = (char *)good.host_addr + MIB;
	r[1].guest_phys_addr = MIB - 4096;
	assert_int_equal(try_table(r, 2), -EINVAL);
	r[0].guest_phys_addr = MIB - 4096;
	r[1].guest_phys_addr = 0;
	assert_int_equal(try_table(r, 2), -EINVAL);
	r[0].guest_phys_addr = MIB;
	/* One page is one region's: bulk wrote by the one over what the guest had by the other. */
	assert_int_equal(try_table(r, 2), -EINVAL);
	r[1].fd = fcntl(good.fd, F_DUPFD_CLOEXEC, 0);
	r[1].fd_offset = MIB - 4096;
	assert_int_equal(try_table(r, 2), -EINVAL);
	r[1].fd_offset = MIB;
	assert_int_equal(try_table(r, 2), TABLE_PASSES);
	close(r[1].fd);
	r[1].host_addr = (char *)good.host_addr + MIB - 4096;
	assert_int_equal(try_table(r, 2), -EINVAL);
	region_deinit(&good);
}

/* A daemon that accepts one VMM. */
struct fake_daemon {
	char path[64];
	bool destination;
	uint32_t offers; /* shards; 0: it offers none */
	void *cut;       /* a page that is other memory by then; NULL: none */
	int listener;
	int sock;
	struct vmm_wire_msg attach;
	struct vmm_wire_msg answer;
	int fds[VMM_WIRE_FDS_MAX];
	size_t n_fds;
};

static void fake_listen(struct fake_daemon *d)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	*d = (struct fake_daemon){ .sock = -1, .answer = { .type = VMM_WIRE_ATTACHED } };
	snprintf(d->path, sizeof d->path, "/tmp/test-vmm-wire-%d.sock", getpid());
	strcpy(addr.sun_path, d->path);
	unlink(d->path);
	d->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(d->listener, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(d->listener, 1), 0);
}

/* What no userfaultfd can trap. */
static void cut_page(int uffd, void *at)
{
	struct uffdio_range range = { .start = (uintptr_t)at, .len = 4096 };
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	/* Or who changes the mapping would wait for somebody to read that. */
	assert_int_equal(ioctl(uffd, UFFDIO_UNREGISTER, &range), 0);
	assert_ptr_not_equal(mmap(at, 4096, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0), MAP_FAILED);
	close(fd);
}

/* Return: NULL where the VMM was told what the test wants. */
static void *fake_accept(void *arg)
{
	struct fake_daemon *d = arg;
	struct vmm_wire_msg offer = { .type = VMM_WIRE_OFFER_SHARDS, .n_shards = d->offers };

	d->sock = accept4(d->listener, NULL, NULL, SOCK_CLOEXEC);
	if (vmm_wire_recv(d->sock, 0, &d->attach, d->fds, &d->n_fds, NULL))
		return d;
	if (d->cut)
		cut_page(d->fds[0], d->cut);
	if (d->offers && vmm_wire_send(d->sock, &offer, NULL, 0))
		return d;
	return vmm_wire_send(d->sock, &d->answer, NULL, 0) ? d : NULL;
}

static int fake_connect(const struct fake_daemon *d)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path, d->path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	return fd;
}

static int fake_attach(struct fake_daemon *d, const struct postcopy_region *r,
                       struct postcopy **ret, struct postcopy_error *err)
{
	pthread_t thread;
	void *failed;
	int rc;

	assert_int_equal(pthread_create(&thread, NULL, fake_accept, d), 0);
	rc = d->destination ? postcopy_destination_attach(d->path, "vm7", r, 1, ret, err)
	                    : postcopy_source_attach(d->path, "vm7", r, 1, ret, err);
	/* One that fails before it connects: somebody else must. */
	if (rc == -EPERM || rc == -EOPNOTSUPP)
		close(fake_connect(d));
	pthread_join(thread, &failed);
	assert_true(!failed || rc);
	return rc;
}

static void fake_deinit(struct fake_daemon *d)
{
	for (size_t i = 0; i < d->n_fds; i++)
		close(d->fds[i]);
	close(d->sock);
	close(d->listener);
	unlink(d->path);
}

static void fake_say(struct fake_daemon *d, enum vmm_wire_type type)
{
	struct vmm_wire_msg m = { .type = type, .code = type == VMM_WIRE_ERROR ? EIO : 0 };
	int fd = -1;

	if (type == VMM_WIRE_VMSTATE) {
		fd = memfd_create("vmstate", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		assert_int_equal(fcntl(fd, F_ADD_SEALS,
		                       F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL),
		                 0);
	}
	assert_int_equal(vmm_wire_send(d->sock, &m, &fd, fd >= 0), 0);
	if (fd >= 0)
		close(fd);
}

/* What the VMM has said; its descriptor, or -1. */
static int fake_hear(struct fake_daemon *d, enum vmm_wire_type type, struct vmm_wire_msg *m)
{
	int fds[VMM_WIRE_FDS_MAX];
	size_t n = 0;

	assert_int_equal(vmm_wire_recv(d->sock, 0, m, fds, &n, NULL), 0);
	assert_int_equal(m->type, type);
	return n ? fds[0] : -1;
}

static void test_source_life(void **state)
{
	struct postcopy_region r = memfd_region();
	struct fake_daemon d;
	struct postcopy *p = NULL;
	struct postcopy_event e;
	struct postcopy_error err;
	struct vmm_wire_msg m;
	char text[8] = "";
	int fd, seals;

	(void)state;
	fake_listen(&d);
	assert_int_equal(fake_attach(&d, &r, &p, &err), 0);
	assert_string_equal(d.attach.id, "vm7");
	assert_int_equal(d.attach.role, VMM_WIRE_SOURCE);
	assert_int_equal(d.attach.regions[0].host_addr, (uintptr_t)r.host_addr);
	assert_int_equal(d.n_fds, 1);
	assert_int_equal(postcopy_next_event(p, 0, &e, &err), 0);
	assert_int_equal(e.type, POSTCOPY_EVENT_NONE);
	assert_int_equal(postcopy_source_paused(p, "abc", 3, &err), -EINVAL); /* not asked */

	fake_say(&d, VMM_WIRE_PAUSE);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
	assert_int_equal(e.type, POSTCOPY_EVENT_PAUSE);
	assert_int_equal(postcopy_source_paused(p, "abc", 3, &err), 0);
	fd = fake_hear(&d, VMM_WIRE_PAUSED, &m);
	assert_int_equal(m.vmstate_len, 3);
	assert_true(m.pause_ns > 0);
	assert_int_equal(pread(fd, text, sizeof text, 0), 3);
	assert_string_equal(text, "abc");
	seals = fcntl(fd, F_GET_SEALS);
	assert_int_equal(seals & 0xf, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
	close(fd);

	fake_say(&d, VMM_WIRE_RESUME);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
	assert_int_equal(e.type, POSTCOPY_EVENT_RESUME);
	fake_say(&d, VMM_WIRE_PAUSE);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
	assert_int_equal(postcopy_source_pause_failed(p, "busy", &err), 0);
	fake_hear(&d, VMM_WIRE_ERROR, &m);
	assert_string_equal(m.text, "busy");
	close(d.sock);
	d.sock = -1;
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), -EPIPE);
	assert_null(postcopy_detach(p));
	fake_deinit(&d);
	region_deinit(&r);
}

static void say_numbered(const struct fake_daemon *d, enum vmm_wire_type type, uint64_t number)
{
	struct vmm_wire_msg m = { .type = type, .number = number };

	assert_int_equal(vmm_wire_send(d->sock, &m, NULL, 0), 0);
}

/* What is written by a guest that nobody reported would be lost at the destination. */
static void test_a_pause_comes_after_the_last_report(void **state)
{
	struct postcopy_region r = memfd_region();
	struct fake_daemon d;
	struct postcopy *p = NULL;
	struct postcopy_event e;
	struct postcopy_error err;
	struct vmm_wire_msg m;
	uint64_t *bitmap, seen = 0;
	size_t words;
	int fd;

	(void)state;
	fake_listen(&d);
	assert_int_equal(fake_attach(&d, &r, &p, &err), 0);
	assert_null(postcopy_source_dirty_bitmap(p, 0, &words));
	assert_int_equal(postcopy_source_offer_dirty_log(p, &err), 0);
	fd = fake_hear(&d, VMM_WIRE_DIRTY_LOG, &m);
	assert_int_equal(m.how, VMM_WIRE_LOG_BY_VMM);
	assert_int_equal(postcopy_source_offer_dirty_log(p, &err), -EINVAL);
	bitmap = postcopy_source_dirty_bitmap(p, 0, &words);
	assert_int_equal(words, r.size / 4096 / 64 + (r.size / 4096 % 64 != 0));
	assert_null(postcopy_source_dirty_bitmap(p, 1, &words));
	bitmap[0] = 5;
	assert_int_equal(pread(fd, &seen, sizeof seen, 0), sizeof seen);
	assert_int_equal(seen, 5);
	close(fd);

	say_numbered(&d, VMM_WIRE_LOG_START, 70);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
	assert_int_equal(e.type, POSTCOPY_EVENT_DIRTY_LOG_START);
	assert_int_equal(postcopy_source_dirty_reported(p, &err), 0);
	fake_hear(&d, VMM_WIRE_HARVESTED, &m);
	assert_true(m.number == 70 && !m.code);
	say_numbered(&d, VMM_WIRE_LOG_HARVEST, 71);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
	assert_int_equal(e.type, POSTCOPY_EVENT_DIRTY);
	assert_int_equal(postcopy_source_dirty_failed(p, "no", &err), 0);
	fake_hear(&d, VMM_WIRE_HARVESTED, &m);
	assert_true(m.number == 71 && m.code);
	assert_string_equal(m.text, "no");

	fake_say(&d, VMM_WIRE_PAUSE);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
	assert_int_equal(postcopy_source_paused(p, "abc", 3, &err), -EINVAL);
	assert_non_null(strstr(err.text, "postcopy_source_dirty_reported()"));
	assert_int_equal(postcopy_source_dirty_reported(p, &err), 0);
	assert_int_equal(postcopy_source_paused(p, "abc", 3, &err), 0);
	close(fake_hear(&d, VMM_WIRE_PAUSED, &m));
	/* Where it runs on nothing is logged, until it is asked for again. */
	fake_say(&d, VMM_WIRE_RESUME);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
	fake_say(&d, VMM_WIRE_PAUSE);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
	assert_int_equal(postcopy_source_paused(p, "abc", 3, &err), 0);
	close(fake_hear(&d, VMM_WIRE_PAUSED, &m));
	assert_null(postcopy_detach(p));
	fake_deinit(&d);
	region_deinit(&r);
}

/* Who writes where write protection does not see it: refused here, and the daemon hears why. */
static void test_declared_writers_are_no_match_for_write_protection(void **state)
{
	static const struct {
		uint32_t writer;
		const char *why;
	} cases[] = {
		{ POSTCOPY_WRITER_DESCRIPTOR, "descriptor" },
		{ POSTCOPY_WRITER_PROCESS, "vhost-user" },
		{ POSTCOPY_WRITER_DEVICE, "VFIO" },
		{ POSTCOPY_WRITER_DISCARD, "balloon" },
		{ POSTCOPY_WRITER_PINNED, "O_DIRECT" },
	};
	struct postcopy_region r = memfd_region();
	struct fake_daemon d;
	struct postcopy *p = NULL;
	struct postcopy_error err;
	struct vmm_wire_msg m;

	(void)state;
	fake_listen(&d);
	assert_int_equal(fake_attach(&d, &r, &p, &err), 0);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		assert_int_equal(
		        postcopy_source_offer_write_protection(p, -1, cases[i].writer, &err),
		        -EOPNOTSUPP);
		assert_non_null(strstr(err.text, cases[i].why));
		fake_hear(&d, VMM_WIRE_DIRTY_LOG, &m);
		assert_int_equal(m.how, VMM_WIRE_LOG_NONE);
		assert_string_equal(m.text, err.text);
	}
	assert_null(postcopy_detach(p));
	fake_deinit(&d);
	region_deinit(&r);
}

/* Its vCPUs write past what would be protected. The daemon need not know why. */
static void test_bound_memslot_is_not_write_protected(void **state)
{
	struct postcopy_region r = memfd_region();
	struct fake_daemon d;
	struct postcopy *p = NULL;
	struct postcopy_error err;
	struct vmm_wire_msg m;

	(void)state;
	r.memory = POSTCOPY_MEMORY_GUEST_MEMFD; /* the daemon's to find out that it is none */
	r.flags = POSTCOPY_REGION_BOUND;
	fake_listen(&d);
	assert_int_equal(fake_attach(&d, &r, &p, &err), 0);
	assert_int_equal(d.attach.regions[0].flags, 0);
	assert_int_equal(postcopy_source_offer_write_protection(p, -1, 0, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "bound to guest_memfd"));
	fake_hear(&d, VMM_WIRE_DIRTY_LOG, &m);
	assert_int_equal(m.how, VMM_WIRE_LOG_NONE);
	assert_null(postcopy_detach(p));
	fake_deinit(&d);
	region_deinit(&r);
}

/* @type is impossible for a source that runs, or is @paused. */
static void expect_proto(enum vmm_wire_type type, int paused)
{
	struct postcopy_region r = memfd_region();
	struct fake_daemon d;
	struct postcopy *p = NULL;
	struct postcopy_event e = { .type = POSTCOPY_EVENT_NONE };
	struct postcopy_error err = { 0 };
	size_t before = open_fds();

	fake_listen(&d);
	assert_int_equal(fake_attach(&d, &r, &p, &err), 0);
	if (paused) {
		struct vmm_wire_msg m;

		fake_say(&d, VMM_WIRE_PAUSE);
		assert_int_equal(postcopy_next_event(p, -1, &e, &err), 0);
		assert_int_equal(postcopy_source_paused(p, NULL, 0, &err), 0);
		close(fake_hear(&d, VMM_WIRE_PAUSED, &m));
	}
	fake_say(&d, type);
	assert_int_equal(postcopy_next_event(p, -1, &e, &err), -EPROTO);
	assert_int_equal(err.code, -EPROTO);
	postcopy_detach(p);
	fake_deinit(&d);
	assert_int_equal(open_fds(), before);
	region_deinit(&r);
}

static void test_source_refuses_what_does_not_fit(void **state)
{
	(void)state;
	expect_proto(VMM_WIRE_COMPLETE, 0);
	expect_proto(VMM_WIRE_VMSTATE, 0);
	expect_proto(VMM_WIRE_LOADED, 0);
	expect_proto(VMM_WIRE_ATTACHED, 0);
	expect_proto(VMM_WIRE_VMSTATE, 1);
}

/* Nothing that the VMM is to do comes of it. */
static void expect_no_event(struct postcopy *p)
{
	struct postcopy_event e;

	assert_int_equal(postcopy_next_event(p, 0, &e, NULL), 0);
	assert_int_equal(e.type, POSTCOPY_EVENT_NONE);
	assert_int_equal(e.vmstate_fd, -1);
}

static void expect_event(struct postcopy *p, enum postcopy_event_type type)
{
	struct postcopy_event e;

	assert_int_equal(postcopy_next_event(p, -1, &e, NULL), 0);
	assert_int_equal(e.type, type);
	if (e.vmstate_fd >= 0)
		close(e.vmstate_fd);
}

static void expect_paused(struct fake_daemon *d)
{
	struct vmm_wire_msg m;
	char text[8] = "";
	int fd = fake_hear(d, VMM_WIRE_PAUSED, &m);

	assert_int_equal(m.vmstate_len, 3);
	assert_int_equal(pread(fd, text, sizeof text, 0), 3);
	assert_string_equal(text, "abc");
	close(fd);
}

/* A daemon that was started again does not know what was asked and answered. */
static void test_source_that_is_asked_again_says_the_same_again(void **state)
{
	struct postcopy_region r = memfd_region();
	struct postcopy *p = NULL;
	struct fake_daemon d;
	size_t before = open_fds();

	(void)state;
	fake_listen(&d);
	assert_int_equal(fake_attach(&d, &r, &p, NULL), 0);
	fake_say(&d, VMM_WIRE_PAUSE);
	expect_event(p, POSTCOPY_EVENT_PAUSE);
	fake_say(&d, VMM_WIRE_PAUSE);
	expect_no_event(p);
	assert_int_equal(postcopy_source_paused(p, "abc", 3, NULL), 0);
	expect_paused(&d);
	for (unsigned int i = 0; i < 2; i++) {
		fake_say(&d, VMM_WIRE_PAUSE);
		expect_no_event(p);
		expect_paused(&d);
	}
	/* Behind a repeated one, a new one is seen at once. */
	fake_say(&d, VMM_WIRE_PAUSE);
	fake_say(&d, VMM_WIRE_RESUME);
	expect_event(p, POSTCOPY_EVENT_RESUME);
	expect_paused(&d);
	fake_say(&d, VMM_WIRE_PAUSE);
	expect_event(p, POSTCOPY_EVENT_PAUSE);
	assert_int_equal(postcopy_source_paused(p, "abc", 3, NULL), 0);
	expect_paused(&d);
	fake_say(&d, VMM_WIRE_COMPLETE);
	expect_event(p, POSTCOPY_EVENT_COMPLETE);
	fake_say(&d, VMM_WIRE_COMPLETE);
	expect_no_event(p);
	postcopy_detach(p);
	fake_deinit(&d);
	assert_int_equal(open_fds(), before);
	region_deinit(&r);
}

/* Return: an attached destination, or NULL where there can be none. */
static struct postcopy *attach_offered(struct fake_daemon *d, const struct postcopy_region *r,
                                       uint32_t offers)
{
	struct postcopy_error err = { 0 };
	struct postcopy *p = NULL;
	int rc;

	fake_listen(d);
	d->destination = true;
	d->offers = offers;
	rc = fake_attach(d, r, &p, &err);
	if (rc)
		printf("%s\n", err.text);
	assert_true(!rc || rc == -EPERM || rc == -EOPNOTSUPP);
	return p;
}

/* Of a newer daemon: right after ATTACHED, and later. Nothing of it is an event, or stays open. */
static void test_what_is_not_known_is_passed_over(void **state)
{
	struct postcopy_region r = memfd_region();
	uint8_t packet[VMM_WIRE_HEADER_BYTES + 4] = { 0 };
	struct postcopy *p = NULL;
	struct fake_daemon d;
	size_t before;

	(void)state;
	put_u32(put_u16(put_u16(packet, VMM_WIRE_TYPE_LAST + 1), VMM_WIRE_VERSION), 4);
	fake_listen(&d);
	assert_int_equal(fake_attach(&d, &r, &p, NULL), 0);
	before = open_fds();
	send_raw(d.sock, packet, sizeof packet, 0);
	send_raw(d.sock, packet, sizeof packet, 3);
	expect_no_event(p);
	send_raw(d.sock, packet, sizeof packet, 1);
	fake_say(&d, VMM_WIRE_PAUSE);
	expect_event(p, POSTCOPY_EVENT_PAUSE);
	assert_int_equal(open_fds(), before);
	postcopy_detach(p);
	fake_deinit(&d);
	region_deinit(&r);
}

static struct postcopy *attach_destination(struct fake_daemon *d, const struct postcopy_region *r)
{
	return attach_offered(d, r, 0);
}

static void test_destination_that_is_asked_again_says_the_same_again(void **state)
{
	struct postcopy_region r = memfd_region();
	struct vmm_wire_msg m;
	struct fake_daemon d;
	struct postcopy *p = attach_destination(&d, &r);

	(void)state;
	if (!p)
		skip();
	fake_say(&d, VMM_WIRE_VMSTATE);
	expect_event(p, POSTCOPY_EVENT_VMSTATE);
	fake_say(&d, VMM_WIRE_VMSTATE);
	expect_no_event(p);
	assert_int_equal(postcopy_destination_loaded(p, NULL), 0);
	fake_say(&d, VMM_WIRE_VMSTATE);
	expect_no_event(p);
	assert_int_equal(postcopy_destination_resumed(p, NULL), 0);
	fake_say(&d, VMM_WIRE_VMSTATE);
	expect_no_event(p);
	fake_hear(&d, VMM_WIRE_LOADED, &m);
	fake_hear(&d, VMM_WIRE_LOADED, &m);
	fake_hear(&d, VMM_WIRE_RESUMED, &m);
	fake_hear(&d, VMM_WIRE_LOADED, &m);
	fake_hear(&d, VMM_WIRE_RESUMED, &m);
	fake_say(&d, VMM_WIRE_COMPLETE);
	fake_say(&d, VMM_WIRE_VMSTATE);
	fake_say(&d, VMM_WIRE_COMPLETE);
	expect_event(p, POSTCOPY_EVENT_COMPLETE);
	expect_no_event(p);
	postcopy_detach(p);
	fake_deinit(&d);
	region_deinit(&r);
}

/* Memory divided among several userfaultfds. */

#define DIVIDED_BYTES (16 * MIB)

static struct postcopy_region divided_region(enum postcopy_memory memory)
{
	int fd = memory == POSTCOPY_MEMORY_MEMFD ? memfd_create("guest", MFD_CLOEXEC) : -1;
	void *addr;

	assert_true(fd < 0 || !ftruncate(fd, (off_t)DIVIDED_BYTES));
	addr = mmap(NULL, DIVIDED_BYTES, PROT_READ | PROT_WRITE,
	            fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	assert_ptr_not_equal(addr, MAP_FAILED);
	return (struct postcopy_region){ .memory = memory,
		                         .size = DIVIDED_BYTES,
		                         .page_size = 4096,
		                         .host_addr = addr,
		                         .fd = fd };
}

static void divided_deinit(struct postcopy_region *r)
{
	munmap(r->host_addr, DIVIDED_BYTES);
	if (r->fd >= 0)
		close(r->fd);
}

/* SHARDS, as it was answered. The descriptors of all shards, that of ATTACH included. */
static uint32_t hear_shards(struct fake_daemon *d, int uffds[SHARDS_MAX])
{
	struct vmm_wire_msg m;
	size_t n = 0;

	uffds[0] = d->fds[0];
	assert_int_equal(vmm_wire_recv(d->sock, 0, &m, uffds + 1, &n, NULL), 0);
	assert_int_equal(m.type, VMM_WIRE_SHARDS);
	assert_int_equal(n, m.n_shards - 1);
	return m.n_shards;
}

static void expect_silence(struct fake_daemon *d)
{
	char byte;

	assert_int_equal(recv(d->sock, &byte, 1, MSG_DONTWAIT | MSG_PEEK), -1);
	assert_int_equal(errno, EAGAIN);
}

static void close_shards(const int *uffds, uint32_t n)
{
	for (uint32_t i = 1; i < n; i++)
		close(uffds[i]);
}

static void *touch(void *at)
{
	return (void *)(uintptr_t) * (volatile uint8_t *)at;
}

/* Who touches an absent page there waits for whoever reads this userfaultfd, and gets @content. */
static void expect_trapped(const struct postcopy_region *r, uint64_t offset, int uffd,
                           uint8_t content)
{
	struct pollfd pfd = { .fd = uffd, .events = POLLIN };
	void *at = (char *)r->host_addr + offset, *got;
	struct uffd_msg event = { 0 };
	_Alignas(4096) uint8_t page[4096];
	pthread_t thread;

	memset(page, content, sizeof page);
	assert_int_equal(pthread_create(&thread, NULL, touch, at), 0);
	assert_int_equal(poll(&pfd, 1, 10000), 1);
	assert_int_equal(read(uffd, &event, sizeof event), sizeof event);
	assert_int_equal(event.event, UFFD_EVENT_PAGEFAULT);
	assert_int_equal(event.arg.pagefault.address, (uintptr_t)at);
	if (r->fd >= 0) {
		struct uffdio_continue c = { .range = { (uintptr_t)at, 4096 } };

		assert_int_equal(pwrite(r->fd, page, sizeof page, (off_t)offset), sizeof page);
		assert_int_equal(ioctl(uffd, UFFDIO_CONTINUE, &c), 0);
	} else {
		struct uffdio_copy c = { .dst = (uintptr_t)at,
			                 .src = (uintptr_t)page,
			                 .len = 4096 };

		assert_int_equal(ioctl(uffd, UFFDIO_COPY, &c), 0);
	}
	assert_int_equal(pthread_join(thread, &got), 0);
	assert_int_equal((uintptr_t)got, content);
}

/* At both ends of each part. */
static void expect_divided(const struct postcopy_region *r, const int *uffds, uint32_t n)
{
	const struct shards_region whole = { 0, r->size, r->page_size };
	uint64_t at = 0;

	for (uint32_t shard = 0; shard < n; shard++) {
		uint64_t begin, end;

		shards_part(n, &whole, shard, &begin, &end);
		assert_int_equal(begin, at);
		assert_true(end > begin);
		expect_trapped(r, begin, uffds[shard], (uint8_t)(1 + shard));
		expect_trapped(r, end - 4096, uffds[shard], (uint8_t)(101 + shard));
		at = end;
	}
	assert_int_equal(at, r->size);
}

/* With the daemon's copies open still: nothing is trapped, of whichever shard. */
static void expect_not_trapped(const struct postcopy_region *r)
{
	for (uint64_t at = 4096; at < r->size; at += MIB)
		assert_null(touch((char *)r->host_addr + at));
}

static void check_divided(enum postcopy_memory memory, uint32_t offers, uint32_t want)
{
	struct postcopy_region r = divided_region(memory);
	size_t before = open_fds();
	int uffds[SHARDS_MAX];
	struct fake_daemon d;
	struct postcopy *p = attach_offered(&d, &r, offers);

	if (!p)
		skip();
	assert_int_equal(hear_shards(&d, uffds), want);
	expect_divided(&r, uffds, want);
	expect_no_event(p);
	postcopy_detach(p);
	expect_not_trapped(&r);
	close_shards(uffds, want);
	fake_deinit(&d);
	assert_int_equal(open_fds(), before);
	divided_deinit(&r);
}

static void test_memory_is_divided_as_it_is_offered(void **state)
{
	(void)state;
	check_divided(POSTCOPY_MEMORY_MEMFD, 2, 2);
	check_divided(POSTCOPY_MEMORY_MEMFD, 5, 5);
	check_divided(POSTCOPY_MEMORY_ANONYMOUS, 4, 4);
	/* A newer daemon may offer more. */
	check_divided(POSTCOPY_MEMORY_ANONYMOUS, UINT32_MAX, SHARDS_MAX);
}

/* A daemon that was started again may have lost the answer with the process before. */
static void test_shards_are_said_again(void **state)
{
	static const struct vmm_wire_msg offer = { .type = VMM_WIRE_OFFER_SHARDS, .n_shards = 2 };
	struct postcopy_region r = divided_region(POSTCOPY_MEMORY_MEMFD);
	int uffds[SHARDS_MAX], again[SHARDS_MAX];
	struct vmm_wire_msg m;
	struct fake_daemon d;
	struct postcopy *p = attach_offered(&d, &r, 3);

	(void)state;
	if (!p)
		skip();
	assert_int_equal(hear_shards(&d, uffds), 3);
	for (int stage = 0; stage < 4; stage++) {
		if (stage == 1) {
			fake_say(&d, VMM_WIRE_VMSTATE);
			expect_event(p, POSTCOPY_EVENT_VMSTATE);
		} else if (stage == 2) {
			assert_int_equal(postcopy_destination_loaded(p, NULL), 0);
			fake_hear(&d, VMM_WIRE_LOADED, &m);
		} else if (stage == 3) {
			assert_int_equal(postcopy_destination_resumed(p, NULL), 0);
			fake_hear(&d, VMM_WIRE_RESUMED, &m);
		}
		assert_int_equal(vmm_wire_send(d.sock, &offer, NULL, 0), 0);
		expect_no_event(p);
		assert_int_equal(hear_shards(&d, again), 3);
		if (!stage)
			expect_divided(&r, again, 3);
		close_shards(again, 3);
	}
	fake_say(&d, VMM_WIRE_COMPLETE);
	expect_event(p, POSTCOPY_EVENT_COMPLETE);
	assert_int_equal(vmm_wire_send(d.sock, &offer, NULL, 0), 0);
	expect_no_event(p);
	expect_silence(&d);
	postcopy_detach(p);
	close_shards(uffds, 3);
	fake_deinit(&d);
	divided_deinit(&r);
}

/* Once attached its memory may be touched, and who does so between two userfaultfds reads zeroes.
 */
static void test_attached_memory_is_not_divided(void **state)
{
	static const struct vmm_wire_msg offer = { .type = VMM_WIRE_OFFER_SHARDS, .n_shards = 4 };
	struct postcopy_region r = divided_region(POSTCOPY_MEMORY_MEMFD);
	struct fake_daemon d;
	struct postcopy *p = attach_destination(&d, &r);

	(void)state;
	if (!p)
		skip();
	assert_int_equal(vmm_wire_send(d.sock, &offer, NULL, 0), 0);
	expect_no_event(p);
	expect_silence(&d);
	expect_trapped(&r, r.size - 4096, d.fds[0], 7);
	postcopy_detach(p);
	fake_deinit(&d);
	divided_deinit(&r);
}

/* Its userfaultfd was made by somebody else, who may rely on its being the only one. */
static void test_a_given_userfaultfd_is_not_divided(void **state)
{
	struct postcopy_region r = divided_region(POSTCOPY_MEMORY_ANONYMOUS);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct postcopy *p = NULL;
	struct fake_daemon d;
	pthread_t thread;
	void *failed;

	(void)state;
	if (uffd < 0)
		skip();
	fake_listen(&d);
	d.offers = 4;
	assert_int_equal(postcopy_destination_register(-1, uffd, &r, 1, &p, NULL), 0);
	assert_int_equal(pthread_create(&thread, NULL, fake_accept, &d), 0);
	assert_int_equal(postcopy_destination_attach_registered(p, d.path, "vm7", NULL), 0);
	assert_int_equal(pthread_join(thread, &failed), 0);
	assert_null(failed);
	expect_silence(&d);
	expect_trapped(&r, r.size - 4096, uffd, 7);
	postcopy_detach(p);
	close(uffd);
	fake_deinit(&d);
	divided_deinit(&r);
}

/* So many descriptors may be open, and one more for each step of a plain attach. */
static void limit_descriptors(rlim_t more)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = more ? open_fds() + more : limit.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* It has no descriptor for all of them: then it is as it was, and none is left open. */
static void test_where_it_can_not_be_divided_all_is_as_before(void **state)
{
	struct postcopy_region r = divided_region(POSTCOPY_MEMORY_MEMFD);
	size_t before = open_fds();
	struct fake_daemon d;
	struct postcopy *p;

	(void)state;
	limit_descriptors(8);
	p = attach_offered(&d, &r, SHARDS_MAX);
	limit_descriptors(0);
	if (!p)
		skip();
	expect_silence(&d);
	expect_trapped(&r, 0, d.fds[0], 6);
	expect_trapped(&r, r.size - 4096, d.fds[0], 7);
	postcopy_detach(p);
	fake_deinit(&d);
	assert_int_equal(open_fds(), before);
	divided_deinit(&r);
}

/* Memory that nobody traps any more must not be taken for a guest's. */
static void test_a_part_that_is_lost_fails_the_attach(void **state)
{
	struct postcopy_region r = divided_region(POSTCOPY_MEMORY_MEMFD);
	struct postcopy_error err = { 0 };
	size_t before = open_fds();
	struct postcopy *p = NULL;
	struct fake_daemon d;
	int rc;

	(void)state;
	fake_listen(&d);
	d.destination = true;
	d.offers = 2;
	d.cut = (char *)r.host_addr + r.size - 4096;
	rc = fake_attach(&d, &r, &p, &err);
	if (rc == -EPERM || rc == -EOPNOTSUPP)
		skip();
	assert_true(rc < 0);
	assert_non_null(strstr(err.text, "UFFDIO_REGISTER"));
	assert_null(p);
	fake_deinit(&d);
	assert_int_equal(open_fds(), before);
	divided_deinit(&r);
}

static void test_failed_load_is_said_again(void **state)
{
	struct postcopy_region r = memfd_region();
	struct vmm_wire_msg m;
	struct fake_daemon d;
	struct postcopy *p = attach_destination(&d, &r);

	(void)state;
	if (!p)
		skip();
	fake_say(&d, VMM_WIRE_VMSTATE);
	expect_event(p, POSTCOPY_EVENT_VMSTATE);
	assert_int_equal(postcopy_destination_load_failed(p, "no such device", NULL), 0);
	fake_say(&d, VMM_WIRE_VMSTATE);
	expect_no_event(p);
	for (unsigned int i = 0; i < 2; i++) {
		fake_hear(&d, VMM_WIRE_ERROR, &m);
		assert_string_equal(m.text, "no such device");
	}
	fake_say(&d, VMM_WIRE_ERROR);
	expect_event(p, POSTCOPY_EVENT_FAILED);
	postcopy_detach(p);
	fake_deinit(&d);
	region_deinit(&r);
}

static void test_refused_attach_tells_the_reason(void **state)
{
	struct postcopy_region r = memfd_region();
	struct fake_daemon d;
	struct postcopy *p = NULL;
	struct postcopy_error err;
	size_t before = open_fds();

	(void)state;
	fake_listen(&d);
	d.answer = (struct vmm_wire_msg){ .type = VMM_WIRE_ERROR,
		                          .code = EBUSY,
		                          .text = "one is attached already" };
	assert_int_equal(fake_attach(&d, &r, &p, &err), -EBUSY);
	assert_null(p);
	assert_non_null(strstr(err.text, "one is attached already"));
	fake_deinit(&d);
	assert_int_equal(open_fds(), before);
	region_deinit(&r);
}

static void test_anonymous_source_passes_its_own_memory(void **state)
{
	struct postcopy_region r = memfd_region();
	struct fake_daemon d;
	struct postcopy *p = NULL;
	struct postcopy_error err;
	uint32_t value = 0;

	(void)state;
	close(r.fd);
	r.fd = -1;
	r.memory = POSTCOPY_MEMORY_ANONYMOUS;
	*(uint32_t *)r.host_addr = 0x12345678;
	fake_listen(&d);
	assert_int_equal(fake_attach(&d, &r, &p, &err), 0);
	assert_int_equal(d.n_fds, 1);
	assert_int_equal(
	        pread(d.fds[0], &value, sizeof value, (off_t)d.attach.regions[0].fd_offset),
	        sizeof value);
	assert_int_equal(value, 0x12345678);
	assert_int_equal(
	        pwrite(d.fds[0], &value, sizeof value, (off_t)d.attach.regions[0].fd_offset),
	        -1); /* to read only */
	postcopy_detach(p);
	fake_deinit(&d);
	region_deinit(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_each_type_round_trips),
		cmocka_unit_test(test_attach_again_is_a_pidfd),
		cmocka_unit_test(test_late_memory_is_a_destination_table),
		cmocka_unit_test(test_wire_format_is_fixed),
		cmocka_unit_test(test_largest_messages_fit),
		cmocka_unit_test(test_truncation_at_every_length),
		cmocka_unit_test(test_wrong_descriptor_counts),
		cmocka_unit_test(test_header_bounds),
		cmocka_unit_test(test_shards_bounds),
		cmocka_unit_test(test_attach_bounds),
		cmocka_unit_test(test_descriptor_indexes),
		cmocka_unit_test(test_error_bounds),
		cmocka_unit_test(test_id_characters),
		cmocka_unit_test(test_socket_round_trip_with_descriptors),
		cmocka_unit_test(test_failed_receive_leaks_nothing),
		cmocka_unit_test(test_credentials_do_not_crowd_out_descriptors),
		cmocka_unit_test(test_peer_that_dies_is_end_of_file),
		cmocka_unit_test(test_last_words_come_through_a_reset),
		cmocka_unit_test(test_region_table_is_checked),
		cmocka_unit_test(test_source_life),
		cmocka_unit_test(test_a_pause_comes_after_the_last_report),
		cmocka_unit_test(test_declared_writers_are_no_match_for_write_protection),
		cmocka_unit_test(test_bound_memslot_is_not_write_protected),
		cmocka_unit_test(test_source_refuses_what_does_not_fit),
		cmocka_unit_test(test_source_that_is_asked_again_says_the_same_again),
		cmocka_unit_test(test_what_is_not_known_is_passed_over),
		cmocka_unit_test(test_destination_that_is_asked_again_says_the_same_again),
		cmocka_unit_test(test_memory_is_divided_as_it_is_offered),
		cmocka_unit_test(test_shards_are_said_again),
		cmocka_unit_test(test_attached_memory_is_not_divided),
		cmocka_unit_test(test_a_given_userfaultfd_is_not_divided),
		cmocka_unit_test(test_where_it_can_not_be_divided_all_is_as_before),
		cmocka_unit_test(test_a_part_that_is_lost_fails_the_attach),
		cmocka_unit_test(test_failed_load_is_said_again),
		cmocka_unit_test(test_refused_attach_tells_the_reason),
		cmocka_unit_test(test_anonymous_source_passes_its_own_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

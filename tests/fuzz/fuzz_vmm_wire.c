/* SPDX-License-Identifier: Apache-2.0 */
/* What a VMM and the daemon say to each other. The first byte is the number of descriptors. */
#include "fuzz.h"

#include <string.h>

#include "libpostcopy/vmm_wire.h"

const unsigned int fuzz_rounds = 300000;

static void check_msg(const struct vmm_wire_msg *msg, size_t n_fds)
{
	FUZZ_CHECK(msg->n_regions <= POSTCOPY_REGIONS_MAX);
	if (msg->type == VMM_WIRE_ATTACH) {
		FUZZ_CHECK(msg->role == VMM_WIRE_SOURCE || msg->role == VMM_WIRE_DESTINATION);
		FUZZ_CHECK(!vmm_wire_id_check(msg->id, NULL));
		for (uint32_t i = 0; i < msg->n_regions; i++)
			FUZZ_CHECK(msg->regions[i].fd_index == VMM_WIRE_NO_FD ||
			           msg->regions[i].fd_index < n_fds);
	}
	if (msg->type == VMM_WIRE_DIRTY_LOG)
		FUZZ_CHECK(msg->how == n_fds);
	if (msg->type == VMM_WIRE_SHARDS)
		FUZZ_CHECK(msg->n_shards <= SHARDS_MAX && msg->n_shards == n_fds + 1);
	if (msg->type == VMM_WIRE_ERROR || msg->type == VMM_WIRE_DIRTY_LOG ||
	    msg->type == VMM_WIRE_HARVESTED)
		FUZZ_CHECK(strlen(msg->text) < sizeof msg->text && !strpbrk(msg->text, "\n\r\x1b"));
}

int fuzz_one(const uint8_t *data, size_t size)
{
	static uint8_t packet[VMM_WIRE_PACKET_MAX], again[VMM_WIRE_PACKET_MAX];
	static struct vmm_wire_msg msg, back;
	struct error err = ERROR_INIT;
	size_t n_fds, len;

	if (!size)
		return 0;
	n_fds = data[0] % (VMM_WIRE_FDS_MAX + 1);
	if (vmm_wire_decode(data + 1, size - 1, n_fds, &msg, &err)) {
		FUZZ_CHECK(err.code < 0 && *err.text);
		return 0;
	}
	check_msg(&msg, n_fds);
	/* Said by ourselves it is understood, and comes to the same. */
	len = vmm_wire_encode(&msg, packet);
	FUZZ_CHECK(len <= sizeof packet);
	FUZZ_CHECK(!vmm_wire_decode(packet, len, n_fds, &back, &err));
	FUZZ_CHECK(vmm_wire_encode(&back, again) == len && !memcmp(packet, again, len));
	return 0;
}

static size_t put_attach(enum vmm_wire_role role, uint32_t n, uint8_t *buf)
{
	static struct vmm_wire_msg msg;
	uint32_t fd = role == VMM_WIRE_DESTINATION;

	msg = (struct vmm_wire_msg){
		.type = VMM_WIRE_ATTACH, .role = role, .id = "vm-7", .n_regions = n
	};
	for (uint32_t i = 0; i < n; i++)
		msg.regions[i] = (struct vmm_wire_region){
			.memory = POSTCOPY_MEMORY_MEMFD,
			.guest_phys_addr = (uint64_t)i << 30,
			.size = 1u << 30,
			.page_size = 4096,
			.host_addr = 0x7f0000000000 + ((uint64_t)i << 30),
			.fd_index = fd++,
		};
	buf[0] = (uint8_t)fd;
	return 1 + vmm_wire_encode(&msg, buf + 1);
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static struct vmm_wire_msg msg;

	if (i == 0)
		return put_attach(VMM_WIRE_SOURCE, 1, buf);
	if (i == 1)
		return put_attach(VMM_WIRE_SOURCE, POSTCOPY_REGIONS_MAX, buf);
	if (i == 2)
		return put_attach(VMM_WIRE_DESTINATION, 2, buf);
	/* One of each other type, with as many descriptors as it carries. */
	msg = (struct vmm_wire_msg){ .type = (enum vmm_wire_type)(VMM_WIRE_ATTACHED + i - 3),
		                     .vmstate_len = 4096,
		                     .pause_ns = 5,
		                     .n_regions = 1,
		                     .how = VMM_WIRE_LOG_BY_KERNEL,
		                     .number = 9,
		                     .n_shards = 4,
		                     .code = 5,
		                     .text = "it broke\x07" };
	buf[0] = msg.type == VMM_WIRE_PAUSED || msg.type == VMM_WIRE_VMSTATE ||
	         msg.type == VMM_WIRE_CHANNEL || msg.type == VMM_WIRE_POISONED ||
	         msg.type == VMM_WIRE_VMSTATE_AHEAD;
	if (msg.type == VMM_WIRE_DIRTY_LOG)
		buf[0] = 2;
	if (msg.type == VMM_WIRE_SHARDS)
		buf[0] = 3;
	return msg.type <= VMM_WIRE_TYPE_LAST ? 1 + vmm_wire_encode(&msg, buf + 1) : 0;
}

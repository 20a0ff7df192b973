/* SPDX-License-Identifier: Apache-2.0 */
#include "cloud_hypervisor/wire.h"

#include <errno.h>
#include <string.h>

#include "util/bytes.h"

#define PAGE_BYTES 4096u

/* What a request's length may be. */
static const struct {
	const char *name;
	uint64_t least, most;
} commands[] = {
	[CH_START] = { "Start", 0, 0 },
	[CH_CONFIG] = { "Config", 1, CH_CONFIG_MAX },
	[CH_STATE] = { "State", 1, CH_STATE_MAX },
	[CH_MEMORY] = { "Memory", 0, UINT64_MAX },
	[CH_COMPLETE] = { "Complete", 0, 0 },
	[CH_ABANDON] = { "Abandon", 0, 0 },
	[CH_MEMORY_FD] = { "MemoryFd", CH_SLOT_BYTES, CH_SLOT_BYTES },
	[CH_COMPLETE_PAUSED] = { "CompletePaused", 0, 0 },
	[CH_PAGE_FAULT] = { "PageFault", CH_RANGE_BYTES, CH_RANGE_BYTES },
};

const char *ch_command_name(enum ch_command command)
{
	return commands[command].name;
}

static void put_header(uint16_t first, uint16_t second, uint64_t length, void *buf)
{
	memset(buf, 0, CH_REQUEST_BYTES);
	put_u16(put_u16(buf, first), second);
	put_u64((char *)buf + 8, length);
}

void ch_request_encode(const struct ch_request *q, void *buf)
{
	put_header((uint16_t)q->command, q->version, q->length, buf);
}

int ch_request_decode(const void *buf, struct ch_request *ret, struct error *err)
{
	struct reader r = reader_init(buf, CH_REQUEST_BYTES);
	uint16_t command = get_u16(&r), version = get_u16(&r);
	uint64_t length;

	(void)get_u32(&r);
	length = get_u64(&r);
	if (command < CH_START || command > CH_PAGE_FAULT)
		return error_set(err, -EPROTO,
		                 "Cloud Hypervisor sends command %u, which this adapter does not "
		                 "know (it knows version %u of its protocol)",
		                 command, CH_VERSION);
	if (command == CH_START && version != CH_VERSION)
		return error_set(err, -EPROTONOSUPPORT,
		                 "Cloud Hypervisor speaks version %u of its migration protocol, "
		                 "this adapter %u: install releases that belong together",
		                 version, CH_VERSION);
	if (length < commands[command].least || length > commands[command].most)
		return error_set(err, -EPROTO,
		                 "Cloud Hypervisor sends %s of %llu bytes; %llu to %llu are "
		                 "possible",
		                 commands[command].name, (unsigned long long)length,
		                 (unsigned long long)commands[command].least,
		                 (unsigned long long)commands[command].most);
	*ret = (struct ch_request){
		.command = (enum ch_command)command,
		.version = command == CH_START ? version : 0,
		.length = length,
	};
	return 0;
}

void ch_response_encode(enum ch_status status, void *buf)
{
	put_header((uint16_t)status, 0, 0, buf);
}

int ch_response_decode(const void *buf, enum ch_status *ret, struct error *err)
{
	struct reader r = reader_init(buf, CH_RESPONSE_BYTES);
	uint16_t status = get_u16(&r);

	(void)get_bytes(&r, 6);
	if (status != CH_OK && status != CH_ERROR)
		return error_set(err, -EPROTO, "Cloud Hypervisor answers with status %u", status);
	if (get_u64(&r))
		return error_set(err, -EPROTO,
		                 "Cloud Hypervisor's answer is followed by a payload; none was "
		                 "asked for");
	*ret = (enum ch_status)status;
	return 0;
}

void ch_range_encode(const struct ch_range *range, void *buf)
{
	put_u64(put_u64(buf, range->guest_phys_addr), range->len);
}

int ch_range_decode(const void *buf, struct ch_range *ret, struct error *err)
{
	struct reader r = reader_init(buf, CH_RANGE_BYTES);
	struct ch_range range = { .guest_phys_addr = get_u64(&r), .len = get_u64(&r) };

	if (!range.len || range.len > CH_PAGE_MAX ||
	    (range.guest_phys_addr | range.len) % PAGE_BYTES ||
	    range.guest_phys_addr > UINT64_MAX - range.len)
		return error_set(err, -EPROTO,
		                 "Cloud Hypervisor asks for %#llx bytes at %#llx: that is no page",
		                 (unsigned long long)range.len,
		                 (unsigned long long)range.guest_phys_addr);
	*ret = range;
	return 0;
}

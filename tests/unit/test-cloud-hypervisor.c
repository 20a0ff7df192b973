/* SPDX-License-Identifier: Apache-2.0 */
/* Cloud Hypervisor's protocol, byte for byte, its Config, and the vmstate made of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cloud_hypervisor/envelope.h"
#include "cloud_hypervisor/wire.h"

#define PAGE 4096ull

static void requests_are_as_cloud_hypervisor_sends_them(void **state)
{
	static const struct {
		struct ch_request q;
		uint8_t bytes[CH_REQUEST_BYTES];
	} known[] = {
		{ { CH_START, 0, 0 }, { 1 } },
		{ { CH_CONFIG, 0, 0x1234 }, { 2, 0, 0, 0, 0, 0, 0, 0, 0x34, 0x12 } },
		{ { CH_STATE, 0, 0x01000000 }, { 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 } },
		{ { CH_COMPLETE, 0, 0 }, { 5 } },
		{ { CH_ABANDON, 0, 0 }, { 6 } },
		{ { CH_MEMORY_FD, 0, 4 }, { 7, 0, 0, 0, 0, 0, 0, 0, 4 } },
		{ { CH_COMPLETE_PAUSED, 0, 0 }, { 8 } },
		{ { CH_PAGE_FAULT, 0, 16 }, { 9, 0, 0, 0, 0, 0, 0, 0, 16 } },
	};

	(void)state;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		uint8_t buf[CH_REQUEST_BYTES];
		struct ch_request back;

		ch_request_encode(&known[i].q, buf);
		assert_memory_equal(buf, known[i].bytes, sizeof buf);
		assert_int_equal(ch_request_decode(buf, &back, NULL), 0);
		assert_int_equal(back.command, known[i].q.command);
		assert_int_equal(back.length, known[i].q.length);
	}
}

static void unknown_commands_and_versions_are_named(void **state)
{
	static const struct {
		uint8_t bytes[CH_REQUEST_BYTES];
		int rc;
		const char *says;
	} bad[] = {
		{ { 0 }, -EPROTO, "command 0" },
		{ { 10 }, -EPROTO, "command 10" },
		{ { 1, 1 }, -EPROTO, "command 257" },
		{ { 1, 0, 1 }, -EPROTONOSUPPORT, "version 1" },
		{ { 1, 0, 0, 0, 0, 0, 0, 0, 1 }, -EPROTO, "Start of 1 bytes" },
		{ { 2 }, -EPROTO, "Config of 0 bytes" },
		{ { 2, [15] = 0xff }, -EPROTO, "Config of" },
		{ { 7, [8] = 5 }, -EPROTO, "MemoryFd of 5 bytes" },
		{ { 9, [8] = 15 }, -EPROTO, "PageFault of 15 bytes" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct error err = ERROR_INIT;
		struct ch_request q;

		assert_int_equal(ch_request_decode(bad[i].bytes, &q, &err), bad[i].rc);
		assert_non_null(strstr(err.text, bad[i].says));
	}
}

static void answers(void **state)
{
	uint8_t buf[CH_RESPONSE_BYTES];
	enum ch_status status;

	(void)state;
	ch_response_encode(CH_ERROR, buf);
	assert_memory_equal(buf, ((uint8_t[CH_RESPONSE_BYTES]){ 2 }), sizeof buf);
	assert_int_equal(ch_response_decode(buf, &status, NULL), 0);
	assert_int_equal(status, CH_ERROR);
	buf[0] = 3;
	assert_int_equal(ch_response_decode(buf, &status, NULL), -EPROTO);
	buf[0] = 1;
	buf[8] = 1;
	assert_int_equal(ch_response_decode(buf, &status, NULL), -EPROTO);
}

static void only_whole_pages_are_asked_for(void **state)
{
	static const struct ch_range bad[] = {
		{ 0, 0 }, { 1, PAGE }, { 0, PAGE + 1 }, { 0, 2 << 30 }, { -PAGE, 2 * PAGE },
	};
	struct ch_range range = { 3ull << 32, 2 << 20 }, back;
	uint8_t buf[CH_RANGE_BYTES];

	(void)state;
	ch_range_encode(&range, buf);
	assert_memory_equal(buf, ((uint8_t[]){ 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0 }),
	                    sizeof buf);
	assert_int_equal(ch_range_decode(buf, &back, NULL), 0);
	assert_memory_equal(&back, &range, sizeof back);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		ch_range_encode(&bad[i], buf);
		assert_int_equal(ch_range_decode(buf, &back, NULL), -EPROTO);
	}
}

static const char config[] =
        "{\"vm_config\":{\"cpus\":{}},\"memory_manager_data\":{\"guest_ram_mappings\":["
        "{\"slot\":0,\"gpa\":0,\"size\":3221225472,\"zone_id\":\"m\",\"virtio_mem\":false,"
        "\"file_offset\":0},"
        "{\"slot\":1,\"gpa\":4294967296,\"size\":1048576,\"zone_id\":\"m\",\"virtio_mem\":false,"
        "\"file_offset\":3221225472}],\"next_memory_slot\":2}}";

static void layout_is_read_from_config(void **state)
{
	struct ch_layout layout;

	(void)state;
	assert_int_equal(ch_layout_read(config, strlen(config), &layout, NULL), 0);
	assert_int_equal(layout.n, 2);
	assert_int_equal(layout.slots[1].slot, 1);
	assert_int_equal(layout.slots[1].guest_phys_addr, 1ull << 32);
	assert_int_equal(layout.slots[1].size, 1 << 20);
	assert_int_equal(layout.slots[1].file_offset, 3ull << 30);
	assert_ptr_equal(ch_layout_find(&layout, (1ull << 32) + PAGE, PAGE), &layout.slots[1]);
	assert_null(ch_layout_find(&layout, (1ull << 32) + (1 << 20), PAGE));
	assert_null(ch_layout_find(&layout, (3ull << 30) - PAGE, 2 * PAGE));
}

#define MAPPINGS(list) "{\"memory_manager_data\":{\"guest_ram_mappings\":[" list "]}}"
#define MAPPING(slot, gpa, size)                                                                   \
	"{\"slot\":" #slot ",\"gpa\":" #gpa ",\"size\":" #size ",\"file_offset\":0}"

static void config_that_is_none_is_refused(void **state)
{
	static const char *const bad[] = {
		"",
		"null",
		"[]",
		"{\"memory_manager_data\":",
		"{\"memory_manager_data\":[]}",
		"{\"memory_manager_data\":{\"guest_ram_mappings\":7}}",
		MAPPINGS(""),
		MAPPINGS("7"),
		MAPPINGS("{\"slot\":0,\"gpa\":0,\"size\":4096}"),
		MAPPINGS(MAPPING(0, 0, -4096)),
		MAPPINGS(MAPPING(0, 0, 0)),
		MAPPINGS(MAPPING(0, 0, 4097)),
		MAPPINGS(MAPPING(0, "0", 4096)),
		MAPPINGS(MAPPING(4294967296, 0, 4096)),
		MAPPINGS(MAPPING(0, 18446744073709547520, 8192)),
		MAPPINGS(MAPPING(0, 0, 8192) "," MAPPING(1, 4096, 4096)),
		MAPPINGS(MAPPING(0, 0, 8192) "," MAPPING(0, 8192, 4096)),
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct error err = ERROR_INIT;
		struct ch_layout layout;

		assert_true(ch_layout_read(bad[i], strlen(bad[i]), &layout, &err) < 0);
		assert_true(*err.text);
	}
}

static void files_have_the_slots_shape(void **state)
{
	struct ch_slot slot = {
		.slot = 3, .size = 1 << 20, .file_offset = 1 << 20, .page_size = PAGE
	};
	int fd;

	(void)state;
	assert_int_equal(ch_slot_make_file(&slot, &fd, NULL), 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), 2 << 20);
	/* Cloud Hypervisor may set the size that it has; nobody may set another. */
	assert_int_equal(ftruncate(fd, 2 << 20), 0);
	assert_int_equal(ftruncate(fd, 1 << 20), -1);
	slot.page_size = 0;
	assert_int_equal(ch_slot_take_file(&slot, fd, NULL), 0);
	assert_int_equal(slot.page_size, PAGE);
	close(fd);
	fd = open("/proc/self/status", O_RDONLY);
	assert_int_equal(ch_slot_take_file(&slot, fd, NULL), -EINVAL);
	close(fd);
}

static struct ch_envelope make_envelope(void)
{
	struct ch_envelope e = { .runs = true,
		                 .config = config,
		                 .config_len = strlen(config),
		                 .state = "{}",
		                 .state_len = 2 };

	assert_int_equal(ch_layout_read(config, strlen(config), &e.layout, NULL), 0);
	return e;
}

static size_t pack(const struct ch_envelope *e, uint8_t *buf)
{
	size_t len = ch_envelope_encode_head(e, buf);

	memcpy(buf + len, e->config, e->config_len);
	memcpy(buf + len + e->config_len, e->state, e->state_len);
	return len + e->config_len + e->state_len;
}

static void vmstate_there_and_back(void **state)
{
	struct ch_envelope e = make_envelope(), back;
	uint8_t buf[8192];
	size_t len = pack(&e, buf);

	(void)state;
	assert_int_equal(ch_envelope_decode(buf, len, &back, NULL), 0);
	assert_true(back.runs);
	assert_memory_equal(&back.layout, &e.layout, sizeof e.layout);
	assert_int_equal(back.config_len, e.config_len);
	assert_memory_equal(back.config, config, e.config_len);
	assert_memory_equal(back.state, "{}", 2);
	/* Each byte that is missing is missed, and none too many is taken. */
	for (size_t i = 0; i < len; i++) {
		struct error err = ERROR_INIT;

		assert_true(ch_envelope_decode(buf, i, &back, &err) < 0);
		assert_true(*err.text);
	}
	assert_true(ch_envelope_decode(buf, len + 1, &back, NULL) < 0);
}

static void vmstate_of_something_else_is_refused(void **state)
{
	static const struct {
		size_t at;
		const char *says;
	} bad[] = { { 0, "not of a Cloud Hypervisor" },
		    { 4, "version" },
		    { 9, "flags" },
		    { 15, "memory slots" },
		    { 20, "no slot" },
		    { 48, "pages of" } };
	struct ch_envelope e = make_envelope(), back;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct error err = ERROR_INIT;
		uint8_t buf[8192];
		size_t len = pack(&e, buf);

		buf[bad[i].at] ^= 0x80;
		assert_true(ch_envelope_decode(buf, len, &back, &err) < 0);
		assert_non_null(strstr(err.text, bad[i].says));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_are_as_cloud_hypervisor_sends_them),
		cmocka_unit_test(unknown_commands_and_versions_are_named),
		cmocka_unit_test(answers),
		cmocka_unit_test(only_whole_pages_are_asked_for),
		cmocka_unit_test(layout_is_read_from_config),
		cmocka_unit_test(config_that_is_none_is_refused),
		cmocka_unit_test(files_have_the_slots_shape),
		cmocka_unit_test(vmstate_there_and_back),
		cmocka_unit_test(vmstate_of_something_else_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

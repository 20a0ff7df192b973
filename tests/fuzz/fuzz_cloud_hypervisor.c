/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What postcopy-cloud-hypervisor reads: requests, answers and ranges of a Cloud Hypervisor, its
 * Config, and the vmstate that another host's adapter has made of them. The first byte chooses.
 */
#include "fuzz.h"

#include <string.h>

#include "cloud_hypervisor/envelope.h"
#include "cloud_hypervisor/wire.h"

const unsigned int fuzz_rounds = 50000;

static void check_layout(const struct ch_layout *layout)
{
	FUZZ_CHECK(layout->n && layout->n <= CH_SLOTS_MAX);
	for (size_t i = 0; i < layout->n; i++) {
		const struct ch_slot *s = &layout->slots[i];

		FUZZ_CHECK(s->size && !(s->size % s->page_size) && s->size <= 1ull << 52);
		FUZZ_CHECK(s->guest_phys_addr + s->size <= 1ull << 52);
		FUZZ_CHECK(ch_layout_find(layout, s->guest_phys_addr, s->size) == s);
	}
}

static void check_messages(const uint8_t *data, size_t size)
{
	struct error err = ERROR_INIT;
	struct ch_request q;
	struct ch_range range;
	enum ch_status status;
	uint8_t back[CH_REQUEST_BYTES];

	if (size < CH_REQUEST_BYTES)
		return;
	if (!ch_request_decode(data, &q, &err)) {
		FUZZ_CHECK(*ch_command_name(q.command));
		ch_request_encode(&q, back);
		FUZZ_CHECK(!memcmp(back, data, 2) && !memcmp(back + 8, data + 8, 8));
	} else {
		FUZZ_CHECK(*err.text);
	}
	if (!ch_range_decode(data, &range, NULL))
		FUZZ_CHECK(range.len && range.guest_phys_addr + range.len > range.guest_phys_addr);
	(void)ch_response_decode(data, &status, NULL);
}

static void check_envelope(const uint8_t *data, size_t size)
{
	uint8_t head[CH_ENVELOPE_HEAD_MAX];
	struct error err = ERROR_INIT;
	struct ch_envelope e;
	size_t len;

	if (ch_envelope_decode(data, size, &e, &err)) {
		FUZZ_CHECK(*err.text);
		return;
	}
	check_layout(&e.layout);
	len = ch_envelope_encode_head(&e, head);
	FUZZ_CHECK(len + e.config_len + e.state_len == size && !memcmp(head, data, len));
}

static void check_config(const uint8_t *data, size_t size)
{
	struct ch_layout layout;

	if (!ch_layout_read((const char *)data, size, &layout, NULL))
		check_layout(&layout);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] % 4 == 1)
		check_config(data + 1, size - 1);
	else if (data[0] % 4 == 2)
		check_envelope(data + 1, size - 1);
	else
		check_messages(data + 1, size - 1);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char config[] =
	        "{\"memory_manager_data\":{\"guest_ram_mappings\":[{\"slot\":0,\"gpa\":0,"
	        "\"size\":4096,\"file_offset\":0},{\"slot\":1,\"gpa\":4294967296,\"size\":8192,"
	        "\"file_offset\":4096}]}}";
	struct ch_envelope e = { .runs = true,
		                 .config = config,
		                 .config_len = strlen(config),
		                 .state = "{}",
		                 .state_len = 2 };
	struct ch_request q = { .command = (enum ch_command)(i % 10), .length = 16 };
	size_t len;

	*buf++ = (uint8_t)(i < 2 ? 1 + i : 0);
	if (i == 0) {
		memcpy(buf, config, strlen(config));
		return 1 + strlen(config);
	}
	if (i == 1) {
		FUZZ_CHECK(!ch_layout_read(config, strlen(config), &e.layout, NULL));
		len = ch_envelope_encode_head(&e, buf);
		memcpy(buf + len, config, e.config_len);
		memcpy(buf + len + e.config_len, "{}", 2);
		return 1 + len + e.config_len + 2;
	}
	if (i > 10)
		return 0;
	ch_request_encode(&q, buf);
	return 1 + CH_REQUEST_BYTES;
}

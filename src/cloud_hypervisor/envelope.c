/* SPDX-License-Identifier: Apache-2.0 */
#include "cloud_hypervisor/envelope.h"

#include <errno.h>

#include "cloud_hypervisor/wire.h"
#include "util/bytes.h"

#define RUNS 1u

size_t ch_envelope_encode_head(const struct ch_envelope *e, void *buf)
{
	void *p = put_u32(buf, CH_ENVELOPE_MAGIC);

	p = put_u32(p, CH_ENVELOPE_VERSION);
	p = put_u32(p, e->runs ? RUNS : 0);
	p = put_u32(p, (uint32_t)e->layout.n);
	for (size_t i = 0; i < e->layout.n; i++) {
		const struct ch_slot *s = &e->layout.slots[i];

		p = put_u32(put_u32(p, s->slot), 0);
		p = put_u64(put_u64(p, s->guest_phys_addr), s->size);
		p = put_u64(put_u64(p, s->file_offset), s->page_size);
	}
	p = put_u64(put_u64(p, e->config_len), e->state_len);
	return (size_t)((char *)p - (char *)buf);
}

static int get_slots(struct reader *r, uint32_t n, struct ch_layout *layout, struct error *err)
{
	int rc = 0;

	if (!n || n > CH_SLOTS_MAX)
		return error_set(err, -EPROTO,
		                 "the vmstate has %u memory slots; 1 to %d are "
		                 "possible",
		                 n, CH_SLOTS_MAX);
	for (uint32_t i = 0; i < n && !rc; i++) {
		struct ch_slot s = { .slot = get_u32(r) };

		if (get_u32(r))
			return error_set(err, -EPROTO, "the vmstate's memory slot %u is no slot",
			                 i);
		s.guest_phys_addr = get_u64(r);
		s.size = get_u64(r);
		s.file_offset = get_u64(r);
		s.page_size = get_u64(r);
		if (r->failed)
			return error_set(err, -EPROTO, "the vmstate ends within its memory slots");
		rc = ch_layout_add(layout, &s, err);
	}
	return rc;
}

int ch_envelope_decode(const void *data, size_t len, struct ch_envelope *ret, struct error *err)
{
	struct reader r = reader_init(data, len);
	uint32_t magic = get_u32(&r), version = get_u32(&r), flags = get_u32(&r), n = get_u32(&r);
	struct ch_envelope e = { .runs = flags & RUNS };
	uint64_t config_len, state_len;
	int rc;

	if (r.failed || magic != CH_ENVELOPE_MAGIC)
		return error_set(err, -EPROTO,
		                 "the vmstate is not of a Cloud Hypervisor guest: is the source's "
		                 "adapter postcopy-cloud-hypervisor?");
	if (version != CH_ENVELOPE_VERSION)
		return error_set(err, -EPROTONOSUPPORT,
		                 "the vmstate is of version %u, this adapter knows %u: install the "
		                 "same release on both hosts",
		                 version, CH_ENVELOPE_VERSION);
	if (flags & ~RUNS)
		return error_set(err, -EPROTO, "the vmstate has unknown flags %#x", flags);
	rc = get_slots(&r, n, &e.layout, err);
	if (rc)
		return rc;
	config_len = get_u64(&r);
	state_len = get_u64(&r);
	if (!config_len || config_len > CH_CONFIG_MAX || !state_len || state_len > CH_STATE_MAX)
		return error_set(err, -EPROTO,
		                 "the vmstate has a Config of %llu bytes and a State "
		                 "of %llu",
		                 (unsigned long long)config_len, (unsigned long long)state_len);
	e.config_len = (size_t)config_len;
	e.state_len = (size_t)state_len;
	e.config = get_bytes(&r, e.config_len);
	e.state = get_bytes(&r, e.state_len);
	if (!reader_done(&r))
		return error_set(err, -EPROTO, "the vmstate is %s",
		                 r.failed ? "cut short" : "followed by bytes that mean nothing");
	*ret = e;
	return 0;
}

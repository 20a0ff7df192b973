/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/hello.h"

#include <errno.h>
#include <string.h>

#include "stream.pb-c.h"
#include "util/bytes.h"
#include "util/cleanup.h"

_Static_assert(sizeof POSTCOPY_VERSION <= DAEMON_VERSION_BYTES, "our own is taken");
_Static_assert(PROOF_BYTES == TLS_PROOF_BYTES, "a proof is what tls_prove() makes");

/* What a proof stands for, beside its connection. */
#define SAID_BYTES_MAX (3 * 4 + 8 + HOLDER_BYTES + MIGRATION_ID_MAX)

static void hello_message_free(Postcopy__V1__StreamHello *m)
{
	postcopy__v1__stream_hello__free_unpacked(m, NULL);
}
DEFINE_CLEANUP(Postcopy__V1__StreamHello *, hello_message_free);

static void reply_message_free(Postcopy__V1__StreamHelloReply *m)
{
	postcopy__v1__stream_hello_reply__free_unpacked(m, NULL);
}
DEFINE_CLEANUP(Postcopy__V1__StreamHelloReply *, reply_message_free);

const char *stream_role_name(enum stream_role role)
{
	switch (role) {
	case STREAM_CONTROL:
		return "control";
	case STREAM_URGENT:
		return "urgent";
	case STREAM_BULK:
		return "bulk";
	}
	return "unknown";
}

/* The table as messages: @list points into @messages. */
static void table_to_messages(const struct region_table *table,
                              Postcopy__V1__StreamRegion *messages,
                              Postcopy__V1__StreamRegion **list)
{
	for (uint32_t i = 0; i < table->n; i++) {
		const struct region *r = &table->regions[i];

		messages[i] = (Postcopy__V1__StreamRegion)POSTCOPY__V1__STREAM_REGION__INIT;
		messages[i].guest_phys_addr = r->guest_phys_addr;
		messages[i].size = r->size;
		messages[i].page_size = r->page_size;
		messages[i].memory = r->memory;
		/* How a VMM traps its memory is nobody else's business. */
		messages[i].flags = r->flags & ~POSTCOPY_REGION_ASKED;
		messages[i].name = (char *)r->name;
		list[i] = &messages[i];
	}
}

static int table_from_messages(size_t n, Postcopy__V1__StreamRegion *const *list,
                               struct region_table *ret, struct error *err)
{
	memset(ret, 0, sizeof *ret);
	for (size_t i = 0; i < n; i++) {
		struct region r = {
			.memory = (enum postcopy_memory)list[i]->memory,
			.flags = list[i]->flags,
			.guest_phys_addr = list[i]->guest_phys_addr,
			.size = list[i]->size,
			.page_size = list[i]->page_size,
		};
		int rc;

		if (strlen(list[i]->name) > POSTCOPY_REGION_NAME_MAX)
			return error_set(err, -EPROTO, "region %zu: its name is too long", i);
		strcpy(r.name, list[i]->name);
		rc = region_table_add(ret, &r, err);

		if (rc)
			return rc;
	}
	return 0;
}

/* For people's terminals: what is not what it should be is nothing. */
static void take_version(const char *said, char ret[DAEMON_VERSION_BYTES])
{
	size_t len = strlen(said);

	*ret = '\0';
	for (size_t i = 0; i < len; i++)
		if (said[i] <= ' ' || said[i] > '~')
			return;
	if (len < DAEMON_VERSION_BYTES)
		strcpy(ret, said);
}

static size_t put_frame_header(uint16_t type, size_t payload_len, void *buf)
{
	struct frame_header h = { .type = type, .payload_len = (uint32_t)payload_len };

	frame_header_encode(&h, buf);
	return FRAME_HEADER_BYTES + payload_len;
}

/* All but the last are of fixed length: no two HELLOs give the same. Return: how many bytes. */
static size_t put_said(const struct hello *hello, enum hello_end end, uint8_t buf[SAID_BYTES_MAX])
{
	size_t id_len = strlen(hello->migration_id);
	uint8_t *p = put_u32(buf, STREAM_VERSION);

	p = put_u32(p, end);
	p = put_u32(p, hello->role);
	p = put_u64(p, hello->epoch);
	memcpy(p, hello->holder, HOLDER_BYTES);
	p += HOLDER_BYTES;
	memcpy(p, hello->migration_id, id_len);
	return (size_t)(p + id_len - buf);
}

int hello_prove(const struct hello *hello, const struct tls *tls, enum hello_end end,
                const uint8_t token[TOKEN_BYTES], uint8_t ret[PROOF_BYTES])
{
	uint8_t said[SAID_BYTES_MAX];
	size_t len = put_said(hello, end, said);

	return tls_prove(tls, token, TOKEN_BYTES, said, len, ret);
}

int hello_check_proof(const struct hello *hello, const struct tls *tls, enum hello_end end,
                      const uint8_t token[TOKEN_BYTES], const uint8_t proof[PROOF_BYTES])
{
	uint8_t said[SAID_BYTES_MAX];
	size_t len = put_said(hello, end, said);

	return tls_check_proof(tls, token, TOKEN_BYTES, said, len, proof);
}

size_t hello_encode(const struct hello *hello, const uint8_t proof[PROOF_BYTES], void *buf)
{
	Postcopy__V1__StreamRegion regions[REGIONS_MAX], *list[REGIONS_MAX];
	Postcopy__V1__StreamHello m = POSTCOPY__V1__STREAM_HELLO__INIT;
	size_t len;

	table_to_messages(&hello->regions, regions, list);
	m.version = STREAM_VERSION;
	m.role = (Postcopy__V1__StreamRole)hello->role;
	m.migration_id = (char *)hello->migration_id;
	m.proof.data = (uint8_t *)proof;
	m.proof.len = PROOF_BYTES;
	m.holder.data = (uint8_t *)hello->holder;
	m.holder.len = sizeof hello->holder;
	m.epoch = hello->epoch;
	m.daemon_version = (char *)POSTCOPY_VERSION;
	m.ahead = hello->ahead;
	m.n_regions = hello->regions.n;
	m.regions = list;
	len = postcopy__v1__stream_hello__pack(&m, (uint8_t *)buf + FRAME_HEADER_BYTES);
	return put_frame_header(FRAME_HELLO, len, buf);
}

size_t hello_reply_encode(const struct hello_reply *reply, void *buf)
{
	Postcopy__V1__StreamRegion regions[REGIONS_MAX], *list[REGIONS_MAX];
	Postcopy__V1__StreamHelloReply m = POSTCOPY__V1__STREAM_HELLO_REPLY__INIT;
	size_t len;

	table_to_messages(&reply->regions, regions, list);
	m.version = STREAM_VERSION;
	m.epoch = reply->epoch;
	m.warm = reply->warm;
	m.abort_text = reply->abort_text;
	m.urgent_connections = reply->urgents;
	m.daemon_version = (char *)POSTCOPY_VERSION;
	m.n_regions = reply->regions.n;
	m.regions = list;
	len = postcopy__v1__stream_hello_reply__pack(&m, (uint8_t *)buf + FRAME_HEADER_BYTES);
	return put_frame_header(FRAME_HELLO_REPLY, len, buf);
}

static int check_version(uint32_t version, const char *peer, const char *self, struct error *err)
{
	if (version == STREAM_VERSION)
		return 0;
	/* The other side reads this too: "here" would be wrong for one of the two. */
	return error_set(err, -EPROTO,
	                 "page stream version %u from the %s, version %u at the %s: upgrade the "
	                 "%s's postcopyd",
	                 version, peer, STREAM_VERSION, self,
	                 version < STREAM_VERSION ? peer : self);
}

static const uint8_t nobody[HOLDER_BYTES];

static int check_hello(const Postcopy__V1__StreamHello *m, struct error *err)
{
	size_t id_len = strlen(m->migration_id);

	if (check_version(m->version, "destination", "source", err))
		return -EPROTO;
	if ((int)m->role < STREAM_CONTROL || (int)m->role > STREAM_BULK)
		return error_set(err, -EPROTO, "HELLO with unknown role %d", (int)m->role);
	if (!id_len || id_len > MIGRATION_ID_MAX)
		return error_set(err, -EPROTO, "HELLO with a migration id of %zu bytes", id_len);
	if (m->proof.len != PROOF_BYTES)
		return error_set(err, -EPROTO, "HELLO with a proof of %zu bytes, not %d",
		                 m->proof.len, PROOF_BYTES);
	if (m->holder.len != HOLDER_BYTES || !memcmp(m->holder.data, nobody, HOLDER_BYTES))
		return error_set(err, -EPROTO,
		                 "HELLO of nobody: its holder must be %d random bytes",
		                 HOLDER_BYTES);
	return 0;
}

int hello_decode(const void *payload, size_t len, struct hello *ret, struct error *err)
{
	_cleanup_(hello_message_free_p) Postcopy__V1__StreamHello *m =
	        postcopy__v1__stream_hello__unpack(NULL, len, payload);
	int rc;

	if (!m)
		return error_set(err, -EPROTO, "HELLO of %zu bytes is not the message it should be",
		                 len);
	rc = check_hello(m, err);
	if (rc)
		return rc;
	ret->role = (enum stream_role)m->role;
	strcpy(ret->migration_id, m->migration_id);
	memcpy(ret->proof, m->proof.data, PROOF_BYTES);
	memcpy(ret->holder, m->holder.data, HOLDER_BYTES);
	take_version(m->daemon_version, ret->daemon_version);
	ret->epoch = m->epoch;
	ret->ahead = m->ahead;
	return table_from_messages(m->n_regions, m->regions, &ret->regions, err);
}

int hello_reply_decode(const void *payload, size_t len, struct hello_reply *ret, struct error *err)
{
	_cleanup_(reply_message_free_p) Postcopy__V1__StreamHelloReply *m =
	        postcopy__v1__stream_hello_reply__unpack(NULL, len, payload);

	if (!m)
		return error_set(err, -EPROTO,
		                 "HELLO_REPLY of %zu bytes is not the message it should be", len);
	if (check_version(m->version, "source", "destination", err))
		return -EPROTO;
	ret->epoch = m->epoch;
	ret->warm = m->warm;
	ret->abort_text = m->abort_text;
	ret->urgents = m->urgent_connections;
	take_version(m->daemon_version, ret->daemon_version);
	return table_from_messages(m->n_regions, m->regions, &ret->regions, err);
}

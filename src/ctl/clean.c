/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/clean.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "util/utf8.h"

#define PAGE_TOKEN "next_page_token"

/* The code point of a valid character. @ret_len: its bytes */
static uint32_t code_point(const uint8_t *p, size_t *ret_len)
{
	uint32_t code;

	*ret_len = *p < 0x80 ? 1 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
	code = *ret_len == 1 ? *p : *p & (0x7fu >> *ret_len);
	for (size_t i = 1; i < *ret_len; i++)
		code = code << 6 | (p[i] & 0x3f);
	return code;
}

static bool is_harmless(uint32_t code)
{
	static const struct {
		uint32_t first, last;
	} harmful[] = {
		{ 0x00, 0x1f },     { 0x7f, 0x9f },     { 0x061c, 0x061c },
		{ 0x200e, 0x200f }, { 0x2028, 0x202e }, { 0x2066, 0x2069 },
	};

	for (size_t i = 0; i < sizeof harmful / sizeof *harmful; i++)
		if (code >= harmful[i].first && code <= harmful[i].last)
			return false;
	return true;
}

void text_clean(char *text)
{
	char *out = text;

	utf8_clean(text);
	while (*text) {
		size_t len;
		uint32_t code = code_point((const uint8_t *)text, &len);

		if (is_harmless(code)) {
			memmove(out, text, len);
			out += len;
		} else {
			*out++ = code == '\n' || code == '\t' ? ' ' : '?';
		}
		text += len;
	}
	*out = 0;
}

static void clean_one(const ProtobufCFieldDescriptor *f, void *value)
{
	if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
		ProtobufCMessage *m = *(ProtobufCMessage **)value;

		if (m)
			message_clean(m);
	} else {
		char *text = *(char **)value;

		/* An absent one is a constant of protobuf-c's. */
		if (text && *text)
			text_clean(text);
	}
}

/* Of a oneof, the one that is there. */
static bool is_there(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
	const char *base = (const char *)m;

	return !(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) ||
	       *(const uint32_t *)(base + f->quantifier_offset) == f->id;
}

void message_clean(ProtobufCMessage *m)
{
	for (unsigned int i = 0; i < m->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		char *member = (char *)m + f->offset;

		if ((f->type != PROTOBUF_C_TYPE_MESSAGE && f->type != PROTOBUF_C_TYPE_STRING) ||
		    !is_there(m, f) || !strcmp(f->name, PAGE_TOKEN))
			continue;
		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			size_t n = *(size_t *)((char *)m + f->quantifier_offset);

			for (size_t j = 0; j < n; j++)
				clean_one(f, *(char **)member + j * sizeof(void *));
		} else {
			clean_one(f, member);
		}
	}
}

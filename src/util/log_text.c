/* SPDX-License-Identifier: Apache-2.0 */
#include "util/log_text.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "util/bytes.h"
#include "util/clock.h"

/* Kept for what closes a line: a quote, a brace, a newline. */
#define TAIL_BYTES 8
/* The fields of a line end here, so that the message has room. */
#define FIELDS_END (LOG_TEXT_MAX / 2)

#define KEY_MAX 64

static const char *level_name(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERROR:
		return "error";
	case LOG_LEVEL_WARNING:
		return "warning";
	case LOG_LEVEL_DEBUG:
		return "debug";
	case LOG_LEVEL_INFO:
		break;
	}
	return "info";
}

/* Return: false where there is no room; then nothing is put. */
static bool put(struct log_text *t, const void *bytes, size_t len)
{
	if (len > sizeof t->bytes - TAIL_BYTES - t->len)
		return false;
	memcpy(t->bytes + t->len, bytes, len);
	t->len += len;
	return true;
}

static bool put_string(struct log_text *t, const char *s)
{
	return put(t, s, strlen(s));
}

/* For what closes a line: TAIL_BYTES are kept for it. */
static void put_tail(struct log_text *t, const char *s)
{
	size_t len = strlen(s);

	memcpy(t->bytes + t->len, s, len);
	t->len += len;
}

/* Bytes of the UTF-8 character at @s; 0 where it is none. Overlong ones and surrogates are none. */
static size_t utf8_len(const unsigned char *s)
{
	size_t len = *s < 0x80                 ? 1
	             : *s >= 0xc2 && *s < 0xe0 ? 2
	             : *s >= 0xe0 && *s < 0xf0 ? 3
	             : *s >= 0xf0 && *s < 0xf5 ? 4
	                                       : 0;

	for (size_t i = 1; i < len; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] > 0x9f) ||
	    (*s == 0xf0 && s[1] < 0x90) || (*s == 0xf4 && s[1] > 0x8f))
		return 0;
	return len;
}

/* The next character of @s as JSON has it (logfmt readers take the same). Return: its length in @s.
 */
static size_t escape(const char *s, char ret[8])
{
	unsigned char c = (unsigned char)*s;
	size_t len = utf8_len((const unsigned char *)s);

	if (c == '"' || c == '\\')
		snprintf(ret, 8, "\\%c", c);
	else if (c == '\n')
		snprintf(ret, 8, "\\n");
	else if (c < 0x20 || c == 0x7f)
		snprintf(ret, 8, "\\u%04x", c);
	else if (c == 0xc2 && len && (unsigned char)s[1] < 0xa0)
		snprintf(ret, 8, "\\u%04x", (unsigned char)s[1]); /* C1: terminals obey them */
	else if (!len)
		snprintf(ret, 8, "\\ufffd");
	else
		snprintf(ret, 8, "%.*s", (int)len, s);
	return len ? len : 1;
}

/* Return: false where @s was cut. */
static bool put_quoted(struct log_text *t, const char *s)
{
	char c[8];

	if (!put_string(t, "\""))
		return false;
	while (*s) {
		s += escape(s, c);
		if (!put_string(t, c))
			return false;
	}
	return put_string(t, "\"");
}

static bool is_plain_word(const char *s)
{
	for (const char *c = s; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr("-._:/+", *c))
			return false;
	return *s;
}

static void put_key(struct log_text *t, enum log_format format, const char *key)
{
	char text[KEY_MAX];
	size_t n = 0;

	for (; key[n] && n < sizeof text - 1; n++)
		text[n] = (char)tolower((unsigned char)key[n]);
	text[n] = 0;
	if (format == LOG_FORMAT_JSON) {
		put_string(t, t->len ? ",\"" : "{\"");
		put_string(t, text);
		put_string(t, "\":");
	} else {
		if (t->len)
			put_string(t, " ");
		put_string(t, text);
		put_string(t, "=");
	}
}

/* One key with its value, or nothing at all where there is no room. */
static void put_pair(struct log_text *t, enum log_format format, const char *key, const char *value)
{
	bool bare = format == LOG_FORMAT_LOGFMT && is_plain_word(value);
	size_t start = t->len;
	bool done;

	put_key(t, format, key);
	done = bare ? put_string(t, value) : put_quoted(t, value);
	if (!done || t->len > FIELDS_END)
		t->len = start;
}

static void put_suppressed(struct log_text *t, enum log_format format, uint64_t n)
{
	char text[24];

	snprintf(text, sizeof text, "%llu", (unsigned long long)n);
	put_key(t, format, "SUPPRESSED");
	put_string(t, text);
}

static void put_time(struct log_text *t, enum log_format format, const struct timespec *at)
{
	char text[64];
	struct tm tm;
	size_t n;

	gmtime_r(&at->tv_sec, &tm);
	n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + n, sizeof text - n, ".%03dZ", (int)((uint64_t)at->tv_nsec / NSEC_PER_MSEC));
	put_pair(t, format, "TS", text);
}

/*
 * The message stands last, so that nothing but it is cut. In JSON and in logfmt alike it is
 * closed, cut or not.
 */
static void put_message(struct log_text *t, enum log_format format, const char *message)
{
	put_key(t, format, "MSG");
	if (!put_quoted(t, message))
		put_tail(t, "\"");
	put_tail(t, format == LOG_FORMAT_JSON ? "}\n" : "\n");
}

static void put_line(struct log_text *t, enum log_format format, const struct log_record *r)
{
	put_time(t, format, &r->at);
	put_pair(t, format, "LEVEL", level_name(r->level));
	if (r->id)
		put_pair(t, format, "MIGRATION", r->id);
	for (const struct log_field *f = r->fields; f && f->key; f++)
		if (f->value && *f->value)
			put_pair(t, format, f->key, f->value);
	if (r->suppressed)
		put_suppressed(t, format, r->suppressed);
	put_message(t, format, r->message);
}

/* The journal's form for values of any content: KEY\n, length, value, \n. */
static void put_native(struct log_text *t, const char *prefix, const char *key, const char *value)
{
	size_t start = t->len, len = strlen(value);
	uint64_t le_len = htole64(len);

	if (!put_string(t, prefix) || !put_string(t, key) || !put_string(t, "\n") ||
	    !put(t, &le_len, sizeof le_len) || !put(t, value, len) || !put_string(t, "\n"))
		t->len = start;
}

static void put_native_number(struct log_text *t, const char *prefix, const char *key, uint64_t n)
{
	char text[24];

	snprintf(text, sizeof text, "%llu", (unsigned long long)n);
	put_native(t, prefix, key, text);
}

static void put_datagram(struct log_text *t, const struct log_record *r)
{
	char message[LOG_MESSAGE_MAX + 128];
	const char *file = r->site->file;

	/* meson compiles from the build directory. */
	while (!strncmp(file, "../", 3))
		file += 3;
	/* journalctl shows the text alone, so there the migration's name is part of it. */
	snprintf(message, sizeof message, "%s%s%s%s", r->id ? "migration " : "", r->id ? r->id : "",
	         r->id ? ": " : "", r->message);
	put_native(t, "", "MESSAGE", message);
	put_native_number(t, "", "PRIORITY", r->level);
	put_native(t, "", "SYSLOG_IDENTIFIER", r->name);
	put_native(t, "", "CODE_FILE", file);
	put_native_number(t, "", "CODE_LINE", (uint64_t)r->site->line);
	put_native(t, "", "CODE_FUNC", r->function);
	if (r->id)
		put_native(t, "POSTCOPY_", "MIGRATION_ID", r->id);
	for (const struct log_field *f = r->fields; f && f->key; f++)
		if (f->value && *f->value)
			put_native(t, "POSTCOPY_", f->key, f->value);
	if (r->suppressed)
		put_native_number(t, "POSTCOPY_", "SUPPRESSED", r->suppressed);
}

void log_text_put(struct log_text *t, enum log_format format, const struct log_record *r)
{
	t->len = 0;
	if (format == LOG_FORMAT_JOURNAL)
		put_datagram(t, r);
	else
		put_line(t, format, r);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A record of the log as bytes; inside of the log. */
#ifndef UTIL_LOG_TEXT_H
#define UTIL_LOG_TEXT_H

#include <stddef.h>
#include <time.h>

#include "util/log.h"

#define LOG_MESSAGE_MAX 1024
/* A pipe takes so much in one piece (PIPE_BUF). */
#define LOG_TEXT_MAX 4096

struct log_record {
	const char *name;
	struct timespec at; /* CLOCK_REALTIME */
	enum log_level level;
	const struct log_site *site;
	const char *function;
	const char *id;                 /* NULL: of the daemon */
	const struct log_field *fields; /* may be NULL */
	uint64_t suppressed;
	char message[LOG_MESSAGE_MAX];
};

struct log_text {
	size_t len;
	char bytes[LOG_TEXT_MAX];
};

/*
 * log_text_put() - encode a record
 * @format: not LOG_FORMAT_AUTO
 *
 * A field that has no room is left out, a message that has none is cut; the rest is as it
 * should be. A line ends with a newline, a datagram for the journal with its last field's.
 */
void log_text_put(struct log_text *t, enum log_format format, const struct log_record *r);

#endif

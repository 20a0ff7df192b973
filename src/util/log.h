/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: one record for each event, written at once, from any thread.
 *
 * Theory of operation
 * -------------------
 * A record is a level, a text for people, and fields for machines: the migration that it is
 * about, and what else an event has to say. Where it goes:
 *
 *   journal  where stderr is the journal ($JOURNAL_STREAM names it): a datagram of native
 *            fields, MESSAGE, PRIORITY, POSTCOPY_MIGRATION_ID, POSTCOPY_STATE, CODE_FILE, ...
 *   logfmt   else: ts=... level=info migration=vm1 state=warming msg="..."
 *   JSON     where it was asked for: the same keys in one object a line
 *
 * Nothing a peer or a VMM sends can forge a line or a field: control characters are escaped,
 * and what is no UTF-8 is replaced.
 *
 * A log never stops a migration. Writing never waits: a pipe or a journal that is full, a disk
 * that is full, a reader that has gone: the record is lost, and counted. A call site that has
 * written LOG_LINES_PER_S records within a second is silent for the rest of it; its next
 * record says how many were suppressed. State changes (log_event()) are never suppressed.
 *
 * Tokens and keys are never arguments of a log call.
 */
#ifndef UTIL_LOG_H
#define UTIL_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define LOG_LINES_PER_S 20u

enum log_level {
	LOG_LEVEL_ERROR = 3, /* syslog's numbers */
	LOG_LEVEL_WARNING = 4,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7,
};

enum log_format {
	LOG_FORMAT_AUTO, /* the journal where stderr is the journal, else logfmt */
	LOG_FORMAT_LOGFMT,
	LOG_FORMAT_JSON,
	LOG_FORMAT_JOURNAL, /* logfmt where there is no journal */
};

/*
 * A field of an event. The key is in capitals ("STATE"): POSTCOPY_STATE in the journal, state
 * elsewhere. A list ends with a key of NULL; values that are NULL or empty are left out.
 */
struct log_field {
	const char *key;
	const char *value;
};

#define LOG_FIELDS(...) ((const struct log_field[]){ __VA_ARGS__, { NULL, NULL } })

/* A place that logs; one static object each, made by the macros below. */
struct log_site {
	const char *file;
	int line;
	bool unlimited;
	_Atomic uint64_t second; /* CLOCK_MONOTONIC; the lines of this second are counted */
	_Atomic uint32_t lines;
	_Atomic uint64_t suppressed; /* since its last line */
};

struct log_counts {
	uint64_t suppressed; /* by the limit */
	uint64_t lost;       /* could not be written */
};

/* Before the first thread starts. @name must stay valid. */
void log_init(const char *name, enum log_level level, enum log_format format);

/* From now on; from any thread. */
void log_set_level(enum log_level level);

/* Of all sites, since the start. */
struct log_counts log_get_counts(void);

/*
 * log_write() - what the macros call
 * @function: the caller's name
 * @id:       the migration that it is about, or NULL
 * @fields:   what else there is to say, or NULL
 */
void log_write(struct log_site *site, const char *function, enum log_level level, const char *id,
               const struct log_field *fields, const char *fmt, ...)
        __attribute__((format(printf, 6, 7)));

#define LOG_AT(unlimited_, level, id, fields, ...)                                                 \
	do {                                                                                       \
		static struct log_site site_ = {                                                   \
			.file = __FILE__,                                                          \
			.line = __LINE__,                                                          \
			.unlimited = (unlimited_),                                                 \
		};                                                                                 \
		log_write(&site_, __func__, (level), (id), (fields), __VA_ARGS__);                 \
	} while (0)

/* About the daemon. */
#define log_error(...) LOG_AT(false, LOG_LEVEL_ERROR, NULL, NULL, __VA_ARGS__)
#define log_warning(...) LOG_AT(false, LOG_LEVEL_WARNING, NULL, NULL, __VA_ARGS__)
#define log_info(...) LOG_AT(false, LOG_LEVEL_INFO, NULL, NULL, __VA_ARGS__)
#define log_debug(...) LOG_AT(false, LOG_LEVEL_DEBUG, NULL, NULL, __VA_ARGS__)

/* About a migration: its id is a field, the text does not repeat it. */
#define log_migration_error(id, ...) LOG_AT(false, LOG_LEVEL_ERROR, id, NULL, __VA_ARGS__)
#define log_migration_warning(id, ...) LOG_AT(false, LOG_LEVEL_WARNING, id, NULL, __VA_ARGS__)
#define log_migration_info(id, ...) LOG_AT(false, LOG_LEVEL_INFO, id, NULL, __VA_ARGS__)
#define log_migration_debug(id, ...) LOG_AT(false, LOG_LEVEL_DEBUG, id, NULL, __VA_ARGS__)

/*
 * A change of state, with its fields: log_event(level, id, LOG_FIELDS({ "STATE", s }), fmt, ...).
 * Only for what can't come in floods.
 */
#define log_event(level, id, fields, ...) LOG_AT(true, level, id, fields, __VA_ARGS__)

#endif

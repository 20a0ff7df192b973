/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Those who are turned away, at any door of the daemon: each is counted, and told in the log with
 * who it was.
 *
 * Anybody can be turned away as often as he likes. So of each door the log has REFUSED_LINES within
 * a minute, and then one that says how many more there were. As the log itself this belongs to the
 * process; any thread may say it.
 */
#ifndef UTIL_REFUSED_H
#define UTIL_REFUSED_H

#include <stdint.h>

#define REFUSED_LINES 10u

enum refused_door {
	REFUSED_AT_CONTROL, /* the control service, both sockets */
	REFUSED_AT_PAGES,   /* page streams */
	REFUSED_AT_VMM,     /* the VMM socket */
	REFUSED_DOORS
};

enum refused_reason {
	REFUSED_GROUP,       /* its user is in none of the groups */
	REFUSED_CERTIFICATE, /* none, or not a valid one, or of a name that is not allowed */
	REFUSED_TOKEN,       /* no migration here, or not its token */
	REFUSED_PROTOCOL,    /* it speaks another language, or broken TLS */
	REFUSED_ATTACH,      /* a VMM with what can't be a migration's */
	REFUSED_DEADLINE,    /* it was silent for too long */
	REFUSED_LIMIT,       /* so many are here */
	REFUSED_USER,        /* so many of its user are here */
	REFUSED_RESOURCES,   /* this process lacks descriptors or memory */
	REFUSED_REASONS
};

/*
 * refused() - somebody is turned away
 * @who: its address, or user and process
 * @fmt: why, for a person
 */
void refused(enum refused_door door, enum refused_reason reason, const char *who, const char *fmt,
             ...) __attribute__((format(printf, 4, 5)));

/* From time to time: where a minute is over, the log is told how many it has not heard of. */
void refused_tell_rest(void);

/* Since the start. */
uint64_t refused_count(enum refused_door door, enum refused_reason reason);

/* For labels. */
const char *refused_door_name(enum refused_door door);
const char *refused_reason_name(enum refused_reason reason);

#endif

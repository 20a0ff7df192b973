/* SPDX-License-Identifier: Apache-2.0 */
#include "util/refused.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>

#include "util/clock.h"
#include "util/error.h"
#include "util/log.h"

#define WINDOW_NS (60 * NSEC_PER_SEC)

static _Atomic uint64_t counts[REFUSED_DOORS][REFUSED_REASONS];

/* What the log has heard within this minute. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct window {
	uint64_t since_ns;
	uint64_t told, untold;
} windows[REFUSED_DOORS];

static const char *const door_names[REFUSED_DOORS] = {
	[REFUSED_AT_CONTROL] = "control",
	[REFUSED_AT_PAGES] = "pages",
	[REFUSED_AT_VMM] = "vmm",
};

/* As the log calls them. */
static const char *const door_titles[REFUSED_DOORS] = {
	[REFUSED_AT_CONTROL] = "control",
	[REFUSED_AT_PAGES] = "page server",
	[REFUSED_AT_VMM] = "VMM socket",
};

static const char *const reason_names[REFUSED_REASONS] = {
	[REFUSED_GROUP] = "group",         [REFUSED_CERTIFICATE] = "certificate",
	[REFUSED_TOKEN] = "token",         [REFUSED_PROTOCOL] = "protocol",
	[REFUSED_ATTACH] = "attach",       [REFUSED_DEADLINE] = "deadline",
	[REFUSED_LIMIT] = "limit",         [REFUSED_USER] = "user",
	[REFUSED_RESOURCES] = "resources",
};

const char *refused_door_name(enum refused_door door)
{
	return door_names[door];
}

const char *refused_reason_name(enum refused_reason reason)
{
	return reason_names[reason];
}

uint64_t refused_count(enum refused_door door, enum refused_reason reason)
{
	return atomic_load(&counts[door][reason]);
}

/* A minute that is over ends. Return: how many it has kept to itself. */
static uint64_t turn_over(struct window *w, uint64_t now_ns)
{
	uint64_t untold = w->untold;

	if (now_ns - w->since_ns < WINDOW_NS)
		return 0;
	*w = (struct window){ .since_ns = now_ns };
	return untold;
}

static void tell_untold(enum refused_door door, uint64_t untold)
{
	if (untold)
		log_warning("%s: and %llu more were refused in the last minute", door_titles[door],
		            (unsigned long long)untold);
}

void refused(enum refused_door door, enum refused_reason reason, const char *who, const char *fmt,
             ...)
{
	struct window *w = &windows[door];
	struct error why = ERROR_INIT;
	uint64_t untold;
	bool tell;
	va_list ap;

	atomic_fetch_add(&counts[door][reason], 1);
	pthread_mutex_lock(&lock);
	untold = turn_over(w, clock_now_ns());
	tell = w->told < REFUSED_LINES;
	w->told += tell;
	w->untold += !tell;
	pthread_mutex_unlock(&lock);
	tell_untold(door, untold);
	if (!tell)
		return;
	/* What a peer has said may be in it: error_setv() takes control characters out. */
	va_start(ap, fmt);
	error_setv(&why, 0, fmt, ap);
	va_end(ap);
	LOG_AT(true, LOG_LEVEL_WARNING, NULL,
	       LOG_FIELDS({ "REFUSED_DOOR", door_names[door] },
	                  { "REFUSED_REASON", reason_names[reason] }, { "REFUSED_PEER", who }),
	       "%s: %s refused: %s", door_titles[door], who, why.text);
}

void refused_tell_rest(void)
{
	for (enum refused_door door = 0; door < REFUSED_DOORS; door++) {
		uint64_t untold = 0;

		pthread_mutex_lock(&lock);
		if (windows[door].told)
			untold = turn_over(&windows[door], clock_now_ns());
		pthread_mutex_unlock(&lock);
		tell_untold(door, untold);
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stalls of migrations' guests: what the kernel saw, joined with what the daemon knows.
 *
 * Theory of operation
 * -------------------
 * While a guest's memory is on its way its VMM has a slot of the fault tracer. Several times a
 * second the tracer's events are taken, in one go: no fault wakes this thread. Each event, from the
 * vCPU's entry into the kernel's fault until it runs again, is joined with the daemon's record of
 * the same fault (fault/phases.h): by the thread, else by the address, among the records whose
 * event was read meanwhile. That gives the two phases that the daemon can't see:
 *
 *   entry    the vCPU stands still .. the fault thread has read its event
 *   wakeup   the page is mapped .. the vCPU runs
 *
 * entry, the record's own phases and wakeup add up to the stall, but for what stamps and
 * tracepoints leave out: both sums are kept, so that anybody can see how well they agree.
 *
 * Where there is no eBPF there is nothing here, and whoever asks is told so.
 *
 * Threads: the loop's; one of libuv's pool while the tracer is loaded.
 */
#ifndef TELEMETRY_STALLS_H
#define TELEMETRY_STALLS_H

#include <uv.h>

#include "fault/phases.h"
#include "migrate/migrate.h"
#include "telemetry/fault_tracer.h"

struct stalls;

/* The slowest stalls that are kept of a migration. */
#define STALLS_SLOW_MAX 64u

struct stall_slow {
	struct fault_tracer_event event;
	struct fault_record record; /* read_ns 0: the daemon has none that fits */
};

struct stall_info {
	uint64_t page_bytes; /* of the guest's largest host pages */

	struct histogram stall_ns;        /* every stall that the kernel saw */
	struct histogram wakeup_delay_ns; /* of these, woken .. running */
	struct fault_tracer_counters counters;

	/* Of those that were joined with a record: */
	struct histogram entry_ns;
	struct histogram wakeup_ns;
	struct histogram joined_ns; /* as the kernel saw them */
	struct histogram phases_ns; /* entry, the record's phases and wakeup */

	struct stall_slow slow[STALLS_SLOW_MAX]; /* in no order */
	unsigned int n_slow;
};

/*
 * stalls_new() - attach the tracer, and watch migrations from now on
 * @later: a thread loads it, for that takes a while, and on a busy host seconds; until then there
 * is nothing here. For a daemon that has guests which wait
 *
 * Return: 0, also where there is no eBPF; -ENOMEM.
 */
int stalls_new(uv_loop_t *loop, struct migrations *migrations, enum fault_tracer_mode mode,
               bool later, struct stalls **ret, struct error *err);

/* Memory goes when the loop has run on. NULL is allowed. */
void stalls_close(struct stalls *s);

/* As fault_tracer_source() and fault_tracer_why(). */
const char *stalls_source(const struct stalls *s);
const char *stalls_why(const struct stalls *s);

/* What was measured of a migration (its seq), at most a tenth of a second old; NULL: nothing. */
const struct stall_info *stalls_find(const struct stalls *s, uint64_t seq);

/* All migrations together, also of those that are forgotten. */
void stalls_get_total(const struct stalls *s, struct histogram *ret_stall_ns,
                      struct fault_tracer_counters *ret_counters);

/*
 * stalls_join() - find the record that belongs to an event, and count both
 *
 * For tests; stalls does it by itself. Return: whether there was one.
 */
bool stalls_join(struct stall_info *info, const struct fault_ring *ring,
                 const struct fault_tracer_event *event);

#endif

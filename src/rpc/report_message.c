/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/report_message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/migration_message.h"
#include "telemetry/stalls.h"
#include "util/clock.h"

/* Of the slowest faults, those that are told one by one, with all that is known of them. */
#define SLOW_FAULTS_MAX 64u

/*
 * A repeated field: the pointers to its messages that protobuf-c wants, the messages, and
 * what else each needs behind them, in one allocation.
 * @size: of what each needs in all
 */
static void *series_new(size_t n, size_t size, size_t message_size, void *ret_pointers)
{
	void **pointers = calloc(n ? n : 1, sizeof *pointers + size);
	char *messages = pointers ? (char *)(pointers + n) : NULL;

	for (size_t i = 0; messages && i < n; i++)
		pointers[i] = messages + i * message_size;
	*(void ***)ret_pointers = pointers;
	return messages;
}

static int set_timeline(Postcopy__V1__Report *report, struct migration *m, uint64_t origin_ns)
{
	_cleanup_free_ struct migration_point *points =
	        calloc(MIGRATION_TIMELINE_MAX, sizeof *points);
	size_t n = points ? migration_get_timeline(m, points) : 0;
	Postcopy__V1__TimelinePoint *p;

	p = points ? series_new(n, sizeof *p, sizeof *p, &report->timeline) : NULL;
	if (!p)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		if (points[i].at_ns < origin_ns)
			continue;
		*p = (Postcopy__V1__TimelinePoint)POSTCOPY__V1__TIMELINE_POINT__INIT;
		p->at_ns = points[i].at_ns - origin_ns;
		p->pages_present = points[i].present;
		p++;
		report->n_timeline++;
	}
	return 0;
}

/* Of a dot its phases, too: as many as there are, for each. */
struct dots {
	Postcopy__V1__FaultDot *messages;
	uint64_t *phase_ns;
	size_t n;
};

static int dots_new(size_t max, struct dots *ret, Postcopy__V1__FaultDot ***ret_pointers)
{
	ret->messages = series_new(max, sizeof *ret->messages + FAULT_PHASES * sizeof(uint64_t),
	                           sizeof *ret->messages, ret_pointers);
	ret->phase_ns = ret->messages ? (uint64_t *)(ret->messages + max) : NULL;
	ret->n = 0;
	return ret->messages ? 0 : -ENOMEM;
}

static void dots_add(struct dots *dots, const struct fault_record *r, uint64_t origin_ns)
{
	Postcopy__V1__FaultDot *dot = &dots->messages[dots->n];
	uint64_t *phase_ns = &dots->phase_ns[dots->n * FAULT_PHASES];
	struct fault_durations durations;

	*dot = (Postcopy__V1__FaultDot)POSTCOPY__V1__FAULT_DOT__INIT;
	dot->dominant_phase = (char *)fault_phase_name(fault_record_durations(r, &durations));
	memcpy(phase_ns, durations.ns, sizeof durations.ns);
	dot->n_phase_ns = FAULT_PHASES;
	dot->phase_ns = phase_ns;
	dot->at_ns = r->mapped_ns - origin_ns;
	dot->latency_ns = fault_record_total_ns(r);
	dot->address = r->addr;
	dot->tid = r->tid;
	dot->during_bulk = r->flags & FAULT_DURING_BULK;
	dot->brought_by_bulk = r->flags & FAULT_BROUGHT;
	dot->minor = r->flags & FAULT_MINOR;
	dots->n++;
}

/* In the order of time; those that are the same one after the other. */
static int compare_time(const void *a, const void *b)
{
	const struct fault_record *x = a, *y = b;

	if (x->mapped_ns != y->mapped_ns)
		return x->mapped_ns < y->mapped_ns ? -1 : 1;
	return memcmp(x, y, sizeof *x);
}

/* A sample of all, and the slowest, which may be in it. */
static int set_faults(Postcopy__V1__Report *report, const struct pull_stats *s,
                      const struct fault_record *slow, size_t n_slow, uint64_t origin_ns)
{
	_cleanup_free_ struct fault_record *all =
	        calloc(FAULT_SAMPLE_MAX + FAULT_SLOW_MAX, sizeof *all);
	struct dots dots;
	size_t n;
	int rc;

	if (!all)
		return -ENOMEM;
	n = fault_sample_get(&s->sample, all, &report->faults_every);
	memcpy(all + n, slow, n_slow * sizeof *slow);
	n += n_slow;
	qsort(all, n, sizeof *all, compare_time);
	rc = dots_new(n, &dots, &report->faults);
	if (rc)
		return rc;
	for (size_t i = 0; i < n; i++)
		if (!(all[i].flags & FAULT_MINOR) && all[i].mapped_ns >= origin_ns &&
		    (!i || compare_time(&all[i - 1], &all[i])))
			dots_add(&dots, &all[i], origin_ns);
	report->n_faults = dots.n;
	return 0;
}

/* What the kernel saw of a fault, where that is known; @ret is what the dot may point to. */
static void find_stall(Postcopy__V1__FaultDot *dot, const struct stall_info *info,
                       const struct fault_record *r, Postcopy__V1__Stall *ret)
{
	for (unsigned int i = 0; info && i < info->n_slow; i++) {
		const struct fault_tracer_event *event = &info->slow[i].event;
		const struct fault_record *joined = &info->slow[i].record;

		if (joined->read_ns != r->read_ns || joined->addr != r->addr)
			continue;
		*ret = (Postcopy__V1__Stall)POSTCOPY__V1__STALL__INIT;
		ret->total_ns = event->end_ns - event->start_ns;
		ret->entry_ns = r->read_ns > event->start_ns ? r->read_ns - event->start_ns : 0;
		ret->wakeup_ns = event->end_ns > r->mapped_ns ? event->end_ns - r->mapped_ns : 0;
		dot->stall = ret;
		return;
	}
}

static int set_slow_faults(Postcopy__V1__Report *report, const struct fault_record *slow,
                           size_t n_slow, uint64_t origin_ns, const struct stall_info *info,
                           Postcopy__V1__Stall stalls[SLOW_FAULTS_MAX])
{
	size_t n = n_slow < SLOW_FAULTS_MAX ? n_slow : SLOW_FAULTS_MAX;
	struct dots dots;
	int rc = dots_new(n, &dots, &report->slow_faults);

	if (rc)
		return rc;
	for (size_t i = 0; i < n; i++) {
		if (slow[i].mapped_ns < origin_ns)
			continue;
		dots_add(&dots, &slow[i], origin_ns);
		find_stall(&dots.messages[dots.n - 1], info, &slow[i], &stalls[i]);
	}
	report->n_slow_faults = dots.n;
	return 0;
}

static int set_arrival(Postcopy__V1__Report *report, struct migration *m)
{
	_cleanup_free_ struct migration_arrival_cell *cells =
	        calloc(ARRIVAL_CELLS_MAX, sizeof *cells);
	uint64_t units_per_cell;
	size_t n = cells ? migration_get_arrival(m, cells, &units_per_cell) : 0;
	Postcopy__V1__ArrivalCell *to;

	to = cells ? series_new(n, sizeof *to, sizeof *to, &report->arrival) : NULL;
	if (!to)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		uint64_t bytes = cells[i].bytes_by_fault + cells[i].bytes_by_bulk;

		to[i] = (Postcopy__V1__ArrivalCell)POSTCOPY__V1__ARRIVAL_CELL__INIT;
		to[i].pages = bytes / UNIT_BYTES;
		to[i].fault_pages = cells[i].bytes_by_fault / UNIT_BYTES;
		to[i].mean_ns = cells[i].mean_us * NSEC_PER_USEC;
	}
	report->n_arrival = n;
	return 0;
}

static int set_histogram(const struct histogram *h, size_t *ret_n,
                         Postcopy__V1__HistogramBucket ***ret)
{
	Postcopy__V1__HistogramBucket *b = series_new(HISTOGRAM_BUCKETS, sizeof *b, sizeof *b, ret);

	if (!b)
		return -ENOMEM;
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		uint64_t count = atomic_load(&h->buckets[i]);

		if (!count)
			continue;
		*b = (Postcopy__V1__HistogramBucket)POSTCOPY__V1__HISTOGRAM_BUCKET__INIT;
		b->upper_ns = histogram_bucket_upper(i);
		b->count = count;
		b++;
		++*ret_n;
	}
	return 0;
}

static int set_pull(Postcopy__V1__Report *report, const struct migration_info *info,
                    const struct stall_info *stall, Postcopy__V1__Stall stalls[SLOW_FAULTS_MAX])
{
	_cleanup_free_ struct fault_record *slow = calloc(FAULT_SLOW_MAX, sizeof *slow);
	const struct pull_stats *s = info->pull;
	size_t n_slow = slow ? fault_slow_get(&s->slow, slow) : 0;
	struct histogram all;
	int rc = slow ? set_faults(report, s, slow, n_slow, info->resumed_ns) : -ENOMEM;

	if (!rc)
		rc = set_slow_faults(report, slow, n_slow, info->resumed_ns, stall, stalls);
	if (rc)
		return rc;
	all_faults(s, &all);
	rc = set_histogram(&all, &report->n_fault_histogram, &report->fault_histogram);
	if (rc)
		return rc;
	return set_histogram(stall ? &stall->stall_ns : &all, &report->n_stall_histogram,
	                     &report->stall_histogram);
}

static void report_free(Postcopy__V1__Report *report)
{
	free(report->timeline);
	free(report->faults);
	free(report->slow_faults);
	free(report->arrival);
	free(report->fault_histogram);
	free(report->stall_histogram);
}

int report_pack(struct migration *m, const struct stalls *stalls, struct rpc_answer *ret,
                struct rpc_error *e)
{
	Postcopy__V1__Report report = POSTCOPY__V1__REPORT__INIT;
	Postcopy__V1__Stall slow_stalls[SLOW_FAULTS_MAX];
	const struct stall_info *stall;
	struct migration_message t;
	struct migration_info info;
	char *phases[FAULT_PHASES];
	int rc;

	migration_get_info(m, &info);
	stall = stalls ? stalls_find(stalls, info.seq) : NULL;
	migration_message_init(&t, m, stalls);
	report.migration = &t.message;
	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		phases[i] = (char *)fault_phase_name((enum fault_phase)i);
	report.n_phases = FAULT_PHASES;
	report.phases = phases;
	rc = set_timeline(&report, m, info.resumed_ns);
	if (!rc)
		rc = set_arrival(&report, m);
	if (!rc && info.pull)
		rc = set_pull(&report, &info, stall, slow_stalls);
	rc = rc ? error_set(&e->error, rc, "out of memory") : message_pack(&report.base, ret, e);
	report_free(&report);
	return rc;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/work.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ctl/json.h"
#include "util/cleanup.h"
#include "util/clock.h"

#define USEC_PER_SEC 1000000.0
/* What the report draws: the rate in each of these; wider ones where it took long. */
#define BIN_US 10000u
#define BINS_MAX 1000u
/* So much of what comes after: the guest looks at its pages, and counts no more, soon. */
#define AFTER_US 150000u
/* Below this a steady state is chance. */
#define STEADY_MIN 100

static bool series_add(struct work_series *s, size_t *room, struct work_sample sample)
{
	if (s->n == *room) {
		size_t more = *room ? *room * 2 : 4096;
		struct work_sample *samples = realloc(s->samples, more * sizeof *samples);

		if (!samples)
			return false;
		s->samples = samples;
		*room = more;
	}
	s->samples[s->n++] = sample;
	return true;
}

int work_series_read(const char *path, struct work_series *ret, struct error *err)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	struct work_series s = { .n = 0 };
	struct work_sample sample;
	size_t room = 0;

	if (!f)
		return error_errno(err, -errno, "the guest's progress, \"%s\"", path);
	while (fscanf(f, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &sample.at_us,
	              &sample.done, &sample.ran_us, &sample.waited_us) == 4) {
		/* Out of order is nothing that its writer would write. */
		if (s.n && (sample.at_us < s.samples[s.n - 1].at_us ||
		            sample.done < s.samples[s.n - 1].done))
			break;
		if (!series_add(&s, &room, sample))
			break;
	}
	if (!feof(f)) {
		work_series_deinit(&s);
		return error_set(err, -EBADMSG, "the guest's progress, \"%s\": can't be read",
		                 path);
	}
	*ret = s;
	return 0;
}

void work_series_deinit(struct work_series *s)
{
	free(s->samples);
	*s = (struct work_series){ .n = 0 };
}

bool work_series_merge(const struct work_series *a, const struct work_series *b,
                       struct work_series *ret)
{
	struct work_series s = { .samples = calloc(a->n + b->n + 1, sizeof *s.samples) };
	struct work_sample last_a = { 0 }, last_b = { 0 };
	size_t i = 0, j = 0;

	if (!s.samples)
		return false;
	while (i < a->n || j < b->n) {
		bool from_a = j == b->n || (i < a->n && a->samples[i].at_us <= b->samples[j].at_us);
		const struct work_sample *next = from_a ? &a->samples[i++] : &b->samples[j++];

		*(from_a ? &last_a : &last_b) = *next;
		s.samples[s.n++] = (struct work_sample){ next->at_us, last_a.done + last_b.done,
			                                 last_a.ran_us + last_b.ran_us,
			                                 last_a.waited_us + last_b.waited_us };
	}
	*ret = s;
	return true;
}

/* So much of everything in some time. */
struct amounts {
	double us, done, ran_us, waited_us;
};

static struct amounts amounts_of(const struct work_sample *s)
{
	return (struct amounts){ (double)s->at_us, (double)s->done, (double)s->ran_us,
		                 (double)s->waited_us };
}

/* From @a on, @share of what lies between them. */
static struct amounts between(struct amounts a, struct amounts b, double share)
{
	return (struct amounts){ a.us + (b.us - a.us) * share, a.done + (b.done - a.done) * share,
		                 a.ran_us + (b.ran_us - a.ran_us) * share,
		                 a.waited_us + (b.waited_us - a.waited_us) * share };
}

/* What there was until then; between two samples in proportion. */
static struct amounts amounts_at(const struct work_series *s, uint64_t at_us)
{
	size_t low = 0, high = s->n;
	const struct work_sample *a, *b;

	/* The first sample that is later. */
	while (low < high) {
		size_t middle = (low + high) / 2;

		if (s->samples[middle].at_us > at_us)
			high = middle;
		else
			low = middle + 1;
	}
	if (!s->n)
		return (struct amounts){ 0 };
	if (!low || low == s->n)
		return amounts_of(&s->samples[low ? s->n - 1 : 0]);
	a = &s->samples[low - 1];
	b = &s->samples[low];
	return between(amounts_of(a), amounts_of(b),
	               (double)(at_us - a->at_us) / (double)(b->at_us - a->at_us));
}

double work_done_at(const struct work_series *s, uint64_t at_us)
{
	return amounts_at(s, at_us).done;
}

/* What there was from then to then, which need not be samples' times. */
static struct amounts amounts_in(const struct work_series *s, uint64_t from_us, uint64_t to_us)
{
	struct amounts a = amounts_at(s, from_us), b = amounts_at(s, to_us);

	return (struct amounts){ (double)to_us - (double)from_us, b.done - a.done,
		                 b.ran_us - a.ran_us, b.waited_us - a.waited_us };
}

/* Between the first and the last sample of one count nothing was done. */
static uint64_t longest_gap(const struct work_series *s, uint64_t from_us, uint64_t to_us)
{
	uint64_t longest = 0, since_us = 0;

	for (size_t i = 0; i < s->n; i++) {
		uint64_t at_us = s->samples[i].at_us;
		uint64_t start_us;

		if (!i || s->samples[i].done != s->samples[i - 1].done)
			since_us = at_us;
		at_us = at_us < to_us ? at_us : to_us;
		start_us = since_us > from_us ? since_us : from_us;
		if (at_us > start_us && at_us - start_us > longest)
			longest = at_us - start_us;
	}
	return longest;
}

/* Of a phase: against the steady state, by time and by what its cores' time was good for. */
static struct work_part lost_in(const struct work_series *s, const struct amounts *steady,
                                uint64_t from_us, uint64_t to_us)
{
	struct amounts a = amounts_in(s, from_us, to_us);
	struct work_part part = { .lost_ms = (a.us - a.done * steady->us / steady->done) / 1000 };
	double ms_per_ran_us, ran_us;

	if (steady->ran_us <= 0)
		return part;
	/* All vCPUs' core time, as time of the guest. */
	ms_per_ran_us = steady->us / steady->ran_us / 1000;
	/* What it would have needed for as much. */
	ran_us = a.done * steady->ran_us / steady->done;
	part.slower_ms = (a.ran_us - ran_us) * ms_per_ran_us;
	part.cores_ms = (a.waited_us - steady->waited_us * a.us / steady->us) * ms_per_ran_us;
	part.stalled_ms = part.lost_ms - part.slower_ms - part.cores_ms;
	return part;
}

bool work_measure(const struct work_series *s, const struct work_course *c, struct work_lost *ret)
{
	struct amounts steady = amounts_in(s, c->steady_us, c->steady_end_us);

	if (c->steady_end_us <= c->steady_us || c->complete_us <= c->start_us ||
	    steady.done < STEADY_MIN)
		return false;
	ret->steady_per_s = steady.done * USEC_PER_SEC / steady.us;
	ret->why_known = steady.ran_us > 0;
	ret->before = lost_in(s, &steady, c->start_us, c->pause_us);
	ret->switchover = lost_in(s, &steady, c->pause_us, c->resume_us);
	ret->postcopy = lost_in(s, &steady, c->resume_us, c->complete_us);
	ret->lost_ms = ret->before.lost_ms + ret->switchover.lost_ms + ret->postcopy.lost_ms;
	ret->longest_gap_us = longest_gap(s, c->start_us, c->complete_us);
	return true;
}

static double ms_since(const struct work_course *c, uint64_t at_us)
{
	return ((double)at_us - (double)c->resume_us) / 1000;
}

/* The rate from the steady state's begin to a little after the end. */
static struct json_object *rates(const struct work_series *s, const struct work_course *c,
                                 double steady_per_s)
{
	struct json_object *array = json_object_new_array();
	uint64_t from_us = c->steady_us, to_us = c->complete_us + AFTER_US;
	uint64_t last_us = s->samples[s->n - 1].at_us, bin_us;

	to_us = to_us < last_us ? to_us : last_us;
	bin_us = to_us > from_us ? (to_us - from_us) / BINS_MAX : 0;
	bin_us = bin_us > BIN_US ? bin_us : BIN_US;
	for (uint64_t at_us = from_us; at_us + bin_us <= to_us; at_us += bin_us) {
		double done = work_done_at(s, at_us + bin_us) - work_done_at(s, at_us);
		struct json_object *pair = json_object_new_array_ext(2);

		json_object_array_add(pair,
		                      json_object_new_double(ms_since(c, at_us + bin_us / 2)));
		json_object_array_add(pair, json_object_new_double(done * USEC_PER_SEC /
		                                                   (double)bin_us / steady_per_s));
		json_object_array_add(array, pair);
	}
	return array;
}

static void add_phase(struct json_object *course, const struct work_course *c, const char *name,
                      uint64_t from_us, uint64_t to_us)
{
	struct json_object *phase = json_object_new_array_ext(3);

	json_object_array_add(phase, json_object_new_string(name));
	json_object_array_add(phase, json_object_new_double(ms_since(c, from_us)));
	json_object_array_add(phase, json_object_new_double(ms_since(c, to_us)));
	json_object_array_add(course, phase);
}

static void add_part(struct json_object *parts, struct json_object *causes, const char *phase,
                     const struct work_part *part)
{
	struct json_object *why = json_object_new_object();

	json_set_number(parts, phase, part->lost_ms);
	json_set_number(why, "cores", part->cores_ms);
	json_set_number(why, "stalled", part->stalled_ms);
	json_set_number(why, "slower", part->slower_ms);
	json_object_object_add(causes, phase, why);
}

static void add_parts(struct json_object *result, const struct work_lost *lost)
{
	struct json_object *parts = json_object_new_object();
	struct json_object *causes = json_object_new_object();

	add_part(parts, causes, "before", &lost->before);
	add_part(parts, causes, "switchover", &lost->switchover);
	add_part(parts, causes, "postcopy", &lost->postcopy);
	json_object_object_add(result, "work_lost_parts_ms", parts);
	if (!lost->why_known) {
		json_object_put(causes);
		causes = NULL;
	}
	json_object_object_add(result, "work_lost_causes_ms", causes);
}

void work_add(struct json_object *result, const struct work_series *s, const struct work_course *c)
{
	struct json_object *course = json_object_new_array();
	struct work_lost lost;

	if (!s->n || !work_measure(s, c, &lost)) {
		json_object_put(course);
		json_object_object_add(result, "work_lost_ms", NULL);
		json_object_object_add(result, "work_lost_parts_ms", NULL);
		json_object_object_add(result, "work_lost_causes_ms", NULL);
		json_object_object_add(result, "longest_gap_us", NULL);
		json_object_object_add(result, "steady_accesses_per_s", NULL);
		return;
	}
	json_set_number(result, "work_lost_ms", lost.lost_ms);
	add_parts(result, &lost);
	json_set_count(result, "longest_gap_us", lost.longest_gap_us);
	json_set_number(result, "steady_accesses_per_s", lost.steady_per_s);
	json_object_object_add(result, "work", rates(s, c, lost.steady_per_s));
	add_phase(course, c, c->warm ? "warm" : "connect", c->start_us, c->pause_us);
	add_phase(course, c, "switchover", c->pause_us, c->resume_us);
	add_phase(course, c, "postcopy", c->resume_us, c->complete_us);
	json_object_object_add(result, "course", course);
}

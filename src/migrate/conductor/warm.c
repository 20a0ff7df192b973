/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conductor while the guest runs at the source: rounds.
 *
 * Theory of operation
 * -------------------
 * TRACK has the source log what its guest writes. Then all that is missing is fetched, which is a
 * round; SYNC tells what was written meanwhile, that is missing again, and so on, until the policy
 * says that it is enough. SWITCHOVER pauses the guest; what it wrote since the last SYNC comes
 * before its vmstate, and what is missing then comes in postcopy. So a guest that writes faster
 * than the link takes is no reason to wait: only the pages that are dirty at the end come late.
 * The last SYNC comes right before SWITCHOVER: what was written in a whole round is told, and taken
 * back here, while the guest still runs, and the downtime has the writes of a few ms to tell.
 *
 * Where nobody has said when it is enough there is one round, in which what was written is also
 * told early, twice (forecast.h): where much of memory would be dirty again at its end it is given
 * up, and the guest switched over at once. What has come by then, and is clean, counts.
 *
 * Each step of it begins with nobody filling and no answer under way (pull_warm_hold()): a page
 * that was read before the log was cleared would count as newer than it is.
 *
 * The log belongs to the control connection. Where that is lost, or another process goes on, all
 * begins again: nothing that is here counts. From SWITCHOVER on the source keeps what it has found.
 * What is refused for a reason that may pass (a busy VMM has not answered in time) is tried again;
 * what can't be, goes on without.
 * A source that does not know what was written (an older daemon, one that was started again) sends
 * its vmstate alone; then nothing that is here counts, and it is plain postcopy.
 */
#include "migrate/conductor/inside.h"

#include <errno.h>
#include <string.h>

#include "migrate/admission.h"
#include "migrate/conductor/forecast.h"
#include "stream/dirty.h"
#include "util/clock.h"
#include "util/log.h"

/* A round takes at least so long, and so many times what its harvest took: the log costs the guest.
 */
#define ROUND_MIN_MS 200u
#define HARVEST_PART 10u

/* What is to go on by itself is refused so often, for what may pass, and then goes on without. */
#define TRIES_MAX 5u

/* Inside: it can't be done, or not now, and @err says why; what is written is to be looked at. */
#define WARM_REFUSED 3
#define WARM_LOOK 4

struct rounds {
	struct conductor *k;
	uint64_t began_ns;      /* of this round */
	uint64_t began_bytes;   /* that had been received by then */
	uint64_t first_bytes;   /* at the beginning of all */
	uint64_t harvest_ns;    /* what the last one took */
	uint64_t not_before_ns; /* the next harvest */
	uint64_t harvested_ns;  /* when the last one was taken */
	struct forecast forecast;
};

/* What a harvest tells of. */
struct harvest {
	uint64_t written; /* units */
	uint64_t renewed; /* those of them that were here */
};

/* Whether nobody has said when it is enough. */
static bool is_default(const struct migration_warm *warm)
{
	return !warm->hold && !warm->max_rounds && !warm->max_ns && !warm->dirty_bytes &&
	       !warm->catch_up_ns;
}

static struct migration_warm given_policy(struct migration *m)
{
	struct migration_warm warm;

	pthread_mutex_lock(&m->lock);
	warm = m->warming;
	pthread_mutex_unlock(&m->lock);
	return warm;
}

static struct migration_warm policy(struct migration *m)
{
	struct migration_warm warm = given_policy(m);

	if (is_default(&warm))
		warm.max_rounds = 1;
	return warm;
}

/* It is wanted, and not to be had: as without it, which somebody should know. */
static void refuse(struct migration *m, const struct error *why)
{
	log_migration_warning(m->params.id, "no memory is copied before the switchover: %s",
	                      why->text);
	pthread_mutex_lock(&m->lock);
	snprintf(m->warmed.refused, sizeof m->warmed.refused, "%s", why->text);
	m->warmed.ended_ns = m->warmed.began_ns ? clock_now_ns() : 0;
	/* Cold goes on by itself, unless it was told not to. */
	if (!m->warming.hold)
		m->orders |= ORDER_SWITCHOVER;
	pthread_mutex_unlock(&m->lock);
}

/* One DIRTY frame. Return: 0 or -EPROTO with @err set; what it tells of is added to *@harvest. */
static int take_dirty(struct conductor *k, const struct frame_header *h, const void *payload,
                      struct harvest *harvest, bool *ret_last, struct error *err)
{
	struct migration *m = k->m;
	struct dirty_reader d;
	uint64_t first, n;
	int rc;

	/* The table is the source's own until the VMM has its memory, and there is no page state.
	 */
	if (k->late)
		return error_set(err, -EPROTO, "DIRTY, and nothing was copied");
	rc = dirty_decode(h, payload, &m->table, &d, err);
	if (rc)
		return rc;
	while ((rc = dirty_next(&d, &first, &n, err)) > 0) {
		harvest->written += n;
		harvest->renewed += pull_warm_renew(m->pull, d.region, first, n);
	}
	*ret_last = d.last;
	return rc;
}

/*
 * What the source has found, up to a frame that is no DIRTY, or the harvest's end.
 * Return: 0 with *@ret_last; or -errno with @err set.
 */
static int take_harvest(struct conductor *k, struct frame_header *ret, const void **ret_payload,
                        struct harvest *harvest, bool *ret_last, struct error *err)
{
	int rc;

	for (*ret_last = false; !*ret_last;) {
		do
			rc = conductor_next(k->m->control, ret, ret_payload, err);
		while (!rc && ret->type == FRAME_PONG);
		if (rc || ret->type != FRAME_DIRTY)
			return rc;
		rc = take_dirty(k, ret, *ret_payload, harvest, ret_last, err);
		if (rc)
			return rc;
	}
	return 0;
}

/* The same of SWITCHOVER's answer: what is ahead comes before it. */
static int take_last_harvest(struct conductor *k, struct frame_header *ret,
                             const void **ret_payload, bool *ret_last, struct error *err)
{
	struct harvest harvest = { 0 }; /* of a guest that stands still: of no interest */
	int rc;

	while (!(rc = take_harvest(k, ret, ret_payload, &harvest, ret_last, err)) && !*ret_last &&
	       ret->type == FRAME_VMSTATE_AHEAD) {
		rc = conductor_take_ahead(k, ret, *ret_payload, err);
		if (rc)
			break;
	}
	return rc;
}

static uint64_t per_second(uint64_t bytes, uint64_t ns)
{
	return ns ? (uint64_t)((double)bytes * (double)NSEC_PER_SEC / (double)ns) : 0;
}

/* So much of what was here was written since the last harvest, of a guest that runs on. */
static void note_harvest(struct rounds *r, const struct harvest *harvest)
{
	struct migration *m = r->k->m;
	uint64_t now_ns = clock_now_ns(), ns = now_ns - r->harvested_ns;

	pthread_mutex_lock(&m->lock);
	m->warmed.dirty_bytes = pull_missing(m->pull) << UNIT_SHIFT;
	m->warmed.dirty_bytes_per_s = per_second(harvest->renewed << UNIT_SHIFT, ns);
	pthread_mutex_unlock(&m->lock);
	forecast_note(&r->forecast, ns, harvest->written);
	r->harvested_ns = now_ns;
}

int warm_await_vmstate(struct conductor *k, struct frame_header *ret, const void **ret_payload,
                       struct error *err)
{
	struct migration *m = k->m;
	bool last, any = !k->late && !pull_is_visible(m->pull) &&
	                 pull_missing(m->pull) != m->table.units;
	int rc = take_last_harvest(k, ret, ret_payload, &last, err);

	if (!rc && last)
		rc = conductor_next(m->control, ret, ret_payload, err);
	if (rc)
		return rc;
	if (ret->type != FRAME_VMSTATE)
		return error_set(err, -EPROTO, "frame of type %u where VMSTATE must come",
		                 ret->type);
	if (!last && any) {
		log_migration_warning(m->params.id,
		                      "the source does not know what was written: all that was "
		                      "copied before the switchover is fetched anew");
		pull_warm_forget(m->pull);
	}
	if (k->late)
		return 0;
	pthread_mutex_lock(&m->lock);
	if (last)
		m->warmed.dirty_bytes = pull_missing(m->pull) << UNIT_SHIFT;
	m->warmed.switched_dirty_units = pull_missing(m->pull);
	pthread_mutex_unlock(&m->lock);
	return 0;
}

/* Ask for what was written. Return: 0; or WARM_REFUSED or -errno with @err set. */
static int sync_round(struct rounds *r, struct error *err)
{
	uint64_t begin_ns = clock_now_ns();
	struct harvest harvest = { 0 };
	struct frame_header h;
	const void *payload;
	bool last = false;
	int rc = conductor_say(r->k, FRAME_SYNC, err);

	admission_note_missing(r->k->m);
	if (!rc)
		rc = take_harvest(r->k, &h, &payload, &harvest, &last, err);
	/* It can't any more. */
	if (!rc && !last && h.type == FRAME_TRACKED && frame_tracked_decode(&h, payload, err))
		return WARM_REFUSED;
	if (!rc && !last)
		rc = error_set(err, -EPROTO, "frame of type %u where DIRTY must come", h.type);
	r->harvest_ns = clock_now_ns() - begin_ns;
	if (!rc)
		note_harvest(r, &harvest);
	return rc;
}

/* How far it is. */
static void note_progress(struct rounds *r)
{
	struct migration *m = r->k->m;
	uint64_t received = stat_get(&pull_stats(m->pull)->bulk_bytes);
	uint64_t ns = clock_now_ns() - r->began_ns;
	uint64_t missing_bytes = pull_missing(m->pull) << UNIT_SHIFT;
	struct migration_warm_info *w = &m->warmed;

	pthread_mutex_lock(&m->lock);
	w->bytes = received - r->first_bytes;
	/* The rate of a round that fetched next to nothing tells nothing. */
	if (received - r->began_bytes >= WORD_UNITS * UNIT_BYTES)
		w->bytes_per_s = per_second(received - r->began_bytes, ns);
	w->catch_up_ns = w->bytes_per_s ? (uint64_t)((double)missing_bytes * (double)NSEC_PER_SEC /
	                                             (double)w->bytes_per_s)
	                                : 0;
	pthread_mutex_unlock(&m->lock);
}

static void note_round(struct rounds *r)
{
	struct migration *m = r->k->m;

	pthread_mutex_lock(&m->lock);
	m->warmed.rounds++;
	pthread_mutex_unlock(&m->lock);
	conductor_note_ready(m);
	note_progress(r);
}

/* Whether the policy, or somebody, has it end now, in the middle of a round. */
static bool is_enough(struct migration *m, unsigned int orders)
{
	struct migration_warm warm = policy(m);
	uint64_t began_ns = m->warmed.began_ns;

	return (orders & ORDER_SWITCHOVER) ||
	       (!warm.hold && warm.max_ns && clock_now_ns() >= began_ns + warm.max_ns);
}

/* A round is over: whether it was the last, before it is known what was written meanwhile. */
static bool is_last_round(struct migration *m)
{
	struct migration_warm warm = policy(m);

	return !warm.hold && warm.max_rounds && m->warmed.rounds + 1 >= warm.max_rounds;
}

/* And whether another one pays, now that it is. */
static bool is_converged(struct migration *m)
{
	const struct migration_warm_info *w = &m->warmed;
	struct migration_warm warm = policy(m);

	if (warm.hold)
		return false;
	return (warm.dirty_bytes && w->dirty_bytes <= warm.dirty_bytes) ||
	       (warm.catch_up_ns &&
	        (!w->dirty_bytes || (w->bytes_per_s && w->catch_up_ns <= warm.catch_up_ns)));
}

static uint64_t units_here(const struct migration *m)
{
	return m->table.units - pull_missing(m->pull);
}

/* Whether a look at what is written may spare a guest the rest of the one round. */
static bool is_look_due(struct rounds *r, uint64_t now_ns)
{
	struct migration *m = r->k->m;
	struct migration_warm warm = given_policy(m);

	return is_default(&warm) && !m->warmed.rounds && now_ns >= r->not_before_ns &&
	       forecast_is_due(&r->forecast, units_here(m), m->table.units);
}

/* Looked at: whether the round is not worth its end. */
static bool is_futile(struct rounds *r)
{
	struct migration *m = r->k->m;
	uint64_t here = units_here(m), ns = clock_now_ns() - r->began_ns;
	unsigned int percent;

	if (!here)
		here = 1;
	percent = forecast_percent(&r->forecast,
	                           (uint64_t)((double)ns * (double)m->table.units / (double)here),
	                           m->table.units);
	if (percent < FORECAST_FUTILE_PERCENT)
		return false;
	log_migration_info(
	        m->params.id,
	        "its guest writes so fast that %u %% of its memory would be dirty again: "
	        "no more is copied before the switchover",
	        percent);
	pthread_mutex_lock(&m->lock);
	m->warmed.given_up_percent = percent;
	pthread_mutex_unlock(&m->lock);
	return true;
}

/* A round that nobody fetches for is never over. Held, it waits for whoever holds it. */
static int check_bulk(struct migration *m, struct error *err)
{
	if (pull_bulk_is_on(m->pull) || policy(m).hold)
		return 0;
	error_set(err, -EOPNOTSUPP, "bulk is off, and it is what copies");
	return WARM_REFUSED;
}

/*
 * Until a round is over, or to be ended.
 * Return: 0: it is over; WARM_DONE: that is all; WARM_LOOK; WARM_REFUSED; or -errno; with @err set.
 */
static int await_round(struct rounds *r, struct error *err)
{
	const unsigned int any = ORDER_ROUND | ORDER_SWITCHOVER | ORDER_STOP | ORDER_CANCEL;
	struct migration *m = r->k->m;

	for (;;) {
		uint64_t now_ns = clock_now_ns();
		bool over;
		unsigned int given;

		if (conductor_check_stopped(m, err))
			return -ECANCELED;
		conductor_take_back(m, ORDER_ROUND);
		over = pull_warm_is_over(m->pull);
		if (over && (now_ns >= r->not_before_ns || is_last_round(m)))
			return 0;
		if (!over && check_bulk(m, err))
			return WARM_REFUSED;
		if (!over && is_look_due(r, now_ns))
			return WARM_LOOK;
		given = conductor_wait(m, any,
		                       over && r->not_before_ns <
		                                               now_ns + WARM_LOOK_MS * NSEC_PER_MSEC
		                               ? r->not_before_ns
		                               : now_ns + WARM_LOOK_MS * NSEC_PER_MSEC);
		if (is_enough(m, given))
			return WARM_DONE;
		note_progress(r);
		if (conductor_check_control(r->k, err))
			return err->code;
	}
}

/* From now until the next harvest. */
static void set_pace(struct rounds *r)
{
	uint64_t least_ns = HARVEST_PART * r->harvest_ns;

	if (least_ns < ROUND_MIN_MS * NSEC_PER_MSEC)
		least_ns = ROUND_MIN_MS * NSEC_PER_MSEC;
	r->not_before_ns = clock_now_ns() + least_ns;
	conductor_take_back(r->k->m, ORDER_ROUND);
}

static void begin_round(struct rounds *r)
{
	struct migration *m = r->k->m;

	r->began_ns = clock_now_ns();
	r->began_bytes = stat_get(&pull_stats(m->pull)->bulk_bytes);
	set_pace(r);
	pull_warm_go(m->pull);
}

/*
 * To its end, with nobody filling, and what was written known.
 * Return: 0: it is over; WARM_DONE: that is all; WARM_REFUSED; or -errno; with @err set.
 */
static int go_round(struct rounds *r, struct error *err)
{
	struct migration *m = r->k->m;

	for (begin_round(r);; set_pace(r), pull_warm_go_on(m->pull)) {
		int rc = await_round(r, err), synced;

		if (rc < 0)
			return rc;
		pull_warm_hold(m->pull);
		if (conductor_check_stopped(m, err))
			return -ECANCELED;
		if (rc == WARM_REFUSED)
			return rc;
		/* Also at the end: what this tells the downtime need not. */
		synced = sync_round(r, err);
		if (synced)
			return synced;
		if (rc != WARM_LOOK)
			return rc;
		if (is_futile(r))
			return WARM_DONE;
	}
}

/* Round after round. Return: WARM_DONE or WARM_REFUSED, held; or -errno; with @err set. */
static int go_rounds(struct rounds *r, struct error *err)
{
	for (;;) {
		int rc = go_round(r, err);
		bool last;

		if (rc)
			return rc;
		last = is_last_round(r->k->m);
		note_round(r);
		if (last || is_converged(r->k->m))
			return WARM_DONE;
	}
}

/* Have the source log what its guest writes. Return: as sync_round(). */
static int track(struct conductor *k, struct error *err)
{
	struct frame_header h;
	const void *payload;
	int rc;

	if (!k->reply.warm) {
		error_set(err, -EOPNOTSUPP,
		          "the source's daemon is older and can't tell what its guest writes: "
		          "upgrade it");
		return WARM_REFUSED;
	}
	rc = conductor_ask(k, FRAME_TRACK, FRAME_TRACKED, &h, &payload, err);
	if (rc)
		return rc;
	return frame_tracked_decode(&h, payload, err) ? WARM_REFUSED : 0;
}

static int end_warm(struct rounds *r, struct error *err)
{
	struct migration *m = r->k->m;

	pull_warm_end(m->pull);
	pthread_mutex_lock(&m->lock);
	m->warmed.ended_ns = clock_now_ns();
	pthread_mutex_unlock(&m->lock);
	/* What is lost must be found out before the guest is to be paused. */
	return conductor_exchange(r->k, FRAME_PING, FRAME_PONG, err);
}

static void begin_warm(struct rounds *r)
{
	struct migration *m = r->k->m;

	r->first_bytes = stat_get(&pull_stats(m->pull)->bulk_bytes);
	pthread_mutex_lock(&m->lock);
	m->warmed = (struct migration_warm_info){ .began_ns = m->warmed.began_ns };
	if (!m->warmed.began_ns)
		m->warmed.began_ns = clock_now_ns();
	pthread_mutex_unlock(&m->lock);
}

/* Without it, then; or not at all; or once more. Return: as warm_up(). */
static int fail(struct conductor *k, int rc, struct error *err)
{
	conductor_note(k->m, "");
	if (conductor_is_network_error(rc) && !conductor_check_stopped(k->m, NULL))
		return WARM_LOST;
	if (rc != WARM_REFUSED)
		return rc;
	refuse(k->m, err);
	*err = ERROR_INIT;
	return 0;
}

/* From TRACK on. Return: as warm_up(), or WARM_REFUSED with @err set. */
static int try_once(struct conductor *k, struct error *err)
{
	struct rounds r = { .k = k };
	int rc = check_bulk(k->m, err);

	/* pull_warm() forgets what is here, and its memory stays taken. */
	admission_note_missing(k->m);
	if (!rc)
		rc = pull_warm(k->m->pull, err) ? WARM_REFUSED : track(k, err);
	if (!rc) {
		conductor_note(k->m, "");
		r.harvested_ns = clock_now_ns();
		begin_warm(&r);
		rc = go_rounds(&r, err);
		if (rc == WARM_DONE)
			rc = end_warm(&r, err);
		if (!rc)
			return WARM_DONE;
	}
	pull_warm_stop(k->m->pull);
	return rc;
}

/*
 * What a busy host may say, or one that has no room now, and say no more the next time. All else is
 * final: what a VMM, its memory or a kernel can't, it can't; and a guest that was paused writes no
 * more.
 */
static bool is_passing(const struct error *why)
{
	return why->code == -ETIMEDOUT || why->code == -EAGAIN || why->code == -EINTR ||
	       why->code == -ENOMEM;
}

/* Who holds it waits for it to be warm; what is to go on by itself does so in the end. */
static bool may_try_again(struct migration *m, const struct error *why, unsigned int tries,
                          uint64_t since_ns)
{
	struct migration_warm warm = policy(m);

	if (!is_passing(why))
		return false;
	return warm.hold ||
	       (tries < TRIES_MAX && !(warm.max_ns && clock_now_ns() >= since_ns + warm.max_ns));
}

/*
 * Refused as @why says: wait for the next try.
 * Return: 0: it is time; WARM_REFUSED: it is to be switched over; or -errno with @err set.
 */
static int await_next_try(struct conductor *k, const struct error *why, struct error *err)
{
	const unsigned int any = ORDER_SWITCHOVER | ORDER_STOP | ORDER_CANCEL;
	uint64_t until_ns = conductor_next_try_ns(k);
	struct error note = *why;

	error_prefix(&note, "no memory is copied before the switchover yet");
	if (!*k->m->note)
		log_migration_warning(k->m->params.id, "%s; trying again", note.text);
	conductor_note_refused(k->m, note.text);
	while (clock_now_ns() < until_ns) {
		uint64_t look_ns = clock_now_ns() + WARM_LOOK_MS * NSEC_PER_MSEC;
		unsigned int given =
		        conductor_wait(k->m, any, look_ns < until_ns ? look_ns : until_ns);

		if (conductor_check_stopped(k->m, err))
			return -ECANCELED;
		if (given & ORDER_SWITCHOVER)
			return WARM_REFUSED;
		if (conductor_check_control(k, err))
			return err->code;
	}
	return 0;
}

/* Until it is warm, or will never be. Return: as try_once(). */
static int try_on(struct conductor *k, struct error *err)
{
	uint64_t since_ns = clock_now_ns();

	for (unsigned int tries = 1;; tries++) {
		int rc = try_once(k, err);
		struct error why = *err;

		if (rc != WARM_REFUSED || !may_try_again(k->m, &why, tries, since_ns))
			return rc;
		*err = ERROR_INIT;
		rc = await_next_try(k, &why, err);
		if (rc == WARM_REFUSED)
			*err = why;
		if (rc)
			return rc;
		*err = ERROR_INIT;
	}
}

int warm_up(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	int rc;

	/* One that is to be switched over at once, or may have been: by another process. */
	if (!m->warming.wanted || *m->warmed.refused ||
	    conductor_wait(m, ORDER_SWITCHOVER, clock_now_ns()))
		return 0;
	if (k->late) {
		error_set(err, -EOPNOTSUPP,
		          "this VMM has its memory when it has read the vmstate, and not before");
		return fail(k, WARM_REFUSED, err);
	}
	rc = try_on(k, err);
	return rc == WARM_DONE ? rc : fail(k, rc, err);
}

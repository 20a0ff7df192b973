/* SPDX-License-Identifier: Apache-2.0 */
/* A destination's daemon, as migrate/conductor/conductor.c, migrate/destination/destination.c and
 * fault/pull.c are. */
#include "owner.h"

static bool is_final(const struct destination *d)
{
	return migration_state_is_final(d->state);
}

static bool has_guest(const struct destination *d)
{
	return d->state == MIGRATION_POSTCOPY || d->state == MIGRATION_PAUSED;
}

/* The conductor has nothing more to do. */
static void finish(struct world *w, unsigned int i, enum migration_state as)
{
	struct destination *d = &w->destinations[i];

	if (!is_final(d))
		owner_move_destination(w, i, as);
	d->conductor = CONDUCTOR_IDLE;
	d->farewell = NO_FAREWELL;
	d->poison = d->connected = d->stalled = d->note_pending = false;
	link_lose(w, i);
}

static enum migration_state given_up_as(const struct destination *d)
{
	return d->cancel ? MIGRATION_CANCELLED : MIGRATION_FAILED;
}

/* Before the guest may have run here. Who never was connected has nothing to take back. */
static void give_up(struct world *w, unsigned int i)
{
	struct destination *d = &w->destinations[i];

	if (!d->epoch) {
		finish(w, i, given_up_as(d));
		return;
	}
	/* In the record before the source can hear it. */
	if (!model_lacks(OWNER_FAREWELL_FIRST))
		d->farewell = FAREWELL_ABORT;
	d->conductor = CONDUCTOR_SAYS_ABORT;
}

/* The source has the guest run on: here it must not. */
static void stand_down(struct world *w, unsigned int i)
{
	w->destinations[i].to_stop = true;
	finish(w, i, MIGRATION_FAILED);
}

/* Warming begins anew, with the attachment that is there now. */
static void warm_anew(struct world *w, unsigned int i)
{
	struct destination *d = &w->destinations[i];

	link_lose(w, i);
	d->epoch = d->pull_epoch = 0;
	d->connected = false;
	d->conductor = CONDUCTOR_WARMING;
	owner_move_destination(w, i, MIGRATION_ATTACHED);
	owner_move_destination(w, i, MIGRATION_WARMING);
}

/* A goodbye was answered by the source, however. */
static void end_goodbye(struct world *w, unsigned int i, enum answer answer)
{
	struct destination *d = &w->destinations[i];

	if (d->conductor == CONDUCTOR_SAYS_ABORT)
		finish(w, i, given_up_as(d));
	else if (answer == ANSWER_RUNS_ON)
		stand_down(w, i);
	else
		finish(w, i, MIGRATION_COMPLETE);
}

/* The source was reached, and does not want this; or wants no more of it. */
static bool hear_error(struct world *w, unsigned int i, enum answer answer)
{
	struct destination *d = &w->destinations[i];

	if (answer == ANSWER_NOT_NOW)
		return true;
	switch (d->conductor) {
	case CONDUCTOR_WARMING:
	case CONDUCTOR_WARM:
		if (answer == ANSWER_STALE)
			warm_anew(w, i);
		else
			give_up(w, i);
		return true;
	case CONDUCTOR_ASKING:
		give_up(w, i);
		return true;
	case CONDUCTOR_SAYS_COMPLETE:
	case CONDUCTOR_SAYS_ABORT:
		end_goodbye(w, i, answer);
		return true;
	case CONDUCTOR_PULLING:
		/* Anything else may be mended: the guest waits. */
		if (answer != ANSWER_RUNS_ON)
			return false;
		stand_down(w, i);
		return true;
	default:
		return false;
	}
}

/* What the control connection's HELLO names. */
static unsigned int hello_epoch(const struct destination *d)
{
	if (model_lacks(OWNER_EPOCH_PINNED) && d->state == MIGRATION_WARMING)
		return 0;
	return d->epoch;
}

static bool dial(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];
	bool cancelled = d->cancel && d->conductor <= CONDUCTOR_HAS_VMSTATE;
	enum answer answer;

	if (d->conductor == CONDUCTOR_IDLE || d->conductor == CONDUCTOR_HAS_VMSTATE || cancelled ||
	    w->links[i].epoch || !w->source.up)
		return false;
	answer = link_dial(w, i, hello_epoch(d));
	if (answer)
		return hear_error(w, i, answer);
	if (!d->epoch)
		d->epoch = w->source.epoch;
	return true;
}

/* Patience is over, before the guest has left the source. */
static bool lose_patience(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (w->links[i].epoch ||
	    (d->conductor != CONDUCTOR_WARMING && d->conductor != CONDUCTOR_WARM &&
	     d->conductor != CONDUCTOR_ASKING))
		return false;
	give_up(w, i);
	return true;
}

/* An exchange has its time, whatever it is. */
static bool time_out(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];
	bool goodbye =
	        d->conductor == CONDUCTOR_SAYS_COMPLETE || d->conductor == CONDUCTOR_SAYS_ABORT;

	if (!w->links[i].mute || (goodbye && model_lacks(OWNER_TIME_LIMIT)))
		return false;
	link_lose(w, i);
	return true;
}

/* A goodbye's dialling fails for a reason that lies here: no route, no descriptor, no trust. */
static bool fail_to_dial(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!model_lacks(OWNER_GOODBYE_BY_ANSWER) || w->links[i].epoch ||
	    (d->conductor != CONDUCTOR_SAYS_COMPLETE && d->conductor != CONDUCTOR_SAYS_ABORT))
		return false;
	end_goodbye(w, i, ANSWER_REFUSED);
	return true;
}

static bool connect_pages_of(struct world *w, unsigned int i, unsigned int epoch)
{
	struct destination *d = &w->destinations[i];

	if (!w->source.up || d->connected || source_hello(w, i, epoch) ||
	    w->source.phase == PHASE_ENDED)
		return false;
	d->connected = true;
	/* The keeper takes back what was said of the connection before. */
	d->stalled = false;
	return true;
}

static bool become_warm(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (d->conductor != CONDUCTOR_WARMING || !w->links[i].epoch || d->cancel ||
	    !connect_pages_of(w, i, w->links[i].epoch))
		return false;
	d->pull_epoch = w->links[i].epoch;
	d->conductor = CONDUCTOR_WARM;
	return true;
}

/* It is in the record before the source is asked. */
static bool begin_switchover(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (d->conductor != CONDUCTOR_WARM || !d->switchover || d->cancel)
		return false;
	owner_move_destination(w, i, MIGRATION_SWITCHING);
	d->conductor = CONDUCTOR_ASKING;
	return true;
}

/* Over a control connection on which nothing is asked at the moment. */
static bool say(void *state, unsigned int i, enum conductor when, enum frame frame)
{
	struct world *w = state;
	struct link *l = &w->links[i];

	if (w->destinations[i].conductor != when || !l->epoch || link_is_busy(l))
		return false;
	l->asked = frame;
	return true;
}

static bool say_switchover(void *state, unsigned int i)
{
	struct world *w = state;

	return !w->destinations[i].cancel && say(state, i, CONDUCTOR_ASKING, FRAME_SWITCHOVER);
}

/* Once on each connection. */
static bool say_resumed(void *state, unsigned int i)
{
	struct world *w = state;
	struct link *l = &w->links[i];

	if (!w->destinations[i].ran || l->resumed ||
	    !say(state, i, CONDUCTOR_PULLING, FRAME_RESUMED))
		return false;
	l->resumed = true;
	return true;
}

static bool say_complete(void *state, unsigned int i)
{
	return say(state, i, CONDUCTOR_SAYS_COMPLETE, FRAME_COMPLETE);
}

static bool say_abort(void *state, unsigned int i)
{
	return say(state, i, CONDUCTOR_SAYS_ABORT, FRAME_ABORT);
}

static bool take_answer(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];
	enum answer answer = w->links[i].answer;

	if (!answer || w->links[i].mute)
		return false;
	w->links[i].answer = ANSWER_NONE;
	if (answer >= ANSWER_NOT_NOW) {
		link_lose(w, i);
		(void)hear_error(w, i, answer);
	} else if (d->conductor == CONDUCTOR_ASKING) {
		d->conductor = CONDUCTOR_HAS_VMSTATE;
	} else {
		end_goodbye(w, i, answer);
	}
	return true;
}

/* A sign of life was asked for, on a connection on which nothing else is said. */
static bool hear_by_ping(void *state, unsigned int i)
{
	struct world *w = state;
	struct link *l = &w->links[i];
	enum answer answer;

	if (!l->epoch || link_is_busy(l) ||
	    (w->destinations[i].conductor != CONDUCTOR_PULLING &&
	     w->destinations[i].conductor != CONDUCTOR_WARM))
		return false;
	answer = l->epoch != w->source.epoch ? ANSWER_NOT_NOW : source_hello(w, i, 0);
	if (!answer)
		return false;
	link_lose(w, i);
	(void)hear_error(w, i, answer);
	return true;
}

static bool see_cancel(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!d->cancel || d->conductor < CONDUCTOR_WARMING || d->conductor > CONDUCTOR_HAS_VMSTATE)
		return false;
	link_lose(w, i);
	give_up(w, i);
	return true;
}

/* All that can fail is had now: threads, memory. */
static bool cant_start(void *state, unsigned int i)
{
	struct world *w = state;

	if (w->destinations[i].conductor != CONDUCTOR_HAS_VMSTATE || !w->luck)
		return false;
	w->luck--;
	give_up(w, i);
	return true;
}

/* The point of no return. */
static bool decide_to_give(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (d->conductor != CONDUCTOR_HAS_VMSTATE || d->cancel)
		return false;
	owner_move_destination(w, i, MIGRATION_POSTCOPY);
	d->conductor = CONDUCTOR_PULLING;
	d->giving = true;
	return true;
}

static bool hear_vmm(void *state, unsigned int i)
{
	struct destination *d = &((struct world *)state)->destinations[i];
	bool says_loaded = d->vmm == VMM_LOADED || d->vmm == VMM_GUEST_RUNS;

	if (!d->up || !has_guest(d) || !says_loaded)
		return false;
	if (!d->loaded)
		d->loaded = true;
	else if (d->vmm == VMM_GUEST_RUNS && !d->ran)
		d->ran = true;
	else
		return false;
	return true;
}

/* The VMM has not run the guest and won't: the source may. */
static void fail_load(struct world *w, unsigned int i)
{
	struct destination *d = &w->destinations[i];

	owner_move_destination(w, i, MIGRATION_FAILED);
	d->farewell = FAREWELL_ABORT;
	d->conductor = CONDUCTOR_SAYS_ABORT;
	d->connected = d->stalled = d->note_pending = d->poison = false;
}

/* A process that has taken over gives it again; that it can't is then no news. */
static bool give_vmstate(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!d->up || !has_guest(d) || d->vmm != VMM_ATTACHED || (d->vmm_dead && !d->giving))
		return false;
	if (d->vmm_dead)
		fail_load(w, i);
	else
		d->vmm = VMM_GIVEN;
	d->giving = false;
	return true;
}

static bool hear_cant_load(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!d->up || !has_guest(d) || d->vmm != VMM_CANT_LOAD)
		return false;
	fail_load(w, i);
	return true;
}

static void lose_guest(struct world *w, unsigned int i)
{
	struct destination *d = &w->destinations[i];

	/* That it is loaded may have been said to the process before this one. */
	if (!d->loaded && !d->taken_over)
		fail_load(w, i);
	else
		finish(w, i, MIGRATION_FAILED);
}

static bool see_vmm_gone(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];
	bool more = (d->vmm >= VMM_LOADED && d->vmm <= VMM_GUEST_RUNS && !d->loaded) ||
	            (d->vmm == VMM_GUEST_RUNS && !d->ran);

	if (!d->up || !d->known || !d->vmm_dead || d->giving || (more && has_guest(d)))
		return false;
	switch (d->state) {
	case MIGRATION_ATTACHED:
		owner_move_destination(w, i, MIGRATION_PREPARED);
		d->vmm = VMM_NONE;
		d->vmm_dead = false;
		return true;
	case MIGRATION_WARMING:
	case MIGRATION_SWITCHING:
		if (d->conductor == CONDUCTOR_SAYS_ABORT)
			return false;
		owner_move_destination(w, i, MIGRATION_FAILED);
		d->farewell = d->epoch ? FAREWELL_ABORT : NO_FAREWELL;
		link_lose(w, i);
		give_up(w, i);
		return true;
	case MIGRATION_POSTCOPY:
	case MIGRATION_PAUSED:
		if (d->conductor == CONDUCTOR_SAYS_COMPLETE)
			return false;
		lose_guest(w, i);
		return true;
	default:
		return false;
	}
}

static bool tell_to_stop(void *state, unsigned int i)
{
	struct destination *d = &((struct world *)state)->destinations[i];

	if (!d->up || !d->to_stop)
		return false;
	d->to_stop = false;
	if (d->vmm > VMM_ATTACHED)
		d->vmm = VMM_STOPPED;
	return true;
}

/* Pages. */

static bool keep_connected(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	return d->conductor == CONDUCTOR_PULLING && connect_pages_of(w, i, d->pull_epoch);
}

/* Its first GET there is answered by an ERROR. */
static bool lose_refused_pages(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (d->conductor != CONDUCTOR_PULLING || !d->connected || !d->missing ||
	    (!source_hello(w, i, d->pull_epoch) && w->source.phase != PHASE_ENDED))
		return false;
	pages_lose(w, i);
	return true;
}

static bool write_note(void *state, unsigned int i)
{
	struct destination *d = &((struct world *)state)->destinations[i];

	if (!d->note_pending)
		return false;
	d->note_pending = false;
	d->stalled = true;
	return true;
}

/* The loop computes it from what is true when it looks. */
static bool look_at_connection(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];
	bool stalled = model_lacks(OWNER_ONE_OWNER_OF_PAUSED) ? d->stalled : !d->connected;

	if (d->conductor != CONDUCTOR_PULLING)
		return false;
	if (stalled && d->state == MIGRATION_POSTCOPY)
		owner_move_destination(w, i, MIGRATION_PAUSED);
	else if (!stalled && d->state == MIGRATION_PAUSED)
		owner_move_destination(w, i, MIGRATION_POSTCOPY);
	else
		return false;
	return true;
}

static bool fetch_all(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];
	const struct source *s = &w->source;

	if (d->conductor != CONDUCTOR_PULLING || !d->connected || !d->missing || !s->up ||
	    s->phase != PHASE_PAUSED || s->epoch != d->pull_epoch ||
	    source_hello(w, i, d->pull_epoch))
		return false;
	d->missing = false;
	return true;
}

static bool begin_complete(void *state, unsigned int i)
{
	struct destination *d = &((struct world *)state)->destinations[i];

	if (d->conductor != CONDUCTOR_PULLING || d->missing || !d->ran)
		return false;
	d->conductor = CONDUCTOR_SAYS_COMPLETE;
	d->poison = false;
	return true;
}

/* Nobody else waits longer than this for a source that does not answer. */
static bool stop_waiting(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (is_final(d) || d->conductor < CONDUCTOR_SAYS_COMPLETE)
		return false;
	if (d->conductor == CONDUCTOR_SAYS_COMPLETE) {
		owner_move_destination(w, i, MIGRATION_COMPLETE);
		d->farewell = FAREWELL_COMPLETE;
	} else {
		owner_move_destination(w, i, given_up_as(d));
		d->farewell = FAREWELL_ABORT;
	}
	return true;
}

static bool carry_out_poison(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!d->poison || d->conductor != CONDUCTOR_PULLING)
		return false;
	d->poison = false;
	if (!model_lacks(OWNER_ONE_OWNER_OF_PAUSED) && d->connected)
		return true;
	if (d->connected)
		model_violation("pages are poisoned that could have come");
	d->missing = false;
	d->poisoned = true;
	w->history.hurt = true;
	finish(w, i, MIGRATION_FAILED);
	return true;
}

/* Orders. */

static bool start(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!d->up || d->state != MIGRATION_ATTACHED)
		return false;
	owner_move_destination(w, i, MIGRATION_WARMING);
	d->conductor = CONDUCTOR_WARMING;
	return true;
}

static bool order_switchover(void *state, unsigned int i)
{
	struct destination *d = &((struct world *)state)->destinations[i];

	if (!d->up || d->state != MIGRATION_WARMING || d->switchover)
		return false;
	d->switchover = true;
	return true;
}

static bool cancel(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!d->up || !d->known || d->cancel)
		return false;
	switch (d->state) {
	case MIGRATION_PREPARED:
	case MIGRATION_ATTACHED:
		owner_move_destination(w, i, MIGRATION_CANCELLED);
		return true;
	case MIGRATION_WARMING:
	case MIGRATION_SWITCHING:
		d->cancel = true;
		if (d->epoch)
			d->farewell = FAREWELL_ABORT;
		return true;
	default:
		return false;
	}
}

static bool poison(void *state, unsigned int i)
{
	struct destination *d = &((struct world *)state)->destinations[i];

	if (!d->up || d->state != MIGRATION_PAUSED || d->conductor != CONDUCTOR_PULLING ||
	    d->poison)
		return false;
	d->poison = true;
	return true;
}

static enum conductor conductor_after(const struct destination *d)
{
	if (is_final(d))
		return d->farewell == FAREWELL_COMPLETE ? CONDUCTOR_SAYS_COMPLETE
		       : d->farewell == FAREWELL_ABORT  ? CONDUCTOR_SAYS_ABORT
		                                        : CONDUCTOR_IDLE;
	switch (d->state) {
	case MIGRATION_WARMING:
		return d->farewell == FAREWELL_ABORT ? CONDUCTOR_SAYS_ABORT : CONDUCTOR_WARMING;
	case MIGRATION_SWITCHING:
		return d->farewell == FAREWELL_ABORT ? CONDUCTOR_SAYS_ABORT : CONDUCTOR_ASKING;
	case MIGRATION_POSTCOPY:
	case MIGRATION_PAUSED:
		return CONDUCTOR_PULLING;
	default:
		return CONDUCTOR_IDLE;
	}
}

void destination_taken_over(struct world *w, unsigned int i)
{
	struct destination *d = &w->destinations[i];

	d->taken_over = true;
	d->poison = d->connected = d->stalled = d->note_pending = false;
	d->conductor = conductor_after(d);
	if (d->conductor == CONDUCTOR_WARMING)
		d->epoch = d->pull_epoch = 0;
	/* Our last word again. */
	if (d->state == MIGRATION_FAILED && !d->poisoned && !d->vmm_dead)
		d->to_stop = d->vmm > VMM_ATTACHED;
	/* The keeper dials; until then it is stalled. */
	d->stalled = d->conductor == CONDUCTOR_PULLING;
}

#define DESTINATION "destination %s's daemon"

const struct rule owner_destination_rules[] = {
	{ RULE_STEP, DESTINATION, "dials the source", .take_each = dial },
	{ RULE_STEP, DESTINATION, "has tried long enough, and gives up",
	  .take_each = lose_patience },
	{ RULE_STEP, DESTINATION, "has waited long enough for an answer, and drops the connection",
	  .take_each = time_out },
	{ RULE_STEP, DESTINATION, "can't dial for a reason of its own (no route)",
	  .take_each = fail_to_dial },
	{ RULE_STEP, DESTINATION, "is connected, pages too", .take_each = become_warm },
	{ RULE_STEP, DESTINATION, "records that it will ask for switchover",
	  .take_each = begin_switchover },
	{ RULE_STEP, DESTINATION, "says SWITCHOVER", .take_each = say_switchover },
	{ RULE_STEP, DESTINATION, "says RESUMED", .take_each = say_resumed },
	{ RULE_STEP, DESTINATION, "says COMPLETE", .take_each = say_complete },
	{ RULE_STEP, DESTINATION, "says ABORT", .take_each = say_abort },
	{ RULE_AT_ONCE, DESTINATION, "reads the source's answer", .take_each = take_answer },
	{ RULE_STEP, DESTINATION, "asks for a sign of life and is told that it is over",
	  .take_each = hear_by_ping },
	{ RULE_STEP, DESTINATION, "sees that it was cancelled", .take_each = see_cancel },
	{ RULE_FAULT, DESTINATION, "can't have what it needs to go on (a thread)",
	  .take_each = cant_start },
	{ RULE_STEP, DESTINATION, "records that the guest may run here",
	  .take_each = decide_to_give },
	{ RULE_AT_ONCE, DESTINATION, "gives the vmstate to its VMM", .take_each = give_vmstate },
	{ RULE_AT_ONCE, DESTINATION, "reads what its VMM has said", .take_each = hear_vmm },
	{ RULE_STEP, DESTINATION, "reads that its VMM can't load, or run",
	  .take_each = hear_cant_load },
	{ RULE_STEP, DESTINATION, "sees that its VMM is gone", .take_each = see_vmm_gone },
	{ RULE_AT_ONCE, DESTINATION, "tells its VMM that the migration has failed",
	  .take_each = tell_to_stop },
	{ RULE_STEP, DESTINATION, "connects for pages again", .take_each = keep_connected },
	{ RULE_STEP, DESTINATION, "is refused pages", .take_each = lose_refused_pages },
	{ RULE_STEP, DESTINATION, "the thread that lost the connection says so",
	  .take_each = write_note },
	{ RULE_STEP, DESTINATION, "the loop looks at the connection",
	  .take_each = look_at_connection },
	{ RULE_STEP, DESTINATION, "has all pages", .take_each = fetch_all },
	{ RULE_STEP, DESTINATION, "has all, and is about to say COMPLETE",
	  .take_each = begin_complete },
	{ RULE_STEP, DESTINATION, "no longer lets others wait for the source's answer",
	  .take_each = stop_waiting },
	{ RULE_STEP, DESTINATION, "carries out the order to poison",
	  .take_each = carry_out_poison },
	{ RULE_OPERATOR, "operator", "starts destination %s", .take_each = start },
	{ RULE_OPERATOR, "operator", "orders switchover at destination %s",
	  .take_each = order_switchover },
	{ RULE_OPERATOR, "operator", "cancels at destination %s", .take_each = cancel },
	{ RULE_OPERATOR, "operator", "orders to poison at destination %s", .take_each = poison },
};
const size_t owner_destination_n_rules =
        sizeof owner_destination_rules / sizeof *owner_destination_rules;

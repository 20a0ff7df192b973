/* SPDX-License-Identifier: Apache-2.0 */
/* The source's daemon, as stream/page_source.c and migrate/source/source.c are. */
#include "owner.h"

static bool is_final(const struct source *s)
{
	return migration_state_is_final(s->state);
}

static bool may_speak(const struct source *s, unsigned int holder)
{
	return model_lacks(OWNER_ONE_HOLDER) || !s->holder || s->holder == holder;
}

static enum answer say_ended(const struct source *s)
{
	return s->verdict == VERDICT_RUNS_ON ? ANSWER_RUNS_ON : ANSWER_LET_GO;
}

enum answer source_hello(const struct world *w, unsigned int i, unsigned int epoch)
{
	const struct source *s = &w->source;

	if (!s->known || s->state == MIGRATION_PREPARED)
		return ANSWER_REFUSED;
	if (!may_speak(s, w->destinations[i].holder))
		return ANSWER_REFUSED;
	if (epoch && epoch != s->epoch)
		return ANSWER_STALE;
	if (s->phase == PHASE_ENDED && !epoch)
		return say_ended(s);
	return ANSWER_NONE;
}

/* page_source.c: bind_holder(). Return: what it is answered at once. */
static enum answer ask_switchover(struct source *s, unsigned int holder)
{
	if (!may_speak(s, holder))
		return ANSWER_REFUSED;
	if (s->phase == PHASE_ENDED)
		return say_ended(s);
	if (s->aborted)
		return ANSWER_RUNS_ON;
	if (s->phase == PHASE_RUNNING) {
		s->phase = PHASE_SWITCHING;
		s->holder = holder;
		s->news_switchover = true;
	}
	return ANSWER_NONE;
}

static enum answer hear_abort(struct source *s, unsigned int holder)
{
	if (!may_speak(s, holder))
		return ANSWER_REFUSED;
	if (s->phase == PHASE_ENDED)
		return s->verdict == VERDICT_RUNS_ON ? ANSWER_ABORT_ACK : ANSWER_LET_GO;
	if (s->resumed)
		return ANSWER_REFUSED;
	s->aborted = true;
	s->news_aborted = true;
	return ANSWER_NONE;
}

static enum answer hear_resumed(struct source *s, unsigned int holder)
{
	if (!may_speak(s, holder) || s->phase < PHASE_PAUSED)
		return ANSWER_REFUSED;
	if (s->phase == PHASE_ENDED)
		return s->verdict == VERDICT_LET_GO ? ANSWER_NONE : ANSWER_RUNS_ON;
	s->resumed = true;
	s->news_resumed = true;
	return ANSWER_NONE;
}

static enum answer hear_complete(struct source *s, unsigned int holder)
{
	if (!may_speak(s, holder) || s->phase < PHASE_PAUSED)
		return ANSWER_REFUSED;
	if (s->phase == PHASE_ENDED)
		return s->verdict == VERDICT_LET_GO ? ANSWER_COMPLETE_ACK : ANSWER_RUNS_ON;
	s->news_complete = true;
	return ANSWER_NONE;
}

static enum answer hear(struct source *s, enum frame frame, unsigned int epoch, unsigned int holder)
{
	/* It came on a connection to an attachment that is withdrawn. */
	if (epoch != s->epoch || s->state == MIGRATION_PREPARED)
		return ANSWER_NOT_NOW;
	switch (frame) {
	case FRAME_SWITCHOVER:
		return ask_switchover(s, holder);
	case FRAME_RESUMED:
		return hear_resumed(s, holder);
	case FRAME_COMPLETE:
		return hear_complete(s, holder);
	default:
		return hear_abort(s, holder);
	}
}

static bool hear_frame(void *state, unsigned int i)
{
	static const enum serving serving[] = {
		[FRAME_SWITCHOVER] = SERVING_VMSTATE,
		[FRAME_COMPLETE] = SERVING_COMPLETE,
		[FRAME_ABORT] = SERVING_ABORT,
	};
	struct world *w = state;
	struct link *l = &w->links[i];

	if (!l->asked || l->mute)
		return false;
	l->answer = hear(&w->source, l->asked, l->epoch, w->destinations[i].holder);
	if (!l->answer && l->asked != FRAME_RESUMED)
		l->serving = serving[l->asked];
	l->asked = FRAME_NOTHING;
	return true;
}

static bool hear_late_frame(void *state, unsigned int i)
{
	struct world *w = state;
	struct link *l = &w->links[i];

	if (!l->late || !w->source.up)
		return false;
	if (w->source.known)
		(void)hear(&w->source, l->late, l->late_epoch, l->late_holder);
	l->late = l->late_epoch = l->late_holder = 0;
	return true;
}

/* A connection's thread, that has waited, looks again. */
static enum answer look_again(const struct source *s, enum serving serving, unsigned int holder)
{
	if (serving != SERVING_VMSTATE)
		return s->phase != PHASE_ENDED ? ANSWER_NONE
		       : (s->verdict == VERDICT_LET_GO) != (serving == SERVING_COMPLETE)
		               ? say_ended(s)
		       : serving == SERVING_COMPLETE ? ANSWER_COMPLETE_ACK
		                                     : ANSWER_ABORT_ACK;
	if (!may_speak(s, holder))
		return ANSWER_REFUSED;
	switch (s->phase) {
	case PHASE_SWITCHING:
		return ANSWER_NONE;
	case PHASE_PAUSED:
		return ANSWER_VMSTATE;
	case PHASE_ENDED:
		return say_ended(s);
	default:
		return ANSWER_REFUSED;
	}
}

static bool answer_frame(void *state, unsigned int i)
{
	struct world *w = state;
	struct link *l = &w->links[i];

	if (!l->serving || l->mute)
		return false;
	if (l->epoch != w->source.epoch || w->source.state == MIGRATION_PREPARED)
		l->answer = ANSWER_NOT_NOW;
	else
		l->answer = look_again(&w->source, l->serving, w->destinations[i].holder);
	if (!l->answer)
		return false;
	l->serving = SERVING_NOTHING;
	return true;
}

/* The loop. */

static bool has_connection(const struct world *w)
{
	return w->links[0].epoch == w->source.epoch || w->links[1].epoch == w->source.epoch;
}

static bool see_connections(void *state)
{
	struct world *w = state;

	if (!w->source.up)
		return false;
	if (w->source.state == MIGRATION_ATTACHED && has_connection(w))
		owner_move_source(w, MIGRATION_WARMING);
	else if (w->source.state == MIGRATION_WARMING && !has_connection(w))
		owner_move_source(w, MIGRATION_ATTACHED);
	else
		return false;
	return true;
}

/* Who holds it goes into the record with the state, and only then the VMM is told. */
static bool take_switchover(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->news_switchover)
		return false;
	s->news_switchover = false;
	if (is_final(s))
		return true;
	if (s->state == MIGRATION_ATTACHED)
		owner_move_source(w, MIGRATION_WARMING);
	if (s->state != MIGRATION_WARMING)
		return true;
	owner_move_source(w, MIGRATION_SWITCHING);
	if (!model_lacks(OWNER_RECORD_FIRST))
		s->recorded_holder = s->holder;
	s->to_say = WORD_PAUSE;
	return true;
}

static bool take_resumed(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->news_resumed)
		return false;
	s->news_resumed = false;
	if (s->state == MIGRATION_SWITCHING && s->vmstate)
		owner_move_source(w, MIGRATION_POSTCOPY);
	return true;
}

static void end(struct world *w, enum migration_state as, enum verdict verdict)
{
	struct source *s = &w->source;
	bool attached = s->state != MIGRATION_PREPARED;

	owner_move_source(w, as);
	s->phase = PHASE_ENDED;
	s->verdict = verdict;
	s->recorded_holder = s->holder;
	s->to_say = !attached                    ? WORD_NONE
	            : verdict == VERDICT_RUNS_ON ? WORD_RESUME
	                                         : WORD_COMPLETE;
	s->vmstate = false;
	s->resumed = s->aborted = false;
	s->news_switchover = s->news_resumed = s->news_complete = s->news_aborted = false;
}

static void let_go(struct world *w)
{
	if (w->source.state == MIGRATION_SWITCHING)
		owner_move_source(w, MIGRATION_POSTCOPY);
	end(w, MIGRATION_COMPLETE, VERDICT_LET_GO);
}

static bool take_complete(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->news_complete)
		return false;
	s->news_complete = false;
	if (is_final(s) || !s->vmstate)
		return true;
	for (unsigned int i = 0; i < 2; i++)
		if (w->destinations[i].missing && w->destinations[i].vmm >= VMM_GIVEN &&
		    !w->destinations[i].vmm_dead && !w->history.hurt)
			model_violation("the source lets go of memory that a guest still needs");
	let_go(w);
	return true;
}

static bool take_aborted(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->news_aborted)
		return false;
	s->news_aborted = false;
	if (!is_final(s) && s->state != MIGRATION_POSTCOPY)
		end(w, MIGRATION_CANCELLED, VERDICT_RUNS_ON);
	return true;
}

static bool say(struct source *s, enum word word)
{
	if (s->vmm_gone || s->words1)
		return s->vmm_gone;
	if (s->words0)
		s->words1 = word;
	else
		s->words0 = word;
	return true;
}

static bool tell_vmm(void *state, enum word word)
{
	struct source *s = &((struct world *)state)->source;

	if (!s->up || s->to_say != word || s->catches_up || !say(s, word))
		return false;
	s->to_say = WORD_NONE;
	return true;
}

static bool tell_pause(void *state)
{
	return tell_vmm(state, WORD_PAUSE);
}

static bool tell_resume(void *state)
{
	return tell_vmm(state, WORD_RESUME);
}

static bool tell_complete(void *state)
{
	return tell_vmm(state, WORD_COMPLETE);
}

static void hear_paused(struct world *w, enum said said)
{
	struct source *s = &w->source;
	bool asked = s->state == MIGRATION_SWITCHING && !s->vmstate;

	if (asked && said == SAID_PAUSED_BEFORE_IT_RAN_ON)
		model_violation("a vmstate is taken that is older than its guest");
	if (asked) {
		s->vmstate = true;
		s->phase = PHASE_PAUSED;
	} else if (s->phase == PHASE_ENDED && s->verdict == VERDICT_RUNS_ON &&
	           !model_lacks(OWNER_RESUME_LATE_PAUSED)) {
		/* It crossed our last word; or a process before had asked, too. */
		s->to_say = WORD_RESUME;
	}
}

/* In order: first it says what it had to say; but after a take-over it listens first. */
static enum said next_said(struct source *s)
{
	enum said said = s->said0;

	if (!s->up || !s->known || !said || (s->to_say && !s->catches_up && !s->words1))
		return SAID_NOTHING;
	s->said0 = s->said1;
	s->said1 = SAID_NOTHING;
	s->catches_up = s->catches_up && s->said0;
	if (s->to_say == WORD_PAUSE)
		s->to_say = WORD_NONE;
	return said;
}

/* The vmstate is none, or too large: the guest is not paused for it. */
static bool refuse_vmstate(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!w->luck || s->state != MIGRATION_SWITCHING || s->vmstate ||
	    next_said(s) != SAID_PAUSED)
		return false;
	w->luck--;
	end(w, MIGRATION_FAILED, VERDICT_RUNS_ON);
	return true;
}

static bool hear_vmm(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;
	enum said said = next_said(s);

	if (!said)
		return false;
	if (said != SAID_CANT_PAUSE) {
		hear_paused(w, said);
	} else if (s->state == MIGRATION_SWITCHING && !s->vmstate) {
		end(w, MIGRATION_FAILED, VERDICT_RUNS_ON);
		s->to_say = WORD_NONE;
	}
	return true;
}

static bool see_vmm_gone(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->up || !s->known || !s->vmm_gone || s->said0)
		return false;
	switch (s->state) {
	case MIGRATION_ATTACHED:
		owner_move_source(w, MIGRATION_PREPARED);
		s->phase = PHASE_RUNNING;
		s->holder = s->recorded_holder = 0;
		s->news_switchover = s->news_aborted = s->aborted = false;
		return true;
	case MIGRATION_SWITCHING:
		if (s->vmstate)
			return false;
		__attribute__((fallthrough));
	case MIGRATION_WARMING:
		end(w, MIGRATION_FAILED, VERDICT_RUNS_ON);
		s->to_say = WORD_NONE;
		return true;
	default:
		return false;
	}
}

/* Orders. */

static bool cancel(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->up || !s->known || is_final(s) || s->vmstate || s->state == MIGRATION_POSTCOPY)
		return false;
	end(w, MIGRATION_CANCELLED, VERDICT_RUNS_ON);
	return true;
}

bool owner_is_fenced(const struct world *w)
{
	for (unsigned int i = 0; i < 2; i++) {
		const struct destination *d = &w->destinations[i];
		bool may_hold = !w->source.holder || d->holder == w->source.holder;
		bool under_way = d->known && d->state >= MIGRATION_WARMING &&
		                 !migration_state_is_final(d->state);

		if (d->vmm >= VMM_GIVEN && d->vmm <= VMM_GUEST_RUNS && !d->vmm_dead)
			return false;
		if (may_hold && under_way)
			return false;
	}
	return true;
}

static bool run_on_here(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->up || !s->vmstate || s->vmm_gone || !owner_is_fenced(w))
		return false;
	end(w, MIGRATION_CANCELLED, VERDICT_RUNS_ON);
	w->history.hurt = true;
	w->history.ran = false;
	return true;
}

/* The destination does without: it has all, or has given up what it lacks, or is no more. */
static bool release(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->up || !s->vmstate)
		return false;
	for (unsigned int i = 0; i < 2; i++) {
		const struct destination *d = &w->destinations[i];

		if (d->vmm >= VMM_GIVEN && d->vmm <= VMM_GUEST_RUNS && !d->vmm_dead && d->missing)
			return false;
		if (d->known && d->holder == s->holder && !migration_state_is_final(d->state))
			return false;
	}
	w->history.hurt = true;
	let_go(w);
	return true;
}

/* What the next process makes of the record. */
void source_taken_over(struct world *w)
{
	struct source *s = &w->source;

	s->aborted = false;
	s->news_switchover = s->news_resumed = s->news_complete = s->news_aborted = false;
	s->holder = s->recorded_holder;
	s->resumed = s->state == MIGRATION_POSTCOPY;
	s->to_say = WORD_NONE;
	if (is_final(s)) {
		s->phase = PHASE_ENDED;
		s->to_say = s->verdict == VERDICT_RUNS_ON ? WORD_RESUME : WORD_COMPLETE;
		if (model_lacks(OWNER_REPEAT_RESUME) && s->state == MIGRATION_FAILED)
			s->to_say = WORD_NONE;
	} else if (s->vmstate) {
		s->phase = PHASE_PAUSED;
	} else if (s->state == MIGRATION_SWITCHING) {
		s->phase = PHASE_SWITCHING;
		s->to_say = WORD_PAUSE;
		s->catches_up = s->said0;
	} else {
		s->phase = PHASE_RUNNING;
	}
}

#define SOURCE "source daemon"

const struct rule owner_source_rules[] = {
	{ RULE_STEP, SOURCE, "reads what destination %s has asked", .take_each = hear_frame },
	{ RULE_STEP, SOURCE, "reads, late, what destination %s had asked on a lost connection",
	  .take_each = hear_late_frame },
	{ RULE_STEP, SOURCE, "answers destination %s", .take_each = answer_frame },
	{ RULE_AT_ONCE, SOURCE, "sees who is connected", .take = see_connections },
	{ RULE_STEP, SOURCE, "the loop takes the switchover, and records it",
	  .take = take_switchover },
	{ RULE_AT_ONCE, SOURCE, "the loop takes RESUMED", .take = take_resumed },
	{ RULE_STEP, SOURCE, "the loop takes COMPLETE: it lets go of the guest",
	  .take = take_complete },
	{ RULE_STEP, SOURCE, "the loop takes ABORT: the guest runs on", .take = take_aborted },
	{ RULE_AT_ONCE, SOURCE, "tells the VMM to pause", .take = tell_pause },
	{ RULE_AT_ONCE, SOURCE, "tells the VMM to run on", .take = tell_resume },
	{ RULE_AT_ONCE, SOURCE, "tells the VMM that it is complete", .take = tell_complete },
	{ RULE_STEP, SOURCE, "reads what the VMM has said", .take = hear_vmm },
	{ RULE_FAULT, SOURCE, "reads PAUSED, and does not take the vmstate",
	  .take = refuse_vmstate },
	{ RULE_STEP, SOURCE, "sees that its VMM is gone", .take = see_vmm_gone },
	{ RULE_OPERATOR, "operator", "cancels at the source", .take = cancel },
	{ RULE_OPERATOR, "operator", "run on here, at the source: the holder does not run",
	  .take = run_on_here },
	{ RULE_OPERATOR, "operator", "release, at the source", .take = release },
};
const size_t owner_source_n_rules = sizeof owner_source_rules / sizeof *owner_source_rules;

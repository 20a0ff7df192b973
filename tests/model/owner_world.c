/* SPDX-License-Identifier: Apache-2.0 */
/* What is around the daemons: VMMs, operator, network, service manager; and bad luck. */
#include "owner.h"

enum answer link_dial(struct world *w, unsigned int i, unsigned int epoch)
{
	struct link *l = &w->links[i];
	enum answer answer = source_hello(w, i, epoch);

	if (!model_lacks(OWNER_LATEST_CONNECTION) && l->late_holder == w->destinations[i].holder)
		l->late = l->late_epoch = l->late_holder = 0;
	if (!answer)
		l->epoch = w->source.epoch;
	return answer;
}

void link_lose(struct world *w, unsigned int i)
{
	struct link *l = &w->links[i];
	struct link after = { .late = l->late, l->late_epoch, l->late_holder };

	if (l->asked && !l->mute) {
		after.late = l->asked;
		after.late_epoch = l->epoch;
		after.late_holder = w->destinations[i].holder;
	}
	*l = after;
}

void pages_lose(struct world *w, unsigned int i)
{
	struct destination *d = &w->destinations[i];

	d->connected = false;
	/* Told by whoever lost it, some time later: the state has two that write it. */
	d->note_pending = model_lacks(OWNER_ONE_OWNER_OF_PAUSED);
}

/* The source's VMM. */

static bool say(struct source *s, enum said said)
{
	if (s->vmm_gone || s->said1)
		return s->vmm_gone;
	if (s->said0)
		s->said1 = said;
	else
		s->said0 = said;
	return true;
}

static void run_source_guest(struct world *w)
{
	struct source *s = &w->source;

	if (s->vmm == SOURCE_GUEST_RUNS)
		return;
	if (w->history.ran)
		model_violation("the source guest runs on, though it has run at a destination");
	s->vmm = SOURCE_GUEST_RUNS;
	if (s->said0 == SAID_PAUSED)
		s->said0 = SAID_PAUSED_BEFORE_IT_RAN_ON;
	if (s->said1 == SAID_PAUSED)
		s->said1 = SAID_PAUSED_BEFORE_IT_RAN_ON;
}

static bool source_vmm_reads(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->words0 || s->vmm_gone)
		return false;
	if (s->words0 == WORD_PAUSE && s->vmm == SOURCE_GUEST_PAUSED && !say(s, SAID_PAUSED))
		return false;
	if (s->words0 == WORD_PAUSE && s->vmm == SOURCE_GUEST_RUNS)
		s->vmm = SOURCE_STOPPING;
	else if (s->words0 == WORD_RESUME)
		run_source_guest(w);
	else if (s->words0 == WORD_COMPLETE && s->vmm == SOURCE_GUEST_PAUSED)
		s->vmm = SOURCE_EXITED;
	s->words0 = s->words1;
	s->words1 = WORD_NONE;
	return true;
}

static bool source_vmm_pauses(void *state)
{
	struct source *s = &((struct world *)state)->source;

	if (s->vmm != SOURCE_STOPPING || !say(s, SAID_PAUSED))
		return false;
	s->vmm = SOURCE_GUEST_PAUSED;
	return true;
}

static bool source_vmm_cant_pause(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (s->vmm != SOURCE_STOPPING || !w->luck || !say(s, SAID_CANT_PAUSE))
		return false;
	w->luck--;
	s->vmm = SOURCE_GUEST_RUNS;
	return true;
}

static bool source_vmm_attaches(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->up || !s->known || s->state != MIGRATION_PREPARED || s->vmm != SOURCE_GUEST_RUNS ||
	    s->epoch > 1)
		return false;
	s->epoch++;
	s->vmm_gone = false;
	owner_move_source(w, MIGRATION_ATTACHED);
	return true;
}

static void close_source_socket(struct source *s)
{
	s->vmm_gone = true;
	s->words0 = s->words1 = WORD_NONE;
}

static bool source_vmm_detaches(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (s->epoch != 1 || s->vmm_gone || !w->luck || s->vmm != SOURCE_GUEST_RUNS)
		return false;
	w->luck--;
	close_source_socket(s);
	return true;
}

static bool source_vmm_dies(void *state)
{
	struct world *w = state;

	if (!w->luck || w->source.vmm == SOURCE_EXITED || !w->source.epoch)
		return false;
	w->luck--;
	close_source_socket(&w->source);
	w->source.vmm = SOURCE_EXITED;
	w->history.hurt = true;
	return true;
}

/* A destination's VMM. */

static bool destination_vmm_attaches(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!d->up || !d->known || d->state != MIGRATION_PREPARED || d->vmm != VMM_NONE)
		return false;
	owner_move_destination(w, i, MIGRATION_ATTACHED);
	d->vmm = VMM_ATTACHED;
	return true;
}

static bool destination_vmm_loads(void *state, unsigned int i)
{
	struct destination *d = &((struct world *)state)->destinations[i];

	if (d->vmm != VMM_GIVEN || d->vmm_dead)
		return false;
	d->vmm = VMM_LOADED;
	return true;
}

static bool destination_vmm_cant_load(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (d->vmm != VMM_GIVEN || d->vmm_dead || !w->luck)
		return false;
	w->luck--;
	d->vmm = VMM_CANT_LOAD;
	return true;
}

/* Its word, after LOADED: no vCPU has run. Once one has it has no such word. */
static bool destination_vmm_cant_run(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if ((d->vmm != VMM_LOADED &&
	     (d->vmm != VMM_GUEST_RUNS || !model_lacks(OWNER_NONE_HAS_RUN))) ||
	    d->vmm_dead || !w->luck)
		return false;
	w->luck--;
	d->vmm = VMM_CANT_LOAD;
	return true;
}

static bool destination_guest_runs(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (d->vmm != VMM_LOADED || d->vmm_dead)
		return false;
	if (w->history.ran)
		model_violation("the guest is started a second time from the same vmstate");
	d->vmm = VMM_GUEST_RUNS;
	w->history.ran = true;
	return true;
}

static bool destination_vmm_dies(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!w->luck || d->vmm == VMM_NONE || d->vmm == VMM_STOPPED || d->vmm_dead)
		return false;
	w->luck--;
	d->vmm_dead = true;
	/* Before that the source is told that nothing has run. */
	if (d->vmm >= VMM_LOADED || (d->state >= MIGRATION_POSTCOPY && d->taken_over) || !d->up)
		w->history.hurt = true;
	return true;
}

/* By hand, where a daemon has lost its record, or what belongs to it. */

static bool is_lost(bool known, enum migration_state state)
{
	return !known || state == MIGRATION_PREPARED || migration_state_is_final(state);
}

static bool end_destination_vmm(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!is_lost(d->known, d->state) || !d->up || d->vmm < VMM_GIVEN || d->vmm == VMM_STOPPED ||
	    d->vmm_dead || (d->vmm == VMM_GUEST_RUNS && !d->missing))
		return false;
	d->vmm_dead = true;
	w->history.hurt = true;
	return true;
}

static bool resume_source_guest(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!is_lost(s->known, s->state) || !s->up || !s->vmm_gone ||
	    (s->vmm != SOURCE_STOPPING && s->vmm != SOURCE_GUEST_PAUSED))
		return false;
	if (!owner_is_fenced(w))
		return false;
	w->history.hurt = true;
	w->history.ran = false;
	run_source_guest(w);
	return true;
}

static bool end_source_vmm(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!is_lost(s->known, s->state) || !s->up || s->vmm == SOURCE_GUEST_RUNS ||
	    s->vmm == SOURCE_EXITED)
		return false;
	s->vmm = SOURCE_EXITED;
	s->vmm_gone = true;
	w->history.hurt = true;
	return true;
}

static bool prepare_source_anew(void *state)
{
	struct source *s = &((struct world *)state)->source;

	if (!s->up || s->known)
		return false;
	s->known = true;
	return true;
}

static bool prepare_destination_anew(void *state, unsigned int i)
{
	struct destination *d = &((struct world *)state)->destinations[i];
	bool vmm_is_there = d->vmm != VMM_NONE && d->vmm != VMM_STOPPED && !d->vmm_dead;

	if (!d->up || d->known || vmm_is_there || d->holder != 2 * i + 1)
		return false;
	*d = (struct destination){
		.up = true, .known = true, .holder = d->holder + 1, .missing = true
	};
	return true;
}

/* The network. */

static bool cut_control(void *state, unsigned int i)
{
	struct world *w = state;

	if (!w->luck || !w->links[i].epoch)
		return false;
	w->luck--;
	link_lose(w, i);
	return true;
}

static bool cut_pages(void *state, unsigned int i)
{
	struct world *w = state;

	if (!w->luck || !w->destinations[i].connected ||
	    w->destinations[i].conductor != CONDUCTOR_PULLING)
		return false;
	w->luck--;
	pages_lose(w, i);
	return true;
}

/* All that is said on a connection is swallowed: a path that is dead, a daemon that is stopped. */
static bool swallow(void *state, unsigned int i)
{
	struct world *w = state;
	struct link *l = &w->links[i];

	if (!w->luck || !l->epoch || !(l->asked || l->serving || l->answer))
		return false;
	w->luck--;
	link_lose(w, i);
	l->epoch = w->source.epoch;
	l->mute = true;
	return true;
}

/* Daemons are killed, and started again by the service manager. */

static bool kill_source(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;

	if (!s->up || !w->luck)
		return false;
	w->luck--;
	for (unsigned int i = 0; i < 2; i++) {
		w->links[i] = (struct link){ 0 };
		if (w->destinations[i].connected)
			pages_lose(w, i);
	}
	if (!w->history.store) {
		*s = (struct source){ .epoch = s->epoch, .vmm = s->vmm };
		close_source_socket(s);
		w->history.hurt = true;
	}
	s->up = false;
	s->to_say = WORD_NONE;
	s->catches_up = false;
	s->news_switchover = s->news_resumed = s->news_complete = s->news_aborted = false;
	return true;
}

static bool start_source(void *state)
{
	struct world *w = state;

	if (w->source.up)
		return false;
	w->source.up = true;
	if (w->source.known)
		source_taken_over(w);
	return true;
}

static bool kill_destination(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!d->up || !w->luck)
		return false;
	w->luck--;
	link_lose(w, i);
	if (!w->history.store) {
		*d = (struct destination){ .holder = d->holder,
			                   .vmm = d->vmm,
			                   .vmm_dead = d->vmm_dead,
			                   .missing = d->missing };
		w->history.hurt = true;
	}
	/* Whether it had been given the vmstate, and had run the guest, is nobody's to say now. */
	if (d->vmm_dead)
		w->history.hurt = true;
	d->up = false;
	d->conductor = CONDUCTOR_IDLE;
	d->poison = d->connected = d->stalled = d->note_pending = d->to_stop = d->giving = false;
	return true;
}

static bool start_destination(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (d->up)
		return false;
	d->up = true;
	if (d->known)
		destination_taken_over(w, i);
	return true;
}

static bool can_lose_fds(const struct world *w, bool up, bool known, enum migration_state state)
{
	return w->luck && !up && known && state != MIGRATION_PREPARED &&
	       !migration_state_is_final(state);
}

static bool start_source_without_fds(void *state)
{
	struct world *w = state;
	struct source *s = &w->source;
	bool ran_on = s->state != MIGRATION_SWITCHING && s->state != MIGRATION_POSTCOPY;

	if (!can_lose_fds(w, s->up, s->known, s->state))
		return false;
	w->luck--;
	owner_move_source(w, MIGRATION_FAILED);
	s->up = true;
	s->vmstate = false;
	s->verdict = ran_on ? VERDICT_RUNS_ON : VERDICT_LET_GO;
	source_taken_over(w);
	s->to_say = WORD_NONE;
	close_source_socket(s);
	w->history.hurt = true;
	return true;
}

static bool start_destination_without_fds(void *state, unsigned int i)
{
	struct world *w = state;
	struct destination *d = &w->destinations[i];

	if (!can_lose_fds(w, d->up, d->known, d->state))
		return false;
	w->luck--;
	owner_move_destination(w, i, MIGRATION_FAILED);
	d->up = true;
	destination_taken_over(w, i);
	w->history.hurt = true;
	return true;
}

#define SOURCE_VMM "source VMM"
#define DESTINATION_VMM "destination %s's VMM"
#define NETWORK "network"
#define MANAGER "service manager"

const struct rule owner_world_rules[] = {
	{ RULE_STEP, SOURCE_VMM, "attaches", .take = source_vmm_attaches },
	{ RULE_STEP, SOURCE_VMM, "reads what the daemon has said", .take = source_vmm_reads },
	{ RULE_STEP, SOURCE_VMM, "has paused its guest, and says so", .take = source_vmm_pauses },
	{ RULE_FAULT, SOURCE_VMM, "can't pause: its guest runs on", .take = source_vmm_cant_pause },
	{ RULE_FAULT, SOURCE_VMM, "detaches", .take = source_vmm_detaches },
	{ RULE_FAULT, SOURCE_VMM, "dies", .take = source_vmm_dies },
	{ RULE_AT_ONCE, DESTINATION_VMM, "attaches", .take_each = destination_vmm_attaches },
	{ RULE_AT_ONCE, DESTINATION_VMM, "loads the vmstate", .take_each = destination_vmm_loads },
	{ RULE_FAULT, DESTINATION_VMM, "can't load the vmstate",
	  .take_each = destination_vmm_cant_load },
	{ RULE_FAULT, DESTINATION_VMM, "could not run, though it is loaded",
	  .take_each = destination_vmm_cant_run },
	{ RULE_STEP, DESTINATION_VMM, "starts its vCPUs", .take_each = destination_guest_runs },
	{ RULE_FAULT, DESTINATION_VMM, "dies", .take_each = destination_vmm_dies },
	{ RULE_OPERATOR, "operator", "ends destination %s's VMM by hand",
	  .take_each = end_destination_vmm },
	{ RULE_OPERATOR, "operator", "has the source VMM run its guest, by hand",
	  .take = resume_source_guest },
	{ RULE_OPERATOR, "operator", "ends the source VMM by hand", .take = end_source_vmm },
	{ RULE_OPERATOR, "operator", "prepares the source anew", .take = prepare_source_anew },
	{ RULE_OPERATOR, "operator", "prepares destination %s anew",
	  .take_each = prepare_destination_anew },
	{ RULE_FAULT, NETWORK, "cuts destination %s's control connection",
	  .take_each = cut_control },
	{ RULE_FAULT, NETWORK, "cuts destination %s's page connections", .take_each = cut_pages },
	{ RULE_FAULT, NETWORK, "swallows all on destination %s's control connection",
	  .take_each = swallow },
	{ RULE_FAULT, MANAGER, "the source's daemon is killed", .take = kill_source },
	{ RULE_STEP, MANAGER, "the source's daemon is started again", .take = start_source },
	{ RULE_FAULT, MANAGER, "the source's daemon is started again, and a descriptor is lost",
	  .take = start_source_without_fds },
	{ RULE_FAULT, MANAGER, "destination %s's daemon is killed", .take_each = kill_destination },
	{ RULE_STEP, MANAGER, "destination %s's daemon is started again",
	  .take_each = start_destination },
	{ RULE_FAULT, MANAGER, "destination %s's daemon is started again, and a descriptor is lost",
	  .take_each = start_destination_without_fds },
};
const size_t owner_world_n_rules = sizeof owner_world_rules / sizeof *owner_world_rules;

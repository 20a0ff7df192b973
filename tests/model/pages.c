/* SPDX-License-Identifier: Apache-2.0 */
#include "pages.h"

#include <stdio.h>

#define UNITS 2u
#define ALL_UNITS 3u

/* What can be taken out. */
enum pages_switch {
	PAGES_FILL_BEFORE_PUBLISH = 1 << 0,
	PAGES_FILL_BEFORE_MAP = 1 << 1,
	PAGES_ONE_CLAIM = 1 << 2,
	PAGES_KEEP_CLAIMS = 1 << 3,
	PAGES_NOTE_COPY = 1 << 4,
	PAGES_COPY_TO_HOLES = 1 << 5,
	PAGES_JOURNAL = 1 << 6,
	PAGES_READER_LAST = 1 << 7,
	PAGES_FILLS_END = 1 << 8,
	PAGES_READ_ALONE = 1 << 9,
	PAGES_ROB_CLAIMERS = 1 << 10,
	PAGES_QUIET = 1 << 11,
	PAGES_WRITTEN = 1 << 12,
	PAGES_HIDDEN = 1 << 13,
	PAGES_FORGET = 1 << 14,
	PAGES_KEPT_HARVEST = 1 << 15,
	PAGES_NO_HARVEST = 1 << 16,
	PAGES_NOTE_VISIBLE = 1 << 17,
	PAGES_LATE_RECORD = 1 << 18,
	PAGES_LATE_FIRST = 1 << 19,
};

/* The memory, and how it is filled: by the fault thread and by bulk. */
enum kind {
	KIND_ANONYMOUS,   /* UFFDIO_COPY by both */
	KIND_MEMFD_EAGER, /* UFFDIO_COPY by both, whose page is in the file then, too */
	KIND_MEMFD_LAZY,  /* UFFDIO_COPY and pwrite() */
	KIND_HUGE_LAZY,   /* behind the guest's back by both, one page of two units */
	KIND_HUGE_EAGER,  /* the same, and mapped at once */
	KINDS,
};

/* Of the page cache or, of anonymous memory, of the page. */
enum content { EMPTY, TORN, SOURCE, GUEST, OLD /* what the source has written over since */ };

enum step {
	THREAD_IDLE,
	THREAD_LOOKS, /* the fault thread has marked a page wanted, and looks whether it is there */
	THREAD_FILLS, /* has claimed, and fills the lowest unit that is left */
	THREAD_WRITES, /* is in the middle of it */
	THREAD_PUBLISHES,
	THREAD_SEES_WANTED,
	THREAD_MAPS,
	THREAD_ENDED,
};

enum actor { FAULT_THREAD, BULK_THREAD };

struct thread {
	unsigned int step : 3;
	unsigned int claimed : 2; /* units that it has claimed and not published */
	unsigned int left : 2;    /* of these: to fill */
	unsigned int to_map : 2;  /* pages */
	unsigned int failed : 1;  /* what it could not fill it gives back */
};

enum vmm { VMM_IDLE, VMM_CALLS, VMM_WAITS, VMM_GOES_ON, VMM_TAKES_PAGE };
enum process { PROCESS_RUNS, PROCESS_DOWN, PROCESS_TAKES_OVER, PROCESS_DONE };

struct pages {
	unsigned int kind : 3;
	unsigned int zero : 2; /* units that are zero at the source */
	/* While the guest runs there: how often it still writes; what it wrote since the log began.
	 */
	unsigned int source_writes : 2, log : 2;
	unsigned int logged : 1; /* the log is this process's */
	unsigned int paused : 1; /* with what it had written last, if that was known: */
	unsigned int kept : 2, kept_known : 1;
	/* Page state, by unit. */
	unsigned int claimed : 2, present : 2, wanted : 2, copying : 2, written : 2;
	unsigned int visible : 1; /* in it: what comes may be seen from now on */
	/* A discard whose event was taken and is not applied: in the page state's memfd. 0: none.
	 */
	unsigned int slot : 2;
	/* Memory. */
	unsigned int content0 : 3, content1 : 3;
	unsigned int mapped : 2; /* pages */
	unsigned int registered : 1;
	/* What the guest must read, by unit; else it is the source's. */
	unsigned int wrote : 2, discarded : 2;
	/* The VMM. */
	unsigned int asleep : 1; /* the vCPU, in a fault on: */
	unsigned int fault_page : 1;
	unsigned int fault_event : 1; /* that nobody has read */
	unsigned int vmm : 3;
	unsigned int discard_page : 1;
	unsigned int discards : 2; /* still to come */
	/* The daemon. */
	unsigned int process : 2;
	unsigned int switching : 1; /* in the record */
	unsigned int applied : 1;   /* the last harvest, by this process */
	unsigned int started : 1;   /* this process has the threads that show what comes */
	unsigned int seen : 1;      /* some process had: so the VMM may have seen something */
	unsigned int moved : 1;     /* the guest may run here; in the record */
	/* The VMM makes its memory when it has the vmstate; that it came is in the record; and
	 * here.
	 */
	unsigned int late : 1, late_came : 1, late_taken : 1;
	/* To bulk, while the guest has not moved: read, and what of it is not so any more. */
	unsigned int answer : 2, answer_zero : 2, answer_old : 2;
	unsigned int stopping : 1; /* SIGTERM */
	unsigned int faults : 2;   /* pages that the fault thread has to bring */
	unsigned int looks_at : 1; /* the page */
	unsigned int finishing : 1;
	unsigned int luck : 3;
	struct thread threads[2];
};

static bool is_huge(const struct pages *s)
{
	return s->kind >= KIND_HUGE_LAZY;
}

static unsigned int page_of(const struct pages *s, unsigned int unit)
{
	return is_huge(s) ? 0 : unit;
}

static unsigned int units_of(const struct pages *s, unsigned int page)
{
	return is_huge(s) ? ALL_UNITS : 1u << page;
}

/* The pages that have units in @units. */
static unsigned int pages_of(const struct pages *s, unsigned int units)
{
	return is_huge(s) ? !!units : units;
}

static enum content get_content(const struct pages *s, unsigned int unit)
{
	return unit ? s->content1 : s->content0;
}

static void set_content(struct pages *s, unsigned int unit, enum content content)
{
	if (unit)
		s->content1 = content;
	else
		s->content0 = content;
}

static bool is_page_present(const struct pages *s, unsigned int page)
{
	return !(units_of(s, page) & ~s->present);
}

/* Every ioctl that fills or maps is refused. */
static bool mappings_change(const struct pages *s)
{
	return s->vmm >= VMM_CALLS && s->vmm <= VMM_GOES_ON;
}

static bool runs(const struct pages *s, enum actor i)
{
	return s->process == PROCESS_RUNS && s->threads[i].step != THREAD_ENDED &&
	       (s->started || i == BULK_THREAD);
}

static void check_unit(const struct pages *s, unsigned int unit)
{
	enum content is = get_content(s, unit);
	bool zero = (s->zero | s->discarded) >> unit & 1;
	/* Before it has returned, madvise() may have done it, or not. */
	bool under_way = s->kind == KIND_ANONYMOUS && s->vmm != VMM_IDLE && s->discard_page == unit;

	if (!(s->mapped >> page_of(s, unit) & 1) || is == GUEST || under_way)
		return;
	if (s->wrote >> unit & 1)
		model_violation("what the guest has written is not what it reads");
	else if (is == OLD)
		model_violation("the guest reads what was written over at the source");
	else if (is == TORN)
		model_violation("the guest reads a page that is not whole");
	else if (is == EMPTY && !zero)
		model_violation("the guest reads zeroes where the source has content");
	else if (is == SOURCE && zero)
		model_violation("what was discarded is there again");
}

static void check(const void *state)
{
	for (unsigned int unit = 0; unit < UNITS; unit++)
		check_unit(state, unit);
}

/* The guest. */

static void wake(struct pages *s, unsigned int page)
{
	if (s->asleep && s->fault_page == page)
		s->asleep = s->fault_page = s->fault_event = 0;
}

static void map(struct pages *s, unsigned int page)
{
	s->mapped |= 1u << page;
	wake(s, page);
}

/* Or the VMM, by which it is loaded, from when it may see what comes. */
static bool guest_writes(void *state, unsigned int unit)
{
	struct pages *s = state;
	unsigned int page = page_of(s, unit);

	if (s->asleep || !s->seen)
		return false;
	if (s->mapped >> page & 1) {
		set_content(s, unit, GUEST);
		s->wrote |= 1u << unit;
		s->discarded &= ~(1u << unit);
	} else if (s->registered) {
		s->asleep = s->fault_event = 1;
		s->fault_page = page;
	} else {
		map(s, page);
	}
	return true;
}

static bool vmm_discards(void *state, unsigned int unit)
{
	struct pages *s = state;

	if (s->vmm != VMM_IDLE || !s->discards || !s->seen || (is_huge(s) && unit))
		return false;
	s->discards--;
	s->discard_page = page_of(s, unit);
	s->vmm = s->registered ? VMM_CALLS : VMM_TAKES_PAGE;
	return true;
}

static bool vmm_raises_event(void *state)
{
	struct pages *s = state;

	if (s->vmm != VMM_CALLS)
		return false;
	s->vmm = VMM_WAITS;
	return true;
}

static bool vmm_goes_on(void *state)
{
	struct pages *s = state;

	if (s->vmm != VMM_GOES_ON)
		return false;
	s->vmm = VMM_TAKES_PAGE;
	return true;
}

/* Of shared memory it is the mapping only: the file keeps its content. */
static bool vmm_takes_page(void *state)
{
	struct pages *s = state;
	unsigned int unit = s->discard_page;

	if (s->vmm != VMM_TAKES_PAGE)
		return false;
	s->vmm = VMM_IDLE;
	s->mapped &= ~(1u << s->discard_page);
	s->discard_page = 0;
	if (s->kind != KIND_ANONYMOUS)
		return true;
	set_content(s, unit, EMPTY);
	s->wrote &= ~(1u << unit);
	s->discarded |= 1u << unit;
	return true;
}

/* Events. */

static bool read_fault(void *state)
{
	struct pages *s = state;

	if (!runs(s, FAULT_THREAD) || s->slot || !s->fault_event)
		return false;
	s->fault_event = 0;
	s->faults |= 1u << s->fault_page;
	return true;
}

/* At any time: whoever waits for something else reads events meanwhile. */
static bool read_discard(void *state)
{
	struct pages *s = state;

	if (!runs(s, FAULT_THREAD) || s->slot || s->vmm != VMM_WAITS)
		return false;
	s->vmm = VMM_GOES_ON;
	s->slot = s->discard_page + 1;
	return true;
}

/* What is missing is zero now, and present: also what somebody has claimed. */
static void apply_discard(struct pages *s)
{
	unsigned int units = s->slot ? units_of(s, s->slot - 1u) : 0;

	if (model_lacks(PAGES_ROB_CLAIMERS))
		units &= ~s->claimed;
	if (s->kind == KIND_ANONYMOUS) {
		s->claimed |= units;
		s->present |= units;
	}
	s->slot = 0;
}

static bool apply_event(void *state)
{
	struct pages *s = state;

	if (!runs(s, FAULT_THREAD) || !s->slot)
		return false;
	apply_discard(s);
	return true;
}

/* The fault thread, before anything has to be brought. */

static bool mark_wanted(void *state, unsigned int page)
{
	struct pages *s = state;
	struct thread *t = &s->threads[FAULT_THREAD];

	if (!runs(s, FAULT_THREAD) || s->slot || t->step != THREAD_IDLE || !(s->faults >> page & 1))
		return false;
	s->wanted |= units_of(s, page);
	s->looks_at = page;
	t->step = THREAD_LOOKS;
	return true;
}

static bool look_whether_present(void *state)
{
	struct pages *s = state;
	struct thread *t = &s->threads[FAULT_THREAD];

	if (!runs(s, FAULT_THREAD) || s->slot || t->step != THREAD_LOOKS)
		return false;
	if (is_page_present(s, s->looks_at)) {
		t->to_map = 1u << s->looks_at;
		t->step = THREAD_MAPS;
	} else {
		t->step = THREAD_IDLE;
	}
	s->looks_at = 0;
	return true;
}

/* The guest runs at the source: migrate/conductor/warm.c, fault/warm.c. */

/* Of what comes: while it is read, and when all stands still. */
static unsigned int zero_of(const struct pages *s)
{
	return s->started ? s->zero : s->answer_zero;
}

static void renew(struct pages *s, unsigned int units)
{
	if (s->visible)
		return;
	s->present &= ~units;
	s->claimed &= ~units;
}

static bool source_writes(struct pages *s, unsigned int unit, bool zero)
{
	unsigned int bit = 1u << unit;

	if (s->moved || s->paused || !s->source_writes)
		return false;
	s->source_writes--;
	s->log |= bit;
	s->answer_old |= s->answer & bit;
	s->zero = zero ? s->zero | bit : s->zero & ~bit;
	if (get_content(s, unit) == SOURCE)
		set_content(s, unit, OLD);
	return true;
}

static bool source_writes_data(void *state, unsigned int unit)
{
	return source_writes(state, unit, false);
}

static bool source_writes_zero(void *state, unsigned int unit)
{
	return source_writes(state, unit, true);
}

static bool may_warm(const struct pages *s)
{
	return s->process == PROCESS_RUNS && !s->stopping && !s->moved && !s->switching;
}

/* No answer is under way, and nobody fills. */
static bool is_held(const struct pages *s)
{
	return (!s->answer && s->threads[BULK_THREAD].step == THREAD_IDLE) ||
	       model_lacks(PAGES_QUIET);
}

static bool track(void *state)
{
	struct pages *s = state;

	if (!may_warm(s) || s->logged || s->late)
		return false;
	s->logged = 1;
	s->log = 0;
	return true;
}

static bool bulk_is_answered(void *state)
{
	struct pages *s = state;

	if (!may_warm(s) || !s->logged || s->answer ||
	    s->threads[BULK_THREAD].step != THREAD_IDLE || s->claimed == ALL_UNITS)
		return false;
	s->answer = ALL_UNITS & ~s->claimed;
	s->answer_zero = s->answer & s->zero;
	return true;
}

static bool sync_round(void *state)
{
	struct pages *s = state;

	if (!may_warm(s) || !s->logged || !s->log || !is_held(s))
		return false;
	renew(s, s->log);
	s->log = 0;
	return true;
}

static bool record_switchover(void *state)
{
	struct pages *s = state;

	if (!may_warm(s) || !(s->logged || s->late) || !is_held(s))
		return false;
	s->switching = 1;
	return true;
}

static bool pause_source(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_RUNS || !s->switching || s->paused)
		return false;
	s->paused = 1;
	s->kept = s->log;
	s->kept_known = s->logged || model_lacks(PAGES_NO_HARVEST);
	return true;
}

static bool apply_harvest(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_RUNS || !s->paused || s->applied || s->moved)
		return false;
	renew(s, s->kept_known ? s->kept : ALL_UNITS);
	s->applied = 1;
	return true;
}

/*
 * migrate/destination/late.c: the VMM loads, and says MEMORY; what it has is emptied, registered,
 * kept.
 */
static bool take_memory(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_RUNS || !s->late || !s->applied || s->late_taken || s->stopping)
		return false;
	if (s->wrote)
		model_violation("what the VMM has loaded is taken from it");
	s->content0 = s->content1 = EMPTY;
	s->mapped = 0;
	s->registered = s->late_taken = 1;
	s->late_came = !model_lacks(PAGES_LATE_RECORD);
	return true;
}

/* pull_start() */
static bool start_threads(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_RUNS || !s->applied || s->started || s->stopping)
		return false;
	if (s->late && !s->late_taken && !model_lacks(PAGES_LATE_FIRST))
		return false;
	s->visible = !model_lacks(PAGES_NOTE_VISIBLE);
	s->started = s->seen = 1;
	s->answer = s->answer_zero = s->answer_old = 0;
	return true;
}

static bool give_vmstate(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_RUNS || !s->started || s->moved || (s->late && !s->late_taken))
		return false;
	s->moved = 1;
	return true;
}

/* Both threads: fault/resolver.c, fill_part(); and fault/prefill.c. */

static bool may_act(const struct pages *s, enum actor i, enum step step)
{
	/* The fault thread applies what it has read before it does anything else. */
	return runs(s, i) && s->threads[i].step == step && (i == BULK_THREAD || !s->slot);
}

static unsigned int lowest(unsigned int units)
{
	return units & 1 ? 0 : 1;
}

static bool copies(const struct pages *s, enum actor i)
{
	return s->started &&
	       (s->kind <= KIND_MEMFD_EAGER || (s->kind == KIND_MEMFD_LAZY && i == FAULT_THREAD));
}

static void fill_next(struct thread *t)
{
	t->step = t->left ? THREAD_FILLS : THREAD_PUBLISHES;
}

static void publish(struct pages *s, struct thread *t)
{
	s->present |= t->claimed;
}

/* What has come is claimed; of what others have claimed the data is dropped. */
static bool claim(void *state, unsigned int i)
{
	struct pages *s = state;
	struct thread *t = &s->threads[i];
	unsigned int come = i == BULK_THREAD ? ALL_UNITS : 0;

	if (!may_act(s, i, THREAD_IDLE) || s->finishing || s->stopping)
		return false;
	for (unsigned int page = 0; i == FAULT_THREAD && page < UNITS; page++)
		if (s->faults >> page & 1)
			come |= units_of(s, page) & ~s->present;
	if (!s->started)
		come = s->answer;
	t->claimed = come & ~(model_lacks(PAGES_ONE_CLAIM) ? s->present : s->claimed);
	if (!t->claimed)
		return false;
	s->claimed |= t->claimed;
	t->left = t->claimed & ~zero_of(s);
	/* Bytes that may be there are written over, by zeroes, too. */
	t->left |= t->claimed & s->written;
	if (!s->started && !model_lacks(PAGES_WRITTEN))
		s->written |= t->left;
	fill_next(t);
	if (model_lacks(PAGES_FILL_BEFORE_PUBLISH))
		publish(s, t);
	if (model_lacks(PAGES_FILL_BEFORE_MAP) && t->left)
		map(s, page_of(s, 0));
	return true;
}

static void check_fill(const struct pages *s, enum actor i, unsigned int unit)
{
	const struct thread *other = &s->threads[!i];

	if (s->present >> unit & 1 && !model_lacks(PAGES_FILL_BEFORE_PUBLISH))
		model_violation("a unit is filled that is present");
	if (other->claimed >> unit & 1)
		model_violation("two threads fill one unit");
	if (s->mapped >> page_of(s, unit) & 1)
		model_violation("what the guest may have written to is written over");
}

static void filled(struct pages *s, enum actor i, unsigned int unit)
{
	struct thread *t = &s->threads[i];

	t->left &= ~(1u << unit);
	fill_next(t);
}

/*
 * UFFDIO_COPY says it by itself of anonymous memory. What is zero and to be filled is stale, and
 * always written.
 */
static bool is_hole(const struct pages *s, unsigned int unit)
{
	return s->kind == KIND_ANONYMOUS ||
	       (get_content(s, unit) == EMPTY && !(zero_of(s) >> unit & 1));
}

static bool note_copy(void *state, unsigned int i)
{
	struct pages *s = state;
	unsigned int unit = lowest(s->threads[i].left);

	if (!may_act(s, i, THREAD_FILLS) || !copies(s, i) || s->copying >> unit & 1 ||
	    (!is_hole(s, unit) && !model_lacks(PAGES_COPY_TO_HOLES)))
		return false;
	s->copying |= 1u << unit;
	return true;
}

/*
 * Maps and wakes in one. A page that is there already is left alone, and what was discarded since
 * it was claimed. Of anonymous memory it is done by who reads events, and applies what it has read
 * first.
 */
static bool copy(void *state, unsigned int i)
{
	struct pages *s = state;
	unsigned int unit = lowest(s->threads[i].left);

	if (!may_act(s, i, THREAD_FILLS) || !copies(s, i) || !is_hole(s, unit))
		return false;
	if (s->kind == KIND_ANONYMOUS && s->slot && !model_lacks(PAGES_READ_ALONE))
		return false;
	if (s->present >> unit & 1) {
		filled(s, i, unit);
		return true;
	}
	if (mappings_change(s) || !(s->copying >> unit & 1 || model_lacks(PAGES_NOTE_COPY)))
		return false;
	if (get_content(s, unit) == EMPTY && !(s->mapped >> unit & 1)) {
		set_content(s, unit, SOURCE);
		map(s, unit);
	}
	filled(s, i, unit);
	return true;
}

/* Behind the guest's back; also where the file has it, from a fill that was not finished. */
static bool begin_write(void *state, unsigned int i)
{
	struct pages *s = state;
	unsigned int unit = lowest(s->threads[i].left);

	if (!may_act(s, i, THREAD_FILLS) || (copies(s, i) && is_hole(s, unit)))
		return false;
	s->copying &= ~(1u << unit);
	check_fill(s, i, unit);
	set_content(s, unit, TORN);
	s->threads[i].step = THREAD_WRITES;
	return true;
}

static bool end_write(void *state, unsigned int i)
{
	struct pages *s = state;
	unsigned int unit = lowest(s->threads[i].left);

	if (!may_act(s, i, THREAD_WRITES))
		return false;
	if (zero_of(s) >> unit & 1)
		set_content(s, unit, EMPTY);
	else
		set_content(s, unit, s->answer_old >> unit & 1 ? OLD : SOURCE);
	filled(s, i, unit);
	return true;
}

/* Give back what is not visible to anybody, nor discarded, and publish the rest. */
static void give_back(struct pages *s, struct thread *t)
{
	unsigned int units = model_lacks(PAGES_KEEP_CLAIMS) ? t->claimed : t->left & ~s->present;

	s->claimed &= ~units;
	t->claimed &= ~units;
	t->left = 0;
	t->step = THREAD_PUBLISHES;
}

/* No memory for it. */
static bool fail_fill(void *state, unsigned int i)
{
	struct pages *s = state;
	struct thread *t = &s->threads[i];

	if (!may_act(s, i, THREAD_FILLS) || !s->luck)
		return false;
	s->luck--;
	give_back(s, t);
	return true;
}

static bool publish_filled(void *state, unsigned int i)
{
	struct pages *s = state;
	struct thread *t = &s->threads[i];

	if (!may_act(s, i, THREAD_PUBLISHES))
		return false;
	publish(s, t);
	t->step = THREAD_SEES_WANTED;
	return true;
}

static bool see_wanted(void *state, unsigned int i)
{
	struct pages *s = state;
	struct thread *t = &s->threads[i];
	unsigned int pages, whole = 0;

	if (!may_act(s, i, THREAD_SEES_WANTED))
		return false;
	pages = pages_of(s, t->claimed & (s->kind == KIND_HUGE_EAGER ? ALL_UNITS : s->wanted));
	for (unsigned int page = 0; page < UNITS; page++)
		if (is_page_present(s, page))
			whole |= 1u << page;
	t->claimed = 0;
	t->to_map = s->started || model_lacks(PAGES_HIDDEN) ? pages & whole : 0;
	if (!s->started)
		s->answer = s->answer_zero = s->answer_old = 0;
	t->step = t->to_map ? THREAD_MAPS : THREAD_IDLE;
	return true;
}

/* UFFDIO_CONTINUE; a hole is made a page by the kernel. */
static bool map_page(void *state, unsigned int i)
{
	struct pages *s = state;
	struct thread *t = &s->threads[i];
	unsigned int page = lowest(t->to_map);

	if (!may_act(s, i, THREAD_MAPS) || mappings_change(s))
		return false;
	if (s->registered)
		map(s, page);
	if (i == FAULT_THREAD)
		s->faults &= ~(1u << page);
	t->to_map &= ~(1u << page);
	t->step = t->to_map ? THREAD_MAPS : THREAD_IDLE;
	return true;
}

/* Refused while the VMM changes its mappings, and the pull is to end: what was begun is given up.
 */
static bool give_up(void *state, unsigned int i)
{
	struct pages *s = state;
	struct thread *t = &s->threads[i];
	bool refused = mappings_change(s) &&
	               ((t->step == THREAD_FILLS && copies(s, i)) || t->step == THREAD_MAPS);

	if (!runs(s, i) || !s->stopping || !refused || (i == FAULT_THREAD && s->slot) ||
	    model_lacks(PAGES_FILLS_END))
		return false;
	t->to_map = 0;
	if (t->step == THREAD_FILLS)
		give_back(s, t);
	else
		t->step = THREAD_IDLE;
	return true;
}

/* The end. */

static bool is_quiet(const struct pages *s, enum actor i)
{
	return s->threads[i].step == THREAD_IDLE || s->threads[i].step == THREAD_ENDED;
}

static bool bulk_ends(void *state)
{
	struct pages *s = state;

	if (!s->stopping || !may_act(s, BULK_THREAD, THREAD_IDLE))
		return false;
	s->threads[BULK_THREAD].step = THREAD_ENDED;
	return true;
}

/* Last of all, for the others may wait for what it reads. */
static bool fault_thread_ends(void *state)
{
	struct pages *s = state;
	bool alone = s->threads[BULK_THREAD].step == THREAD_ENDED || model_lacks(PAGES_FILLS_END);

	if (!s->stopping || !alone || !may_act(s, FAULT_THREAD, THREAD_IDLE))
		return false;
	s->threads[FAULT_THREAD].step = THREAD_ENDED;
	return true;
}

static bool see_complete(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_RUNS || s->stopping || s->finishing || !s->moved ||
	    s->present != ALL_UNITS || !is_quiet(s, BULK_THREAD))
		return false;
	s->finishing = 1;
	if (model_lacks(PAGES_READER_LAST))
		s->threads[FAULT_THREAD].step = THREAD_ENDED;
	return true;
}

static bool unregister(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_RUNS || !s->finishing || !s->registered)
		return false;
	s->registered = 0;
	wake(s, s->fault_page);
	return true;
}

/* Who was in madvise() when it was unregistered raises its event all the same. */
static bool complete(void *state)
{
	struct pages *s = state;
	bool settled = (!mappings_change(s) && !s->slot) || model_lacks(PAGES_READER_LAST);

	if (s->process != PROCESS_RUNS || !s->finishing || s->registered || !settled)
		return false;
	s->threads[FAULT_THREAD] = s->threads[BULK_THREAD] =
	        (struct thread){ .step = THREAD_ENDED };
	s->faults = s->looks_at = 0;
	s->process = PROCESS_DONE;
	return true;
}

/* Another process. */

static void lose_process(struct pages *s)
{
	s->process = PROCESS_DOWN;
	s->stopping = s->finishing = s->faults = s->looks_at = 0;
	s->answer = s->answer_zero = s->answer_old = s->logged = s->log = 0;
	/* What the source had found was for one who asks once. */
	if (model_lacks(PAGES_KEPT_HARVEST) && !s->applied)
		s->kept = 0;
	s->applied = s->started = 0;
	s->late_taken = s->late_came;
	s->threads[FAULT_THREAD] = s->threads[BULK_THREAD] = (struct thread){ 0 };
	if (model_lacks(PAGES_JOURNAL))
		s->slot = 0;
}

static bool is_killed(void *state)
{
	struct pages *s = state;

	if (!s->luck || (s->process != PROCESS_RUNS && s->process != PROCESS_TAKES_OVER))
		return false;
	s->luck--;
	lose_process(s);
	return true;
}

static bool is_asked_to_end(void *state)
{
	struct pages *s = state;

	if (!s->luck || s->process != PROCESS_RUNS || s->stopping || s->finishing)
		return false;
	s->luck--;
	s->stopping = 1;
	return true;
}

static bool ends(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_RUNS || !s->stopping ||
	    (s->started && s->threads[FAULT_THREAD].step != THREAD_ENDED) ||
	    s->threads[BULK_THREAD].step != THREAD_ENDED)
		return false;
	lose_process(s);
	return true;
}

/* page_state_adopt(), events_take_up(). */
static bool take_stock(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_DOWN)
		return false;
	s->claimed &= s->present | (model_lacks(PAGES_NOTE_COPY) ? 0 : s->copying);
	apply_discard(s);
	/* Nobody knows what the source has written since. */
	if (!s->moved && !s->switching && !model_lacks(PAGES_FORGET))
		renew(s, ALL_UNITS);
	s->process = PROCESS_TAKES_OVER;
	return true;
}

/* resolver_settle(), and whoever waits faults anew. */
static bool go_on(void *state)
{
	struct pages *s = state;

	if (s->process != PROCESS_TAKES_OVER)
		return false;
	for (unsigned int unit = 0; unit < UNITS; unit++) {
		unsigned int bit = 1u << unit;

		if (!(s->claimed & ~s->present & bit))
			continue;
		if (s->kind != KIND_ANONYMOUS && get_content(s, unit) != EMPTY)
			s->present |= bit;
		else
			s->claimed &= ~bit;
	}
	wake(s, s->fault_page);
	s->started = s->moved;
	s->process = PROCESS_RUNS;
	return true;
}

static const struct rule rules[] = {
	{ RULE_STEP, "vCPU, or VMM that loads it,", "writes to unit %u",
	  .take_each = guest_writes },
	{ RULE_OPERATOR, "VMM", "calls madvise() to discard unit %u", .take_each = vmm_discards },
	{ RULE_STEP, "VMM", "its madvise() raises an event, and sleeps", .take = vmm_raises_event },
	{ RULE_STEP, "VMM", "its madvise() wakes", .take = vmm_goes_on },
	{ RULE_STEP, "VMM", "its madvise() takes the page", .take = vmm_takes_page },
	{ RULE_STEP, "fault thread", "reads the event of a fault", .take = read_fault },
	{ RULE_STEP, "fault thread", "reads the event of the madvise()", .take = read_discard },
	{ RULE_STEP, "fault thread", "applies it", .take = apply_event },
	{ RULE_STEP, "fault thread", "marks the page of unit %u wanted", .take_each = mark_wanted },
	{ RULE_STEP, "fault thread", "looks whether it is present", .take = look_whether_present },
	{ RULE_STEP, "source's vCPU", "writes to unit %u", .take_each = source_writes_data },
	{ RULE_STEP, "source's vCPU", "makes unit %u zero", .take_each = source_writes_zero },
	{ RULE_STEP, "conductor", "has the source log (TRACK)", .take = track },
	{ RULE_STEP, "source", "answers bulk, while its guest runs", .take = bulk_is_answered },
	{ RULE_STEP, "conductor", "hears what was written (SYNC)", .take = sync_round },
	{ RULE_STEP, "conductor", "records that it will switch over", .take = record_switchover },
	{ RULE_STEP, "source", "pauses its guest", .take = pause_source },
	{ RULE_STEP, "conductor", "hears what was written last", .take = apply_harvest },
	{ RULE_STEP, "loop", "takes the memory that the VMM has made late", .take = take_memory },
	{ RULE_STEP, "conductor", "has threads; what comes may be seen now",
	  .take = start_threads },
	{ RULE_STEP, "loop", "records that the guest may run here, and gives it over",
	  .take = give_vmstate },
	{ RULE_STEP, "%s thread", "claims what has come", .take_each = claim },
	{ RULE_STEP, "%s thread", "notes that it will copy", .take_each = note_copy },
	{ RULE_STEP, "%s thread", "fills, by UFFDIO_COPY", .take_each = copy },
	{ RULE_STEP, "%s thread", "begins to fill, by writing", .take_each = begin_write },
	{ RULE_STEP, "%s thread", "has filled", .take_each = end_write },
	{ RULE_FAULT, "%s thread", "has no memory to fill", .take_each = fail_fill },
	{ RULE_STEP, "%s thread", "publishes", .take_each = publish_filled },
	{ RULE_STEP, "%s thread", "looks who waits", .take_each = see_wanted },
	{ RULE_STEP, "%s thread", "maps, and wakes who waits", .take_each = map_page },
	{ RULE_STEP, "%s thread", "gives up, for the daemon is to end", .take_each = give_up },
	{ RULE_STEP, "bulk thread", "ends", .take = bulk_ends },
	{ RULE_STEP, "fault thread", "ends", .take = fault_thread_ends },
	{ RULE_STEP, "conductor", "sees that all is present", .take = see_complete },
	{ RULE_STEP, "conductor", "unregisters", .take = unregister },
	{ RULE_STEP, "conductor", "ends the threads: complete", .take = complete },
	{ RULE_FAULT, "service manager", "kills the daemon", .take = is_killed },
	{ RULE_FAULT, "service manager", "asks the daemon to end", .take = is_asked_to_end },
	{ RULE_STEP, "daemon", "ends", .take = ends },
	{ RULE_STEP, "daemon, started again", "takes stock", .take = take_stock },
	{ RULE_STEP, "daemon, started again", "goes on", .take = go_on },
};

/* Everybody goes on, and it comes to its end. */
static bool is_over(const void *state)
{
	const struct pages *s = state;

	return s->process == PROCESS_DONE && !s->asleep && s->vmm == VMM_IDLE;
}

static bool always(const void *state)
{
	(void)state;
	return true;
}

static const struct goal goals[] = {
	{ "somebody waits for ever: no way leads to where all is there and all run", RULE_STEP,
	  always, is_over },
};

static unsigned int all_luck;

static bool initial(unsigned int i, void *state)
{
	if (i == 4 * KINDS - 1)
		return false;
	if (i >= 3 * KINDS - 1) {
		*(struct pages *)state = (struct pages){
			.kind = i - (3 * KINDS - 1),
			.zero = 1u << 1,
			.late = 1,
			.discards = 1,
			.luck = all_luck - 1,
		};
		return true;
	}
	/* Warm: not anonymous memory. */
	if (i >= 2 * KINDS) {
		*(struct pages *)state = (struct pages){
			.kind = i - 2 * KINDS + 1,
			.registered = 1,
			.source_writes = 2,
			/* The source's writes are many ways already. */
			.luck = all_luck - 1,
		};
		return true;
	}
	*(struct pages *)state = (struct pages){
		.kind = i % KINDS,
		.zero = i < KINDS ? 1u << 1 : 0,
		.visible = 1,
		.started = 1,
		.seen = 1,
		.moved = 1,
		.registered = 1,
		.discards = 1,
		.luck = all_luck,
	};
	return true;
}

static void print(const void *state)
{
	static const char *const vmm[] = { "does nothing", "is in madvise()",
		                           "waits for its event to be read", "is in madvise()",
		                           "is in madvise()" };
	static const char *const process[] = { "runs", "is down", "takes over", "is done" };
	const struct pages *s = state;

	printf("the vCPU %s, the VMM %s, the daemon %s\n", s->asleep ? "waits for a page" : "runs",
	       vmm[s->vmm], process[s->process]);
}

/* The initial state in which the guest runs at the source still. */
#define WARM(kind) (2 * KINDS + (kind)-1)
/* And that in which its memory will be there when it is loaded. */
#define LATE(kind) (3 * KINDS - 1 + (kind))

static const struct mend mends[] = {
	{ "fill-before-publish", "invariant 2: content is in place before it is published",
	  PAGES_FILL_BEFORE_PUBLISH, KIND_HUGE_LAZY },
	{ "fill-before-map", "invariant 2: content is in place before anybody is woken",
	  PAGES_FILL_BEFORE_MAP, KIND_MEMFD_LAZY },
	{ "one-claim", "invariant 1: who fills has claimed", PAGES_ONE_CLAIM, KIND_HUGE_LAZY },
	{ "keep-claims", "invariant 3: no claim is given back of what is visible",
	  PAGES_KEEP_CLAIMS, KINDS + KIND_MEMFD_EAGER },
	{ "note-copy",
	  "invariant 3: nor by a process that takes over: what was being copied is looked at",
	  PAGES_NOTE_COPY, KIND_MEMFD_LAZY },
	{ "copy-to-holes",
	  "A4: UFFDIO_COPY is noted for holes only: else what is there is no proof of it",
	  PAGES_COPY_TO_HOLES, KIND_MEMFD_LAZY },
	{ "journal", "B11: what an event says outlives the process that has read it", PAGES_JOURNAL,
	  KIND_ANONYMOUS },
	{ "reader-last", "B10: events are read until UNREGISTER has returned and nobody waits",
	  PAGES_READER_LAST, KIND_MEMFD_LAZY },
	{ "read-alone", "who reads events fills, and has applied what it has read",
	  PAGES_READ_ALONE, KIND_ANONYMOUS },
	{ "rob-claimers", "a discard takes what somebody else has claimed, too", PAGES_ROB_CLAIMERS,
	  KIND_ANONYMOUS },
	{ "quiet", "invariant 1: a generation ends while no answer is under way", PAGES_QUIET,
	  WARM(KIND_MEMFD_LAZY) },
	{ "written", "invariant 3: what is stale is written over, by zeroes, too", PAGES_WRITTEN,
	  WARM(KIND_MEMFD_LAZY) },
	{ "hidden", "invariant 2: nothing is mapped before the last harvest is applied",
	  PAGES_HIDDEN, WARM(KIND_HUGE_EAGER) },
	{ "forget", "a process that takes over while warming begins again", PAGES_FORGET,
	  WARM(KIND_MEMFD_EAGER) },
	{ "kept-harvest", "the source tells its last harvest to whoever asks again",
	  PAGES_KEPT_HARVEST, WARM(KIND_MEMFD_LAZY) },
	{ "no-harvest", "where the source knows nothing, nothing counts", PAGES_NO_HARVEST,
	  WARM(KIND_HUGE_LAZY) },
	{ "note-visible",
	  "invariant 1: that what comes may be seen is noted before it can be, and for every "
	  "process",
	  PAGES_NOTE_VISIBLE, WARM(KIND_MEMFD_LAZY) },
	{ "note-visible-late", "the same, where the VMM loads, and nobody has recorded that it may",
	  PAGES_NOTE_VISIBLE, LATE(KIND_MEMFD_EAGER) },
	{ "late-record", "late memory: that it came is in the record before anything comes into it",
	  PAGES_LATE_RECORD, LATE(KIND_ANONYMOUS) },
	{ "late-first", "late memory: nothing comes before it is here and empty", PAGES_LATE_FIRST,
	  LATE(KIND_HUGE_LAZY) },
	{ "fills-end", "B10: a fill that is refused is given up where the daemon is to end",
	  PAGES_FILLS_END, KIND_ANONYMOUS },
};

const struct model *pages_model(unsigned int luck)
{
	static const struct model model = {
		.name = "pages",
		.actors = { "fault", "bulk" },
		.state_bytes = sizeof(struct pages),
		.rules = rules,
		.n_rules = sizeof rules / sizeof *rules,
		.goals = goals,
		.n_goals = sizeof goals / sizeof *goals,
		.mends = mends,
		.n_mends = sizeof mends / sizeof *mends,
		.initial = initial,
		.check = check,
		.print = print,
	};

	all_luck = luck;
	_Static_assert(sizeof(struct pages) <= MODEL_STATE_MAX, "a state has its room");
	return &model;
}

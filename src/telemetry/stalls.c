/* SPDX-License-Identifier: Apache-2.0 */
#include "telemetry/stalls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"
#include "util/log.h"

#define TICK_MS 100
/* What happens between two ticks at some 20,000 faults a second, several times over. */
#define RING_BYTES (1024u * 1024)
/* Migrations whose figures are kept: those that run, and as many as may be asked about later. */
#define ENTRIES_MAX 128u
/* The ioctl that maps a page wakes its vCPU before it returns and is stamped. */
#define MAPPED_SLACK_NS (200 * NSEC_PER_USEC)
/*
 * Where the tracer sees only the sleep, a fault thread that is awake already has read the event
 * before the vCPU, which has raised it, sleeps.
 */
#define ASLEEP_SLACK_NS (100 * NSEC_PER_USEC)
/* Records that are looked at for one event: more than faults that were in flight with it. */
#define CANDIDATES_MAX 256u

struct entry {
	struct entry *next;
	char id[MIGRATION_ID_MAX + 1];
	uint64_t seq;
	int slot;                       /* -1: it has ended */
	const struct pull_stats *stats; /* while it has a slot */
	struct stall_info info;
};

struct stalls {
	struct fault_tracer *tracer;
	enum fault_tracer_mode mode;
	uv_work_t load;              /* in libuv's pool, while @loading: */
	struct fault_tracer *loaded; /* its own until it has ended */
	struct error load_error;
	bool loading, closed;
	struct migrations *migrations;
	struct migration_watcher watcher;
	uv_timer_t tick;
	struct entry *entries; /* the newest first */
	struct histogram forgotten_ns;
	struct fault_tracer_counters forgotten;
};

/* The first record that was mapped at @ns or later; the ring is in that order, but for a few. */
static uint64_t first_mapped_since(const struct fault_ring *ring, uint64_t ns)
{
	uint64_t low = fault_ring_first(ring), high = atomic_load(&ring->n);

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;
		struct fault_record r;

		if (!fault_ring_get(ring, middle, &r) || r.mapped_ns < ns)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool is_of(const struct fault_record *r, const struct fault_tracer_event *event,
                  uint64_t page_bytes)
{
	if (r->read_ns + ASLEEP_SLACK_NS < event->start_ns || r->read_ns > event->end_ns)
		return false;
	/* Both as the VMM's pid namespace counts: userfaultfd tells no other. */
	if (r->tid && event->ns_tid)
		return r->tid == event->ns_tid;
	return event->address && r->addr && event->address - r->addr < page_bytes;
}

/* A thread has one fault at a time: of those that fit, the one that was read last is meant. */
static bool find_record(const struct fault_ring *ring, const struct fault_tracer_event *event,
                        uint64_t page_bytes, struct fault_record *ret)
{
	uint64_t first = first_mapped_since(ring, event->start_ns);
	uint64_t end = atomic_load(&ring->n);
	struct fault_record r;
	bool found = false;

	for (uint64_t i = first; i < end && i - first < CANDIDATES_MAX; i++) {
		if (!fault_ring_get(ring, i, &r))
			continue;
		if (r.mapped_ns > event->end_ns + MAPPED_SLACK_NS)
			break;
		if (!is_of(&r, event, page_bytes) || (found && r.read_ns < ret->read_ns))
			continue;
		*ret = r;
		found = true;
	}
	return found;
}

static uint64_t stall_of(const struct fault_tracer_event *event)
{
	return event->end_ns > event->start_ns ? event->end_ns - event->start_ns : 0;
}

static void keep_slow(struct stall_info *info, const struct fault_tracer_event *event,
                      const struct fault_record *record)
{
	struct stall_slow *place = &info->slow[0];

	if (info->n_slow < STALLS_SLOW_MAX) {
		place = &info->slow[info->n_slow++];
	} else {
		for (unsigned int i = 1; i < STALLS_SLOW_MAX; i++)
			if (stall_of(&info->slow[i].event) < stall_of(&place->event))
				place = &info->slow[i];
		if (stall_of(&place->event) >= stall_of(event))
			return;
	}
	place->event = *event;
	place->record = record ? *record : (struct fault_record){ 0 };
}

/* Not what lies between the first stamp and the last: what the phases say, one by one. */
static uint64_t sum_of_phases(const struct fault_record *r)
{
	struct fault_durations d;
	uint64_t sum_ns = 0;

	fault_record_durations(r, &d);
	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		sum_ns += d.ns[i];
	return sum_ns;
}

bool stalls_join(struct stall_info *info, const struct fault_ring *ring,
                 const struct fault_tracer_event *event)
{
	struct fault_record r;
	uint64_t entry_ns, wakeup_ns;

	if (!find_record(ring, event, info->page_bytes, &r)) {
		keep_slow(info, event, NULL);
		return false;
	}
	keep_slow(info, event, &r);
	entry_ns = r.read_ns > event->start_ns ? r.read_ns - event->start_ns : 0;
	wakeup_ns = event->end_ns > r.mapped_ns ? event->end_ns - r.mapped_ns : 0;
	histogram_add(&info->entry_ns, entry_ns);
	histogram_add(&info->wakeup_ns, wakeup_ns);
	histogram_add(&info->joined_ns, stall_of(event));
	histogram_add(&info->phases_ns, entry_ns + sum_of_phases(&r) + wakeup_ns);
	return true;
}

static void on_event(void *arg, const struct fault_tracer_event *event)
{
	struct stalls *s = arg;

	for (struct entry *e = s->entries; e; e = e->next)
		if (e->slot == event->slot && e->stats->records) {
			stalls_join(&e->info, e->stats->records, event);
			return;
		}
}

static void read_slot(struct stalls *s, struct entry *e)
{
	(void)fault_tracer_read(s->tracer, e->slot, &e->info.stall_ns, &e->info.wakeup_delay_ns,
	                        &e->info.counters);
}

static void take_all(struct stalls *s)
{
	(void)fault_tracer_poll(s->tracer);
	for (struct entry *e = s->entries; e; e = e->next)
		if (e->slot >= 0)
			read_slot(s, e);
}

static void add_counters(struct fault_tracer_counters *to, const struct fault_tracer_counters *from)
{
	to->faults += from->faults;
	to->unpaired += from->unpaired;
	to->lost_faults += from->lost_faults;
	to->lost_events += from->lost_events;
}

static void forget(struct stalls *s, struct entry **place)
{
	struct entry *e = *place;

	*place = e->next;
	histogram_merge(&s->forgotten_ns, &e->info.stall_ns);
	add_counters(&s->forgotten, &e->info.counters);
	free(e);
}

/* Make room: the oldest that has ended goes; and what there was of this migration before. */
static void forget_ended(struct stalls *s, uint64_t seq)
{
	struct entry **oldest = NULL;
	unsigned int n = 0;

	for (struct entry **p = &s->entries; *p; p = &(*p)->next)
		if ((*p)->slot < 0 && (*p)->seq == seq) {
			forget(s, p);
			break;
		}
	for (struct entry **p = &s->entries; *p; p = &(*p)->next, n++)
		if ((*p)->slot < 0)
			oldest = p;
	if (n >= ENTRIES_MAX && oldest)
		forget(s, oldest);
}

static int add_slot(struct stalls *s, const struct migration_info *info, int *ret_slot,
                    struct error *err)
{
	struct fault_tracer_range ranges[FAULT_TRACER_RANGES_MAX];
	size_t n = info->regions->n;

	/* Too many to name: all faults of the VMM count. */
	n = n <= FAULT_TRACER_RANGES_MAX ? n : 0;
	for (size_t i = 0; i < n; i++)
		ranges[i] = (struct fault_tracer_range){ info->regions->regions[i].host_addr,
			                                 info->regions->regions[i].size };
	return fault_tracer_add(s->tracer, info->vmm_pid, ranges, n, ret_slot, err);
}

static uint64_t largest_page(const struct region_table *regions)
{
	uint64_t largest = 0;

	for (uint32_t i = 0; i < regions->n; i++)
		if (regions->regions[i].page_size > largest)
			largest = regions->regions[i].page_size;
	return largest;
}

static void begin(struct stalls *s, const struct migration_info *info)
{
	struct error err = ERROR_INIT;
	struct entry *e;

	if (!info->vmm_pid || !info->pull || fault_tracer_fd(s->tracer) < 0)
		return;
	forget_ended(s, info->seq);
	e = calloc(1, sizeof *e);
	if (!e)
		return;
	if (add_slot(s, info, &e->slot, &err)) {
		log_migration_warning(info->id, "the guest's stalls are not measured: %s",
		                      err.text);
		free(e);
		return;
	}
	snprintf(e->id, sizeof e->id, "%s", info->id);
	e->seq = info->seq;
	e->info.page_bytes = largest_page(info->regions);
	e->stats = info->pull;
	e->next = s->entries;
	s->entries = e;
}

static struct entry *find_running(const struct stalls *s, uint64_t seq)
{
	for (struct entry *e = s->entries; e; e = e->next)
		if (e->slot >= 0 && e->seq == seq)
			return e;
	return NULL;
}

static void say_summary(const struct stalls *s, const struct entry *e)
{
	const struct stall_info *i = &e->info;

	log_migration_info(
	        e->id,
	        "stalls of the guest's vCPUs by %s: %llu, p50 %llu us, p99 %llu us; of %llu with "
	        "known phases, entry p50 %llu us, wakeup p50 %llu us; %llu unpaired, %llu lost",
	        stalls_source(s), (unsigned long long)i->counters.faults,
	        (unsigned long long)(histogram_quantile(&i->stall_ns, 500) / NSEC_PER_USEC),
	        (unsigned long long)(histogram_quantile(&i->stall_ns, 990) / NSEC_PER_USEC),
	        (unsigned long long)atomic_load(&i->joined_ns.count),
	        (unsigned long long)(histogram_quantile(&i->entry_ns, 500) / NSEC_PER_USEC),
	        (unsigned long long)(histogram_quantile(&i->wakeup_ns, 500) / NSEC_PER_USEC),
	        (unsigned long long)i->counters.unpaired,
	        (unsigned long long)(i->counters.lost_faults + i->counters.lost_events));
}

static void end(struct stalls *s, struct entry *e)
{
	take_all(s);
	say_summary(s, e);
	fault_tracer_remove(s->tracer, e->slot);
	e->slot = -1;
	e->stats = NULL;
}

static void on_tick(uv_timer_t *tick)
{
	struct stalls *s = tick->data;
	bool any = false;

	take_all(s);
	for (struct entry *e = s->entries; e && !any; e = e->next)
		any = e->slot >= 0;
	if (!any)
		uv_timer_stop(tick);
}

/* From switchover on the guest may fault; before, there is nothing to see. */
static void on_changed(struct migration_watcher *w, struct migration *m)
{
	struct stalls *s = w->arg;
	struct migration_info info;
	struct entry *e;

	migration_get_info(m, &info);
	e = find_running(s, info.seq);
	if (e && (migration_state_is_final(info.state) || info.state < MIGRATION_SWITCHING))
		end(s, e);
	else if (!e && info.role == MIGRATION_DESTINATION &&
	         (info.state == MIGRATION_SWITCHING || info.state == MIGRATION_POSTCOPY))
		begin(s, &info);
	if (s->entries && !uv_is_active((uv_handle_t *)&s->tick))
		uv_timer_start(&s->tick, on_tick, TICK_MS, TICK_MS);
}

static int new_tracer(struct stalls *s, enum fault_tracer_mode mode, struct fault_tracer **ret,
                      struct error *err)
{
	const struct fault_tracer_config config = {
		.mode = mode,
		.ring_bytes = RING_BYTES,
		.event = on_event,
		.arg = s,
	};

	return fault_tracer_new(&config, ret, err);
}

static void free_stalls(struct stalls *s)
{
	while (s->entries)
		forget(s, &s->entries);
	fault_tracer_free(s->tracer);
	free(s);
}

/* The tracer is there: those that run already have a slot from now on. */
static void begin_all(struct stalls *s)
{
	log_info("guests' stalls are measured by: %s%s%s", stalls_source(s),
	         *stalls_why(s) ? "; not better because " : "", stalls_why(s));
	for (struct migration *m = migrations_next(s->migrations, NULL); m;
	     m = migrations_next(s->migrations, m))
		on_changed(&s->watcher, m);
}

static void load(uv_work_t *work)
{
	struct stalls *s = work->data;

	(void)new_tracer(s, s->mode, &s->loaded, &s->load_error);
}

static void on_loaded(uv_work_t *work, int status)
{
	struct stalls *s = work->data;

	(void)status;
	s->loading = false;
	if (s->loaded) {
		fault_tracer_free(s->tracer);
		s->tracer = s->loaded;
	}
	if (s->closed) {
		free_stalls(s);
		return;
	}
	/* Then there may be no migrations any more, and on_closed() is still to come. */
	if (uv_is_closing((uv_handle_t *)&s->tick))
		return;
	if (s->load_error.code)
		log_warning("guests' stalls are not measured: %s", s->load_error.text);
	else
		begin_all(s);
}

int stalls_new(uv_loop_t *loop, struct migrations *migrations, enum fault_tracer_mode mode,
               bool later, struct stalls **ret, struct error *err)
{
	struct stalls *s = calloc(1, sizeof *s);
	int rc = s ? new_tracer(s, later ? FAULT_TRACER_OFF : mode, &s->tracer, err)
	           : error_set(err, -ENOMEM, "stalls: out of memory");

	if (rc) {
		free(s);
		return rc;
	}
	s->migrations = migrations;
	s->mode = mode;
	s->watcher = (struct migration_watcher){ .changed = on_changed, .arg = s };
	uv_timer_init(loop, &s->tick);
	s->tick.data = s;
	s->load.data = s;
	migrations_watch(migrations, &s->watcher);
	s->loading = later && !uv_queue_work(loop, &s->load, load, on_loaded);
	if (!s->loading)
		begin_all(s);
	*ret = s;
	return 0;
}

static void on_closed(uv_handle_t *handle)
{
	struct stalls *s = handle->data;

	s->closed = true;
	if (!s->loading)
		free_stalls(s);
}

void stalls_close(struct stalls *s)
{
	if (!s)
		return;
	migrations_unwatch(s->migrations, &s->watcher);
	uv_close((uv_handle_t *)&s->tick, on_closed);
}

const char *stalls_source(const struct stalls *s)
{
	return fault_tracer_source(s->tracer);
}

const char *stalls_why(const struct stalls *s)
{
	return fault_tracer_why(s->tracer);
}

const struct stall_info *stalls_find(const struct stalls *s, uint64_t seq)
{
	for (const struct entry *e = s->entries; e; e = e->next)
		if (e->seq == seq)
			return &e->info;
	return NULL;
}

void stalls_get_total(const struct stalls *s, struct histogram *ret_stall_ns,
                      struct fault_tracer_counters *ret_counters)
{
	memset(ret_stall_ns, 0, sizeof *ret_stall_ns);
	histogram_merge(ret_stall_ns, &s->forgotten_ns);
	*ret_counters = s->forgotten;
	for (const struct entry *e = s->entries; e; e = e->next) {
		histogram_merge(ret_stall_ns, &e->info.stall_ns);
		add_counters(ret_counters, &e->info.counters);
	}
}

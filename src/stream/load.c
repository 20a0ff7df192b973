/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/load.h"

/* What counts a half is forgotten. */
#define MEMORY_NS (300 * NSEC_PER_MSEC)
/* What was said so long ago says nothing of now. */
#define STALE_NS NSEC_PER_SEC

#define CAP_MIN 500u
/* A core that is never waited for, but for the moments between two answers. */
#define CPU_MIN 750u

void load_capped(struct load *l, uint64_t now_ns)
{
	l->capped_since_ns = now_ns;
}

void load_go_on(struct load *l, uint64_t now_ns)
{
	if (l->capped_since_ns)
		l->capped_ns += now_ns - l->capped_since_ns;
	l->capped_since_ns = 0;
}

bool load_is_due(const struct load *l, uint64_t now_ns)
{
	return now_ns - l->looked_ns >= LOAD_LOOK_NS;
}

static unsigned int share(uint64_t part, uint64_t whole)
{
	return part < whole ? (unsigned int)(part * 1000 / whole) : 1000;
}

static void move(_Atomic unsigned int *to, unsigned int value, uint64_t ns)
{
	int64_t before = atomic_load(to), step = ((int64_t)value - before) * (int64_t)ns;

	atomic_store(to, (unsigned int)(before + step / (int64_t)(ns + MEMORY_NS)));
}

void load_look(struct load *l, struct load_view *v, uint64_t now_ns, uint64_t busy_ns)
{
	uint64_t ns = now_ns - l->looked_ns, worked;

	/* The first look only begins. */
	if (l->looked_ns && ns) {
		worked = busy_ns && l->busy_ns ? busy_ns - l->busy_ns + l->lent_ns : 0;
		move(&v->capped, share(l->capped_ns, ns), ns);
		move(&v->busy, share(worked, ns), ns);
		atomic_store(&v->told_ns, now_ns);
	}
	*l = (struct load){ .looked_ns = now_ns, .busy_ns = busy_ns };
}

enum load_limit load_limit(const struct load_view *v, uint64_t now_ns)
{
	uint64_t told_ns = atomic_load(&v->told_ns);

	if (!told_ns)
		return LOAD_UNKNOWN;
	if (told_ns + STALE_NS < now_ns)
		return LOAD_WAITS;
	if (atomic_load(&v->capped) >= CAP_MIN)
		return LOAD_CAP;
	return atomic_load(&v->busy) >= CPU_MIN ? LOAD_CPU : LOAD_WAITS;
}

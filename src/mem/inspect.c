/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/inspect.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "mem/pagemap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/maps.h"
#include "util/thread.h"

#define LIMIT_NS (INSPECT_LIMIT_MS * NSEC_PER_MSEC)
#define STEP_NS (5 * NSEC_PER_MSEC)
/* The loop serves nobody meanwhile. */
#define LIMIT_IN_ALL_NS (INSPECT_LIMIT_IN_ALL_MS * NSEC_PER_MSEC)

/* One inspection. Whoever is last frees it: its thread, or who waits for that. */
struct inspection {
	pid_t vmm;
	struct region_table table;
	struct descriptor_file files[REGIONS_MAX];
	bool destination;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool done, abandoned;
	pid_t tid; /* 0: it has not begun */
	struct error err;
};

static struct inspection *inspection_free(struct inspection *in)
{
	pthread_cond_destroy(&in->changed);
	pthread_mutex_destroy(&in->lock);
	free(in);
	return NULL;
}

/* It is written by UFFDIO_COPY only, which leaves alone what it finds. */
static int check_empty(const struct inspection *in, uint32_t index, uint64_t deadline_ns,
                       struct error *err)
{
	const struct region *r = &in->table.regions[index];
	uint64_t addr;

	if (pagemap_find(in->vmm, r->host_addr, r->host_addr + r->size, deadline_ns, &addr))
		return 0;
	return error_set(err, -EBUSY,
	                 "region %u: its memory is not empty, there is a page at offset %#llx: the "
	                 "VMM must discard it before it registers it (MADV_DONTNEED)",
	                 index, (unsigned long long)(addr - r->host_addr));
}

static int check_shared(const struct inspection *in, uint32_t index, struct error *err)
{
	const struct region *r = &in->table.regions[index];
	const struct descriptor_file *file = &in->files[index];
	uint64_t addr;

	if (maps_find_private(in->vmm, r->host_addr, r->host_addr + r->size, file->dev, file->ino,
	                      &addr))
		return 0;
	return error_set(err, -EINVAL,
	                 "region %u: it is mapped MAP_PRIVATE at offset %#llx: what the guest "
	                 "writes there is not in its file; map it MAP_SHARED",
	                 index, (unsigned long long)(addr - r->host_addr));
}

static void *inspect(void *arg)
{
	struct inspection *in = arg;
	uint64_t deadline_ns = thread_own_time_ns() + LIMIT_NS;
	struct error err = ERROR_INIT;
	bool abandoned;

	pthread_mutex_lock(&in->lock);
	in->tid = gettid();
	pthread_mutex_unlock(&in->lock);
	for (uint32_t i = 0; i < in->table.n && !err.code; i++) {
		if (in->files[i].ino)
			(void)check_shared(in, i, &err);
		else if (in->destination &&
		         in->table.regions[i].memory == POSTCOPY_MEMORY_ANONYMOUS)
			(void)check_empty(in, i, deadline_ns, &err);
	}
	pthread_mutex_lock(&in->lock);
	in->err = err;
	in->done = true;
	abandoned = in->abandoned;
	pthread_cond_signal(&in->changed);
	pthread_mutex_unlock(&in->lock);
	if (abandoned)
		inspection_free(in);
	return NULL;
}

/* With the lock held. */
static void wait_a_step(struct inspection *in)
{
	uint64_t until_ns = clock_now_ns() + STEP_NS;
	struct timespec until = { .tv_sec = (time_t)(until_ns / NSEC_PER_SEC),
		                  .tv_nsec = (long)(until_ns % NSEC_PER_SEC) };

	while (!in->done && pthread_cond_clockwait(&in->changed, &in->lock, CLOCK_MONOTONIC,
	                                           &until) != ETIMEDOUT)
		;
}

/*
 * What it has worked, and each step in which it is seen to wait for something. Not the steps in
 * which it only has no CPU: that is the host's doing, and not the VMM's; but for so long in all.
 *
 * Return: whether it has ended in time; if not, its thread has it now.
 */
static bool wait_for(struct inspection *in, pthread_t thread)
{
	uint64_t worked_ns = 0, waited_ns = 0, until_ns = clock_now_ns() + LIMIT_IN_ALL_NS;
	struct timespec t;
	clockid_t clock;
	bool done;

	pthread_mutex_lock(&in->lock);
	while (worked_ns + waited_ns < LIMIT_NS && clock_now_ns() < until_ns) {
		wait_a_step(in);
		if (in->done)
			break;
		if (in->tid && !thread_is_runnable(in->tid))
			waited_ns += STEP_NS;
		if (!pthread_getcpuclockid(thread, &clock) && !clock_gettime(clock, &t))
			worked_ns = (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
	}
	done = in->done;
	in->abandoned = !done;
	pthread_mutex_unlock(&in->lock);
	return done;
}

int inspect_vmm(pid_t vmm, const struct region_table *table,
                const struct descriptor_file files[REGIONS_MAX], bool destination,
                struct error *err)
{
	struct inspection *in = vmm ? calloc(1, sizeof *in) : NULL;
	pthread_t thread;
	int rc;

	if (!in)
		return 0;
	in->vmm = vmm;
	in->table = *table;
	memcpy(in->files, files, sizeof in->files);
	in->destination = destination;
	pthread_mutex_init(&in->lock, NULL);
	pthread_cond_init(&in->changed, NULL);
	if (thread_start(&thread, inspect, in)) {
		inspection_free(in);
		return 0;
	}
	if (!wait_for(in, thread)) {
		pthread_detach(thread);
		return 0;
	}
	pthread_join(thread, NULL);
	rc = in->err.code;
	if (rc)
		*err = in->err;
	inspection_free(in);
	return rc;
}

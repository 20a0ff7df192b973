/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/progress.h"

#include <errno.h>
#include <inttypes.h>
#include <time.h>

#include "minivmm/fail.h"
#include "minivmm/image.h"

#define INTERVAL_NS 1000000
#define NS_PER_S 1000000000

static uint64_t accesses(const struct progress *p)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < p->vm->n_vcpus; i++) {
		const volatile struct guest_stats *stats =
		        &image_vcpu(&p->vm->memory, i)->stats[p->phase];

		sum += stats->accesses;
	}
	return sum;
}

static void *progress_main(void *arg)
{
	struct progress *p = arg;
	struct timespec next, now;

	clock_gettime(CLOCK_MONOTONIC, &next);
	while (!atomic_load(&p->stop)) {
		uint64_t done = accesses(p);

		clock_gettime(CLOCK_MONOTONIC, &now);
		fprintf(p->file, "%" PRIu64 " %" PRIu64 "\n",
		        (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000, done);
		/* Late is late: what was missed is not made up for by a burst. */
		if (now.tv_sec > next.tv_sec)
			next = now;
		next.tv_nsec += INTERVAL_NS;
		next.tv_sec += next.tv_nsec / NS_PER_S;
		next.tv_nsec %= NS_PER_S;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
	return NULL;
}

int progress_start(struct progress *p, const char *path, const struct vm *vm, unsigned int phase,
                   struct postcopy_error *err)
{
	int rc;

	*p = (struct progress){ .vm = vm, .phase = phase };
	p->file = fopen(path, "we");
	if (!p->file)
		return fail_errno(err, -errno, "--progress \"%s\"", path);
	rc = -pthread_create(&p->thread, NULL, progress_main, p);
	if (rc) {
		fclose(p->file);
		return fail_errno(err, rc, "can't start the thread that looks at the guest");
	}
	p->running = true;
	return 0;
}

int progress_stop(struct progress *p, struct postcopy_error *err)
{
	int failed;

	if (!p->running)
		return 0;
	p->running = false;
	atomic_store(&p->stop, true);
	pthread_join(p->thread, NULL);
	failed = ferror(p->file);
	if (fclose(p->file) == EOF || failed)
		return fail(err, -EIO, "--progress: not all could be written");
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/progress.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <time.h>
#include <unistd.h>

#include "minivmm/fail.h"
#include "minivmm/image.h"

#define NS_PER_MS 1000000
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

struct cpu_time {
	uint64_t ran_ns, waited_ns;
};

/* Adds what one vCPU's thread has had, if it has begun, and this kernel tells. */
static void add_cpu_time(struct progress *p, unsigned int i, struct cpu_time *sum)
{
	int tid = atomic_load(&p->vm->vcpus[i].tid), *fd = &p->schedstat_fds[i];
	uint64_t ran_ns, waited_ns;
	char text[128];
	ssize_t n;

	if (*fd < 0 && tid) {
		snprintf(text, sizeof text, "/proc/self/task/%d/schedstat", tid);
		*fd = open(text, O_RDONLY | O_CLOEXEC);
	}
	n = *fd < 0 ? -1 : pread(*fd, text, sizeof text - 1, 0);
	if (n <= 0)
		return;
	text[n] = 0;
	if (sscanf(text, "%" SCNu64 " %" SCNu64, &ran_ns, &waited_ns) != 2)
		return;
	sum->ran_ns += ran_ns;
	sum->waited_ns += waited_ns;
}

static void note(struct progress *p)
{
	uint64_t done = accesses(p);
	struct cpu_time cpu = { 0 };
	struct timespec now;

	for (unsigned int i = 0; i < p->vm->n_vcpus; i++)
		add_cpu_time(p, i, &cpu);
	clock_gettime(CLOCK_MONOTONIC, &now);
	fprintf(p->file, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
	        (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000, done,
	        cpu.ran_ns / 1000, cpu.waited_ns / 1000);
}

static void *progress_main(void *arg)
{
	struct progress *p = arg;
	struct timespec next, now;

	clock_gettime(CLOCK_MONOTONIC, &next);
	while (!atomic_load(&p->stop)) {
		note(p);
		clock_gettime(CLOCK_MONOTONIC, &now);
		/* Late is late: what was missed is not made up for by a burst. */
		if (now.tv_sec > next.tv_sec)
			next = now;
		next.tv_sec += (time_t)(p->interval_ms / 1000);
		next.tv_nsec += (long)(p->interval_ms % 1000) * NS_PER_MS;
		next.tv_sec += next.tv_nsec / NS_PER_S;
		next.tv_nsec %= NS_PER_S;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
	return NULL;
}

int progress_start(struct progress *p, const char *path, uint64_t interval_ms, const struct vm *vm,
                   unsigned int phase, struct postcopy_error *err)
{
	int rc;

	*p = (struct progress){ .vm = vm, .phase = phase, .interval_ms = interval_ms };
	for (unsigned int i = 0; i < GUEST_VCPUS_MAX; i++)
		p->schedstat_fds[i] = -1;
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
	for (unsigned int i = 0; i < GUEST_VCPUS_MAX; i++)
		if (p->schedstat_fds[i] >= 0)
			close(p->schedstat_fds[i]);
	failed = ferror(p->file);
	if (fclose(p->file) == EOF || failed)
		return fail(err, -EIO, "--progress: not all could be written");
	return 0;
}

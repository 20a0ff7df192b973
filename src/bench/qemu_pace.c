// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/qemu.h"
#include "util/clock.h"
#include "util/thread.h"

#define COUNTER_STRIDE 64
#define SAMPLE_NS (150 * 1000)
#define UNDISTURBED_NS (500 * NSEC_PER_MSEC)

/* A hole reads as zero, and stays one. */
static void read_counters(const struct pace *p, int fd, uint64_t ret[PACE_WORKERS_MAX])
{
	uint8_t bytes[PACE_WORKERS_MAX * COUNTER_STRIDE] = { 0 };
	size_t len = p->guest.workers * COUNTER_STRIDE;

	if (pread(fd, bytes, len, (off_t)p->guest.progress_gpa) != (ssize_t)len)
		memset(bytes, 0, sizeof bytes);
	for (unsigned int i = 0; i < p->guest.workers; i++)
		memcpy(&ret[i], bytes + (size_t)i * COUNTER_STRIDE, sizeof ret[i]);
}

static uint64_t sum(const struct pace *p)
{
	uint64_t total = 0;

	for (unsigned int i = 0; i < p->guest.workers; i++)
		total += p->count[i];
	return total;
}

/*
 * The destination's copy is behind the source's, or the same, until the guest itself runs there: a
 * page that arrives is no progress.
 */
static void sample(struct pace *p, uint64_t now)
{
	uint64_t source[PACE_WORKERS_MAX], destination[PACE_WORKERS_MAX];
	bool measured = atomic_load_explicit(&p->begun_ns, memory_order_relaxed);

	read_counters(p, p->fds[0], source);
	read_counters(p, p->fds[1], destination);
	for (unsigned int i = 0; i < p->guest.workers; i++) {
		bool there = destination[i] > source[i];
		uint64_t count = there ? destination[i] : source[i];
		uint64_t gap = now - p->since_ns[i];

		if (measured && gap > p->longest_gap_ns)
			p->longest_gap_ns = gap;
		if (count <= p->count[i])
			continue;
		if (!there)
			p->left_ns = now;
		else if (!p->arrived_ns)
			p->arrived_ns = now;
		p->count[i] = count;
		p->since_ns[i] = now;
	}
}

static void *pace_main(void *arg)
{
	struct pace *p = arg;
	const struct timespec nap = { .tv_nsec = SAMPLE_NS };
	bool begun = false;

	thread_set_name("pace");
	thread_prefer_promptness();
	while (!atomic_load_explicit(&p->stop, memory_order_relaxed)) {
		sample(p, clock_now_ns());
		if (!begun && atomic_load_explicit(&p->begun_ns, memory_order_relaxed)) {
			begun = true;
			p->at_begin = sum(p);
		}
		clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
	}
	p->end_ns = clock_now_ns();
	p->at_end = sum(p);
	return NULL;
}

int pace_start(struct pace *p, const struct bench_vmm *source, const struct bench_vmm *destination,
               const struct bench_guest *guest, struct error *err)
{
	const struct timespec undisturbed = { .tv_nsec = UNDISTURBED_NS };
	int r;

	*p = (struct pace){
		.fds = { source->memory_fd, destination->memory_fd },
		.guest = *guest,
		.started_ns = clock_now_ns(),
	};
	read_counters(p, p->fds[0], p->count);
	p->before = sum(p);
	for (unsigned int i = 0; i < guest->workers; i++)
		p->since_ns[i] = p->started_ns;
	r = thread_start(&p->thread, pace_main, p);
	if (r < 0)
		return error_errno(err, r, "starting a thread");
	p->running = true;
	clock_nanosleep(CLOCK_MONOTONIC, 0, &undisturbed, NULL);
	return 0;
}

void pace_begin(struct pace *p)
{
	atomic_store(&p->begun_ns, clock_now_ns());
}

void pace_stop(struct pace *p)
{
	if (!p->running)
		return;
	atomic_store(&p->stop, true);
	pthread_join(p->thread, NULL);
	p->running = false;
}

void pace_result(const struct pace *p, struct bench_moved *ret)
{
	uint64_t begun_ns = atomic_load(&p->begun_ns);
	double before_ns = (double)(begun_ns - p->started_ns);
	double speed = (double)(p->at_begin - p->before) / before_ns; /* pages a nanosecond */
	double total_ns = (double)(p->end_ns - begun_ns);
	double done = (double)(p->at_end - p->at_begin);

	ret->total_ms = total_ns / (double)NSEC_PER_MSEC;
	ret->gap_ms = (double)p->longest_gap_ns / (double)NSEC_PER_MSEC;
	ret->downtime_ms = p->arrived_ns > p->left_ns
	                           ? (double)(p->arrived_ns - p->left_ns) / (double)NSEC_PER_MSEC
	                           : 0;
	/* Less than nothing: it was disturbed before, by others on this host. */
	ret->lost_ms = speed > 0 && done / speed < total_ns
	                       ? (total_ns - done / speed) / (double)NSEC_PER_MSEC
	                       : 0;
}

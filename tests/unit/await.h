/* SPDX-License-Identifier: Apache-2.0 */
/* Until something is so that nobody announces: what is counted, and threads. */
#ifndef TESTS_UNIT_AWAIT_H
#define TESTS_UNIT_AWAIT_H

#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "source.h"
#include "util/clock.h"

/* Until a counter that another thread moves is there. */
static inline void wait_count(const _Atomic uint64_t *counter, uint64_t n)
{
	uint64_t until_ns = clock_now_ns() + TIMEOUT_MS * NSEC_PER_MSEC;

	while (atomic_load(counter) < n) {
		if (clock_now_ns() > until_ns)
			fail_msg("%llu, not %llu", (unsigned long long)atomic_load(counter),
			         (unsigned long long)n);
		poll(NULL, 0, 1);
	}
}

/* Threads of this process that are named so. */
static inline unsigned int count_threads(const char *name)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned int n = 0;
	struct dirent *d;

	while ((d = readdir(dir))) {
		char path[300], comm[32] = "";
		FILE *f;

		snprintf(path, sizeof path, "/proc/self/task/%s/comm", d->d_name);
		f = *d->d_name == '.' ? NULL : fopen(path, "r");
		/* It may have ended since. */
		if (!f)
			continue;
		if (fgets(comm, sizeof comm, f) && !strncmp(comm, name, strlen(name)))
			n++;
		fclose(f);
	}
	closedir(dir);
	return n;
}

static inline void wait_threads(const char *name, unsigned int n)
{
	uint64_t until_ns = clock_now_ns() + TIMEOUT_MS * NSEC_PER_MSEC;

	while (count_threads(name) != n) {
		if (clock_now_ns() > until_ns)
			fail_msg("%u threads \"%s\", not %u", count_threads(name), name, n);
		poll(NULL, 0, 1);
	}
}

#endif

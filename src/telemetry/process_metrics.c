/* SPDX-License-Identifier: Apache-2.0 */
#include "telemetry/process_metrics.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "util/cleanup.h"

static uint64_t resident_bytes(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/statm", "re");
	unsigned long long pages = 0;

	if (!f || fscanf(f, "%*u %llu", &pages) != 1)
		return 0;
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint64_t n = 0;

	if (!dir)
		return 0;
	for (const struct dirent *e; (e = readdir(dir));)
		n += *e->d_name != '.';
	closedir(dir);
	return n - 1; /* the directory's own */
}

static double cpu_s(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

void process_metrics_put(struct openmetrics *om, double started_s)
{
	static const struct openmetrics_family started = {
		"process_start_time_seconds",
		OPENMETRICS_GAUGE,
		"seconds",
		"When the process started, in seconds since 1970.",
	};
	static const struct openmetrics_family cpu = {
		"process_cpu_seconds",
		OPENMETRICS_COUNTER,
		"seconds",
		"CPU time of all threads, user and system.",
	};
	static const struct openmetrics_family resident = {
		"process_resident_memory_bytes",
		OPENMETRICS_GAUGE,
		"bytes",
		"Resident memory, with what is mapped of guests' memory.",
	};
	static const struct openmetrics_family fds = {
		"process_open_fds",
		OPENMETRICS_GAUGE,
		NULL,
		"Open file descriptors.",
	};
	static const struct openmetrics_family max_fds = {
		"process_max_fds",
		OPENMETRICS_GAUGE,
		NULL,
		"How many may be open.",
	};
	struct rlimit limit = { 0 };

	getrlimit(RLIMIT_NOFILE, &limit);
	openmetrics_open(om, &started);
	openmetrics_number(om, OPENMETRICS_NO_LABELS, started_s);
	openmetrics_open(om, &cpu);
	openmetrics_number(om, OPENMETRICS_NO_LABELS, cpu_s());
	openmetrics_open(om, &resident);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, resident_bytes());
	openmetrics_open(om, &fds);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, open_fds());
	openmetrics_open(om, &max_fds);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, limit.rlim_cur);
}

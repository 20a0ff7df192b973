/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MINIVMM_OPTIONS_H
#define MINIVMM_OPTIONS_H

#include <postcopy/postcopy.h>
#include <stdint.h>

enum role {
	ROLE_NONE,
	ROLE_SOURCE,
	ROLE_DESTINATION,
	ROLE_ALONE, /* no migration: run, verify */
};

/* All 64 bits wide, so that one table of offsets describes them. */
struct options {
	uint64_t role;
	const char *socket;
	const char *id;
	uint64_t memory_bytes;
	uint64_t backend; /* enum postcopy_memory */
	uint64_t page_size;
	uint64_t vcpus;
	uint64_t workload; /* enum guest_workload */
	uint64_t write_percent;
	uint64_t zero_percent;
	uint64_t think_us;
	uint64_t run_after_complete_ms;
	uint64_t duration_ms;
	uint64_t seed;
	uint64_t vmstate_pad_bytes;
	uint64_t status_fd;
	uint64_t fetch_pages;
	uint64_t hot;            /* boolean */
	uint64_t bound;          /* boolean */
	uint64_t no_direct_map;  /* boolean */
	uint64_t pv_clock;       /* boolean */
	uint64_t private_region; /* boolean */
	uint64_t discard;        /* boolean */
	uint64_t lose_pages;
	const char *progress; /* a file, or NULL */
	uint64_t progress_ms;
	uint64_t dirty_log; /* enum dirty_log */
};

/*
 * options_parse() - the command line
 *
 * Return: 0, 1 where it asked for help and has got it, or -EINVAL.
 */
int options_parse(int argc, char **argv, struct options *ret, struct postcopy_error *err);

#endif

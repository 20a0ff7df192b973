/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `postcopyctl top` shows: the migrations of a host, each as a row with the recent past of
 * its throughput and of its faults' latency.
 *
 * top_update() takes what the daemon has said in, top_draw() makes text of it; neither knows a
 * terminal or a clock.
 */
#ifndef CTL_TOP_H
#define CTL_TOP_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "ctl/progress.h"

#define TOP_HISTORY 40

/* The last values of something, the newest at the end. */
struct top_history {
	double values[TOP_HISTORY];
	size_t n;
};

struct top_row {
	struct json_object *migration;
	struct progress progress;      /* destination */
	uint64_t last_ns, last_served; /* source */
	double bytes_per_s;
	bool rate_known;
	struct top_history rates;
	struct top_history p99s_us;
};

/* All zero at first. */
struct top {
	struct top_row *rows;
	size_t n_rows;
};

/* How to draw. */
struct top_screen {
	unsigned int columns, lines; /* lines 0: as many as it takes */
	bool terminal;               /* colours, and what clears the rest of a line */
};

/*
 * top_update() - what is so at CLOCK_MONOTONIC @now_ns
 * @migrations: the array of client_list()
 *
 * Return: 0 or -ENOMEM, with nothing changed.
 */
int top_update(struct top *t, struct json_object *migrations, uint64_t now_ns);
void top_deinit(struct top *t);

/*
 * top_draw() - write a whole screen
 * @info: of client_get_info(); may be NULL
 * @notice: shown in the last line; NULL: none
 */
void top_draw(const struct top *t, struct json_object *info, const char *notice,
              const struct top_screen *screen, FILE *f);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traces the faults of one process for the tests: fault-trace PID [auto|fentry|kprobe|tracepoint]
 *
 * A line of JSON says how, as soon as it traces; another what was measured, when stdin ends.
 * Exit status 77, and why as text, where there is nothing to trace with.
 */
#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "telemetry/fault_tracer.h"

#define SKIPPED 77

static const char *const modes[] = {
	[FAULT_TRACER_AUTO] = "auto",
	[FAULT_TRACER_FENTRY] = "fentry",
	[FAULT_TRACER_KPROBE] = "kprobe",
	[FAULT_TRACER_TRACEPOINT] = "tracepoint",
};

static void take_event(void *arg, const struct fault_tracer_event *event)
{
	struct json_object *list = arg, *o = json_object_new_object();

	json_object_object_add(o, "tid", json_object_new_int(event->tid));
	json_object_object_add(o, "comm", json_object_new_string(event->comm));
	json_object_object_add(o, "address", json_object_new_uint64(event->address));
	json_object_object_add(o, "start_ns", json_object_new_uint64(event->start_ns));
	json_object_object_add(o, "woken_ns", json_object_new_uint64(event->woken_ns));
	json_object_object_add(o, "end_ns", json_object_new_uint64(event->end_ns));
	json_object_array_add(list, o);
}

static void print(struct json_object *o)
{
	printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	fflush(stdout);
	json_object_put(o);
}

static struct json_object *histogram_json(const struct histogram *h)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "count", json_object_new_uint64(h->count));
	json_object_object_add(o, "p50", json_object_new_uint64(histogram_quantile(h, 500)));
	json_object_object_add(o, "p99", json_object_new_uint64(histogram_quantile(h, 990)));
	json_object_object_add(o, "max", json_object_new_uint64(histogram_quantile(h, 1000)));
	return o;
}

static int result_print(struct fault_tracer *t, int slot, struct json_object *events)
{
	static struct histogram stall, wakeup_delay;
	struct json_object *o = json_object_new_object();
	struct fault_tracer_counters c;

	if (fault_tracer_read(t, slot, &stall, &wakeup_delay, &c) < 0)
		return 1;
	json_object_object_add(o, "faults", json_object_new_uint64(c.faults));
	json_object_object_add(o, "unpaired", json_object_new_uint64(c.unpaired));
	json_object_object_add(o, "lost_faults", json_object_new_uint64(c.lost_faults));
	json_object_object_add(o, "lost_events", json_object_new_uint64(c.lost_events));
	json_object_object_add(o, "stall_ns", histogram_json(&stall));
	json_object_object_add(o, "wakeup_delay_ns", histogram_json(&wakeup_delay));
	json_object_object_add(o, "events", json_object_get(events));
	print(o);
	return 0;
}

static void watch_until_stdin_ends(struct fault_tracer *t)
{
	struct pollfd fds[] = { { .fd = STDIN_FILENO, .events = POLLIN },
		                { .fd = fault_tracer_fd(t), .events = POLLIN } };

	while (poll(fds, 2, -1) > 0 && !fds[0].revents)
		fault_tracer_poll(t);
	fault_tracer_poll(t);
}

static int trace(struct fault_tracer *t, pid_t pid, struct json_object *events)
{
	struct json_object *o = json_object_new_object();
	struct error err = ERROR_INIT;
	int slot;

	if (fault_tracer_add(t, pid, NULL, 0, &slot, &err) < 0) {
		printf("%s\n", err.text);
		json_object_put(o);
		return err.code == -EOPNOTSUPP ? SKIPPED : 1;
	}
	json_object_object_add(o, "source", json_object_new_string(fault_tracer_source(t)));
	json_object_object_add(o, "why", json_object_new_string(fault_tracer_why(t)));
	print(o);
	watch_until_stdin_ends(t);
	return result_print(t, slot, events);
}

int main(int argc, char **argv)
{
	struct fault_tracer_config config = { .event = take_event };
	const char *mode = argc > 2 ? argv[2] : "auto";
	struct json_object *events;
	struct error err = ERROR_INIT;
	struct fault_tracer *t;
	int status;

	while (config.mode < FAULT_TRACER_OFF && strcmp(mode, modes[config.mode]) != 0)
		config.mode++;
	if (argc < 2 || config.mode == FAULT_TRACER_OFF) {
		fprintf(stderr, "usage: fault-trace PID [auto|fentry|kprobe|tracepoint]\n");
		return 2;
	}
	events = json_object_new_array();
	config.arg = events;
	if (fault_tracer_new(&config, &t, &err) < 0) {
		fprintf(stderr, "fault-trace: %s\n", err.text);
		return 1;
	}
	status = trace(t, atoi(argv[1]), events);
	fault_tracer_free(t);
	json_object_put(events);
	return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/commands.h"

#include <stdio.h>
#include <string.h>

#include "ctl/client.h"
#include "ctl/json.h"
#include "mem/probe.h"
#include "telemetry/fault_tracer.h"

static bool any_destination(const struct probe *probe)
{
	for (size_t i = 0; i < PROBE_BACKENDS; i++)
		if (probe->backends[i].destination.ok)
			return true;
	return false;
}

static struct json_object *row_json(const struct probe_row *row)
{
	struct json_object *o = json_object_new_object();

	json_set_string(o, "name", row->name);
	json_set_bool(o, "ok", row->ok);
	json_set_string(o, "detail", row->detail);
	return o;
}

static struct json_object *backend_json(const struct probe_backend *b)
{
	struct json_object *o = json_object_new_object();

	json_set_bool(o, "source", b->source.ok);
	json_set_bool(o, "destination", b->destination.ok);
	json_set_count(o, "page_bytes", b->page_bytes);
	json_set_string(o, "mode", probe_mode_name(b->mode));
	json_set_string(o, "write", probe_write_name(b->write));
	json_set_string(o, "resolve", probe_resolve_name(b->resolve));
	return o;
}

static struct json_object *tracer_json(const struct fault_tracer_probe *tracer)
{
	struct json_object *o = json_object_new_object();

	json_set_string(o, "source", tracer->source);
	json_set_string(o, "why", tracer->why);
	return o;
}

static struct json_object *rows_json(const struct probe *probe)
{
	struct json_object *rows = json_object_new_array();
	const struct probe_row *row;

	for (size_t i = 0; (row = probe_row_at(probe, i)); i++)
		json_object_array_add(rows, row_json(row));
	return rows;
}

struct json_object *check_rows(void)
{
	struct probe probe;

	return probe_run(&probe, NULL) < 0 ? NULL : rows_json(&probe);
}

static struct json_object *check_json(const struct probe *probe,
                                      const struct fault_tracer_probe *tracer)
{
	struct json_object *o = json_object_new_object();
	struct json_object *backends = json_object_new_object();

	for (size_t i = 0; i < PROBE_BACKENDS; i++)
		json_object_object_add(backends, probe_backend_name(probe->backends[i].id),
		                       backend_json(&probe->backends[i]));
	json_set_bool(o, "destination", any_destination(probe));
	json_object_object_add(o, "checks", rows_json(probe));
	json_object_object_add(o, "backends", backends);
	json_object_object_add(o, "fault_tracer", tracer_json(tracer));
	return o;
}

static void tracer_print(const struct fault_tracer_probe *tracer)
{
	bool ok = strcmp(tracer->source, "daemon") != 0;

	printf("%-28s %-4s %s%s%s\n", "guest stalls by eBPF", ok ? "yes" : "no",
	       ok ? tracer->source : "the daemon's own times",
	       tracer->why[0] ? "; not better because: " : "", tracer->why);
}

static void check_print(const struct probe *probe, const struct fault_tracer_probe *tracer)
{
	const struct probe_row *row;

	for (size_t i = 0; (row = probe_row_at(probe, i)); i++)
		printf("%-28s %-4s %s\n", row->name, row->ok ? "yes" : "no", row->detail);
	tracer_print(tracer);
	if (!any_destination(probe))
		printf("\nThis host can't be the destination of a migration.\n");
}

struct check_args {
	bool daemon;
};

static const struct check_args check_defaults = { .daemon = false };

static const struct option_spec check_options[] = {
	{ "daemon", OPTION_FLAG, offsetof(struct check_args, daemon), NULL,
	  "ask the daemon that --control names, for its host" },
};

static int call_check(struct client *c, const void *arg, struct json_object **ret,
                      struct error *err)
{
	(void)arg;
	return client_check(c, ret, err);
}

static void print_daemon_check(struct json_object *check, bool good)
{
	struct json_object *rows = json_find(check, "checks");

	for (size_t i = 0; i < json_object_array_length(rows); i++) {
		struct json_object *row = json_object_array_get_idx(rows, i);

		printf("%-28s %-4s %s\n", json_string_or(row, "name", "?"),
		       json_object_get_boolean(json_find(row, "ok")) ? "yes" : "no",
		       json_string_or(row, "detail", ""));
	}
	if (!good)
		printf("\nThe daemon's host can't be the destination of a migration.\n");
}

static int check_daemon(const struct ctl_common *common)
{
	_cleanup_json_ struct json_object *check = NULL;
	int code = command_call(&check_command, common, call_check, NULL, &check);
	bool good;

	if (code)
		return code;
	good = json_object_get_boolean(json_find(check, "destination"));
	if (common->json)
		json_print(check);
	else
		print_daemon_check(check, good);
	return good ? CTL_OK : CTL_USAGE;
}

static int check_run(const struct ctl_common *common, const char *operand, const void *args)
{
	struct error err = ERROR_INIT;
	struct fault_tracer_probe tracer;
	struct probe probe;

	(void)operand;
	if (((const struct check_args *)args)->daemon)
		return check_daemon(common);
	if (probe_run(&probe, &err) < 0)
		return command_failed(&check_command, &err);
	fault_tracer_probe(&tracer);
	if (common->json) {
		_cleanup_json_ struct json_object *o = check_json(&probe, &tracer);

		json_print(o);
	} else {
		check_print(&probe, &tracer);
	}
	return any_destination(&probe) ? CTL_OK : CTL_USAGE;
}

const struct command check_command = {
	.name = "check",
	.summary = "Try what this host's kernel can do for postcopy, and say why not.",
	.details = "Exit status 0 where at least one kind of memory can be a destination, else 2.",
	.options = check_options,
	.n_options = 1,
	.defaults = &check_defaults,
	.args_size = sizeof check_defaults,
	.json = true,
	.run = check_run,
};

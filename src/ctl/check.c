/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/commands.h"

#include <stdio.h>

#include "ctl/json.h"
#include "mem/probe.h"

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

static struct json_object *check_json(const struct probe *probe)
{
	struct json_object *o = json_object_new_object();
	struct json_object *backends = json_object_new_object();

	for (size_t i = 0; i < PROBE_BACKENDS; i++)
		json_object_object_add(backends, probe_backend_name(probe->backends[i].id),
		                       backend_json(&probe->backends[i]));
	json_set_bool(o, "destination", any_destination(probe));
	json_object_object_add(o, "checks", rows_json(probe));
	json_object_object_add(o, "backends", backends);
	return o;
}

static void check_print(const struct probe *probe)
{
	const struct probe_row *row;

	for (size_t i = 0; (row = probe_row_at(probe, i)); i++)
		printf("%-28s %-4s %s\n", row->name, row->ok ? "yes" : "no", row->detail);
	if (!any_destination(probe))
		printf("\nThis host can't be the destination of a migration.\n");
}

static int check_run(const struct ctl_common *common, const char *operand, const void *args)
{
	struct error err = ERROR_INIT;
	struct probe probe;

	(void)operand;
	(void)args;
	if (probe_run(&probe, &err) < 0)
		return command_failed(&check_command, &err);
	if (common->json) {
		_cleanup_json_ struct json_object *o = check_json(&probe);

		json_print(o);
	} else {
		check_print(&probe);
	}
	return any_destination(&probe) ? CTL_OK : CTL_USAGE;
}

const struct command check_command = {
	.name = "check",
	.summary = "Try what this host's kernel can do for postcopy, and say why not.",
	.details = "Exit status 0 where at least one kind of memory can be a destination, else 2.",
	.local = true,
	.json = true,
	.run = check_run,
};

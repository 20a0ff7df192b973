/* SPDX-License-Identifier: Apache-2.0 */
/* list, and what is left of a migration whose source is gone: missing, poison. */
#include "ctl/commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "ctl/client.h"
#include "ctl/json.h"
#include "ctl/migration_json.h"
#include "ctl/units.h"

struct list_args {
	const char *states;
};

static const struct list_args list_defaults = { .states = NULL };

static const struct option_spec list_options[] = {
	{ "state", OPTION_STRING, offsetof(struct list_args, states), "STATE[,STATE...]",
	  "only those in one of these states" },
};

/* "postcopy,paused" as a set of bits. */
static int parse_states(const char *text, uint32_t *ret, struct error *err)
{
	*ret = 0;
	for (;;) {
		size_t len = strcspn(text, ",");
		char name[16] = "";
		unsigned int state;

		if (len < sizeof name)
			memcpy(name, text, len);
		state = migration_json_state(name);
		if (!state)
			return error_set(err, -EINVAL, "--state: \"%.*s\" is no state",
			                 (int)(len < 40 ? len : 40), text);
		*ret |= 1u << state;
		if (!text[len])
			return 0;
		text += len + 1;
	}
}

static void list_print(struct json_object *migrations)
{
	size_t n = json_object_is_type(migrations, json_type_array)
	                   ? json_object_array_length(migrations)
	                   : 0;

	printf("%-24s %-12s %-10s %10s %8s  %s\n", "ID", "ROLE", "STATE", "MEMORY", "PRESENT",
	       "REASON");
	for (size_t i = 0; i < n; i++) {
		struct json_object *m = json_object_array_get_idx(migrations, i);
		uint64_t present, total, memory;
		char share[16] = "-";

		if (json_count(m, "pages_present", &present) &&
		    json_count(m, "pages_total", &total) && total)
			snprintf(share, sizeof share, "%.1f %%",
			         100.0 * (double)present / (double)total);
		printf("%-24s %-12s %-10s %10s %8s  %s\n", json_string_or(m, "id", "?"),
		       json_string_or(m, "role", "?"), json_string_or(m, "state", "?"),
		       json_count(m, "memory_bytes", &memory) ? text_bytes((double)memory).s : "-",
		       share, json_string_or(m, "reason", ""));
	}
}

static int call_list(struct client *c, const void *arg, struct json_object **ret, struct error *err)
{
	return client_list(c, *(const uint32_t *)arg, ret, err);
}

static int list_run(const struct ctl_common *common, const char *operand, const void *args)
{
	const struct list_args *a = args;
	_cleanup_json_ struct json_object *result = NULL;
	struct error err = ERROR_INIT;
	uint32_t states = 0;
	int code;

	(void)operand;
	if (a->states && parse_states(a->states, &states, &err) < 0)
		return command_misused(&list_command, err.text);
	code = command_call(&list_command, common, call_list, &states, &result);
	if (code)
		return code;
	if (common->json)
		json_print(result);
	else
		list_print(json_find(result, "migrations"));
	return CTL_OK;
}

const struct command list_command = {
	.name = "list",
	.summary = "List the migrations that the daemon knows.",
	.options = list_options,
	.n_options = 1,
	.defaults = &list_defaults,
	.args_size = sizeof list_defaults,
	.json = true,
	.run = list_run,
};

/* missing */

static int call_missing(struct client *c, const void *id, struct json_object **ret,
                        struct error *err)
{
	return client_list_missing(c, id, ret, err);
}

static void missing_print(struct json_object *missing)
{
	struct json_object *ranges = json_find(missing, "ranges");
	size_t n = json_object_array_length(ranges);

	if (n)
		printf("%6s  %18s  %16s\n", "REGION", "GUEST ADDRESS", "BYTES");
	for (size_t i = 0; i < n; i++) {
		struct json_object *r = json_object_array_get_idx(ranges, i);

		printf("%6" PRIu64 "  %#18" PRIx64 "  %16s\n", json_count_or(r, "region", 0),
		       json_count_or(r, "guest_phys_addr", 0),
		       text_count(json_count_or(r, "size_bytes", 0)).s);
	}
	printf("%" PRIu64 " bytes are missing\n", json_count_or(missing, "missing_bytes", 0));
}

static int missing_run(const struct ctl_common *common, const char *id, const void *args)
{
	_cleanup_json_ struct json_object *missing = NULL;
	int code = command_call(&missing_command, common, call_missing, id, &missing);

	(void)args;
	if (code)
		return code;
	if (common->json)
		json_print(missing);
	else
		missing_print(missing);
	return CTL_OK;
}

const struct command missing_command = {
	.name = "missing",
	.operand = "ID",
	.summary = "Destination: the ranges of guest memory that have not arrived.",
	.json = true,
	.run = missing_run,
};

/* poison */

struct poison_args {
	uint64_t confirm;
};

struct poison_call {
	const char *id;
	uint64_t confirm;
};

static const struct poison_args poison_defaults = { .confirm = 0 };

static const struct option_spec poison_options[] = {
	{ "confirm", OPTION_UINT, offsetof(struct poison_args, confirm), "BYTES",
	  "how many bytes are given up: what \"missing\" says", 1, INT64_MAX },
};

static int call_poison(struct client *c, const void *arg, struct json_object **ret,
                       struct error *err)
{
	const struct poison_call *poison = arg;

	return client_poison(c, poison->id, poison->confirm, ret, err);
}

static int poison_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct poison_args *a = args;
	const struct poison_call poison = { id, a->confirm };

	if (!a->confirm)
		return command_misused(&poison_command,
		                       "--confirm BYTES is missing: what \"missing\" says");
	return command_call_and_print(&poison_command, common, call_poison, &poison);
}

const struct command poison_command = {
	.name = "poison",
	.operand = "ID",
	.summary = "Destination, source gone for good: missing memory becomes machine checks.",
	.details = "The guest gets a machine check where it touches what is missing, instead of\n"
	           "waiting for ever. There is no way back; the migration ends as failed.",
	.options = poison_options,
	.n_options = 1,
	.defaults = &poison_defaults,
	.args_size = sizeof poison_defaults,
	.json = true,
	.run = poison_run,
};

/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/commands.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "ctl/client.h"
#include "ctl/json.h"
#include "ctl/report_html.h"
#include "ctl/units.h"

#define TOKEN_BYTES 32
#define TOKEN_HEX (2 * TOKEN_BYTES)

int command_failed(const struct command *cmd, const struct error *err)
{
	fprintf(stderr, "postcopyctl %s: %s\n", cmd->name, err->text);
	return CTL_FAILED;
}

static int command_misused(const struct command *cmd, const char *what)
{
	fprintf(stderr, "postcopyctl %s: %s (see postcopyctl %s --help)\n", cmd->name, what,
	        cmd->name);
	return CTL_USAGE;
}

static int call_once(const struct ctl_common *common, const char *method,
                     struct json_object *params, struct json_object **ret, struct error *err)
{
	struct client *c;
	int r = client_new(common->control, -1, &c, err);

	if (r < 0)
		return r;
	r = client_call(c, method, params, ret, err);
	client_free(c);
	return r;
}

static void print_answer(const struct ctl_common *common, struct json_object *migration)
{
	if (common->json)
		json_print(migration);
	else
		migration_print(migration);
}

/* The commands that are one call about one migration and print it. */
static int call_and_print(const struct command *cmd, const struct ctl_common *common,
                          const char *method, struct json_object *params)
{
	_cleanup_json_ struct json_object *migration = NULL;
	struct error err = ERROR_INIT;

	if (call_once(common, method, params, &migration, &err) < 0)
		return command_failed(cmd, &err);
	print_answer(common, migration);
	return CTL_OK;
}

static struct json_object *params_new(const char *id)
{
	struct json_object *params = json_object_new_object();

	json_set_string(params, "id", id);
	return params;
}

/* prepare */

struct prepare_args {
	const char *role;
	const char *token;
	const char *token_file;
	const char *source;
	const char *map;
	uint64_t streams;
	bool bulk;
	bool prefetch;
};

#define PREPARE(field) offsetof(struct prepare_args, field)

static const struct prepare_args prepare_defaults = { .bulk = true, .prefetch = true };

static const struct option_spec prepare_options[] = {
	{ "role", OPTION_CHOICE, PREPARE(role), "source|destination",
	  "which side of the migration this daemon is", .choices = { "source", "destination" } },
	{ "token-file", OPTION_STRING, PREPARE(token_file), "FILE",
	  "the migration's token, 64 hex digits, read from FILE" },
	{ "token", OPTION_STRING, PREPARE(token), "HEX",
	  "the token itself (other users may see it in the list of processes)" },
	{ "source", OPTION_STRING, PREPARE(source), "HOST:PORT",
	  "destination: where the source's daemon listens" },
	{ "streams", OPTION_UINT, PREPARE(streams), "N",
	  "destination: bulk connections, 1 to 16 (4, or the number of\nCPUs where that is less)",
	  1, 16 },
	{ "map", OPTION_CHOICE, PREPARE(map), "auto|eager|lazy",
	  "destination: map pages into the guest ahead of its touch (auto)",
	  .choices = { "auto", "eager", "lazy" } },
	{ "no-bulk", OPTION_NO, PREPARE(bulk), NULL,
	  "destination: move pages on demand only, until \"limits\"" },
	{ "no-prefetch", OPTION_NO, PREPARE(prefetch), NULL,
	  "destination: don't fetch the neighbours of faults first" },
};

/* @text may end in white space, as a file does. @ret: TOKEN_HEX + 1 bytes. */
static int token_check(const char *text, const char *from, char *ret, struct error *err)
{
	size_t len = strspn(text, "0123456789abcdefABCDEF");

	if (len != TOKEN_HEX || text[len + strspn(text + len, " \r\n")])
		return error_set(err, -EINVAL, "%s is not a token: it takes %d hex digits", from,
		                 TOKEN_HEX);
	memcpy(ret, text, TOKEN_HEX);
	ret[TOKEN_HEX] = 0;
	return 0;
}

static int token_read(const char *path, char *ret, struct error *err)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char text[TOKEN_HEX + 16] = "";
	char from[128];

	if (!f)
		return error_errno(err, -errno, "token file \"%s\"", path);
	if (!fgets(text, sizeof text, f))
		return error_set(err, -EINVAL, "token file \"%s\" is empty", path);
	snprintf(from, sizeof from, "what token file \"%.80s\" holds", path);
	return token_check(text, from, ret, err);
}

static int token_make(char *ret, struct error *err)
{
	uint8_t bytes[TOKEN_BYTES];

	if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
		return error_errno(err, -errno, "random bytes for a token");
	for (size_t i = 0; i < sizeof bytes; i++)
		snprintf(ret + 2 * i, 3, "%02x", bytes[i]);
	return 0;
}

static int token_get(const struct prepare_args *a, char *ret, struct error *err)
{
	if (a->token)
		return token_check(a->token, "what --token gives", ret, err);
	if (a->token_file)
		return token_read(a->token_file, ret, err);
	return token_make(ret, err);
}

static const char *prepare_mistake(const struct prepare_args *a)
{
	if (!a->role)
		return "--role is missing: source or destination";
	if (a->token && a->token_file)
		return "--token and --token-file exclude each other";
	if (!strcmp(a->role, "destination")) {
		if (!a->source)
			return "--source is missing: where the source's daemon listens";
		if (!a->token && !a->token_file)
			return "a destination needs the token that the source's prepare printed: "
			       "--token-file";
		return NULL;
	}
	if (a->source || a->streams || a->map || !a->bulk || !a->prefetch)
		return "--source, --streams, --map, --no-bulk and --no-prefetch are the "
		       "destination's";
	return NULL;
}

static int prepare_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct prepare_args *a = args;
	_cleanup_json_ struct json_object *params = params_new(id);
	_cleanup_json_ struct json_object *migration = NULL;
	const char *mistake = prepare_mistake(a);
	struct error err = ERROR_INIT;
	char token[TOKEN_HEX + 1];

	if (mistake)
		return command_misused(&prepare_command, mistake);
	if (token_get(a, token, &err) < 0)
		return command_failed(&prepare_command, &err);
	json_set_string(params, "role", a->role);
	json_set_string(params, "token", token);
	if (!strcmp(a->role, "destination")) {
		json_set_string(params, "source", a->source);
		if (a->streams)
			json_set_count(params, "streams", a->streams);
		if (a->map)
			json_set_string(params, "map", a->map);
		json_set_bool(params, "bulk", a->bulk);
		json_set_bool(params, "prefetch", a->prefetch);
	}
	if (call_once(common, "Prepare", params, &migration, &err) < 0)
		return command_failed(&prepare_command, &err);
	/* Only a token that we made needs telling. */
	if (!a->token && !a->token_file)
		json_set_string(migration, "token", token);
	print_answer(common, migration);
	return CTL_OK;
}

const struct command prepare_command = {
	.name = "prepare",
	.operand = "ID",
	.summary = "Make a migration known to one side's daemon, before its VMM attaches.",
	.details = "The source without a token makes one and prints it: the destination's prepare\n"
	           "needs the same.",
	.options = prepare_options,
	.n_options = sizeof prepare_options / sizeof *prepare_options,
	.defaults = &prepare_defaults,
	.args_size = sizeof prepare_defaults,
	.json = true,
	.run = prepare_run,
};

/* start */

struct start_args {
	bool switchover;
};

static const struct start_args start_defaults = { .switchover = true };

static const struct option_spec start_options[] = {
	{ "no-switchover", OPTION_NO, offsetof(struct start_args, switchover), NULL,
	  "connect only; \"switchover\" goes on" },
};

static int start_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct start_args *a = args;
	_cleanup_json_ struct json_object *params = params_new(id);

	json_set_bool(params, "switchover", a->switchover);
	return call_and_print(&start_command, common, "Start", params);
}

const struct command start_command = {
	.name = "start",
	.operand = "ID",
	.summary =
	        "Destination: connect to the source, then pause the guest there and run it here.",
	.options = start_options,
	.n_options = 1,
	.defaults = &start_defaults,
	.args_size = sizeof start_defaults,
	.json = true,
	.run = start_run,
};

/* switchover, status, cancel: the id and nothing else */

static int switchover_run(const struct ctl_common *common, const char *id, const void *args)
{
	_cleanup_json_ struct json_object *params = params_new(id);

	(void)args;
	return call_and_print(&switchover_command, common, "Switchover", params);
}

const struct command switchover_command = {
	.name = "switchover",
	.operand = "ID",
	.summary =
	        "Destination: pause the guest on the source and run it here. There is no way back.",
	.json = true,
	.run = switchover_run,
};

static int status_run(const struct ctl_common *common, const char *id, const void *args)
{
	_cleanup_json_ struct json_object *params = params_new(id);

	(void)args;
	return call_and_print(&status_command, common, "Get", params);
}

const struct command status_command = {
	.name = "status",
	.operand = "ID",
	.summary = "Print one migration's state and measurements.",
	.json = true,
	.run = status_run,
};

static int cancel_run(const struct ctl_common *common, const char *id, const void *args)
{
	_cleanup_json_ struct json_object *params = params_new(id);

	(void)args;
	return call_and_print(&cancel_command, common, "Cancel", params);
}

const struct command cancel_command = {
	.name = "cancel",
	.operand = "ID",
	.summary =
	        "Give a migration up. Possible until switchover; the guest runs on at the source.",
	.json = true,
	.run = cancel_run,
};

/* list */

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

static int list_run(const struct ctl_common *common, const char *operand, const void *args)
{
	_cleanup_json_ struct json_object *result = NULL;
	struct error err = ERROR_INIT;

	(void)operand;
	(void)args;
	if (call_once(common, "List", NULL, &result, &err) < 0)
		return command_failed(&list_command, &err);
	if (common->json)
		json_print(result);
	else
		list_print(json_find(result, "migrations"));
	return CTL_OK;
}

const struct command list_command = {
	.name = "list",
	.summary = "List the migrations that the daemon knows.",
	.json = true,
	.run = list_run,
};

/* limits */

struct limits_args {
	enum option_switch bulk;
	enum option_switch prefetch;
};

static const struct limits_args limits_defaults = { .bulk = SWITCH_UNSET };

static const struct option_spec limits_options[] = {
	{ "bulk", OPTION_ON_OFF, offsetof(struct limits_args, bulk), "on|off",
	  "fetch pages ahead of the guest" },
	{ "prefetch", OPTION_ON_OFF, offsetof(struct limits_args, prefetch), "on|off",
	  "fetch the neighbours of faults first" },
};

static int limits_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct limits_args *a = args;
	_cleanup_json_ struct json_object *params = params_new(id);

	if (!a->bulk && !a->prefetch)
		return command_misused(&limits_command, "nothing to change: --bulk or --prefetch");
	if (a->bulk)
		json_set_bool(params, "bulk", a->bulk == SWITCH_ON);
	if (a->prefetch)
		json_set_bool(params, "prefetch", a->prefetch == SWITCH_ON);
	return call_and_print(&limits_command, common, "SetLimits", params);
}

const struct command limits_command = {
	.name = "limits",
	.operand = "ID",
	.summary = "Destination: change what a running migration may do.",
	.options = limits_options,
	.n_options = 2,
	.defaults = &limits_defaults,
	.args_size = sizeof limits_defaults,
	.json = true,
	.run = limits_run,
};

/* report */

struct report_args {
	const char *html;
};

static const struct report_args report_defaults = { .html = NULL };

static const struct option_spec report_options[] = {
	{ "html", OPTION_STRING, offsetof(struct report_args, html), "FILE",
	  "write a page with the timeline and the histogram to FILE" },
};

static int report_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct report_args *a = args;
	_cleanup_json_ struct json_object *params = params_new(id);
	_cleanup_json_ struct json_object *report = NULL;
	struct error err = ERROR_INIT;

	if (!a->html && !common->json)
		return command_misused(&report_command, "--html FILE or --json is missing");
	if (call_once(common, "Report", params, &report, &err) < 0)
		return command_failed(&report_command, &err);
	if (a->html && report_html_save(a->html, report, &err) < 0)
		return command_failed(&report_command, &err);
	if (common->json)
		json_print(report);
	return CTL_OK;
}

const struct command report_command = {
	.name = "report",
	.operand = "ID",
	.summary = "Destination: all that was measured in one migration, as a page or as JSON.",
	.options = report_options,
	.n_options = 1,
	.defaults = &report_defaults,
	.args_size = sizeof report_defaults,
	.json = true,
	.run = report_run,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* The command that has a daemon's report of one migration, as JSON or as a page. */
#include "bench/commands.h"
#include "bench/report_html.h"
#include "ctl/client.h"
#include "ctl/commands.h"
#include "ctl/json.h"

struct report_args {
	const char *html;
	const char *role;
};

/* Whose report is asked for. */
struct report_call {
	const char *id, *role;
};

static const struct report_args report_defaults = { .html = NULL };

static const struct option_spec report_options[] = {
	{ "html", OPTION_STRING, offsetof(struct report_args, html), "FILE",
	  "write a page with the timeline and the histogram to FILE" },
	OPTION_ROLE(struct report_args, role),
};

static int call_report(struct client *c, const void *arg, struct json_object **ret,
                       struct error *err)
{
	const struct report_call *call = arg;

	return client_get_report(c, call->id, call->role, ret, err);
}

static int report_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct report_args *a = args;
	const struct report_call call = { id, a->role };
	_cleanup_json_ struct json_object *report = NULL;
	struct error err = ERROR_INIT;
	int code;

	if (!a->html && !common->json)
		return command_misused(&report_command, "--html FILE or --json is missing");
	code = command_call(&report_command, common, call_report, &call, &report);
	if (code)
		return code;
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
	.n_options = sizeof report_options / sizeof *report_options,
	.defaults = &report_defaults,
	.args_size = sizeof report_defaults,
	.json = true,
	.run = report_run,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* info: which daemon this is, and whether it runs with what is configured. */
#include <stdio.h>
#include <string.h>

#include "ctl/client.h"
#include "ctl/commands.h"
#include "ctl/json.h"
#include "ctl/units.h"

static int call_info(struct client *c, const void *arg, struct json_object **ret, struct error *err)
{
	(void)arg;
	return client_get_info(c, ret, err);
}

static void print_text(struct json_object *info, const char *title, const char *path)
{
	const char *text = json_string_or(info, path, "");

	if (*text)
		printf("%-20s %s\n", title, text);
}

/* One a line; an older daemon may have no such list. */
static void print_list(struct json_object *info, const char *title, const char *path)
{
	struct json_object *list = json_find(info, path);
	size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;

	for (size_t i = 0; i < n; i++)
		printf("%-20s %s\n", i ? "" : title,
		       json_object_get_string(json_object_array_get_idx(list, i)));
}

static void print_count(struct json_object *budget, const char *title, const char *count,
                        const char *most)
{
	unsigned long long max = json_count_or(budget, most, 0);

	printf("%-20s %llu", title, (unsigned long long)json_count_or(budget, count, 0));
	if (max)
		printf(" of %llu", max);
	printf("\n");
}

static unsigned long long mib(struct json_object *o, const char *path)
{
	return json_count_or(o, path, 0) >> 20;
}

/* An older daemon has none. */
static void print_bandwidth(struct json_object *b, const char *title)
{
	uint64_t limit;

	if (!b)
		return;
	limit = json_count_or(b, "limit_bytes_per_s", 0);
	printf("%-20s %s/s by bulk", title,
	       text_bytes((double)json_count_or(b, "bulk_bytes_per_s", 0)).s);
	printf(", %s/s by faults", text_bytes((double)json_count_or(b, "fault_bytes_per_s", 0)).s);
	if (limit)
		printf(", of %s/s", text_bytes((double)limit).s);
	printf("\n");
}

void budget_print(struct json_object *budget)
{
	struct json_object *pools = json_find(budget, "huge_pages");
	size_t n = pools ? json_object_array_length(pools) : 0;

	printf("%-20s %llu MiB free, %llu MiB of it promised%s\n", "memory",
	       mib(budget, "memory_available_bytes"), mib(budget, "memory_promised_bytes"),
	       json_object_get_boolean(json_find(budget, "memory_check")) ? "" : " (not checked)");
	for (size_t i = 0; i < n; i++) {
		struct json_object *pool = json_object_array_get_idx(pools, i);

		printf("%-20s %llu MiB free, %llu MiB of it promised (pages of %llu KiB)\n",
		       i ? "" : "huge pages", mib(pool, "free_bytes"), mib(pool, "promised_bytes"),
		       (unsigned long long)json_count_or(pool, "page_bytes", 0) >> 10);
	}
	print_bandwidth(json_find(budget, "bandwidth_in"), "bandwidth in");
	print_bandwidth(json_find(budget, "bandwidth_out"), "bandwidth out");
	print_count(budget, "coming in", "incoming", "max_incoming");
	if (json_count_or(budget, "held", 0))
		printf("%-20s %llu, until Switchover\n", "of these held",
		       (unsigned long long)json_count_or(budget, "held", 0));
	if (json_count_or(budget, "queued", 0))
		printf("%-20s %llu\n", "waiting to come in",
		       (unsigned long long)json_count_or(budget, "queued", 0));
	print_count(budget, "leaving", "outgoing", "max_outgoing");
	print_count(budget, "descriptors", "descriptors", "max_descriptors");
}

static void print_protocols(struct json_object *p)
{
	printf("%-20s page stream %llu, record %llu, VMM protocol %llu\n", "speaks",
	       (unsigned long long)json_count_or(p, "page_stream", 0),
	       (unsigned long long)json_count_or(p, "record", 0),
	       (unsigned long long)json_count_or(p, "vmm", 0));
}

static void print_info(struct json_object *info)
{
	const char *pages = json_string_or(info, "pages_address", "");
	const char *error = json_string_or(info, "last_reload.error", "");

	print_text(info, "version", "version");
	/* An older daemon does not say. */
	if (json_find(info, "protocols"))
		print_protocols(json_find(info, "protocols"));
	print_text(info, "host", "hostname");
	print_text(info, "kernel", "kernel");
	printf("%-20s %s\n", "page streams", *pages ? pages : "none: it can be no source");
	print_list(info, "  listens at", "pages_addresses");
	print_list(info, "gRPC at", "control_addresses");
	print_text(info, "since", "start_time");
	printf("%-20s %llu%s\n", "migrations",
	       (unsigned long long)json_count_or(info, "migrations_active", 0),
	       json_object_get_boolean(json_find(info, "draining")) ? ", and takes no new ones"
	                                                            : "");
	if (json_count_or(info, "records_left", 0))
		printf("%-20s %llu that this postcopyd can't read, and whose guests wait: restart "
		       "into the one that wrote them, do not stop\n",
		       "records left", (unsigned long long)json_count_or(info, "records_left", 0));
	if (json_find(info, "budget"))
		budget_print(json_find(info, "budget"));
	print_text(info, "certificate until", "certificate_expiry");
	if (json_find(info, "last_reload"))
		printf("%-20s %s: %s\n", "last reload",
		       json_string_or(info, "last_reload.time", "?"), *error ? error : "ok");
	print_list(info, "needs a restart", "needs_restart");
	print_text(info, "older configuration", "config_error");
}

static int info_run(const struct ctl_common *common, const char *operand, const void *args)
{
	_cleanup_json_ struct json_object *info = NULL;
	int code = command_call(&info_command, common, call_info, NULL, &info);

	(void)operand;
	(void)args;
	if (code)
		return code;
	if (common->json)
		json_print(info);
	else
		print_info(info);
	return CTL_OK;
}

const struct command info_command = {
	.name = "info",
	.summary = "Which daemon this is, and whether it runs with what is configured.",
	.json = true,
	.run = info_run,
};

/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/commands.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/json.h"
#include "ctl/progress.h"
#include "util/clock.h"

#define WATCH_INTERVAL_MS 200
#define WATCH_BAR_WIDTH 30

struct watch {
	bool json;
	bool terminal;
	struct progress progress;
	struct json_object *last; /* not on a terminal: the update that was printed last */
};

static void watch_print(struct watch *w, struct json_object *migration)
{
	char line[512];

	if (w->json) {
		puts(json_object_to_json_string_ext(migration, JSON_C_TO_STRING_PLAIN));
	} else {
		progress_format(&w->progress, migration, w->terminal ? WATCH_BAR_WIDTH : 0, line,
		                sizeof line);
		/* "\033[K" clears what a longer line left behind. */
		printf(w->terminal ? "\r%s\033[K" : "%s\n", line);
	}
	fflush(stdout);
}

static int watch_update(struct json_object *migration, void *userdata, struct error *err)
{
	struct watch *w = userdata;

	(void)err;
	progress_update(&w->progress, migration, clock_now_ns());
	if (!w->terminal || w->json) {
		if (w->last && json_object_equal(w->last, migration))
			return 0;
		json_object_put(w->last);
		w->last = json_object_get(migration);
	}
	watch_print(w, migration);
	return 0;
}

static int watch_run(const struct ctl_common *common, const char *id, const void *args)
{
	struct watch w = { .json = common->json, .terminal = isatty(STDOUT_FILENO) };
	_cleanup_json_ struct json_object *last = NULL;
	struct error err = ERROR_INIT;
	struct client *c;
	int r = client_new(common->control, -1, &c, &err);

	(void)args;
	if (r < 0)
		return command_failed(&watch_command, &err);
	r = client_watch(c, id, WATCH_INTERVAL_MS, watch_update, &w, &last, &err);
	client_free(c);
	if (!r)
		watch_update(last, &w, &err);
	if (w.terminal && !w.json && w.progress.last_ns)
		putchar('\n');
	json_object_put(w.last);
	if (r < 0)
		return command_failed(&watch_command, &err);
	return !strcmp(json_string_or(last, "state", ""), "complete") ? CTL_OK : CTL_FAILED;
}

const struct command watch_command = {
	.name = "watch",
	.operand = "ID",
	.summary = "Follow a migration to its end; status 0 where it completes, 1 where it fails.",
	.json = true,
	.run = watch_run,
};

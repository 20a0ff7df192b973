/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/interrupt.h"
#include "ctl/json.h"
#include "ctl/progress.h"
#include "ctl/units.h"
#include "ctl/watch.h"
#include "util/clock.h"

struct watch_args {
	uint64_t interval_ms;
	const char *role;
};

struct watch {
	bool json;
	bool terminal;
	bool begun; /* a line on the terminal is to be ended */
	struct progress progress;
	struct json_object *last; /* not on a terminal: the update that was printed last */
};

static const struct watch_args watch_defaults = { .interval_ms = WATCH_INTERVAL_MS };

static const struct option_spec watch_options[] = {
	{ "interval", OPTION_UINT, offsetof(struct watch_args, interval_ms), "MS",
	  "how often it is told between changes of state (200)", 50, 3600000 },
	OPTION_ROLE(struct watch_args, role),
};

static unsigned int terminal_columns(void)
{
	struct winsize size;

	return !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col ? size.ws_col : 80;
}

/* One line, as wide as the terminal is at the moment: one that wraps could not be written over. */
static void print_line(struct watch *w, struct json_object *migration)
{
	unsigned int columns = w->terminal ? terminal_columns() : 0;
	char line[2048];

	/* The last column makes some terminals wrap. */
	progress_format(&w->progress, migration, columns > 1 ? columns - 1 : columns, line,
	                sizeof line);
	if (!w->terminal) {
		puts(line);
		return;
	}
	/* "\033[K" clears what a longer line left behind. */
	printf("\r%s\033[K", line);
	w->begun = true;
}

struct watch *watch_new(bool json)
{
	struct watch *w = calloc(1, sizeof *w);

	if (!w)
		return NULL;
	w->json = json;
	w->terminal = isatty(STDOUT_FILENO);
	return w;
}

void watch_free(struct watch *w)
{
	if (!w)
		return;
	if (w->begun)
		putchar('\n');
	json_object_put(w->last);
	free(w);
}

int watch_update(struct json_object *migration, void *userdata, struct error *err)
{
	struct watch *w = userdata;

	if (!w)
		return 0;
	progress_update(&w->progress, migration, clock_now_ns());
	if (!w->terminal || w->json) {
		if (w->last && json_object_equal(w->last, migration))
			return 0;
		json_object_put(w->last);
		w->last = json_object_get(migration);
	}
	if (w->json)
		puts(json_object_to_json_string_ext(migration, JSON_C_TO_STRING_PLAIN));
	else
		print_line(w, migration);
	/* Not the daemon's connection is lost: ours to who reads. */
	return fflush(stdout) == EOF ? error_set(err, -EIO, "stdout: %s", strerror(errno)) : 0;
}

static int watch_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct watch_args *a = args;
	_cleanup_json_ struct json_object *last = NULL;
	struct error err = ERROR_INIT;
	_cleanup_close_ int cancel_fd = interrupt_fd(&err);
	struct watch *w;
	struct client *c;
	int code, r;

	if (cancel_fd < 0)
		return command_failed(&watch_command, &err);
	code = command_connect(&watch_command, common, cancel_fd, &c);
	if (code)
		return code;
	w = watch_new(common->json);
	r = client_watch(c, id, a->role, (unsigned int)a->interval_ms, watch_update, w, &last,
	                 &err);
	watch_free(w);
	if (r < 0)
		code = command_refused(&watch_command, common, c, &err);
	else if (strcmp(json_string_or(last, "state", ""), "complete"))
		code = CTL_FAILED;
	client_free(c);
	return code;
}

const struct command watch_command = {
	.name = "watch",
	.operand = "ID",
	.summary = "Follow a migration to its end; status 0 where it completes, 1 where it fails.",
	.details =
	        "\"source off in\": until every page is here and the source may be switched off.\n"
	        "In brackets, what keeps it from being faster: the network (or the source), the "
	        "cap\n"
	        "(limits), CPU here, or that bulk is off.\n"
	        "While memory is copied before the switchover: its round, what the guest writes a\n"
	        "second, and in what time all that is missing would be here.\n"
	        "Ctrl-C ends the watch, and not the migration.",
	.options = watch_options,
	.n_options = sizeof watch_options / sizeof *watch_options,
	.defaults = &watch_defaults,
	.args_size = sizeof watch_defaults,
	.json = true,
	.run = watch_run,
};

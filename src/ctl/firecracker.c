/* SPDX-License-Identifier: Apache-2.0 */
/*
 * firecracker: a whole migration of a Firecracker's guest, on the source's host.
 *
 * What each Firecracker is told (pause, create, load, resume) its adapter tells it, when the
 * daemons say so. This has both adapters started as services, here and, by ssh, at the destination,
 * once both halves are prepared; all else is move.h. So it keeps nothing, either: killed at any
 * step, and given again, it asks the daemons where it stood, and a service that runs is left to
 * run.
 *
 * It says where the guest is when it fails. The source's daemon decides that: it takes a cancel
 * only as long as nobody else has the guest's state, and then the guest is there. That is asked for
 * only of what this run has prepared or had attached: the guest may be on its way elsewhere.
 */
#include "ctl/commands.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "ctl/hook.h"
#include "ctl/json.h"
#include "ctl/move_command.h"
#include "util/cleanup.h"
#include "util/clock.h"

#define SSH "ssh -o BatchMode=yes"
#define COMMAND_MAX 4096
#define HOST_MAX 256
/* For the destination's daemon to tell the source's that it gives the guest back. */
#define SETTLE_MS 40000
#define LOOK_MS 100
/* For a Firecracker whose guest has gone to be killed. */
#define GONE_MS 3000

struct firecracker_args {
	struct move_args move;
	const char *api, *dir;
	const char *to_api, *to_dir;
	const char *host;
	const char *rsh;
	const char *exec;
};

#define FIRECRACKER(field) offsetof(struct firecracker_args, field)

static const struct firecracker_args firecracker_defaults = { .move = MOVE_ARGS_DEFAULTS,
	                                                      .rsh = SSH };

static const struct option_spec firecracker_options[] = {
	{ "api", OPTION_STRING, FIRECRACKER(api), "PATH", "Firecracker's API socket here" },
	{ "dir", OPTION_STRING, FIRECRACKER(dir), "PATH",
	  "a directory of a tmpfs, as Firecracker sees it, with room for the\nguest's memory" },
	{ "to-api", OPTION_STRING, FIRECRACKER(to_api), "PATH",
	  "the same at the destination (as here)" },
	{ "to-dir", OPTION_STRING, FIRECRACKER(to_dir), "PATH", "likewise" },
	{ "host", OPTION_STRING, FIRECRACKER(host), "HOST",
	  "the destination's host, as ssh takes it (that of --to; where that is a\nsocket: here)" },
	{ "rsh", OPTION_STRING, FIRECRACKER(rsh), "COMMAND",
	  "what runs a command at HOST (" SSH ")" },
	{ "exec", OPTION_STRING, FIRECRACKER(exec), "COMMAND",
	  "run here before: has a Firecracker started there, by the\nenvironment's POSTCOPY_ID, "
	  "_FROM and _TO" },
	MOVE_OPTIONS(FIRECRACKER(move)),
};

/* A word that a shell reads as it is. */
static bool is_plain(const char *word)
{
	if (!*word || *word == '-')
		return false;
	for (; *word; word++)
		if (!isalnum((unsigned char)*word) && !strchr("/._-+,=@:", *word))
			return false;
	return true;
}

static bool is_plain_path(const char *path)
{
	return *path == '/' && is_plain(path);
}

/* Of "host:port" or "[host]:port"; empty: a socket of this host. */
static void host_of(const char *control, char ret[HOST_MAX])
{
	const char *colon = strrchr(control, ':'), *from = control;
	size_t len;

	*ret = 0;
	if (*control == '/' || !strncmp(control, "unix:", 5) || !colon)
		return;
	len = (size_t)(colon - control);
	if (*control == '[' && len > 2) {
		from++;
		len -= 2;
	}
	snprintf(ret, HOST_MAX, "%.*s", (int)len, from);
}

static void host_of_destination(const struct firecracker_args *a, const char *control,
                                char ret[HOST_MAX])
{
	if (a->host)
		snprintf(ret, HOST_MAX, "%s", a->host);
	else
		host_of(control, ret);
}

/* @rsh, @host: what runs it there; empty: here */
static int start_adapter(const struct move *m, const char *role, const char *api, const char *dir,
                         const char *rsh, const char *host, struct error *err)
{
	const char *none[] = { NULL };
	char command[COMMAND_MAX];
	int n = snprintf(
	        command, sizeof command,
	        "%s %s postcopy-firecracker %s --unit --id %s --api %s --dir %s </dev/null", rsh,
	        host, role, m->id, api, dir);

	if (n >= (int)sizeof command)
		return error_set(err, -ENAMETOOLONG, "the options are too long");
	return hook_run(command, none, (int)m->attach_timeout_s * 1000, m->cancel_fd, err);
}

static int run_exec(const struct move *m, const char *command, struct error *err)
{
	char id[80], from[400], to[400];
	const char *environment[] = { id, from, to, NULL };

	snprintf(id, sizeof id, "POSTCOPY_ID=%s", m->id);
	snprintf(from, sizeof from, "POSTCOPY_FROM=%s", m->source.control);
	snprintf(to, sizeof to, "POSTCOPY_TO=%s", m->destination.control);
	return hook_run(command, environment, (int)m->attach_timeout_s * 1000, m->cancel_fd, err);
}

/* Again and again: the adapter of a move before may be at its end still, and was left to it. */
static int start_absent(const struct move *m, const struct move_side *absent, bool first,
                        void *userdata, struct error *err)
{
	const struct firecracker_args *a = userdata;
	char host[HOST_MAX];
	int rc = 0;

	if (absent == &m->source)
		return start_adapter(m, "source", a->api, a->dir, "", "", err);
	host_of_destination(a, m->destination.control, host);
	if (first && a->exec)
		rc = run_exec(m, a->exec, err);
	return rc ? rc
	          : start_adapter(m, "destination", a->to_api ? a->to_api : a->api,
	                          a->to_dir ? a->to_dir : a->dir, *host ? a->rsh : "", host, err);
}

static void say(const char *text)
{
	fprintf(stderr, "postcopyctl firecracker: %s\n", text);
}

static bool is_any(const char *state, const char *const *states)
{
	for (; *states; states++)
		if (!strcmp(state, *states))
			return true;
	return false;
}

/*
 * Whether a destination's half is beyond its start, and has not ended: somebody else's, too. One
 * whose daemon does not answer may be: it was heard, or goes on when it is back.
 */
static bool is_under_way(const struct move *m)
{
	static const char *const states[] = { "warming", "switching", "postcopy", "paused", NULL };
	_cleanup_json_ struct json_object *there = NULL;
	int rc = client_get(m->destination.client, m->id, "destination", &there, NULL);

	return rc ? rc != -ENOENT : is_any(json_string_or(there, "state", ""), states);
}

/* Return: 0 where a Firecracker listens there; -ECONNREFUSED: one did, and has ended; -errno. */
static int try_api(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return -errno;
	if (strlen(path) >= sizeof addr.sun_path)
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	return connect(sock, (struct sockaddr *)&addr, sizeof addr) ? -errno : 0;
}

/*
 * One that was interrupted may be complete by now: its Firecracker here is gone then, or is killed
 * at this moment. One that stays is another guest of that id. Where that can't be told the path may
 * be another's: what is complete is then not this guest's.
 */
static int find_done(const struct move *m, void *userdata, struct json_object **ret,
                     struct error *err)
{
	const struct firecracker_args *a = userdata;
	uint64_t until_ns = clock_now_ns() + GONE_MS * NSEC_PER_MSEC;
	_cleanup_json_ struct json_object *there = NULL;
	int rc;

	if (!move_has_completed(m, &m->source, NULL) ||
	    !move_has_completed(m, &m->destination, &there))
		return 0;
	while (!(rc = try_api(a->api))) {
		struct pollfd pfd = { .fd = m->cancel_fd, .events = POLLIN };

		if (clock_now_ns() >= until_ns || poll(&pfd, 1, LOOK_MS))
			return 0;
	}
	if (rc != -ECONNREFUSED)
		return error_errno(
		        err, rc,
		        "nothing is begun: the last migration of \"%s\" is complete, and "
		        "whether its Firecracker was that of --api %s can't be told",
		        m->id, a->api);
	*ret = steal_ptr(&there);
	return 0;
}

/*
 * settle_source() - until the source's half has ended: by our cancel, or by its destination's word
 * @ret_attached: whether it had a guest
 *
 * Return: whether it has ended: it does not let go of its guest then.
 */
static bool settle_source(const struct move *m, bool *ret_attached)
{
	static const char *const ended[] = { "complete", "failed", "cancelled", NULL };
	uint64_t until_ns = clock_now_ns() + SETTLE_MS * NSEC_PER_MSEC;

	for (;;) {
		_cleanup_json_ struct json_object *here = NULL;
		struct pollfd pfd = { .fd = m->cancel_fd, .events = POLLIN };
		int rc;

		if (m->is_own)
			(void)client_cancel(m->source.client, m->id, "source", NULL, NULL);
		rc = client_get(m->source.client, m->id, "source", &here, NULL);
		*ret_attached = json_number_or(here, "memory_bytes", 0) > 0;
		if (rc == -ENOENT || (!rc && is_any(json_string_or(here, "state", ""), ended)))
			return true;
		if (rc || clock_now_ns() >= until_ns || poll(&pfd, 1, LOOK_MS))
			return false;
	}
}

static void say_where(const struct move *m, struct json_object *last, void *userdata)
{
	const struct firecracker_args *a = userdata;
	bool attached;
	int api;

	if (m->lost_sight || is_under_way(m)) {
		say("the migration goes on without this command, or has ended: the same command "
		    "again follows it");
		return;
	}
	if (*json_string_or(last, "resume_time", "")) {
		say("the guest has run at the destination, and is paused here as it was when it "
		    "went: \"run-on\" has it run on from there, \"release\" gives it up");
		return;
	}
	if (!m->is_own && !last) {
		say("this command has moved nothing, and has left what there is at the source to "
		    "whoever began it: see \"status\" there");
		return;
	}
	(void)client_cancel(m->destination.client, m->id, "destination", NULL, NULL);
	if (!settle_source(m, &attached)) {
		say("the source's daemon does not say yet that the guest stays here: see "
		    "\"status\" there");
		return;
	}
	api = try_api(a->api);
	if (attached && api == -ECONNREFUSED)
		say("nothing has been moved, and the Firecracker here has ended");
	else if (attached && !api)
		say("nothing has been moved: the guest is here, and runs on");
	else
		say("nothing has been moved: the guest is where it was");
}

static const char *mistake_of(const struct firecracker_args *a, const char *id)
{
	char host[HOST_MAX];

	if (!a->api || !a->dir)
		return "--api and --dir are missing: Firecracker's API socket, and a directory";
	if (!is_plain(id))
		return "the id has other characters than A-Z a-z 0-9 . _ -";
	if (!is_plain_path(a->api) || !is_plain_path(a->dir) ||
	    (a->to_api && !is_plain_path(a->to_api)) || (a->to_dir && !is_plain_path(a->to_dir)))
		return "a path begins with / and is of letters, digits and /._-+,=@:";
	host_of_destination(a, a->move.to ? a->move.to : "", host);
	if (*host && !is_plain(host))
		return "--host, or what --to begins with, is no host";
	return NULL;
}

static int firecracker_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct firecracker_args *a = args;
	const char *mistake = mistake_of(a, id);
	const struct move_steps steps = { .find_done = find_done,
		                          .on_absent = start_absent,
		                          .on_failed = say_where,
		                          .userdata = (void *)a };

	if (mistake)
		return command_misused(&firecracker_command, mistake);
	return move_command_run(&firecracker_command, common, id, &a->move, &steps);
}

const struct command firecracker_command = {
	.name = "firecracker",
	.operand = "migrate ID",
	.summary = "Move the guest of a Firecracker that runs here.",
	.details =
	        "At the destination a Firecracker waits that was started with an API socket and\n"
	        "nothing else. Both hosts have postcopyd and postcopy-firecracker. Status 0 where\n"
	        "it completes; else it says what is known of where the guest is: 1 where it has\n"
	        "failed, 2 where a daemon does not allow it, 3 without sight of one. Ctrl-C ends\n"
	        "this command, and not the migration: the same command again goes on with it.",
	.options = firecracker_options,
	.n_options = sizeof firecracker_options / sizeof *firecracker_options,
	.defaults = &firecracker_defaults,
	.args_size = sizeof firecracker_defaults,
	.json = true,
	.run = firecracker_run,
};

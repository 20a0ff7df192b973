/* SPDX-License-Identifier: Apache-2.0 */
/* top: the terminal; what is on it is drawn by top_draw.c. */
#include "ctl/top.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/commands.h"
#include "ctl/interrupt.h"
#include "ctl/json.h"
#include "util/clock.h"

/* Where no terminal says how wide it is. */
#define PLAIN_COLUMNS 132

struct top_args {
	uint64_t interval_ms;
};

/* The command, while it runs. */
struct session {
	const struct ctl_common *common;
	uint64_t interval_ms;
	int interrupt_fd;
	int resize_fd; /* SIGWINCH */
	struct client *client;
	struct json_object *info;
	struct top top;
	struct termios saved;
	bool raw;
	char notice[ERROR_TEXT_MAX];
};

static const struct top_args top_defaults = { .interval_ms = 500 };

static const struct option_spec top_options[] = {
	{ "interval", OPTION_UINT, offsetof(struct top_args, interval_ms), "MS",
	  "how often the daemon is asked (500)", 100, 60000 },
};

/* Asks the daemon, connecting anew where it must. Return: 0; what it failed with, and @err. */
static int ask(struct session *s, struct error *err)
{
	const struct client_target target = command_target(s->common);
	_cleanup_json_ struct json_object *list = NULL;
	int r = s->client ? 0 : client_new(&target, s->interrupt_fd, &s->client, err);

	if (!r && !s->info) {
		r = client_get_info(s->client, &s->info, err);
		r = r == -EOPNOTSUPP ? 0 : r;
	}
	if (!r)
		r = client_list(s->client, 0, &list, err);
	if (!r)
		r = top_update(&s->top, json_find(list, "migrations"), clock_now_ns());
	if (r < 0 && s->client && !*client_refusal(s->client)->code)
		s->client = client_free(s->client);
	return r;
}

static void draw(struct session *s)
{
	struct top_screen screen = { .columns = 80, .lines = 24, .terminal = true };
	struct winsize size;

	if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col && size.ws_row) {
		screen.columns = size.ws_col;
		screen.lines = size.ws_row;
	}
	fputs("\033[H", stdout);
	top_draw(&s->top, s->info, *s->notice ? s->notice : "q or Ctrl-C leaves", &screen, stdout);
	fputs("\033[J", stdout);
	fflush(stdout);
}

static int terminal_enter(struct session *s, struct error *err)
{
	struct termios raw;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGWINCH);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->resize_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->resize_fd < 0)
		return error_errno(err, -errno, "signalfd");
	if (!tcgetattr(STDIN_FILENO, &s->saved)) {
		raw = s->saved;
		raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
		raw.c_cc[VMIN] = 0;
		raw.c_cc[VTIME] = 0;
		s->raw = !tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	}
	/* The alternate screen, and no cursor. */
	fputs("\033[?1049h\033[?25l", stdout);
	return 0;
}

static void terminal_leave(struct session *s)
{
	fputs("\033[?25h\033[?1049l", stdout);
	fflush(stdout);
	if (s->raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &s->saved);
	close_fd(&s->resize_fd);
}

/* Whether one of the keys that were pressed means to leave; so does the terminal's end. */
static bool wants_to_leave(void)
{
	char keys[64];
	ssize_t n = read(STDIN_FILENO, keys, sizeof keys);

	return !n || (n > 0 && (memchr(keys, 'q', (size_t)n) || memchr(keys, 'Q', (size_t)n)));
}

/* Until the next time to ask. Return: false to leave. */
static bool wait_interval(struct session *s)
{
	uint64_t until_ns = clock_now_ns() + s->interval_ms * NSEC_PER_MSEC;

	for (;;) {
		struct pollfd fds[] = { { .fd = s->interrupt_fd, .events = POLLIN },
			                { .fd = s->resize_fd, .events = POLLIN },
			                { .fd = s->raw ? STDIN_FILENO : -1, .events = POLLIN } };
		uint64_t now = clock_now_ns();
		struct signalfd_siginfo info;

		if (now >= until_ns)
			return true;
		if (poll(fds, 3, (int)((until_ns - now) / NSEC_PER_MSEC) + 1) < 0 && errno != EINTR)
			return false;
		if (fds[0].revents || (fds[2].revents && wants_to_leave()))
			return false;
		if (fds[1].revents && read(s->resize_fd, &info, sizeof info) > 0)
			draw(s);
	}
}

static int run_terminal(struct session *s)
{
	struct error err = ERROR_INIT;
	int r = terminal_enter(s, &err);

	if (r < 0)
		return command_failed(&top_command, &err);
	do {
		r = ask(s, &err);
		s->notice[0] = 0;
		if (r < 0)
			snprintf(s->notice, sizeof s->notice, "%s", err.text);
		if (r == -ECANCELED)
			break;
		draw(s);
	} while (wait_interval(s));
	terminal_leave(s);
	return CTL_OK;
}

/* Not on a terminal: what is so now. */
static int run_once(struct session *s)
{
	const struct top_screen screen = { .columns = PLAIN_COLUMNS };

	top_draw(&s->top, s->info, NULL, &screen, stdout);
	return CTL_OK;
}

static int call_list(struct client *c, const void *arg, struct json_object **ret, struct error *err)
{
	(void)arg;
	return client_list(c, 0, ret, err);
}

static int print_json(const struct ctl_common *common)
{
	_cleanup_json_ struct json_object *list = NULL;
	int code = command_call(&top_command, common, call_list, NULL, &list);

	if (!code)
		json_print(list);
	return code;
}

/* The first answer is had before the screen is touched: who is not there is said as ever. */
static int run(struct session *s)
{
	struct error err = ERROR_INIT;
	int code = command_connect(&top_command, s->common, s->interrupt_fd, &s->client);

	if (code)
		return code;
	if (ask(s, &err) < 0) {
		if (s->client)
			return command_refused(&top_command, s->common, s->client, &err);
		command_failed(&top_command, &err);
		return err.code == -ECANCELED ? CTL_INTERRUPTED : CTL_UNREACHABLE;
	}
	return isatty(STDOUT_FILENO) ? run_terminal(s) : run_once(s);
}

static int top_run(const struct ctl_common *common, const char *operand, const void *args)
{
	const struct top_args *a = args;
	struct session s = { .common = common, .interval_ms = a->interval_ms, .resize_fd = -1 };
	struct error err = ERROR_INIT;
	int code;

	(void)operand;
	if (common->json)
		return print_json(common);
	s.interrupt_fd = interrupt_fd(&err);
	if (s.interrupt_fd < 0)
		return command_failed(&top_command, &err);
	code = run(&s);
	client_free(s.client);
	json_object_put(s.info);
	top_deinit(&s.top);
	close_fd(&s.interrupt_fd);
	return code;
}

const struct command top_command = {
	.name = "top",
	.summary = "All migrations of a host, live on the terminal.",
	.details =
	        "RATE is of the memory that arrives (at a source: that is served), P99 of the\n"
	        "remote faults' latency; the curves are their recent past. DONE IN: until the\n"
	        "source may be switched off. While memory is copied before the switchover (\"warm\n"
	        "r3\": its third round) P99 is what the guest writes a second, and DONE IN the\n"
	        "time for what is missing.  Not on a terminal, and with --json: once.",
	.options = top_options,
	.n_options = 1,
	.defaults = &top_defaults,
	.args_size = sizeof top_defaults,
	.json = true,
	.run = top_run,
};

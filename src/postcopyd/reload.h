/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration read anew while the daemon runs.
 *
 * Theory of operation
 * -------------------
 * The file and the command line are read on a thread of libuv's pool, for groups may be looked up
 * at some server that does not answer, and the loop waits for nobody. What was read comes back to
 * the loop, which puts all of it in effect, or nothing. How the last one ended is kept for whoever
 * asks: the log of a failed reload is soon out of sight, and what runs looks like any other.
 *
 * Threads: the loop's, but for the reading itself.
 */
#ifndef POSTCOPYD_RELOAD_H
#define POSTCOPYD_RELOAD_H

#include <uv.h>

#include "postcopyd/groups.h"
#include "postcopyd/options.h"
#include "rpc/service.h"

/* What it says now. */
struct reload_config {
	struct options options;
	struct groups control, control_read, vmm;
};

struct reload {
	uv_loop_t *loop;
	int argc;
	char **argv;
	void (*done)(void *arg, struct reload_config *config, const struct config_errors *errors);
	void *arg;
	uv_work_t work;
	bool is_running, is_asked_again;
	/* The reading thread's, while it runs. */
	struct reload_config config;
	struct config_errors errors;

	struct rpc_reload last; /* for GetInfo */
	struct error error;
	const char *needs_restart[OPTIONS_MAX];
};

/*
 * reload_init()
 * @done: called on the loop when it was read: with errors, of which the first are told, or none.
 *        What it does not take of the options is freed when it returns.
 */
void reload_init(struct reload *r, uv_loop_t *loop, int argc, char **argv,
                 void (*done)(void *arg, struct reload_config *config,
                              const struct config_errors *errors),
                 void *arg);

/* Return: 0, also where it is being read already: it is read once more then; or -errno. */
int reload_start(struct reload *r);

/* How it ended. @error: NULL: well, and then reload_needs_restart() names what is not in effect. */
void reload_note(struct reload *r, const struct error *error);
void reload_needs_restart(void *reload, const char *key);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postcopy-firecracker: speaks for a Firecracker that knows nothing of postcopyd.
 *
 *   options  the command line        session      Firecracker's process, the daemon, the directory
 *   api      Firecracker's API       handshake    what it says of its memory
 *   source   a guest that goes       destination  a guest that comes; take_back
 *   serve    a snapshot, to many     unit         the same as a service of systemd's
 *
 * On the public header alone: it needs nothing of the daemon but its VMM socket.
 */
#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "adapter/command_line.h"
#include "firecracker/destination.h"
#include "firecracker/serve.h"
#include "firecracker/source.h"
#include "firecracker/unit.h"
#include "util/log.h"

static int run_session(const struct options *o, struct error *err)
{
	struct session session;
	int rc = session_open(&session, o, err);

	if (!rc)
		rc = o->command == COMMAND_SOURCE ? source_run(&session, err)
		                                  : destination_run(&session, err);
	session_close(&session);
	return rc;
}

static int run(const struct options *o, struct error *err)
{
	if (o->unit)
		return unit_run(o, err);
	return o->command == COMMAND_SERVE ? serve_run(o, err) : run_session(o, err);
}

/* Firecracker may live, and not answer; or it is a failure of ours. */
static bool is_worth_another_try(int rc)
{
	return rc == -ECONNRESET || rc == -ETIMEDOUT || rc == -ENOMEM;
}

int main(int argc, char **argv)
{
	struct error err = ERROR_INIT;
	struct options options;
	int rc = options_parse(argc, argv, &options, &err);

	if (rc > 0)
		return EXIT_SUCCESS;
	if (rc) {
		fprintf(stderr, "postcopy-firecracker: %s\n", err.text);
		return EXIT_ARGUMENTS;
	}
	log_init("postcopy-firecracker", LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
	curl_global_init(CURL_GLOBAL_DEFAULT);
	rc = run(&options, &err);
	if (rc)
		log_migration_error(options.id, "%s", err.text);
	curl_global_cleanup();
	if (!rc)
		return EXIT_SUCCESS;
	return is_worth_another_try(rc) ? EXIT_AGAIN : EXIT_FAILURE;
}

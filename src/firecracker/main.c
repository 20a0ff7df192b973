/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postcopy-firecracker: speaks for a Firecracker that knows nothing of postcopyd.
 *
 *   options  the command line        session      Firecracker's process, the daemon, the directory
 *   api      Firecracker's API       handshake    what it says of its memory
 *   source   a guest that goes       destination  a guest that comes; take_back
 *   serve    a snapshot, to many
 *
 * On the public header alone: it needs nothing of the daemon but its VMM socket.
 */
#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "firecracker/destination.h"
#include "firecracker/serve.h"
#include "firecracker/source.h"
#include "util/log.h"

#define EXIT_ARGUMENTS 2
#define EXIT_AGAIN 75 /* EX_TEMPFAIL: systemd starts it again */

static int run(struct session *s, struct error *err)
{
	switch (s->options->command) {
	case COMMAND_SOURCE:
		return source_run(s, err);
	case COMMAND_DESTINATION:
		return destination_run(s, err);
	case COMMAND_SERVE:
		return serve_run(s->options, err);
	}
	return 0;
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
	struct session session;
	int rc = options_parse(argc, argv, &options, &err);

	if (rc > 0)
		return EXIT_SUCCESS;
	if (rc) {
		fprintf(stderr, "postcopy-firecracker: %s\n", err.text);
		return EXIT_ARGUMENTS;
	}
	log_init("postcopy-firecracker", LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
	curl_global_init(CURL_GLOBAL_DEFAULT);
	rc = session_open(&session, &options, &err);
	if (!rc)
		rc = run(&session, &err);
	if (rc)
		log_migration_error(options.id, "%s", err.text);
	session_close(&session);
	curl_global_cleanup();
	if (!rc)
		return EXIT_SUCCESS;
	return is_worth_another_try(rc) ? EXIT_AGAIN : EXIT_FAILURE;
}

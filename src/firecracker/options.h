/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FIRECRACKER_OPTIONS_H
#define FIRECRACKER_OPTIONS_H

#include <stdbool.h>

#include "util/error.h"

#define OPTIONS_IDS_MAX 64

enum command {
	COMMAND_SOURCE,
	COMMAND_DESTINATION,
	COMMAND_SERVE,
};

struct options {
	enum command command;
	const char *id;
	const char *ids[OPTIONS_IDS_MAX]; /* serve: all of them */
	unsigned int n_ids;
	const char *api;              /* Firecracker's API socket */
	const char *dir;              /* for files that both need; as Firecracker sees it */
	const char *socket;           /* the daemon's; NULL: as usual */
	const char *memory, *vmstate; /* serve: a snapshot's files */
	bool unit;                    /* not by this process: by systemd's */
};

const char *options_command_name(enum command command);

/* Return: 0; 1 where help was asked for and printed; -EINVAL with @err set. */
int options_parse(int argc, char **argv, struct options *ret, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QEMU_OPTIONS_H
#define QEMU_OPTIONS_H

#include <sys/types.h>

#include "util/error.h"

enum command {
	COMMAND_CHECK,
	COMMAND_SOURCE,
	COMMAND_DESTINATION,
};

struct options {
	enum command command;
	const char *id;      /* not of COMMAND_CHECK */
	const char *qmp;     /* path */
	const char *socket;  /* path; NULL: libpostcopy's default */
	const char *pidfile; /* path, or NULL */
	pid_t pid;           /* 0: by pidfile, or whoever has made the QMP socket */
};

/*
 * options_parse() - the command line
 * @ret: points into @argv
 *
 * Return: 0; 1 where it asked for help and has got it; -EINVAL with @err.
 */
int options_parse(int argc, char **argv, struct options *ret, struct error *err);

#endif

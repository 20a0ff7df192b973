/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration file's syntax: sections, "key = value", comments.
 *
 * libinih takes the lines apart. It tells neither a line's number nor of more than one bad
 * line, and cuts long lines in two; so we read the lines for it, count them, and look at what
 * it would pass over: section headings, lines that are too long, and those it made nothing of.
 */
#ifndef POSTCOPYD_CONFIG_FILE_H
#define POSTCOPYD_CONFIG_FILE_H

#include <stdbool.h>
#include <stdio.h>

#include "postcopyd/config_errors.h"

struct config_key {
	const char *section;
	const char *name;
	const char *value; /* without blanks around it */
	unsigned int line;
};

struct config_file_ops {
	/* A heading. Return: 0, or -EINVAL with @err set: keys below it are then passed over. */
	int (*section)(void *arg, const char *name, struct error *err);
	/* A key below it. Return: 0, or -EINVAL with @err set. */
	int (*key)(void *arg, const struct config_key *key, struct error *err);
};

/*
 * config_file_read() - have the ops called for each line, to the end of the file
 * @name: of the file; each error begins with "NAME:LINE: "
 */
void config_file_read(FILE *file, const char *name, const struct config_file_ops *ops, void *arg,
                      struct config_errors *errors);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sub-commands and their options as tables: one row an option says how it is
 * called, what it takes, where it goes and what --help prints, so that the
 * parser and the help can't disagree.
 */
#ifndef CTL_OPTIONS_H
#define CTL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CTL_DEFAULT_CONTROL "/run/postcopyd/control.sock"

/* Exit codes; --help has them, too. */
enum ctl_exit {
	CTL_OK = 0,
	CTL_FAILED = 1,
	CTL_USAGE = 2, /* wrong usage, or this host, or the migration's state, does not allow it */
	CTL_UNREACHABLE = 3, /* no daemon, or none that answers */
	CTL_NOT_FOUND = 4,   /* no such migration */
	CTL_INTERRUPTED = 130,
};

/* What every sub-command takes that talks to a daemon; --json the others, too. */
struct ctl_common {
	const char *control;
	const char *cert, *key, *ca;
	const char *server_name;
	uint64_t timeout_s;
	bool json;
};

enum option_kind {
	OPTION_FLAG,   /* bool: set */
	OPTION_NO,     /* bool: cleared */
	OPTION_STRING, /* const char *, borrowed from argv */
	OPTION_CHOICE, /* const char *, one of .choices */
	OPTION_UINT,   /* uint64_t within .min .. .max */
	OPTION_SIZE,   /* uint64_t bytes within .min .. .max */
	OPTION_ON_OFF, /* enum option_switch */
};

enum option_switch {
	SWITCH_UNSET = 0,
	SWITCH_OFF,
	SWITCH_ON,
};

#define OPTION_CHOICES_MAX 6

struct option_spec {
	const char *name;
	enum option_kind kind;
	size_t offset; /* of the value in the command's arguments */
	const char *arg;
	const char *help; /* lines after the first are indented by options_help() */
	uint64_t min, max;
	const char *choices[OPTION_CHOICES_MAX];
};

/* Which half is meant, where the daemon has both. */
#define OPTION_ROLE(args, field)                                                                   \
	{                                                                                          \
		"role", OPTION_CHOICE, offsetof(args, field), "source|destination",                \
		        "which half, where the daemon has both", .choices = {                      \
			        "source",                                                          \
			        "destination"                                                      \
		        }                                                                          \
	}

struct command {
	const char *name;
	/* "ID"; NULL where it takes none; words before it, in small letters, must be said too:
	 * "migrate ID" */
	const char *operand;
	const char *summary;
	const char *details; /* printed below the options by --help; may be NULL */
	const struct option_spec *options;
	size_t n_options;
	const void *defaults; /* of the command's arguments, args_size bytes */
	size_t args_size;
	bool local; /* talks to no daemon, so has no --control */
	bool json;  /* answers by --json too */
	int (*run)(const struct ctl_common *common, const char *operand, const void *args);
};

/*
 * options_parse() - one command line
 * @argv: argv[0] is the command's name
 * @args: cmd->args_size bytes, gets the defaults and then what is given
 *
 * Says what is wrong on stderr itself.
 *
 * Return: 0 to run; 1 where --help was printed; -EINVAL
 */
int options_parse(const struct command *cmd, int argc, char **argv, struct ctl_common *common,
                  const char **ret_operand, void *args);

/*
 * options_common_words() - how many words at @argv are a common option with its value
 *
 * They may stand before the command, too.
 */
int options_common_words(int argc, char **argv);

#endif

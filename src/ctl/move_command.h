/* SPDX-License-Identifier: Apache-2.0 */
/* A move of one guest as a command's only work: its options, what is shown of it, how it ended. */
#ifndef CTL_MOVE_COMMAND_H
#define CTL_MOVE_COMMAND_H

#include "ctl/commands.h"
#include "ctl/move.h"
#include "ctl/queue_options.h"

struct move_args {
	const char *from;
	const char *to;
	const char *source;
	uint64_t attach_timeout_s;
	uint64_t streams;
	uint64_t bandwidth;
	struct queue_args queue;
};

#define MOVE_ARGS_DEFAULTS                                                                         \
	{                                                                                          \
		.attach_timeout_s = 60, .bandwidth = UINT64_MAX                                    \
	}

/* Rows of a command's options. @at: of a struct move_args in its arguments */
#define MOVE_OPTIONS(at)                                                                           \
	{ "from", OPTION_STRING, (at) + offsetof(struct move_args, from), "ADDRESS",               \
	  "the source's daemon: its control service (what --control says)" },                      \
	        { "to", OPTION_STRING, (at) + offsetof(struct move_args, to), "ADDRESS",           \
		  "the destination's daemon, likewise" },                                          \
	        { "source", OPTION_STRING, (at) + offsetof(struct move_args, source), "HOST:PORT", \
		  "where the destination finds the source's page streams (what the\nsource's "     \
		  "daemon says; where it listens on all addresses, the host\nof --from)" },        \
	        { "attach-timeout",                                                                \
		  OPTION_UINT,                                                                     \
		  (at) + offsetof(struct move_args, attach_timeout_s),                             \
		  "SECONDS",                                                                       \
		  "how long the VMMs may take to attach (60)",                                     \
		  1,                                                                               \
		  86400 },                                                                         \
	        { "streams",                                                                       \
		  OPTION_UINT,                                                                     \
		  (at) + offsetof(struct move_args, streams),                                      \
		  "N",                                                                             \
		  "bulk connections, 1 to 16",                                                     \
		  1,                                                                               \
		  16 },                                                                            \
	        { "bandwidth",                                                                     \
		  OPTION_SIZE,                                                                     \
		  (at) + offsetof(struct move_args, bandwidth),                                    \
		  "BYTES",                                                                         \
		  "bytes/s that bulk may take, 0 for no cap",                                      \
		  0,                                                                               \
		  INT64_MAX },                                                                     \
	        QUEUE_OPTIONS((at) + offsetof(struct move_args, queue))

struct move_steps {
	/* Before anything is done. @ret: the destination's half of a move that is complete, and is
	 * not to be done once more; NULL: there is none. Where that can't be told nothing is done
	 */
	int (*find_done)(const struct move *m, void *userdata, struct json_object **ret,
	                 struct error *err);
	/* As struct move's: has the VMM attach. */
	int (*on_absent)(const struct move *m, const struct move_side *absent, bool first,
	                 void *userdata, struct error *err);
	/* It has failed, and was told. @last: the destination's half; NULL where it is not known */
	void (*on_failed)(const struct move *m, struct json_object *last, void *userdata);
	void *userdata;
};

/*
 * move_command_run() - between the two daemons that the arguments name
 * @steps: NULL: VMMs attach by themselves
 *
 * Return: the exit code.
 */
int move_command_run(const struct command *cmd, const struct ctl_common *common, const char *id,
                     const struct move_args *a, const struct move_steps *steps);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a guest that finds no place at its destination waits for one, as commands are told. */
#ifndef CTL_QUEUE_OPTIONS_H
#define CTL_QUEUE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "ctl/client.h"
#include "ctl/options.h"

struct queue_args {
	bool wait;
	uint64_t priority;
};

/* Rows of a command's options. @at: where its struct queue_args is in its arguments */
/* clang-format off */
#define QUEUE_OPTIONS(at)									\
	{ "queue", OPTION_FLAG, (at) + offsetof(struct queue_args, wait), NULL,			\
	  "where as many come in there as may (max-incoming): wait for a turn" },		\
	{ "priority", OPTION_UINT, (at) + offsetof(struct queue_args, priority), "N",		\
	  "the same, before those of a lower one, 1 to 100 (0)", 1, 100 }
/* clang-format on */

/* Return: @ret; NULL where it is refused instead. */
static inline const struct client_queue *queue_args_get(const struct queue_args *a,
                                                        struct client_queue *ret)
{
	ret->priority = (uint32_t)a->priority;
	return a->wait || a->priority ? ret : NULL;
}

#endif

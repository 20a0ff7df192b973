/* SPDX-License-Identifier: Apache-2.0 */
/* How long memory is copied before the switchover, as `start` and `bench` are told. */
#ifndef CTL_WARM_OPTIONS_H
#define CTL_WARM_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "ctl/client.h"
#include "ctl/options.h"

struct warm_args {
	bool asked;
	uint64_t rounds, time_s, dirty_bytes, catch_up_ms; /* 0: not given */
};

/* Rows of a command's options. @at: where its struct warm_args is in its arguments */
/* clang-format off */
#define WARM_OPTIONS(at)									\
	{ "warm", OPTION_FLAG, (at) + offsetof(struct warm_args, asked), NULL,			\
	  "copy memory first, while the guest runs at the source: one\nround, or until what "	\
	  "is given of these:" },								\
	{ "warm-rounds", OPTION_UINT, (at) + offsetof(struct warm_args, rounds), "N",		\
	  "so many rounds", 1, UINT32_MAX },							\
	{ "warm-time", OPTION_UINT, (at) + offsetof(struct warm_args, time_s), "S",		\
	  "so many seconds", 1, 24 * 3600 - 1 },						\
	{ "warm-dirty", OPTION_SIZE, (at) + offsetof(struct warm_args, dirty_bytes), "BYTES",	\
	  "a round after which so little is dirty", 1, INT64_MAX },				\
	{ "warm-catch-up", OPTION_UINT, (at) + offsetof(struct warm_args, catch_up_ms), "MS",	\
	  "or after which it would be copied in so many ms", 1, 24 * 3600 * 1000 - 1 }
/* clang-format on */

/*
 * warm_args_policy() - what they come to
 *
 * Return: @ret; NULL where nothing of it was given, and memory follows the guest.
 */
static inline const struct client_warm *warm_args_policy(const struct warm_args *a,
                                                         struct client_warm *ret)
{
	*ret = (struct client_warm){
		.max_rounds = (uint32_t)a->rounds,
		.max_ms = a->time_s * 1000,
		.dirty_bytes = a->dirty_bytes,
		.catch_up_ms = a->catch_up_ms,
	};
	/* Whoever says how long means it. */
	return a->asked || a->rounds || a->time_s || a->dirty_bytes || a->catch_up_ms ? ret : NULL;
}

#endif

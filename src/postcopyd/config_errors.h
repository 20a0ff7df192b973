/* SPDX-License-Identifier: Apache-2.0 */
/* The errors of a configuration: all of them, so that one look at a file is enough. */
#ifndef POSTCOPYD_CONFIG_ERRORS_H
#define POSTCOPYD_CONFIG_ERRORS_H

#include <stddef.h>

#include "util/error.h"

/* Within LOG_LINES_PER_S. */
#define CONFIG_ERRORS_MAX 16

struct config_errors {
	struct error list[CONFIG_ERRORS_MAX];
	size_t n;
	size_t n_more; /* that found no place in the list */
};

static inline void config_errors_add(struct config_errors *errors, const struct error *err)
{
	if (errors->n < CONFIG_ERRORS_MAX)
		errors->list[errors->n++] = *err;
	else
		errors->n_more++;
}

#endif

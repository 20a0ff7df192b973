/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that may hold a secret: it is wiped before it is given back, all of it, whoever knows
 * how much of it was used. Also for libraries that can be told how to allocate.
 */
#ifndef UTIL_SECRET_H
#define UTIL_SECRET_H

#include <stddef.h>

/* @p from malloc() and the like; may be NULL. */
void secret_free(void *p);

static inline void secret_free_p(void *p)
{
	secret_free(*(void **)p);
}

#define _cleanup_secret_ __attribute__((cleanup(secret_free_p)))

/* As realloc(), and leaves no copy behind where it moves. */
void *secret_realloc(void *p, size_t size);

#endif

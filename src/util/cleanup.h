/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cleanup attributes: each owned local says at its declaration how it is given
 * back, so that an early return can't leak. To hand ownership on, return
 * steal_fd(&fd) or steal_ptr(&p).
 */
#ifndef UTIL_CLEANUP_H
#define UTIL_CLEANUP_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(fn) __attribute__((cleanup(fn)))

/* Defines fn##_p(), the form the cleanup attribute calls, for a fn(T *). */
#define DEFINE_CLEANUP(type, fn)                                                                   \
	static inline void fn##_p(type *p)                                                         \
	{                                                                                          \
		if (*p)                                                                            \
			fn(*p);                                                                    \
	}                                                                                          \
	struct cleanup_semicolon

static inline void free_p(void *p)
{
	free(*(void **)p);
}

/* Keeps errno, so that `return -errno` after a failed call stays true. */
static inline void close_p(const int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	errno = saved;
}

static inline void fclose_p(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define _cleanup_free_ _cleanup_(free_p)
#define _cleanup_close_ _cleanup_(close_p)
#define _cleanup_fclose_ _cleanup_(fclose_p)

static inline int steal_fd(int *fd)
{
	int ret = *fd;

	*fd = -1;
	return ret;
}

/* Closes *fd where it is open, and marks it absent. */
static inline void close_fd(int *fd)
{
	close_p(fd);
	*fd = -1;
}

#define steal_ptr(p)                                                                               \
	({                                                                                         \
		__typeof__(*(p)) stolen_ = *(p);                                                   \
		*(p) = NULL;                                                                       \
		stolen_;                                                                           \
	})

#endif

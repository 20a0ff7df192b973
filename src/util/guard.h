/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copying to and from guest memory that its owner may take away.
 *
 * A mapping of guest memory raises SIGBUS where a page can't be had: made private,
 * poisoned by a memory error, no huge page left. That must fail one migration and not
 * the daemon, so the copy is done under a guard that turns the signal into -EFAULT.
 */
#ifndef UTIL_GUARD_H
#define UTIL_GUARD_H

#include <stddef.h>

/* Install the SIGBUS handler, once, before the first thread. Return: 0 or -errno. */
int guard_init(void);

/* memcpy(). Return: 0, or -EFAULT where either side's page could not be had. */
int guard_copy(void *to, const void *from, size_t len);

#endif

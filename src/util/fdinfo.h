/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel says of a descriptor of this process in /proc/self/fdinfo. Asks no filesystem. */
#ifndef UTIL_FDINFO_H
#define UTIL_FDINFO_H

#include <stdbool.h>
#include <stdint.h>

#define FDINFO_BYTES 1024

/* Return: 0 with a string in @text; or -errno. */
int fdinfo_read(int fd, char text[FDINFO_BYTES]);

/* What only a userfaultfd tells of itself: the features it has. Return: false where it is none. */
bool fdinfo_uffd_features(int fd, uint64_t *ret);

/* That, from the text. */
bool fdinfo_parse_features(const char *text, uint64_t *ret);

#endif

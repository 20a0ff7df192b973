/* SPDX-License-Identifier: Apache-2.0 */
/* What the library's files share, and nobody else. */
#ifndef LIBPOSTCOPY_INTERNAL_H
#define LIBPOSTCOPY_INTERNAL_H

#include "postcopy/postcopy.h"
#include "util/error.h"

/* The public form of an error. Return: its code. */
int report_error(struct postcopy_error *to, int rc, const struct error *from);

/*
 * Wait for something to read until @deadline_ns, UINT64_MAX for good.
 * Return: 0, -ETIMEDOUT or the errno of ppoll().
 */
int wait_readable(int sock, uint64_t deadline_ns);

/* A memfd with @len bytes of @data that nobody can change. Return: 0 or -errno with @err set. */
int make_sealed_memfd(const char *name, const void *data, size_t len, int *ret_fd,
                      struct error *err);

struct postcopy;

/*
 * give_channel() - pass the daemon its end of a fetch channel
 * @fd: borrowed
 *
 * Return: 0; 1 where every page is here already, so that there is no need; -EINVAL, -EPIPE
 */
int give_channel(struct postcopy *p, int fd, struct error *err);

#endif

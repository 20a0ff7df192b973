/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The userfaultfd out of a Firecracker that loads, for an adapter that has lost its own: by
 * pidfd_getfd(2), and what its regions are from the file that the process before has left.
 */
#ifndef FIRECRACKER_TAKE_BACK_H
#define FIRECRACKER_TAKE_BACK_H

#include "firecracker/handshake.h"
#include "firecracker/session.h"

/* Return: 0, *@ret_uffd is the caller's; -ENOENT; or another errno; with @err set. */
int take_back(const struct session *s, struct handshake *ret, int *ret_uffd, struct error *err);

#endif

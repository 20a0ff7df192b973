/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A microVM that comes.
 *
 * Firecracker makes guest memory when it loads a snapshot: late memory (postcopy/postcopy.h). The
 * vmstate is written to a file, Firecracker is told to load it, connects to our socket and says
 * what its memory is; that goes to the daemon, which serves the faults of the load. Then it is
 * loaded, said to be so, and resumed.
 *
 * What Firecracker has said is kept in a file: a process that comes after this one takes the
 * userfaultfd out of Firecracker. Where that file is not there yet the load is given up.
 */
#ifndef FIRECRACKER_DESTINATION_H
#define FIRECRACKER_DESTINATION_H

#include "firecracker/session.h"

/* Whether a guest could come: nothing was loaded yet. Return: 0; or -errno with @err set. */
int destination_check(const struct session *s, struct error *err);

/* Return: 0, all of the guest is here; or -errno with @err set. */
int destination_run(struct session *s, struct error *err);

#endif

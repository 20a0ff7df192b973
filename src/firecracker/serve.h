/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot's files, to be restored on other hosts: a source without a guest.
 *
 * Its memory is read into a memfd that is sealed against writing. So no guest can run in it, and
 * any number of migrations may have it as their source at once: one a destination.
 */
#ifndef FIRECRACKER_SERVE_H
#define FIRECRACKER_SERVE_H

#include "firecracker/options.h"

/* Return: 0, all destinations have it; or -errno with @err set. */
int serve_run(const struct options *o, struct error *err);

#endif

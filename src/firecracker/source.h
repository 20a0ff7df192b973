/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A microVM that goes.
 *
 * Its memory is private: nobody but Firecracker can read it. So what the daemon is given is a file
 * of a tmpfs, and Firecracker writes a full snapshot into it when it is paused. That is downtime,
 * about 3 ms a MiB: a guest that must not stand still for so long has to have little memory.
 *
 * Firecracker makes that file where there is none of its name. The daemon would not have that one,
 * and serve zeroes: so the file is marked when the daemon has it, looked at before and after the
 * snapshot, and not removed as long as the migration may go on.
 */
#ifndef FIRECRACKER_SOURCE_H
#define FIRECRACKER_SOURCE_H

#include "firecracker/session.h"

/*
 * source_check() - whether it could go: a guest that runs, and a directory with room for its memory
 *
 * Return: 0, with *@ret_bytes of memory; or -errno with @err set.
 */
int source_check(const struct session *s, uint64_t *ret_bytes, struct error *err);

/* Return: 0, the guest is elsewhere; or -errno with @err set: it runs on here. */
int source_run(struct session *s, struct error *err);

#endif

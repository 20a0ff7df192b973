/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An adapter that outlives who asks for it: postcopy-firecracker@ID-source.service, or
 * -destination.
 *
 * What can be found wrong is found before, and said here: a unit would say it to the journal. The
 * unit's options lie in UNIT_DIR, which is root's alone. Asked for once more, with the same
 * options, one that runs runs on.
 */
#ifndef FIRECRACKER_UNIT_H
#define FIRECRACKER_UNIT_H

#include <stddef.h>

#include "firecracker/options.h"

#define UNIT_DIR "/run/postcopy-firecracker"

/*
 * unit_text() - the unit's options, lines of NAME=VALUE
 * @ret: of @size bytes
 *
 * Return: 0; -EINVAL with @err set where a value can't stand there as it is.
 */
int unit_text(const struct options *o, char *ret, size_t size, struct error *err);

/* Waits for a Firecracker that is being started. Return: 0; or -errno with @err set. */
int unit_run(const struct options *o, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VMM's own mappings tell of its guest's memory, where this process may look at them: root
 * and the VMM's own user may. Where it may not, or the kernel does not answer in time (who maps a
 * file of a filesystem that does not answer keeps its mappings locked), the library's own checks
 * have to do. Time for which the host lets nobody look does not count: on a busy one a VMM would be
 * judged now so and now so.
 */
#ifndef MEM_INSPECT_H
#define MEM_INSPECT_H

#include <sys/types.h>

#include "mem/descriptor.h"
#include "mem/region.h"

/*
 * inspect_vmm() - is each region's memory what it must be?
 * @files: behind each region
 * @destination: then anonymous memory must be empty
 *
 * Takes INSPECT_LIMIT_MS at most, of work and of waiting for something else than a CPU; and
 * INSPECT_LIMIT_IN_ALL_MS in all, on a host that is ever so busy.
 *
 * Return: 0; -EINVAL where a file is mapped MAP_PRIVATE; -EBUSY where a page is there already;
 * with @err naming the region and the place.
 */
int inspect_vmm(pid_t vmm, const struct region_table *table,
                const struct descriptor_file files[REGIONS_MAX], bool destination,
                struct error *err);

#define INSPECT_LIMIT_MS 50u
#define INSPECT_LIMIT_IN_ALL_MS 2000u

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which units of a source guest are poisoned, as its VMM has told (libpostcopy/poison_wire.h).
 *
 * Never changes: any thread may look.
 */
#ifndef STREAM_POISON_LIST_H
#define STREAM_POISON_LIST_H

#include "mem/region.h"

struct poison_list;

/*
 * poison_list_read() - check and copy what a VMM has told
 * @fd: a memfd, sealed against writing and shrinking; borrowed
 *
 * Return: 0; -EINVAL, -E2BIG or the errno of what failed, with @err set.
 */
int poison_list_read(const struct region_table *table, int fd, struct poison_list **ret,
                     struct error *err);

/* The same of what lies in memory: @n records. */
int poison_list_parse(const struct region_table *table, const void *records, size_t n,
                      struct poison_list **ret, struct error *err);

struct poison_list *poison_list_free(struct poison_list *list);

/* The poisoned units of a word. @list NULL: none are. */
uint64_t poison_list_mask(const struct poison_list *list, uint32_t region, uint64_t word);

/* How many there are; 4 KiB each. */
uint64_t poison_list_units(const struct poison_list *list);

#endif

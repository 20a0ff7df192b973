/* SPDX-License-Identifier: Apache-2.0 */
/* What the benchmark wants of its host, checked before anything starts. */
#ifndef BENCH_HOST_H
#define BENCH_HOST_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "util/error.h"

/* Huge pages of one size that were reserved here and are to be given back. */
struct hugepages {
	uint64_t page_bytes; /* 0: nothing reserved */
	uint64_t old_count;
};

/*
 * hugepages_ensure() - see that enough huge pages are free
 * @may_reserve: raise nr_hugepages where they are not
 * @ret: for hugepages_give_back(); written in any case
 *
 * Says on stderr what it reserved.
 *
 * Return: 0, -ENOMEM with the count that is missing and what to do.
 */
int hugepages_ensure(uint64_t page_bytes, uint64_t count, bool may_reserve, struct hugepages *ret,
                     struct error *err);
void hugepages_give_back(struct hugepages *h);

/* Whether ordinary memory of @bytes is available. Return: 0 or -ENOMEM */
int host_memory_check(uint64_t bytes, struct error *err);

/*
 * host_memory_warm() - have this host's own memory in place, ahead of a migration
 *
 * Touches so much of it and gives it back: what is allocated next comes from there. On a
 * machine that is itself a VM, memory that its hypervisor has to find first costs many times
 * what a migration does, and would be all that is measured. Best effort.
 *
 * @page_bytes: of huge pages that were reserved; 0: ordinary memory
 */
void host_memory_warm(uint64_t bytes, uint64_t page_bytes);

/* {kernel, cpus, cpu_model} */
struct json_object *host_describe(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "libpostcopy/arriving.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct arriving *list;

static struct arriving_range range_of(const struct postcopy_region *r, pid_t pid)
{
	struct arriving_range range = { .pid = pid,
		                        .host_addr = (uintptr_t)r->host_addr,
		                        .size = r->size };
	struct stat st;

	if (r->fd >= 0 && !fstat(r->fd, &st)) {
		range.dev = st.st_dev;
		range.ino = st.st_ino;
		range.offset = r->fd_offset;
	}
	return range;
}

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b + b_size && b < a + a_size;
}

/* By address, or by file wherever it is mapped. */
static bool same_memory(const struct arriving_range *a, const struct arriving_range *b)
{
	return (a->host_addr && a->pid == b->pid &&
	        overlap(a->host_addr, a->size, b->host_addr, b->size)) ||
	       (a->ino && a->ino == b->ino && a->dev == b->dev &&
	        overlap(a->offset, a->size, b->offset, b->size));
}

void arriving_add(struct arriving *a, const char *id, const struct postcopy_region *regions,
                  size_t n_regions, pid_t pid)
{
	snprintf(a->id, sizeof a->id, "%s", id);
	a->n = 0;
	for (size_t i = 0; i < n_regions; i++)
		if (!(regions[i].flags & POSTCOPY_REGION_PRIVATE))
			a->ranges[a->n++] = range_of(&regions[i], pid);
	pthread_mutex_lock(&lock);
	a->next = list;
	list = a;
	a->listed = true;
	pthread_mutex_unlock(&lock);
}

void arriving_remove(struct arriving *a)
{
	pthread_mutex_lock(&lock);
	for (struct arriving **p = &list; a->listed && *p; p = &(*p)->next)
		if (*p == a) {
			*p = a->next;
			break;
		}
	a->listed = false;
	pthread_mutex_unlock(&lock);
}

static const struct arriving *find(const struct arriving_range *range)
{
	for (const struct arriving *a = list; a; a = a->next)
		for (size_t i = 0; i < a->n; i++)
			if (same_memory(&a->ranges[i], range))
				return a;
	return NULL;
}

int arriving_check(const struct postcopy_region *regions, size_t n_regions, pid_t pid,
                   struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < n_regions && !rc; i++) {
		struct arriving_range range = range_of(&regions[i], pid);
		const struct arriving *a = find(&range);

		if (a)
			rc = error_set(err, -EBUSY,
			               "region %zu: migration \"%s\" is still bringing its pages; "
			               "wait for its POSTCOPY_EVENT_COMPLETE",
			               i, a->id);
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

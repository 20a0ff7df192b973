/* SPDX-License-Identifier: Apache-2.0 */
#include "libpostcopy/split.h"

#include <errno.h>
#include <unistd.h>

#include "libpostcopy/uffd.h"
#include "util/cleanup.h"

/* What is registered of a region, in one of @n shards. Return: whether there is any. */
static bool find_part(const struct postcopy *p, size_t registered, unsigned int n,
                      unsigned int shard, char **ret_addr, uint64_t *ret_size)
{
	uint32_t index = p->registered[registered].index;
	struct shards_region r = { index, p->regions[index].size, p->regions[index].page_size };
	uint64_t begin, end;

	shards_part(n, &r, shard, &begin, &end);
	*ret_addr = (char *)p->registered[registered].addr + begin;
	*ret_size = end - begin;
	return end > begin;
}

static int uffd_of(const struct postcopy *p, unsigned int shard)
{
	return shard ? p->shard_uffds[shard - 1] : p->uffd;
}

static void close_shards(struct postcopy *p)
{
	for (unsigned int i = 0; i < SHARDS_MAX - 1; i++)
		if (p->shard_uffds[i] >= 0)
			close_fd(&p->shard_uffds[i]);
}

/* Each with the features of the first: a daemon relies on its events. */
static int open_shards(struct postcopy *p, unsigned int n, struct error *err)
{
	int rc = 0;

	for (unsigned int i = 0; i < n - 1 && !rc; i++) {
		uint64_t features = 0;

		rc = uffd_open(&p->shard_uffds[i], &features, err);
		if (!rc && features != p->uffd_features)
			rc = error_set(err, -EOPNOTSUPP,
			               "a userfaultfd with features %#llx, not the %#llx of the "
			               "first",
			               (unsigned long long)features,
			               (unsigned long long)p->uffd_features);
	}
	return rc;
}

/* From one userfaultfd to the other. After a failure it is trapped by none. */
static int move_part(const struct postcopy *p, size_t registered, unsigned int n,
                     unsigned int shard, bool back, struct error *err)
{
	int from = uffd_of(p, back ? shard : 0), to = uffd_of(p, back ? 0 : shard), rc;
	uint32_t mode = p->registered[registered].mode;
	uint64_t size;
	char *addr;

	if (!find_part(p, registered, n, shard, &addr, &size))
		return 0;
	uffd_unregister(from, addr, size);
	rc = uffd_trap_again(to, addr, size, mode);
	return rc ? error_errno(err, rc, "region %u: UFFDIO_REGISTER of %llu bytes at %p",
	                        p->place[p->registered[registered].index], (unsigned long long)size,
	                        (void *)addr)
	          : 0;
}

/*
 * All parts but those of shard 0, or the first @most of them, one after the other.
 *
 * Return: 0; or -errno with @err set. *@ret_done counts the one that has failed.
 */
static int move_parts(const struct postcopy *p, unsigned int n, bool back, size_t most,
                      size_t *ret_done, struct error *err)
{
	*ret_done = 0;
	for (unsigned int shard = 1; shard < n; shard++)
		for (size_t i = 0; i < p->n_registered && *ret_done < most; i++) {
			int rc;

			++*ret_done;
			rc = move_part(p, i, n, shard, back, err);
			if (rc)
				return rc;
		}
	return 0;
}

int split_say(struct postcopy *p, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_SHARDS, .n_shards = p->n_shards };

	return p->n_shards ? send_message(p, &msg, p->shard_uffds, p->n_shards - 1, err) : 0;
}

/* Whether it is ours to divide: by a userfaultfd that nobody else has made or given. */
static bool may_split(const struct postcopy *p)
{
	return p->uffd_is_own && !p->n_shards;
}

int split_memory(struct postcopy *p, uint32_t n, struct error *err)
{
	struct error why = ERROR_INIT;
	size_t done = 0, back;
	int rc;

	if (!may_split(p))
		return 0;
	if (n > SHARDS_MAX)
		n = SHARDS_MAX;
	rc = open_shards(p, n, &why);
	if (!rc)
		rc = move_parts(p, n, false, SIZE_MAX, &done, &why);
	if (!rc) {
		p->n_shards = n;
		return split_say(p, err);
	}
	/* One userfaultfd will do: that is what there was before the offer. */
	rc = move_parts(p, n, true, done, &back, err);
	close_shards(p);
	return rc;
}

void split_unregister(struct postcopy *p)
{
	unsigned int n = p->n_shards ? p->n_shards : 1;

	for (size_t i = p->n_registered; i--;)
		for (unsigned int shard = 0; shard < n; shard++) {
			char *addr;
			uint64_t size;

			if (find_part(p, i, n, shard, &addr, &size))
				uffd_unregister(uffd_of(p, shard), addr, size);
		}
	p->n_registered = 0;
	p->n_shards = 0;
	close_shards(p);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What a VMM hands over when it attaches: judged before it is used, or kept by anybody. */
#include "migrate/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>

#include "mem/descriptor.h"
#include "mem/inspect.h"
#include "mem/memory.h"
#include "mem/probe.h"
#include "migrate/adapter.h"
#include "migrate/record/unread.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

/* Of our own time: the VMM should have discarded it itself, and nobody else is served meanwhile. */
#define EMPTY_LIMIT_NS (50 * NSEC_PER_MSEC)

/* What they are: before their filesystem is asked anything, and before the service manager asks. */
static int check_kinds(const struct vmm_attach *attach, struct error *err)
{
	const struct vmm_wire_msg *msg = attach->msg;
	int rc = 0;

	if (vmm_wire_has_uffd(msg))
		rc = descriptor_check_userfaultfd(attach->fds[0], err);
	for (uint32_t i = 0; i < msg->n_regions && !rc; i++) {
		const struct vmm_wire_region *r = &msg->regions[i];

		/* At a destination it can only be a stage. */
		bool stage =
		        msg->role == VMM_WIRE_DESTINATION && r->memory == POSTCOPY_MEMORY_ANONYMOUS;

		if (r->fd_index != VMM_WIRE_NO_FD)
			rc = descriptor_check_memory(attach->fds[r->fd_index],
			                             stage ? POSTCOPY_MEMORY_MEMFD
			                                   : (enum postcopy_memory)r->memory,
			                             i, err);
	}
	return rc;
}

/* The file behind each region; none behind anonymous memory, nor where nothing is migrated. */
static int find_files(const struct vmm_attach *attach, const struct region_table *table,
                      struct descriptor_file files[REGIONS_MAX], struct error *err)
{
	for (uint32_t i = 0; i < table->n; i++) {
		const struct region *r = &table->regions[i];
		uint32_t place = attach->msg->regions[i].fd_index;
		int rc;

		files[i] = (struct descriptor_file){ 0 };
		if (place == VMM_WIRE_NO_FD || r->memory == POSTCOPY_MEMORY_ANONYMOUS ||
		    (r->flags & POSTCOPY_REGION_PRIVATE))
			continue;
		rc = descriptor_file(attach->fds[place], &files[i]);
		if (rc)
			return error_errno(err, rc, "region %u: descriptor", i);
	}
	return 0;
}

static bool same_memory(const struct region *a, const struct descriptor_file *a_file,
                        const struct region *b, const struct descriptor_file *b_file)
{
	return descriptor_same_file(a_file, b_file) &&
	       ranges_overlap(a->fd_offset, a->size, b->fd_offset, b->size);
}

/* Each page is one region's: else the one's fill would undo what the guest wrote by the other. */
static int check_overlap(const struct region_table *table,
                         const struct descriptor_file files[REGIONS_MAX], struct error *err)
{
	for (uint32_t i = 1; i < table->n; i++)
		for (uint32_t j = 0; j < i; j++)
			if (same_memory(&table->regions[i], &files[i], &table->regions[j],
			                &files[j]))
				return error_set(err, -EINVAL,
				                 "regions %u and %u overlap in their file", j, i);
	return 0;
}

/* Whether a guest runs, or has run, in memory that did not get all of its pages. */
static bool has_holes(struct migration *m)
{
	bool ran;

	pthread_mutex_lock(&m->lock);
	ran = m->may_have_run;
	pthread_mutex_unlock(&m->lock);
	return m->params.role == MIGRATION_DESTINATION && ran && m->state != MIGRATION_COMPLETE;
}

/*
 * Whether a migration has a say about its memory still: it is under way; or its guest's holes are
 * for good (they were poisoned), and whoever read them for a source would take them for zeroes.
 */
static bool holds_memory(struct migration *m, bool to_read)
{
	if (m->state == MIGRATION_PREPARED)
		return false;
	return !migration_state_is_final(m->state) || (to_read && has_holes(m));
}

/* Anonymous memory has no name of its own but its process and its place there. */
static bool same_place(const struct region *a, pid_t a_vmm, const struct region *b, pid_t b_vmm)
{
	return a->memory == POSTCOPY_MEMORY_ANONYMOUS && b->memory == POSTCOPY_MEMORY_ANONYMOUS &&
	       a_vmm && a_vmm == b_vmm &&
	       ranges_overlap(a->host_addr, a->size, b->host_addr, b->size);
}

/*
 * A file that is sealed against writing has no guest: it is a snapshot's, and many read it.
 *
 * Return: the first region of @table that is memory of @other's too; @table->n where none is.
 */
static uint32_t find_shared(const struct migration *other, const struct region_table *table,
                            const struct descriptor_file files[REGIONS_MAX], pid_t vmm)
{
	pid_t other_vmm = migration_vmm_pid(other);

	for (uint32_t i = 0; i < table->n; i++)
		for (uint32_t j = 0; j < other->table.n && !files[i].frozen; j++)
			if (same_memory(&table->regions[i], &files[i], &other->table.regions[j],
			                &other->files[j]) ||
			    same_place(&table->regions[i], vmm, &other->table.regions[j],
			               other_vmm))
				return i;
	return table->n;
}

/*
 * Guest memory belongs to one migration at a time. While its pages are still coming it can't be the
 * source of the next one, which would send zeroes for what has not come; nor can one guest go to
 * two places.
 */
static int check_owner(const struct migration *m, const struct vmm_attach *attach,
                       const struct region_table *table,
                       const struct descriptor_file files[REGIONS_MAX], struct error *err)
{
	bool to_read = m->params.role == MIGRATION_SOURCE;

	for (struct migration *other = m->owner->list; other; other = other->next) {
		uint32_t shared = find_shared(other, table, files, attach->vmm);

		if (other == m || shared == table->n || !holds_memory(other, to_read))
			continue;
		/* Its VMM may have let go of it just now. */
		if (other->vmm)
			vmm_conn_catch_up(other->vmm);
		if (holds_memory(other, to_read))
			return error_set(
			        err, -EBUSY,
			        "region %u: its memory is that of migration \"%s\", a %s "
			        "that is %s%s",
			        shared, other->params.id, migration_role_name(other->params.role),
			        migration_state_name(other->state),
			        has_holes(other) ? " and has not got all of its pages" : "");
	}
	return 0;
}

int migration_check_attach(const struct migration *m, const struct vmm_attach *attach,
                           struct error *err)
{
	struct descriptor_file files[REGIONS_MAX];
	struct region_table table;
	int rc = migration_read_table(attach->msg, &table, err);

	if (!rc)
		rc = check_kinds(attach, err);
	if (!rc)
		rc = find_files(attach, &table, files, err);
	if (!rc)
		rc = check_overlap(&table, files, err);
	if (!rc)
		rc = check_owner(m, attach, &table, files, err);
	if (!rc)
		rc = unread_check_attach(m->owner, attach->vmm, &table, files, err);
	if (!rc)
		rc = inspect_vmm(attach->vmm, &table, files,
		                 m->params.role == MIGRATION_DESTINATION, err);
	return rc;
}

/*
 * MINOR alone on guest_memfd: one kernel interface traps absent pages by it, another lets
 * the guest read zeroes. Only trying tells them apart.
 */
static int check_minor_alone(const struct region *r, uint32_t index, struct error *err)
{
	struct probe_backend backend;
	int rc = probe_backend_run(PROBE_GUEST_MEMFD, &backend, err);

	if (!rc)
		rc = probe_mode_check(&backend, r->uffd_mode, err);
	if (rc)
		error_prefix(err, "region %u", index);
	return rc;
}

/* The modes a region must be registered with, or its faults would not be seen. */
static int check_uffd_mode(const struct region *r, uint32_t index, struct error *err)
{
	const uint32_t both = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
	uint32_t needed =
	        r->memory == POSTCOPY_MEMORY_ANONYMOUS ? UFFDIO_REGISTER_MODE_MISSING : both;

	if (r->uffd_mode == needed)
		return 0;
	if (r->memory == POSTCOPY_MEMORY_GUEST_MEMFD && r->uffd_mode == UFFDIO_REGISTER_MODE_MINOR)
		return check_minor_alone(r, index, err);
	return error_set(err, -EINVAL,
	                 "region %u: %s registered with userfaultfd mode %#x, not the %#x that "
	                 "traps every absent page",
	                 index, memory_name(r->memory), r->uffd_mode, needed);
}

/* Return: 0 with *@ret_fd a copy of the region's descriptor, -1 where it has none. */
static int copy_fd(const struct migration *m, const struct vmm_attach *attach,
                   const struct region *r, uint32_t index, int *ret_fd, struct error *err)
{
	uint32_t place = attach->msg->regions[index].fd_index;
	bool none = m->params.role == MIGRATION_DESTINATION &&
	            r->memory == POSTCOPY_MEMORY_ANONYMOUS && !region_is_staged(r);

	if (none != (place == VMM_WIRE_NO_FD))
		return error_set(err, -EINVAL, "region %u: %s %s a descriptor", index,
		                 memory_name(r->memory), none ? "with" : "without");
	if (none)
		return 0;
	/* Regions may share one descriptor. */
	*ret_fd = fcntl(attach->fds[place], F_DUPFD_CLOEXEC, 0);
	return *ret_fd < 0 ? error_errno(err, -errno, "region %u: descriptor", index) : 0;
}

/* What is there before the guest has come is not the guest's. Only once: then it is. */
static int empty_memories(const struct region_table *table, struct memory **memories,
                          struct error *err)
{
	uint64_t deadline_ns = thread_own_time_ns() + EMPTY_LIMIT_NS;
	int rc = 0;

	for (uint32_t i = 0; i < table->n && !rc; i++)
		if (memories[i])
			rc = memory_empty(memories[i], i, deadline_ns, err);
	return rc;
}

int migration_open_memories(struct migration *m, const struct vmm_attach *attach,
                            const struct region_table *table, struct memory **memories,
                            struct error *err)
{
	bool destination = m->params.role == MIGRATION_DESTINATION;
	int rc = find_files(attach, table, m->files, err);

	for (uint32_t i = 0; i < table->n && !rc; i++) {
		const struct region *r = &table->regions[i];
		_cleanup_close_ int fd = -1;

		/* Neither read nor written: no guest that has one is paused (pause_guest()). */
		if (r->flags & POSTCOPY_REGION_PRIVATE)
			continue;
		rc = copy_fd(m, attach, r, i, &fd, err);
		if (!rc && destination && !region_table_is_asked(table))
			rc = check_uffd_mode(r, i, err);
		if (!rc)
			rc = destination ? memory_open_destination(r, i, fd, &memories[i], err)
			                 : memory_open_source(r, i, fd, &memories[i], err);
		if (!rc)
			fd = -1;
	}
	if (!rc && destination && (m->state == MIGRATION_PREPARED || migration_memory_is_late(m)))
		rc = empty_memories(table, memories, err);
	if (!rc)
		log_migration_debug(m->params.id, "%u regions, %llu MiB", table->n,
		                    (unsigned long long)(table->size_bytes >> 20));
	return rc;
}

void migration_free_memories(struct memory **memories)
{
	for (uint32_t i = 0; i < REGIONS_MAX; i++)
		memories[i] = memory_free(memories[i]);
}

int migration_check_vmm(const struct migration *m, const struct vmm_conn *conn,
                        const struct vmm_attach *attach, struct error *err)
{
	return parties_check_vmm(&m->params.parties, vmm_conn_fd(conn),
	                         attach->pidfd >= 0 ? attach->vmm : 0, m->params.id, err);
}

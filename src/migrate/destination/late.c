/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Late memory: a VMM that makes guest memory when it reads its vmstate, and not before.
 *
 * It attaches as a destination without any. What its memory will be the source's table says. While
 * warming all connections are opened as ever; at switchover the VMM is given the vmstate (VMSTATE)
 * with the state switching still, for without memory no vCPU can run: the guest is the source's.
 * Then the VMM says MEMORY. That is looked at as an ATTACH is, compared with the source's table,
 * and kept; the conductor has its threads; and only then comes the point of no return, the state
 * postcopy, and the VMM is told ATTACHED. From there on faults are served, also those of loading
 * itself, and all is as if the memory had been there from the beginning: LOADED, RESUMED.
 *
 * Whatever fails before that gives the source's guest back. A process that takes over in between
 * asks the source again, and the VMM: VMSTATE comes twice, and so does MEMORY.
 */
#include "migrate/destination/destination.h"

#include <errno.h>

#include "migrate/adapter.h"
#include "migrate/admission.h"
#include "migrate/attach.h"
#include "migrate/record/keep.h"
#include "util/cleanup.h"
#include "util/log.h"

/* The source's, until its own is here. */
void destination_take_table(struct migration *m)
{
	if (!migration_memory_is_late(m))
		return;
	pthread_mutex_lock(&m->lock);
	m->table = m->theirs;
	pthread_mutex_unlock(&m->lock);
	migration_save(m);
}

/*
 * One region of the source's of what comes next in the VMM's table: it, or several pieces of
 * private memory in a row. Return: how many; 0 where it is not that.
 */
static uint32_t join_region(const struct region *theirs, uint32_t region,
                            const struct vmm_wire_msg *msg, uint32_t first, struct addrmap *pieces)
{
	const struct vmm_wire_region *w = &msg->regions[first];
	uint64_t offset = 0;
	uint32_t n = 0;

	for (; first + n < msg->n_regions && offset < theirs->size; n++) {
		if (w[n].guest_phys_addr != theirs->guest_phys_addr + offset || *w[n].name ||
		    w[n].page_size != w->page_size || w[n].uffd_mode != w->uffd_mode ||
		    w[n].memory != POSTCOPY_MEMORY_ANONYMOUS || w[n].fd_index != w->fd_index ||
		    (w->fd_index != VMM_WIRE_NO_FD && w[n].fd_offset != w->fd_offset + offset))
			return 0;
		pieces->pieces[pieces->n++] = (struct addrmap_piece){
			.host_addr = w[n].host_addr,
			.len = w[n].size,
			.offset = offset,
			.region = region,
		};
		offset += w[n].size;
	}
	return offset == theirs->size ? n : 0;
}

/*
 * A VMM's memory may be cut where the source's is not (around a hole for devices): who has only
 * read it from a file does not know where. Then @joined is the source's table, and @pieces say
 * where it is mapped. Return: whether it is that.
 */
static bool join(const struct migration *m, const struct vmm_wire_msg *msg,
                 struct vmm_wire_msg *joined, struct addrmap *pieces)
{
	uint32_t at = 0;

	*joined = *msg;
	pieces->n = 0;
	for (uint32_t i = 0; i < m->table.n; i++) {
		uint32_t n = at < msg->n_regions
		                     ? join_region(&m->table.regions[i], i, msg, at, pieces)
		                     : 0;

		if (!n)
			return false;
		joined->regions[i] = msg->regions[at];
		joined->regions[i].size = m->table.regions[i].size;
		at += n;
	}
	joined->n_regions = m->table.n;
	return at == msg->n_regions;
}

/* Whether it is the memory of the source's guest, as it is or @ret_joined. */
static int check_table(const struct migration *m, const struct vmm_wire_msg *msg,
                       struct vmm_wire_msg *joined, struct addrmap *pieces, bool *ret_joined,
                       struct error *err)
{
	struct error why = ERROR_INIT;
	struct region_table table;
	int rc = migration_read_table(msg, &table, err);

	if (!rc)
		rc = region_table_check_readable(&table, err);
	if (rc)
		return rc;
	*ret_joined =
	        region_table_same_guest(&table, &m->table, &why) && join(m, msg, joined, pieces);
	if (why.code && !*ret_joined)
		*err = why;
	return err->code;
}

static int take_table(struct migration *m, struct vmm_attach *attach, struct vmm_wire_msg *joined,
                      struct error *err)
{
	struct region_table table;
	struct addrmap pieces;
	bool is_joined;
	int rc = check_table(m, attach->msg, joined, &pieces, &is_joined, err);

	/* Piece by piece, as they lie in the VMM. */
	if (!rc)
		rc = migration_check_attach(m, attach, err);
	if (!rc)
		rc = migration_read_table(attach->msg, &table, err);
	if (!rc)
		rc = admission_check_memory(m, &table, attach->vmm, err);
	if (rc)
		return rc;
	if (is_joined)
		attach->msg = joined;
	rc = migration_keep_late(m, attach, err);
	return rc ? rc : destination_attach(m, attach, is_joined ? &pieces : NULL, -1, err);
}

/* Return: 0; or -errno with @err set: whatever of it was kept goes with the migration. */
static int take(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	_cleanup_free_ struct vmm_wire_msg *joined = malloc(sizeof *joined);
	int rc = joined ? take_table(m, attach, joined, err)
	                : error_set(err, -ENOMEM, "out of memory");

	if (rc)
		return rc;
	for (uint32_t i = 0; i < attach->msg->n_regions; i++)
		m->fd_index[i] = attach->msg->regions[i].fd_index;
	m->memory = MIGRATION_MEMORY_CAME;
	m->vmstate_waits = false;
	migration_save(m);
	return 0;
}

/* It was said before: to the process before this one, or before the VMM was given VMSTATE again. */
static void answer_again(struct migration *m)
{
	m->memory_asked = m->state == MIGRATION_SWITCHING;
	if (!m->memory_asked && m->vmm)
		(void)vmm_conn_send_type(m->vmm, VMM_WIRE_ATTACHED);
}

int destination_memory(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	struct error why = ERROR_INIT;

	/* It crossed our own last word. */
	if (migration_state_is_final(m->state))
		return 0;
	if (m->memory == MIGRATION_MEMORY_CAME) {
		answer_again(m);
		return 0;
	}
	if (!migration_memory_is_late(m) || m->state != MIGRATION_SWITCHING)
		return error_set(err, -EPROTO, "MEMORY is not for a %s that is %s",
		                 migration_role_name(m->params.role),
		                 migration_state_name(m->state));
	attach->vmm = migration_vmm_pid(m);
	if (take(m, attach, &why)) {
		error_prefix(&why, "the VMM's memory");
		destination_give_up(m, &why);
		return 0;
	}
	log_migration_debug(m->params.id, "the VMM has its memory");
	m->memory_asked = true;
	migration_order(m, ORDER_MEMORY);
	return 0;
}

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
#include "migrate/takeover.h"

#include <errno.h>

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

/* It is the memory of the source's guest. */
static int check_table(const struct migration *m, const struct vmm_attach *attach,
                       struct error *err)
{
	struct region_table table;
	int rc = migration_read_table(attach->msg, &table, err);

	if (!rc)
		rc = region_table_same_guest(&table, &m->table, err);
	return rc ? rc : region_table_check_readable(&table, err);
}

/* Return: 0; or -errno with @err set: whatever of it was kept goes with the migration. */
static int take(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	int rc = check_table(m, attach, err);

	if (!rc)
		rc = migration_check_attach(m, attach, err);
	if (!rc)
		rc = migration_keep_late(m, attach, err);
	if (!rc)
		rc = destination_attach(m, attach, -1, err);
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

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VMM that an adapter speaks for.
 *
 * The adapter's connection may end at any time, and begin again: the guest is as it was, and so is
 * the migration. What the daemon wants of the VMM meanwhile waits, and is said when the adapter has
 * attached again; what a guest stands still for, or a destination waits for, waits for so long
 * only.
 */
#include "migrate/adapter.h"

#include <errno.h>
#include <string.h>

#include "migrate/attach.h"
#include "migrate/destination/destination.h"
#include "migrate/record/keep.h"
#include "migrate/record/takeover.h"
#include "migrate/source/source.h"
#include "migrate/source/source_log.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "vmm/vmm_process.h"

bool migration_has_vmm(const struct migration *m)
{
	return m->vmm || m->process;
}

bool migration_adapter_is_away(const struct migration *m)
{
	return m->process && !m->vmm;
}

pid_t migration_vmm_pid(const struct migration *m)
{
	if (m->process)
		return vmm_process_pid(m->process);
	return m->vmm ? vmm_conn_pid(m->vmm) : 0;
}

static void vmm_closed(struct migration *m)
{
	if (m->params.role == MIGRATION_SOURCE)
		source_vmm_closed(m);
	else
		destination_vmm_closed(m);
}

/* There is nothing any more that it could speak for. */
static void part_from_adapter(struct migration *m, const struct error *why)
{
	vmm_conn_send_error(m->vmm, why);
	if (m->state != MIGRATION_PREPARED)
		return;
	vmm_conn_disown(m->vmm);
	m->vmm = NULL;
	migration_drop_fds(m, "vmm");
}

static void on_ended(void *arg)
{
	struct migration *m = arg;
	bool over = migration_state_is_final(m->state);
	struct error why = ERROR_INIT;

	error_set(&why, -ESRCH, "the %s VMM (pid %d) is gone", migration_role_name(m->params.role),
	          (int)vmm_process_pid(m->process));
	log_migration_warning(m->params.id, "%s", why.text);
	/* What it has done is what its adapter has said by now. */
	if (m->vmm)
		vmm_conn_catch_up(m->vmm);
	migration_drop_process(m);
	vmm_closed(m);
	if (m->vmm && !over &&
	    (m->state == MIGRATION_PREPARED || migration_state_is_final(m->state)))
		part_from_adapter(m, &why);
}

/* @fd: taken over on success. */
static int watch(struct migration *m, int fd, struct error *err)
{
	return vmm_process_watch(m->owner->loop, fd, on_ended, m, &m->process, err);
}

int migration_take_process(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	int rc;

	if (attach->pidfd < 0)
		return 0;
	rc = migration_keep_fd(m, "process", attach->pidfd, err);
	if (!rc)
		rc = watch(m, attach->pidfd, err);
	if (rc)
		migration_drop_fds(m, "process");
	else
		attach->pidfd = -1;
	return rc;
}

int migration_take_over_process(struct migration *m, struct error *err)
{
	_cleanup_close_ int fd = -1;
	int rc;

	if (m->process)
		return 0;
	fd = migration_take_fd(m, "process");
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return error_errno(err, fd, "the VMM's pidfd");
	rc = watch(m, fd, err);
	if (!rc)
		fd = -1;
	return rc;
}

void migration_drop_process(struct migration *m)
{
	if (!m->process)
		return;
	m->process = vmm_process_close(m->process);
	migration_drop_fds(m, "process");
}

static unsigned int adapter_timeout_ms(const struct migrations *ms)
{
	unsigned int ms_given = ms->config.vmm_limits.attach_timeout_ms;

	return ms_given ? ms_given : VMM_ATTACH_TIMEOUT_MS;
}

/* Whether anybody waits for what only the VMM can say, and can still go back. */
static bool needs_adapter(struct migration *m)
{
	bool given;

	if (!migration_adapter_is_away(m) || migration_state_is_final(m->state))
		return false;
	if (m->params.role == MIGRATION_SOURCE)
		return m->state == MIGRATION_SWITCHING && !m->paused;
	pthread_mutex_lock(&m->lock);
	given = m->may_have_run;
	pthread_mutex_unlock(&m->lock);
	/* That it is loaded may have been said to the process before this one. */
	return given ? !m->loaded_ns && !m->taken_over : m->vmstate_waits;
}

static void be_late(struct migration *m)
{
	char why[ERROR_TEXT_MAX];

	snprintf(why, sizeof why,
	         "its adapter has detached, and did not come back within %u s (attach-timeout)",
	         adapter_timeout_ms(m->owner) / 1000);
	if (m->params.role == MIGRATION_SOURCE)
		source_adapter_late(m, why);
	else
		destination_adapter_late(m, why);
}

static void on_deadline(uv_timer_t *timer)
{
	struct migrations *ms = timer->data;
	uint64_t now_ms = uv_now(timer->loop);
	bool more = false;

	for (struct migration *m = ms->list; m; m = m->next) {
		if (!m->adapter_due_ms)
			continue;
		if (!needs_adapter(m)) {
			m->adapter_due_ms = 0;
		} else if (now_ms < m->adapter_due_ms) {
			more = true;
		} else {
			m->adapter_due_ms = 0;
			be_late(m);
		}
	}
	if (!more)
		uv_timer_stop(timer);
}

void migration_await_adapter(struct migration *m)
{
	struct migrations *ms = m->owner;
	unsigned int timeout_ms = adapter_timeout_ms(ms);

	if (!needs_adapter(m) || m->adapter_due_ms)
		return;
	m->adapter_due_ms = uv_now(ms->loop) + timeout_ms;
	ms->adapters.data = ms;
	uv_timer_start(&ms->adapters, on_deadline, timeout_ms / 4, timeout_ms / 4);
}

void migration_adapter_gone(struct migration *m)
{
	log_migration_warning(m->params.id, "adapter detached; its VMM, pid %d, lives",
	                      (int)vmm_process_pid(m->process));
	if (m->params.role == MIGRATION_SOURCE)
		source_lose_log(m);
	migration_await_adapter(m);
	migration_tell(m, m->reason);
}

/* Of those that the process has attached by that id the newest. NULL with @err set. */
static struct migration *find_again(struct migrations *ms, const struct vmm_attach *attach,
                                    struct error *err)
{
	const struct vmm_wire_msg *msg = attach->msg;

	for (struct migration *m = ms->list; m; m = m->next) {
		if (strcmp(m->params.id, msg->id) ||
		    m->params.role != (enum migration_role)msg->role)
			continue;
		if (takeover_check(m, err))
			return NULL;
		if (m->process && vmm_process_pid(m->process) == attach->vmm)
			return m;
	}
	error_set(err, -ENOENT,
	          "migration \"%s\": process %d has not attached here as %s, and can't again",
	          msg->id, (int)attach->vmm, migration_role_name((enum migration_role)msg->role));
	return NULL;
}

static enum vmm_wire_standing standing(const struct migration *m)
{
	if (m->params.role == MIGRATION_SOURCE)
		return m->paused || m->state == MIGRATION_COMPLETE ? VMM_WIRE_STANDS_PAUSED
		                                                   : VMM_WIRE_STANDS_RUNNING;
	if (m->resumed_ns)
		return VMM_WIRE_STANDS_RESUMED;
	if (m->loaded_ns)
		return VMM_WIRE_STANDS_LOADED;
	return m->memory == MIGRATION_MEMORY_CAME ? VMM_WIRE_STANDS_LOADING
	                                          : VMM_WIRE_STANDS_WAITING;
}

int migration_attach_again(struct migrations *ms, struct vmm_conn *conn, struct vmm_attach *attach,
                           void **ret_owner, struct error *err)
{
	struct migration *m = find_again(ms, attach, err);
	struct error why = ERROR_INIT;

	if (!m || migration_check_vmm(m, conn, attach, err))
		return err->code;
	/* The one before may have let go just now. */
	if (m->vmm)
		vmm_conn_catch_up(m->vmm);
	if (m->vmm)
		return error_set(err, -EBUSY, "migration \"%s\": an adapter is attached already",
		                 m->params.id);
	/* Better an adapter that the next process has to wait for again than none. */
	if (migration_keep_fd(m, "vmm", vmm_conn_fd(conn), &why))
		log_migration_warning(m->params.id,
		                      "the adapter's socket will not outlive this process: %s",
		                      why.text);
	m->vmm = conn;
	m->memory_asked = false;
	m->adapter_due_ms = 0;
	attach->standing = standing(m);
	*ret_owner = m;
	log_migration_info(m->params.id, "adapter attached again");
	migration_tell(m, m->reason);
	return 0;
}

void migration_attached_again(struct migration *m)
{
	if (m->params.role == MIGRATION_SOURCE)
		source_attached_again(m);
	else
		destination_attached_again(m);
}

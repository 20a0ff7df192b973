/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a source guest writes while it runs: the loop's part of stream/source_log.h. Nothing of it
 * may cost a guest anything: where it can't be had, the reason is told to whoever wants it, and the
 * guest migrates by postcopy alone.
 */
#include "migrate/source/source_log.h"

#include <errno.h>

#include "migrate/adapter.h"
#include "migrate/record/keep.h"
#include "util/log.h"

static void no_log(struct migration *m, struct page_source *source, const char *why)
{
	log_migration_info(m->params.id, "what its guest writes can't be told: %s", why);
	(void)page_source_set_log(source, NULL, why);
}

/* Takes over @log in any case. */
static void have_log(struct migration *m, struct page_source *source, struct dirty_log *log)
{
	enum dirty_log_how how = dirty_log_how(log);
	struct error why = ERROR_INIT;
	int rc = page_source_set_log(source, log, "");

	if (rc) {
		dirty_log_free(log);
		error_errno(&why, rc, "the dirty log");
		no_log(m, source, why.text);
		return;
	}
	m->dirty_log = how;
}

/* One that makes no sense is the VMM's fault, and it is cut off. */
static int take_log(struct migration *m, const struct vmm_wire_msg *msg, int fds[VMM_MESSAGE_FDS],
                    struct error *err)
{
	bool kernel = msg->how == VMM_WIRE_LOG_BY_KERNEL;
	enum dirty_log_how how = kernel ? DIRTY_LOG_BY_KERNEL : DIRTY_LOG_BY_VMM;
	int log_fds[DIRTY_LOG_FDS] = { -1, -1, -1 };
	struct error why = ERROR_INIT;
	struct dirty_log *log;
	int rc;

	if (kernel) {
		log_fds[DIRTY_LOG_FD_UFFD] = fds[0];
		log_fds[DIRTY_LOG_FD_PAGEMAP] = fds[1];
	} else {
		log_fds[DIRTY_LOG_FD_BITMAP] = fds[0];
	}
	rc = dirty_log_new(&m->table, how, log_fds, &log, &why);
	if (rc == -EINVAL)
		return error_set(err, rc, "%s", why.text);
	if (rc) {
		no_log(m, m->source, why.text);
		return 0;
	}
	fds[0] = fds[1] = -1;
	rc = migration_keep_log(m, log, &why);
	if (rc) {
		dirty_log_free(log);
		no_log(m, m->source, why.text);
		return 0;
	}
	have_log(m, m->source, log);
	migration_save(m);
	return 0;
}

int source_on_dirty_log(struct migration *m, const struct vmm_wire_msg *msg,
                        int fds[VMM_MESSAGE_FDS], struct error *err)
{
	/* It crossed PAUSE, which asks no more of it. */
	if (m->state != MIGRATION_ATTACHED && m->state != MIGRATION_WARMING)
		return 0;
	if (m->dirty_log)
		return error_set(err, -EBUSY, "a dirty log was offered already");
	if (msg->how != VMM_WIRE_LOG_NONE)
		return take_log(m, msg, fds, err);
	no_log(m, m->source, msg->text);
	return 0;
}

void source_on_harvested(struct migration *m, const struct vmm_wire_msg *msg)
{
	if (m->source)
		page_source_answer_log(m->source, msg->number, (int)msg->code, msg->text);
}

static int say(struct migration *m, enum vmm_wire_type type, uint64_t number)
{
	struct vmm_wire_msg msg = { .type = type, .number = number };

	return m->vmm ? vmm_conn_send(m->vmm, &msg, -1) : -ENOTCONN;
}

/* What the VMM was told, against what is wanted now. Return: 0, or why it can't be told so. */
static int tell_order(struct migration *m, const struct source_log_order *order)
{
	bool start = order->session != m->log_session;

	if (m->log_session && start) {
		(void)say(m, VMM_WIRE_LOG_STOP, 0);
		m->log_session = 0;
	}
	if (!order->session || order->number == m->log_number)
		return 0;
	/* Somebody was first to have its VMM pause: that is asked nothing more. */
	if (m->state != MIGRATION_ATTACHED && m->state != MIGRATION_WARMING)
		return -ECANCELED;
	m->log_session = order->session;
	m->log_number = order->number;
	return say(m, start ? VMM_WIRE_LOG_START : VMM_WIRE_LOG_HARVEST, order->number);
}

void source_log_news(struct migration *m)
{
	struct source_log_order order;
	int rc;

	if (m->dirty_log != DIRTY_LOG_BY_VMM || m->paused)
		return;
	page_source_get_log_order(m->source, &order);
	rc = tell_order(m, &order);
	if (rc)
		page_source_answer_log(m->source, order.number, -rc,
		                       rc == -ECANCELED               ? "it is being paused"
		                       : migration_adapter_is_away(m) ? "its adapter is away"
		                                                      : "it can't be reached");
}

void source_end_log(struct migration *m)
{
	/* Of a guest that was stopped it has ended. */
	if (m->log_session && !m->paused)
		(void)say(m, VMM_WIRE_LOG_STOP, 0);
	m->log_session = 0;
	if (m->source)
		page_source_stop_log(m->source);
}

void source_take_over_log(struct migration *m, struct page_source *source,
                          const struct saved *saved)
{
	struct error why = ERROR_INIT;
	struct dirty_log *log;

	m->dirty_log = 0;
	m->warm = false;
	if (!saved->dirty_log)
		return;
	if (migration_take_log(m, (enum dirty_log_how)saved->dirty_log, &log, &why))
		no_log(m, source, why.text);
	else
		have_log(m, source, log);
	/* Without it VMSTATE comes alone, and nothing counts that came before. */
	m->warm = saved->warm && m->dirty_log;
	if (saved->state != MIGRATION_ATTACHED && saved->state != MIGRATION_WARMING)
		page_source_restore_log(source, m->warm);
}

/*
 * What its adapter had in its bitmap, and what it had asked the VMM to log, is gone with it:
 * whoever paused the guest for it has no last harvest.
 */
void source_lose_log(struct migration *m)
{
	if (m->dirty_log != DIRTY_LOG_BY_VMM || m->paused || !m->source)
		return;
	page_source_lose_log(m->source);
	m->log_session = 0;
	if (!m->warm)
		return;
	m->warm = false;
	migration_save(m);
}

/* A connection for which anything was logged has ended with the process that served it. */
void source_begin_log_anew(struct migration *m)
{
	if (!m->dirty_log || m->warm || !m->source)
		return;
	if (m->dirty_log == DIRTY_LOG_BY_VMM && !m->paused)
		(void)say(m, VMM_WIRE_LOG_STOP, 0);
	page_source_stop_log(m->source);
}

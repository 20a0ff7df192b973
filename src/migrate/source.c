/* SPDX-License-Identifier: Apache-2.0 */
/* The source's half: on the loop's thread. */
#include "migrate/takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

/* Called by connections' threads: pass the news on. */

static void on_connected(void *arg)
{
	migration_post(arg, NEWS_CONNECTED);
}

static void on_switchover(void *arg)
{
	migration_post(arg, NEWS_SWITCHOVER);
}

static void on_resumed(void *arg)
{
	migration_post(arg, NEWS_RESUMED);
}

static void on_complete(void *arg)
{
	migration_post(arg, NEWS_COMPLETE);
}

static void on_aborted(void *arg)
{
	migration_post(arg, NEWS_ABORTED);
}

static const struct page_source_ops source_ops = {
	.connected = on_connected,
	.switchover = on_switchover,
	.resumed = on_resumed,
	.complete = on_complete,
	.aborted = on_aborted,
};

static void free_memories(struct memory **memories, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		memory_free(memories[i]);
}

static int open_memories(struct migration *m, struct vmm_attach *attach,
                         const struct region_table *table, struct memory **memories,
                         struct error *err)
{
	for (uint32_t i = 0; i < table->n; i++) {
		uint32_t index = attach->msg->regions[i].fd_index;
		int fd, rc = index == VMM_WIRE_NO_FD
		                     ? error_set(err, -EINVAL, "region %u: no descriptor", i)
		                     : 0;

		/* Never read: no guest that has one is paused (pause_guest()). */
		if (table->regions[i].flags & POSTCOPY_REGION_PRIVATE)
			continue;
		/* Regions may share one descriptor. */
		fd = rc ? -1 : fcntl(attach->fds[index], F_DUPFD_CLOEXEC, 0);
		if (!rc && fd < 0)
			rc = error_errno(err, -errno, "region %u: descriptor", i);
		if (!rc)
			rc = memory_open_source(&table->regions[i], i, fd, &memories[i], err);
		if (rc) {
			close_fd(&fd);
			free_memories(memories, i);
			return rc;
		}
	}
	log_migration_debug(m->params.id, "%u regions, %llu MiB", table->n,
	                    (unsigned long long)(table->size_bytes >> 20));
	return 0;
}

int source_attach(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	struct memory *memories[REGIONS_MAX] = { 0 };
	struct region_table table;
	struct page_source *source;
	int rc = migration_read_table(attach->msg, &table, err);

	if (!rc)
		rc = open_memories(m, attach, &table, memories, err);
	if (rc)
		return rc;
	rc = page_source_new(m->params.id, m->params.token, &table, memories, &source_ops, m,
	                     &source, err);
	if (rc) {
		free_memories(memories, table.n);
		return rc;
	}
	rc = page_server_add(m->owner->config.page_server, source);
	if (rc) {
		page_source_unref(source);
		return error_errno(err, rc, "page server");
	}
	m->table = table;
	m->source = source;
	m->epoch = page_source_epoch(source);
	return 0;
}

/* What its VMM has poisoned; also after a take-over. */
static int take_poisoned(struct migration *m, int fd, struct error *err)
{
	struct poison_list *list;
	int rc = poison_list_read(&m->table, fd, &list, err);

	if (rc)
		return rc;
	log_migration_warning(m->params.id,
	                      "%llu pages of the guest are poisoned since a migration before: they "
	                      "stay so",
	                      (unsigned long long)poison_list_units(list));
	page_source_set_poisoned(m->source, list);
	return 0;
}

static int on_poisoned(struct migration *m, int fd, struct error *err)
{
	int rc = take_poisoned(m, fd, err);

	if (rc)
		return rc;
	migration_drop_fds(m, "poison");
	migration_keep_fd(m, "poison", fd);
	return 0;
}

void source_stop(struct migration *m)
{
	struct migration_info info;

	if (!m->source)
		return;
	migration_get_info(m, &info);
	m->served = info.served;
	page_source_withdraw(m->source);
	page_server_remove(m->owner->config.page_server, m->source, false);
	m->source = page_source_unref(m->source);
}

/* It is decided and recorded: whoever asked may hear so, and what was served goes. */
static void let_go(struct migration *m)
{
	if (m->source)
		page_source_acknowledge(m->source);
	source_stop(m);
	migration_drop_attach(m);
	migration_drop_fds(m, "vmstate");
}

/* The guest runs on here: nobody may read its memory, and its VMM is told. */
static void run_on(struct migration *m, const char *why)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_RESUME };

	let_go(m);
	snprintf(msg.text, sizeof msg.text, "%s", why);
	if (m->vmm && vmm_conn_send(m->vmm, &msg, -1))
		log_migration_warning(m->params.id, "the VMM could not be told to run on");
}

/* A vmstate must be what it says, and stay so while it is sent. */
static int check_vmstate(const struct migration *m, int fd, uint64_t len, struct error *err)
{
	const int needed = F_SEAL_WRITE | F_SEAL_SHRINK;
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (!len || len > m->owner->config.max_vmstate_bytes)
		return error_set(err, -EFBIG,
		                 "vmstate of %llu bytes, must be 1..%llu (--max-vmstate)",
		                 (unsigned long long)len,
		                 (unsigned long long)m->owner->config.max_vmstate_bytes);
	if (seals < 0 || (seals & needed) != needed)
		return error_set(err, -EINVAL,
		                 "vmstate is not a memfd sealed against writing and shrinking");
	if (fstat(fd, &st) || (uint64_t)st.st_size < len)
		return error_set(err, -EINVAL, "vmstate of %llu bytes in a smaller memfd",
		                 (unsigned long long)len);
	return 0;
}

/* The guest was not paused, or not well: it runs on, and the destination reads why. */
static void fail_pause(struct migration *m, const struct error *why)
{
	migration_move(m, MIGRATION_WARMING, "%s", why->text);
	page_source_refuse(m->source, why);
}

static int on_paused(struct migration *m, const struct vmm_wire_msg *msg, int *fd,
                     struct error *err)
{
	int rc = check_vmstate(m, *fd, msg->vmstate_len, err);

	if (rc) {
		vmm_conn_send_type(m->vmm, VMM_WIRE_RESUME);
		fail_pause(m, err);
		return rc;
	}
	migration_keep_fd(m, "vmstate", *fd);
	m->paused = true;
	m->vmstate_len = msg->vmstate_len;
	m->source_pause_ns = clock_now_ns() - m->pause_sent_ns;
	migration_save(m);
	page_source_set_vmstate(m->source, steal_fd(fd), m->vmstate_len, m->source_pause_ns);
	return 0;
}

int source_message(struct migration *m, const struct vmm_wire_msg *msg, int *fd, struct error *err)
{
	bool asked = m->state == MIGRATION_SWITCHING && !m->paused;

	/* It crossed our own last word. */
	if (migration_state_is_final(m->state))
		return 0;
	if (msg->type == VMM_WIRE_POISONED && asked)
		return on_poisoned(m, *fd, err);
	/* Said again, like the PAUSED that follows it. */
	if (msg->type == VMM_WIRE_POISONED && m->taken_over && m->paused)
		return 0;
	if (msg->type == VMM_WIRE_PAUSED && asked)
		return on_paused(m, msg, fd, err);
	if (msg->type == VMM_WIRE_ERROR && asked) {
		struct error why = ERROR_INIT;

		error_set(&why, -(int)msg->code, "the source VMM can't pause: %s", msg->text);
		fail_pause(m, &why);
		return 0;
	}
	/*
	 * A process that took over has asked again, and both were answered. The second answer says
	 * nothing new; but a guest that nobody wants paused any more is to run.
	 */
	if (m->taken_over && (msg->type == VMM_WIRE_PAUSED || msg->type == VMM_WIRE_ERROR)) {
		if (msg->type == VMM_WIRE_PAUSED && !m->paused)
			(void)vmm_conn_send_type(m->vmm, VMM_WIRE_RESUME);
		return 0;
	}
	return error_set(err, -EPROTO, "message %u is not for a source that is %s", msg->type,
	                 migration_state_name(m->state));
}

void source_vmm_closed(struct migration *m)
{
	struct error why = ERROR_INIT;

	switch (m->state) {
	case MIGRATION_ATTACHED:
		source_stop(m);
		migration_move(m, MIGRATION_PREPARED, "the VMM has detached");
		migration_drop_attach(m);
		return;
	case MIGRATION_SWITCHING:
		if (m->paused)
			break;
		error_set(&why, -ESRCH, "the source VMM is gone");
		page_source_refuse(m->source, &why);
		__attribute__((fallthrough));
	case MIGRATION_WARMING:
		migration_move(m, MIGRATION_FAILED, "the source VMM is gone");
		let_go(m);
		return;
	default:
		break;
	}
	if (!migration_state_is_final(m->state))
		log_migration_info(m->params.id, "the source VMM is gone; its memory is served on");
}

static void send_pause(struct migration *m)
{
	struct error why = ERROR_INIT;

	if (m->vmm && !vmm_conn_send_type(m->vmm, VMM_WIRE_PAUSE))
		return;
	error_set(&why, -ESRCH, "the source VMM can't be reached");
	fail_pause(m, &why);
}

/* The point of no return lies behind the vmstate: it is given to the destination or not at all. */
static void pause_guest(struct migration *m)
{
	struct error why = ERROR_INIT;

	if (m->state == MIGRATION_ATTACHED)
		migration_move(m, MIGRATION_WARMING, "%s", "");
	if (m->state != MIGRATION_WARMING)
		return;
	m->pause_sent_ns = clock_now_ns();
	migration_move(m, MIGRATION_SWITCHING, "%s", "");
	if (region_table_check_readable(&m->table, &why))
		fail_pause(m, &why);
	else
		send_pause(m);
}

static void finish(struct migration *m)
{
	migration_move(m, MIGRATION_COMPLETE, "%s", "");
	let_go(m);
	if (m->vmm && vmm_conn_send_type(m->vmm, VMM_WIRE_COMPLETE))
		log_migration_warning(m->params.id, "the VMM could not be told");
}

static void on_aborted_by_destination(struct migration *m)
{
	struct error why = ERROR_INIT;

	/* That, then, was its reason; the guest was never paused. */
	if (region_table_check_readable(&m->table, &why)) {
		migration_move(m, MIGRATION_FAILED, "%s", why.text);
		let_go(m);
		if (m->vmm)
			vmm_conn_send_error(m->vmm, &why);
		return;
	}
	migration_move(m, MIGRATION_CANCELLED, "the destination has given up before it ran");
	run_on(m, m->reason);
}

void source_news(struct migration *m, unsigned int news)
{
	if (migration_state_is_final(m->state) || !m->source)
		return;
	if (page_source_is_connected(m->source) && m->state == MIGRATION_ATTACHED)
		migration_move(m, MIGRATION_WARMING, "%s", "");
	else if (!page_source_is_connected(m->source) && m->state == MIGRATION_WARMING)
		migration_move(m, MIGRATION_ATTACHED, "the destination has disconnected");
	if (news & NEWS_SWITCHOVER)
		pause_guest(m);
	if ((news & (NEWS_RESUMED | NEWS_COMPLETE)) && m->state == MIGRATION_SWITCHING && m->paused)
		migration_move(m, MIGRATION_POSTCOPY, "%s", "");
	if ((news & NEWS_COMPLETE) && m->state == MIGRATION_POSTCOPY)
		finish(m);
	if ((news & NEWS_ABORTED) && m->state != MIGRATION_POSTCOPY)
		on_aborted_by_destination(m);
}

int source_cancel(struct migration *m, struct error *err)
{
	if (m->paused)
		return error_set(err, -EBUSY,
		                 "migration \"%s\": the destination has the guest's state and may "
		                 "be running it: cancel it there",
		                 m->params.id);
	if (m->state == MIGRATION_POSTCOPY || m->state == MIGRATION_PAUSED)
		return migration_refuse_now(m, "cancelling", err);
	migration_move(m, MIGRATION_CANCELLED, "by command");
	run_on(m, "cancelled at the source");
	return 0;
}

int source_take_over(struct migration *m, struct vmm_attach *attach, const struct saved *saved,
                     struct error *err)
{
	int fd, rc = source_attach(m, attach, err);

	if (rc)
		return rc;
	page_source_restore(m->source, saved->epoch, saved->vmm_resumed);
	m->epoch = saved->epoch;
	fd = migration_take_fd(m, "poison");
	if (fd >= 0) {
		rc = take_poisoned(m, fd, err);
		close(fd);
		if (rc)
			return rc;
	}
	if (!saved->vmstate_held)
		return 0;
	fd = migration_take_fd(m, "vmstate");
	if (fd < 0)
		return error_set(err, -ENOENT, "the vmstate is not among the descriptors");
	m->paused = true;
	page_source_set_vmstate(m->source, fd, saved->vmstate_len, saved->pause_ns);
	return 0;
}

/* Our last word again: the process before may not have got to it. */
static void repeat_last_word(struct migration *m)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_RESUME };
	struct error why = ERROR_INIT;

	if (m->state == MIGRATION_COMPLETE) {
		msg.type = VMM_WIRE_COMPLETE;
	} else if (m->state == MIGRATION_FAILED) {
		error_set(&why, -ECANCELED, "%s", m->reason);
		vmm_conn_send_error(m->vmm, &why);
		return;
	}
	snprintf(msg.text, sizeof msg.text, "%s", m->reason);
	(void)vmm_conn_send(m->vmm, &msg, -1);
}

void source_go_on(struct migration *m)
{
	if (m->vmm && migration_state_is_final(m->state))
		repeat_last_word(m);
	/* First what it has said by now: the answer to PAUSE may be among it. */
	if (m->vmm)
		vmm_conn_catch_up(m->vmm);
	else if (m->state != MIGRATION_PREPARED)
		source_vmm_closed(m);
	if (m->state == MIGRATION_SWITCHING && !m->paused)
		send_pause(m);
	source_news(m, 0);
}

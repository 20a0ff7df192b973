/* SPDX-License-Identifier: Apache-2.0 */
/* The source's half: on the loop's thread. */
#include "migrate/source/source.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/stat.h>

#include "migrate/adapter.h"
#include "migrate/attach.h"
#include "migrate/record/keep.h"
#include "migrate/record/takeover.h"
#include "migrate/source/source_log.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

/* A holder that was heard so lately is not gone: it says something every 2 s. */
#define HOLDER_SILENT_MS 10000u

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

static void on_log(void *arg)
{
	migration_post(arg, NEWS_LOG);
}

static const struct page_source_ops source_ops = {
	.connected = on_connected,
	.switchover = on_switchover,
	.resumed = on_resumed,
	.complete = on_complete,
	.aborted = on_aborted,
	.log = on_log,
};

/* The guest's memory, that nobody finds yet. */
static int open_source(struct migration *m, struct vmm_attach *attach, struct page_source **ret,
                       struct error *err)
{
	struct memory *memories[REGIONS_MAX] = { 0 };
	struct region_table table;
	int rc = migration_read_table(attach->msg, &table, err);

	if (!rc)
		rc = migration_open_memories(m, attach, &table, memories, err);
	if (rc) {
		migration_free_memories(memories);
		return rc;
	}
	rc = page_source_new(m->params.id, m->params.token, &table, memories, &source_ops, m, ret,
	                     err);
	if (rc) {
		migration_free_memories(memories);
		return rc;
	}
	page_source_set_peer(*ret, m->params.parties.peer);
	m->table = table;
	return 0;
}

/* Takes over @source in any case. */
static int offer_source(struct migration *m, struct page_source *source, struct error *err)
{
	int rc;

	page_source_set_visitor(source, &m->visitor);
	rc = page_server_add(m->owner->config.page_server, source);
	if (rc) {
		page_source_unref(source);
		return error_errno(err, rc, "page server");
	}
	m->source = source;
	m->epoch = page_source_epoch(source);
	return 0;
}

int source_attach(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	struct page_source *source;
	int rc = open_source(m, attach, &source, err);

	m->dirty_log = 0;
	m->warm = m->has_poisoned = false;
	m->log_session = 0;
	return rc ? rc : offer_source(m, source, err);
}

/* What its VMM has poisoned; also after a take-over. */
static int take_poisoned(struct migration *m, struct page_source *source, int fd, struct error *err)
{
	struct poison_list *list;
	int rc = poison_list_read(&m->table, fd, &list, err);

	if (rc)
		return rc;
	log_migration_warning(m->params.id,
	                      "%llu pages of the guest are poisoned since a migration before: they "
	                      "stay so",
	                      (unsigned long long)poison_list_units(list));
	page_source_set_poisoned(source, list);
	m->has_poisoned = true;
	return 0;
}

static int on_poisoned(struct migration *m, int fd, struct error *err)
{
	int rc = take_poisoned(m, m->source, fd, err);

	if (rc)
		return rc;
	migration_drop_fds(m, "poison");
	return migration_keep_fd(m, "poison", fd, err);
}

static int take_over_poisoned(struct migration *m, struct page_source *source, struct error *err)
{
	_cleanup_close_ int fd = migration_take_fd(m, "poison");

	return fd < 0 ? 0 : take_poisoned(m, source, fd, err);
}

void source_stop(struct migration *m)
{
	struct migration_info info;

	if (!m->source)
		return;
	migration_get_info(m, &info);
	m->served = info.served;
	m->pace = info.pace;
	strcpy(m->peer_version, info.peer_version);
	page_source_withdraw(m->source);
	page_source_get_visitor(m->source, &m->visitor);
	page_server_remove(m->owner->config.page_server, m->source, false);
	m->source = page_source_unref(m->source);
}

/*
 * What stays of a source that has ended: who repeats its last word, for it has not heard the
 * answer, hears the same.
 */
static void leave_verdict(struct migration *m)
{
	enum source_verdict verdict =
	        m->state == MIGRATION_COMPLETE ? SOURCE_LET_GO : SOURCE_RUNS_ON;
	struct error err = ERROR_INIT;
	struct page_source *ended;
	int rc;

	if (!m->epoch)
		return;
	rc = page_source_new_ended(m->params.id, m->params.token, m->epoch, &m->holder, verdict,
	                           m->reason, &ended, &err);
	if (!rc) {
		page_source_set_peer(ended, m->params.parties.peer);
		rc = page_server_add(m->owner->config.page_server, ended);
		if (rc)
			page_source_unref(ended);
		else
			m->ended = ended;
	}
	if (rc)
		log_migration_warning(m->params.id,
		                      "who asks again how it ended is told that it is unknown: %s",
		                      strerror(-rc));
}

void source_forget(struct migration *m)
{
	if (!m->ended)
		return;
	page_server_remove(m->owner->config.page_server, m->ended, true);
	m->ended = page_source_unref(m->ended);
}

/* It is decided and recorded: whoever asked may hear so, and what was served goes. */
static void let_go(struct migration *m)
{
	enum source_verdict verdict =
	        m->state == MIGRATION_COMPLETE ? SOURCE_LET_GO : SOURCE_RUNS_ON;

	if (m->source)
		page_source_end(m->source, verdict, m->reason);
	source_end_log(m);
	source_stop(m);
	leave_verdict(m);
	migration_drop_attach(m);
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

/*
 * The guest was not paused, or not well. That ends the migration, and the guest runs on: nobody
 * could tell a late answer to this PAUSE from one to the next.
 */
static void fail_pause(struct migration *m, const char *why)
{
	migration_move(m, MIGRATION_FAILED, "%s", why);
	run_on(m, why);
}

static int on_paused(struct migration *m, const struct vmm_wire_msg *msg, int *fd,
                     struct error *err)
{
	int rc = check_vmstate(m, *fd, msg->vmstate_len, err);

	if (!rc)
		rc = migration_keep_fd(m, "vmstate", *fd, err);
	if (rc) {
		fail_pause(m, err->text);
		return rc;
	}
	m->paused = true;
	m->vmstate_len = msg->vmstate_len;
	m->source_pause_ns = clock_now_ns() - m->pause_sent_ns;
	migration_save(m);
	page_source_set_vmstate(m->source, steal_fd(fd), m->vmstate_len, m->source_pause_ns);
	return 0;
}

/* A hint: one that is of no use costs nobody anything. It is read, and never waited for. */
static void on_ahead(struct migration *m, const struct vmm_wire_msg *msg, int *fd)
{
	bool is_memory = fcntl(*fd, F_GET_SEALS) >= 0;

	if (is_memory && msg->vmstate_len <= m->owner->config.max_vmstate_bytes)
		page_source_set_ahead(m->source, steal_fd(fd), msg->vmstate_len);
}

int source_message(struct migration *m, const struct vmm_wire_msg *msg, int fds[VMM_MESSAGE_FDS],
                   struct error *err)
{
	bool asked = m->state == MIGRATION_SWITCHING && !m->paused;

	/* It crossed our own last word; but a guest that nobody wants paused is to run. */
	if (migration_state_is_final(m->state)) {
		if (msg->type == VMM_WIRE_PAUSED && m->state != MIGRATION_COMPLETE)
			(void)vmm_conn_send_type(m->vmm, VMM_WIRE_RESUME);
		return 0;
	}
	/*
	 * Once, before anything is read: at the pause; where the guest may be read while it runs,
	 * before that; and by an adapter at once, for it may not be there to say it again.
	 */
	if (msg->type == VMM_WIRE_POISONED && m->source && !m->paused && !m->has_poisoned)
		return on_poisoned(m, fds[0], err);
	/* Said again, like the PAUSED that follows it. */
	if (msg->type == VMM_WIRE_POISONED && m->has_poisoned)
		return 0;
	if (msg->type == VMM_WIRE_DIRTY_LOG)
		return source_on_dirty_log(m, msg, fds, err);
	/* Of what was asked for before, too. */
	if (msg->type == VMM_WIRE_HARVESTED) {
		source_on_harvested(m, msg);
		return 0;
	}
	if (msg->type == VMM_WIRE_VMSTATE_AHEAD) {
		if (asked)
			on_ahead(m, msg, &fds[0]);
		return 0;
	}
	if (msg->type == VMM_WIRE_PAUSED && asked)
		return on_paused(m, msg, &fds[0], err);
	if (msg->type == VMM_WIRE_ERROR && asked) {
		struct error why = ERROR_INIT;

		error_set(&why, -(int)msg->code, "the source VMM can't pause: %s", msg->text);
		fail_pause(m, why.text);
		return 0;
	}
	/* A process that took over has asked again, and both were answered: it says nothing new. */
	if (m->taken_over && (msg->type == VMM_WIRE_PAUSED || msg->type == VMM_WIRE_ERROR))
		return 0;
	return error_set(err, -EPROTO, "message %u is not for a source that is %s", msg->type,
	                 migration_state_name(m->state));
}

/* Its guest stands still, and the VMM would not let it run on by itself. */
void source_cut_message(struct migration *m, enum vmm_wire_type type, const struct error *why)
{
	if (type != VMM_WIRE_PAUSED && type != VMM_WIRE_POISONED)
		return;
	if (migration_state_is_final(m->state) && m->state != MIGRATION_COMPLETE)
		(void)vmm_conn_send_type(m->vmm, VMM_WIRE_RESUME);
	else if (m->state == MIGRATION_SWITCHING && !m->paused)
		fail_pause(m, why->text);
}

void source_vmm_closed(struct migration *m)
{
	switch (m->state) {
	case MIGRATION_ATTACHED:
		source_stop(m);
		m->epoch = 0;
		migration_move(m, MIGRATION_PREPARED, "the VMM has detached");
		migration_drop_attach(m);
		return;
	case MIGRATION_SWITCHING:
		if (m->paused)
			break;
		__attribute__((fallthrough));
	case MIGRATION_WARMING:
		migration_move(m, MIGRATION_FAILED,
		               "the source VMM is gone, and its guest with it");
		let_go(m);
		return;
	default:
		break;
	}
	if (!migration_state_is_final(m->state))
		log_migration_info(m->params.id, "the source VMM is gone; its memory is served on");
}

/* An adapter that is away is asked when it comes. One that is about to be gone is seen to be so. */
static void send_pause(struct migration *m)
{
	int rc = m->vmm ? vmm_conn_send_type(m->vmm, VMM_WIRE_PAUSE) : -EPIPE;

	if (rc == -EPIPE && m->process)
		migration_await_adapter(m);
	else if (rc)
		fail_pause(m, "the source VMM can't be reached");
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
	/* Who holds it is in the record before the guest can be paused for it. */
	page_source_get_holder(m->source, &m->holder);
	m->warm = page_source_is_warm(m->source);
	migration_move(m, MIGRATION_SWITCHING, "%s", "");
	if (region_table_check_readable(&m->table, &why))
		fail_pause(m, why.text);
	else
		send_pause(m);
}

static void finish(struct migration *m, const char *why)
{
	migration_move(m, MIGRATION_COMPLETE, "%s", why);
	let_go(m);
	if (m->vmm && vmm_conn_send_type(m->vmm, VMM_WIRE_COMPLETE))
		log_migration_warning(m->params.id, "the VMM could not be told");
}

static void on_aborted_by_destination(struct migration *m)
{
	struct error why = ERROR_INIT;
	char told[ERROR_TEXT_MAX];

	/* That, then, was its reason; the guest was never paused. */
	if (region_table_check_readable(&m->table, &why)) {
		migration_move(m, MIGRATION_FAILED, "%s", why.text);
		let_go(m);
		if (m->vmm)
			vmm_conn_send_error(m->vmm, &why);
		return;
	}
	page_source_get_abort_why(m->source, told);
	migration_move(m, MIGRATION_CANCELLED, "the destination has given up before it ran%s%s",
	               *told ? ": " : "", told);
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
	if (news & NEWS_LOG)
		source_log_news(m);
	if (news & NEWS_SWITCHOVER)
		pause_guest(m);
	if ((news & (NEWS_RESUMED | NEWS_COMPLETE)) && m->state == MIGRATION_SWITCHING && m->paused)
		migration_move(m, MIGRATION_POSTCOPY, "%s", "");
	if ((news & NEWS_COMPLETE) && m->state == MIGRATION_POSTCOPY)
		finish(m, "");
	if ((news & NEWS_ABORTED) && m->state != MIGRATION_POSTCOPY)
		on_aborted_by_destination(m);
}

int source_cancel(struct migration *m, struct error *err)
{
	if (m->paused)
		return error_set(
		        err, -EBUSY,
		        "migration \"%s\": the destination has the guest's state and may "
		        "be running it: let it finish; or, where it is gone for good, run on here "
		        "(RunOn) or give the guest up (Release)",
		        m->params.id);
	if (m->state == MIGRATION_POSTCOPY || m->state == MIGRATION_PAUSED)
		return migration_refuse_now(m, "cancelling", err);
	migration_move(m, MIGRATION_CANCELLED, "by command");
	run_on(m, "cancelled at the source");
	return 0;
}

/* Nobody can be heard before there is anybody to hear. */
uint64_t source_silent_since_ns(const struct migration *m)
{
	uint64_t heard_ns = m->source ? page_source_holder_heard_ns(m->source) : 0;
	uint64_t here_ns = m->waits_since_ms * NSEC_PER_MSEC;
	uint64_t since_ns = here_ns > m->pause_sent_ns ? here_ns : m->pause_sent_ns;

	return heard_ns > since_ns ? heard_ns : since_ns;
}

bool source_holder_is_silent(const struct migration *m)
{
	uint64_t now_ns = clock_now_ns();

	return m->paused && !migration_state_is_final(m->state) &&
	       now_ns - source_silent_since_ns(m) >= HOLDER_SILENT_MS * NSEC_PER_MSEC;
}

/* Of a guest whose holder is gone for good. Return: 0, or why it is not for now, with @err set. */
static int check_holder_gone(const struct migration *m, const char *what, struct error *err)
{
	uint64_t silent_ms = (clock_now_ns() - source_silent_since_ns(m)) / NSEC_PER_MSEC;
	char holder[STREAM_HOLDER_TEXT_MAX];

	if (!m->paused || migration_state_is_final(m->state))
		return migration_refuse_now(m, what, err);
	stream_holder_print(&m->holder, holder);
	if (silent_ms < HOLDER_SILENT_MS)
		return error_set(
		        err, -EBUSY,
		        "migration \"%s\": its holder, %s, is silent for %llu ms, and counts "
		        "as gone after %u: it is not gone yet; try again",
		        m->params.id, holder, (unsigned long long)silent_ms, HOLDER_SILENT_MS);
	return 0;
}

int source_set_token(struct migration *m, const uint8_t token[TOKEN_BYTES], struct error *err)
{
	if (m->state != MIGRATION_PREPARED && m->state != MIGRATION_ATTACHED)
		return migration_refuse_now(
		        m, "another token (a destination has connected by the one it has)", err);
	if (!CRYPTO_memcmp(m->params.token, token, TOKEN_BYTES))
		return 0;
	/* One that has just come has not been told to us yet. */
	if (m->source && page_source_set_token(m->source, token))
		return error_set(err, -EBUSY,
		                 "migration \"%s\": a destination has connected by the token that "
		                 "it has",
		                 m->params.id);
	/* A process that takes over knows the one before, until this is written: nobody has been
	 * told. */
	memcpy(m->params.token, token, TOKEN_BYTES);
	migration_save(m);
	return 0;
}

int source_run_on(struct migration *m, struct error *err)
{
	char holder[STREAM_HOLDER_TEXT_MAX];
	int rc;

	if (m->state == MIGRATION_CANCELLED)
		return 0;
	rc = check_holder_gone(m, "running on (the guest must be paused here)", err);
	if (!rc)
		rc = takeover_adopt_vmm(m, err);
	if (!rc && !migration_has_vmm(m))
		rc = error_set(err, -EBUSY,
		               "migration \"%s\": its VMM is gone: there is nothing to run on",
		               m->params.id);
	if (rc)
		return rc;
	takeover_forget(m);
	stream_holder_print(&m->holder, holder);
	migration_move(m, MIGRATION_CANCELLED,
	               "by command the guest runs on here; it must not run at %s", holder);
	run_on(m, m->reason);
	return 0;
}

int source_release(struct migration *m, struct error *err)
{
	char holder[STREAM_HOLDER_TEXT_MAX];
	struct error why = ERROR_INIT;
	int rc;

	if (m->state == MIGRATION_COMPLETE)
		return 0;
	rc = check_holder_gone(m, "releasing (the guest must be paused here)", err);
	if (!rc)
		rc = takeover_adopt_vmm(m, err);
	if (rc)
		return rc;
	takeover_forget(m);
	stream_holder_print(&m->holder, holder);
	if (m->state == MIGRATION_SWITCHING)
		migration_move(m, MIGRATION_POSTCOPY, "by command the guest is taken to run at %s",
		               holder);
	error_set(&why, 0, "by command the guest is given up here: it is %s's", holder);
	finish(m, why.text);
	return 0;
}

int source_take_over(struct migration *m, struct vmm_attach *attach, const struct saved *saved,
                     struct error *err)
{
	struct page_source *source;
	int fd = saved->vmstate_held ? migration_take_fd(m, "vmstate") : -1, rc;

	if (saved->vmstate_held && fd < 0)
		return error_errno(err, fd, "the vmstate");
	rc = open_source(m, attach, &source, err);
	if (rc) {
		close_fd(&fd);
		return rc;
	}
	/* Whole before anybody finds it. */
	page_source_restore(source, saved->epoch, &saved->holder, saved->vmm_resumed);
	source_take_over_log(m, source, saved);
	rc = take_over_poisoned(m, source, err);
	if (rc) {
		page_source_unref(source);
		close_fd(&fd);
		return rc;
	}
	m->paused = saved->vmstate_held;
	if (m->paused)
		page_source_set_vmstate(source, fd, saved->vmstate_len, saved->pause_ns);
	return offer_source(m, source, err);
}

/* Our last word again: the process before may not have got to it. */
static void repeat_last_word(struct migration *m)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_RESUME };
	struct error why = ERROR_INIT;

	if (m->state == MIGRATION_COMPLETE) {
		msg.type = VMM_WIRE_COMPLETE;
	} else if (m->state == MIGRATION_FAILED && !m->pause_sent_ns) {
		error_set(&why, -ECANCELED, "%s", m->reason);
		vmm_conn_send_error(m->vmm, &why);
		return;
	}
	snprintf(msg.text, sizeof msg.text, "%s", m->reason);
	(void)vmm_conn_send(m->vmm, &msg, -1);
}

void source_attached_again(struct migration *m)
{
	if (migration_state_is_final(m->state))
		repeat_last_word(m);
	else if (m->state == MIGRATION_SWITCHING && !m->paused)
		send_pause(m);
}

void source_adapter_late(struct migration *m, const char *why)
{
	fail_pause(m, why);
}

void source_go_on(struct migration *m)
{
	if (migration_state_is_final(m->state)) {
		leave_verdict(m);
		if (m->vmm)
			repeat_last_word(m);
	}
	/* First what it has said by now: the answer to PAUSE may be among it. */
	if (m->vmm)
		vmm_conn_catch_up(m->vmm);
	else if (m->state != MIGRATION_PREPARED && !m->process)
		source_vmm_closed(m);
	source_begin_log_anew(m);
	if (m->state == MIGRATION_SWITCHING && !m->paused)
		send_pause(m);
	source_news(m, 0);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The destination's half: on the loop's thread. What takes time is the conductor's. */
#include "migrate/destination/destination.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "fault/fetch.h"
#include "fault/uffd.h"
#include "migrate/adapter.h"
#include "migrate/admission.h"
#include "migrate/attach.h"
#include "migrate/conductor/conductor.h"
#include "migrate/destination/shards.h"
#include "migrate/queue.h"
#include "migrate/record/keep.h"
#include "migrate/totals.h"
#include "migrate/trim.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

static int keep_page_state(struct migration *m, struct error *err)
{
	int rc = migration_keep_fd(m, "pages", pull_state_fd(m->pull), err);

	/* Where its memory was late, there is a conductor that has it. */
	if (rc && !migration_memory_is_late(m))
		m->pull = pull_free(m->pull);
	return rc;
}

int destination_attach(struct migration *m, struct vmm_attach *attach, const struct addrmap *pieces,
                       int state_fd, struct error *err)
{
	bool has_uffd = vmm_wire_has_uffd(attach->msg);
	struct pull_config config = {
		.id = m->params.id,
		.uffd = has_uffd ? attach->fds[0] : -1,
		.state_fd = state_fd,
		.journals_fd = -1,
		.map = m->params.map,
		.streams = m->limits.streams,
		.bandwidth_bytes_per_s = m->limits.bandwidth_bytes_per_s,
		.bulk = m->limits.bulk,
		.prefetch = m->limits.prefetch,
		.complete = conductor_pull_complete,
		.connection = conductor_pull_connection,
		.round = conductor_pull_round,
		.arg = m,
	};
	bool foreign = attach->pidfd >= 0 || m->process;
	int rc = 0;

	if (attach->msg->attach_flags & VMM_WIRE_ATTACH_LATE) {
		m->memory = MIGRATION_MEMORY_LATE;
		return pull_new(&config, &m->pull, err);
	}
	/* One that was taken over was checked by the process that took it in. */
	if (has_uffd)
		rc = state_fd < 0
		             ? uffd_check(attach->fds[0], attach->msg->uffd_features, foreign, err)
		             : uffd_check_kind(attach->fds[0], err);
	if (!rc)
		rc = migration_read_table(attach->msg, &config.table, err);
	if (!rc)
		rc = migration_open_memories(m, attach, &config.table, config.memories, err);
	if (pieces)
		config.pieces = *pieces;
	if (!rc)
		rc = shards_take_up(m, &config, err);
	if (!rc)
		rc = m->pull ? pull_take_memory(m->pull, &config, err)
		             : pull_new(&config, &m->pull, err);
	shards_taken_up(&config, rc);
	if (rc) {
		migration_free_memories(config.memories);
		return rc;
	}
	if (has_uffd)
		attach->fds[0] = -1;
	m->table = config.table;
	m->shards.uffd_features = attach->msg->uffd_features;
	if (m->owner->config.slow_fault_ns)
		pull_set_slow_fault(m->pull, m->owner->config.slow_fault_ns);
	return state_fd < 0 ? keep_page_state(m, err) : 0;
}

void destination_detach(struct migration *m)
{
	m->pull = pull_free(m->pull);
	shards_forget(m);
	if (migration_memory_is_late(m))
		m->table = (struct region_table){ 0 };
	m->memory = MIGRATION_MEMORY_ATTACHED;
}

/* The conductor is to end, and the source to run its guest on: so it will be, whoever does it. */
static void expect_abort(struct migration *m, const char *why)
{
	pthread_mutex_lock(&m->lock);
	if (!*m->farewell_why)
		snprintf(m->farewell_why, sizeof m->farewell_why, "%s", why);
	if (m->epoch && !m->may_have_run)
		m->farewell = FAREWELL_ABORT;
	pthread_mutex_unlock(&m->lock);
}

/* The VMM has not run the guest and won't: the source may go on. */
static void give_back(struct migration *m, const char *what, const char *why)
{
	struct error said = ERROR_INIT;

	error_set(&said, 0, "the destination VMM %s: %s", what, why);
	pthread_mutex_lock(&m->lock);
	m->may_have_run = false;
	pthread_mutex_unlock(&m->lock);
	expect_abort(m, said.text);
	migration_order(m, ORDER_CANCEL);
	migration_move(m, MIGRATION_FAILED, "%s", said.text);
}

static void fail_load(struct migration *m, const char *why)
{
	give_back(m, "can't load the vmstate", why);
}

/* A channel is a unix SEQPACKET socket: its ends are all that send and receive whole packets. */
static int check_channel(int fd, struct error *err)
{
	int domain = 0, type = 0;
	socklen_t len = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) || domain != AF_UNIX ||
	    type != SOCK_SEQPACKET)
		return error_set(err, -EINVAL,
		                 "the fetch channel's descriptor is no unix SEQPACKET socket");
	if (fcntl(fd, F_SETFL, O_NONBLOCK))
		return error_errno(err, -errno, "fetch channel: O_NONBLOCK");
	return 0;
}

/*
 * One channel too many is closed, which its VMM sees: no reason to end the migration, for
 * without it the guest is lost. Where there is no way back any more, even a channel that a restart
 * would lose is better than none.
 */
static void serve_channel(struct migration *m, int fd)
{
	struct error why = ERROR_INIT;
	int rc = migration_keep_channel(m, fd, &why);

	if (rc && (!m->may_have_run || rc == -EEXIST)) {
		close(fd);
	} else {
		if (rc)
			log_migration_warning(m->params.id,
			                      "a fetch channel will not outlive this process: %s",
			                      why.text);
		rc = pull_add_channel(m->pull, fd);
		if (rc)
			error_errno(&why, rc, "fetch channel");
	}
	if (rc)
		log_migration_warning(m->params.id, "a fetch channel is refused: %s", why.text);
}

static int add_channel(struct migration *m, int *fd, struct error *err)
{
	int rc = check_channel(*fd, err);

	if (rc)
		return rc;
	if (m->state == MIGRATION_COMPLETE)
		fetch_channel_finish(steal_fd(fd));
	else if (!migration_state_is_final(m->state))
		serve_channel(m, steal_fd(fd));
	return 0;
}

static void note_downtime(struct migration *m)
{
	m->downtime = (struct migration_downtime){
		.known = true,
		.total_ns = m->resumed_ns - m->switch_sent_ns,
		.pause_ns = m->source_pause_ns,
		.send_ns = m->vmstate_received_ns - m->switch_sent_ns - m->source_pause_ns,
		.load_ns = m->loaded_ns - m->vmstate_received_ns,
		.resume_ns = m->resumed_ns - m->loaded_ns,
	};
}

static void on_resumed(struct migration *m)
{
	m->resumed_ns = clock_now_ns();
	m->resumed_real_ns = clock_real_ns();
	note_downtime(m);
	totals_note_downtime(m);
	migration_save(m);
	migration_drop_fds(m, "vmstate");
	close_fd(&m->vmstate_fd);
	log_migration_info(m->params.id, "the guest runs here after %llu us of downtime",
	                   (unsigned long long)(m->downtime.total_ns / NSEC_PER_USEC));
	migration_order(m, ORDER_RESUMED);
}

int destination_message(struct migration *m, const struct vmm_wire_msg *msg, int *fd,
                        struct error *err)
{
	bool has_vmstate = m->state == MIGRATION_POSTCOPY || m->state == MIGRATION_PAUSED;
	struct error why = ERROR_INIT;

	if (msg->type == VMM_WIRE_CHANNEL)
		return add_channel(m, fd, err);
	if (msg->type == VMM_WIRE_SHARDS)
		return shards_answered(m, msg->n_shards, fd, err);
	/* It crossed our own last word. */
	if (migration_state_is_final(m->state))
		return 0;
	/* Said again, because a process that took over has asked again: no news. */
	if (m->taken_over && ((msg->type == VMM_WIRE_LOADED && m->loaded_ns) ||
	                      (msg->type == VMM_WIRE_RESUMED && m->resumed_ns)))
		return 0;
	if (msg->type == VMM_WIRE_LOADED && has_vmstate && !m->loaded_ns) {
		m->loaded_ns = clock_now_ns();
		shards_declined(m);
		migration_save(m);
		return 0;
	}
	/* The process before had read LOADED, and was killed before it wrote that down. */
	if (msg->type == VMM_WIRE_RESUMED && has_vmstate && m->taken_over && !m->loaded_ns)
		m->loaded_ns = clock_now_ns();
	if (msg->type == VMM_WIRE_RESUMED && has_vmstate && m->loaded_ns && !m->resumed_ns) {
		on_resumed(m);
		return 0;
	}
	/* Its vCPUs may have run since LOADED; it says that none has. Not so after RESUMED. */
	if (msg->type == VMM_WIRE_COULD_NOT_RUN && has_vmstate && !m->resumed_ns) {
		give_back(m, "could not run the guest", msg->text);
		return 0;
	}
	/* Nothing else that it says after LOADED proves the contrary. */
	if (msg->type == VMM_WIRE_ERROR && has_vmstate && !m->loaded_ns) {
		fail_load(m, msg->text);
		return 0;
	}
	/* It has read the vmstate before its memory was taken: the guest is the source's still. */
	if (msg->type == VMM_WIRE_ERROR && m->state == MIGRATION_SWITCHING &&
	    m->memory != MIGRATION_MEMORY_ATTACHED) {
		error_set(&why, -ECANCELED, "the destination VMM can't load the vmstate: %.200s",
		          msg->text);
		destination_give_up(m, &why);
		return 0;
	}
	return error_set(err, -EPROTO, "message %u is not for a destination that is %s", msg->type,
	                 migration_state_name(m->state));
}

/* The pull and what it holds go, unless the conductor still needs it; then with its end. */
static void release(struct migration *m)
{
	if (!m->pull || m->conductor_runs)
		return;
	pull_release(m->pull);
	if (!migration_state_is_final(m->state))
		return;
	migration_drop_attach(m);
	shards_mail_close(m);
	close_fd(&m->vmstate_fd);
	close_fd(&m->ahead_fd);
}

/* Give the conductor an order that it has to see even where it waits for the network. */
static void interrupt(struct migration *m, enum conductor_order order)
{
	migration_order(m, order);
	if (m->pull)
		pull_cancel(m->pull);
	/* A goodbye is still to be dialled, but by who is to say nothing. */
	if (order == ORDER_STOP && fd_store_exists(m->owner->config.store))
		dialing_cancel(&m->dialing);
	else
		dialing_interrupt(&m->dialing);
	pthread_mutex_lock(&m->lock);
	if (m->control)
		conn_shutdown(m->control);
	pthread_mutex_unlock(&m->lock);
}

/* Who ends where it meets the first poisoned page may be faster than the last of them. */
static const char *where_memory_is(struct migration *m)
{
	bool poisoned;

	pthread_mutex_lock(&m->lock);
	poisoned = m->orders & ORDER_POISON;
	pthread_mutex_unlock(&m->lock);
	if (poisoned)
		return "the destination VMM is gone, and the guest with it; what was missing of "
		       "its memory was being poisoned by command";
	return "the destination VMM is gone, and the guest with it; its memory is at the source "
	       "still";
}

void destination_vmm_closed(struct migration *m)
{
	switch (m->state) {
	case MIGRATION_ATTACHED:
		totals_keep_pull(m);
		destination_detach(m);
		migration_move(m, MIGRATION_PREPARED, "the VMM has detached");
		migration_drop_attach(m);
		return;
	case MIGRATION_WARMING:
	case MIGRATION_SWITCHING:
		expect_abort(m, "the destination VMM is gone");
		interrupt(m, ORDER_CANCEL);
		migration_move(m, MIGRATION_FAILED, "the destination VMM is gone");
		return;
	case MIGRATION_POSTCOPY:
	case MIGRATION_PAUSED:
		/* That it is loaded may have been said to the process before this one. */
		if (!m->loaded_ns && !m->taken_over) {
			fail_load(m, "the destination VMM is gone");
			return;
		}
		interrupt(m, ORDER_STOP);
		migration_move(m, MIGRATION_FAILED, "%s", where_memory_is(m));
		return;
	default:
		return;
	}
}

static int send_vmstate(struct migration *m)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_VMSTATE, .vmstate_len = m->vmstate_len };

	return m->vmm ? vmm_conn_send(m->vmm, &msg, m->vmstate_fd) : -ESRCH;
}

static void tell_vmm_failed(struct migration *m, const struct error *why)
{
	struct vmm_conn *vmm = m->vmm;

	if (vmm)
		vmm_conn_send_error(vmm, why);
}

/* A hint: whom it does not reach has all of it later. */
static void tell_ahead(struct migration *m)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_VMSTATE_AHEAD };
	int fd;

	pthread_mutex_lock(&m->lock);
	msg.vmstate_len = m->ahead_len;
	fd = m->ahead_fd < 0 ? -1 : fcntl(m->ahead_fd, F_DUPFD_CLOEXEC, 0);
	pthread_mutex_unlock(&m->lock);
	if (fd < 0)
		return;
	if (m->vmm && !vmm_conn_is_behind(m->vmm))
		(void)vmm_conn_send(m->vmm, &msg, fd);
	close_fd(&fd);
}

void destination_give_up(struct migration *m, const struct error *why)
{
	expect_abort(m, why->text);
	migration_order(m, ORDER_CANCEL);
	/* By the connection that is there, if any: the guest stands still. */
	dialing_interrupt(&m->dialing);
	tell_vmm_failed(m, why);
	migration_move(m, MIGRATION_FAILED, "%s", why->text);
}

/* The VMM is given the vmstate, or was; @rc of telling it. */
static void note_told(struct migration *m, int rc)
{
	/* An adapter that is about to be gone may come again. */
	if (rc && (rc != -EPIPE || !m->process))
		fail_load(m, strerror(-rc));
}

/*
 * A VMM that has its memory late reads the vmstate first. It can't run the guest without memory, so
 * that is the source's still.
 */
static void offer_vmstate(struct migration *m)
{
	m->vmstate_waits = true;
	if (migration_adapter_is_away(m))
		migration_await_adapter(m);
	else
		note_told(m, send_vmstate(m));
}

/* That its memory is here: who has said so waits for it, others are given the vmstate again. */
static int tell_taken(struct migration *m)
{
	if (!m->memory_asked)
		return send_vmstate(m);
	m->memory_asked = false;
	return m->vmm ? vmm_conn_send_type(m->vmm, VMM_WIRE_ATTACHED) : -ESRCH;
}

/* The point of no return: from here on the guest may run here. */
static void give_vmstate(struct migration *m)
{
	struct error why = ERROR_INIT;
	bool mine;

	/* There is a way back still, and nobody to take the vmstate. */
	m->vmstate_waits = migration_adapter_is_away(m);
	if (m->vmstate_waits) {
		migration_await_adapter(m);
		return;
	}
	/* The guest is still the source's. */
	if (migration_keep_fd(m, "vmstate", m->vmstate_fd, &why)) {
		destination_give_up(m, &why);
		return;
	}
	pthread_mutex_lock(&m->lock);
	mine = !m->given_up && !(m->orders & (ORDER_CANCEL | ORDER_STOP));
	m->may_have_run = mine;
	pthread_mutex_unlock(&m->lock);
	if (!mine) {
		migration_drop_fds(m, "vmstate");
		return;
	}
	/* The VMM is given it by this process: what it says, or not, is no echo. */
	m->taken_over = false;
	migration_move(m, MIGRATION_POSTCOPY, "%s", "");
	note_told(m, tell_taken(m));
}

static void tell_attributes(struct migration *m)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ATTRIBUTES, .n_regions = m->table.n };

	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; i < m->table.n; i++)
		msg.regions[i].flags = m->attributes[i];
	pthread_mutex_unlock(&m->lock);
	if (m->vmm && vmm_conn_send(m->vmm, &msg, -1))
		log_migration_warning(m->params.id,
		                      "the VMM could not be told its regions' attributes");
}

static void on_failed(struct migration *m)
{
	struct error why;

	pthread_mutex_lock(&m->lock);
	why = m->error;
	pthread_mutex_unlock(&m->lock);
	tell_vmm_failed(m, &why);
	migration_move(m,
	               why.code == -ECANCELED && !why.from_peer && !m->may_have_run
	                       ? MIGRATION_CANCELLED
	                       : MIGRATION_FAILED,
	               "%s", why.text);
}

/* As it is now: news that came late tell nothing of what was before. */
static void on_connection(struct migration *m)
{
	struct pull_connection c;

	pull_get_connection(m->pull, &c);
	if (c.lost && m->state == MIGRATION_POSTCOPY)
		migration_move(m, MIGRATION_PAUSED, "%s", c.why);
	else if (!c.lost && m->state == MIGRATION_PAUSED)
		migration_move(m, MIGRATION_POSTCOPY, "connected again");
	else if (c.lost && m->state == MIGRATION_PAUSED && strcmp(c.why, m->reason)) {
		log_migration_warning(m->params.id, "paused still: %s", c.why);
		migration_tell(m, c.why);
	}
}

/* The last moment to say no: nobody has been asked to pause the guest. */
static bool is_admitted(struct migration *m)
{
	struct error why = ERROR_INIT;

	if (m->state != MIGRATION_WARMING || !admission_check_pause(m, &why))
		return true;
	destination_give_up(m, &why);
	return false;
}

static void begin_switchover(struct migration *m)
{
	if (!is_admitted(m))
		return;
	pthread_mutex_lock(&m->lock);
	/* The process before may have asked already: the guest stands still since then. */
	if (!m->switch_sent_ns)
		m->switch_sent_ns = clock_now_ns();
	pthread_mutex_unlock(&m->lock);
	if (m->state == MIGRATION_WARMING)
		migration_move(m, MIGRATION_SWITCHING, "%s", "");
	if (m->state == MIGRATION_SWITCHING)
		migration_order(m, ORDER_RECORDED);
}

/* All that there is to be had is here. */
static void complete(struct migration *m)
{
	uint64_t poisoned = stat_get(&pull_stats(m->pull)->pages_poisoned);

	if (poisoned)
		migration_move(m, MIGRATION_COMPLETE,
		               "%llu pages of 4 KiB could not be read at the source, or their "
		               "memory here is broken, and are poisoned: the guest gets a machine "
		               "check where it touches them",
		               (unsigned long long)poisoned);
	else
		migration_move(m, MIGRATION_COMPLETE, "%s", "");
	if (m->vmm && vmm_conn_send_type(m->vmm, VMM_WIRE_COMPLETE))
		log_migration_warning(m->params.id, "the VMM could not be told");
}

void destination_news(struct migration *m, unsigned int news)
{
	bool over = migration_state_is_final(m->state);

	/* First: the attributes are of its regions. */
	if (news & NEWS_TABLE)
		destination_take_table(m);
	if ((news & NEWS_ATTRIBUTES) && !over)
		tell_attributes(m);
	if ((news & NEWS_WARM) && m->state == MIGRATION_WARMING)
		log_migration_info(m->params.id, "connected, %s", pull_tls(m->pull));
	if (news & NEWS_FAREWELL) {
		migration_save(m);
		migration_order(m, ORDER_FAREWELL);
	}
	if (news & NEWS_SWITCHOVER)
		begin_switchover(m);
	if ((news & NEWS_AHEAD) && m->state == MIGRATION_SWITCHING)
		tell_ahead(m);
	if ((news & NEWS_OFFER) && m->state == MIGRATION_SWITCHING && migration_memory_is_late(m))
		offer_vmstate(m);
	if ((news & NEWS_VMSTATE) && m->state == MIGRATION_SWITCHING)
		give_vmstate(m);
	if ((news & NEWS_FAILED) && !over)
		on_failed(m);
	if ((news & NEWS_CONNECTION) && m->pull)
		on_connection(m);
	if (news & NEWS_NOTE)
		migration_tell(m, m->reason);
	if ((news & NEWS_REWARM) && m->state == MIGRATION_WARMING) {
		migration_move(m, MIGRATION_ATTACHED, "the source guest was attached anew");
		migration_move(m, MIGRATION_WARMING, "from the beginning: %s", m->reason);
	}
	if ((news & NEWS_COMPLETE) && !over)
		complete(m);
	if (news & NEWS_ENDED) {
		pthread_join(m->conductor, NULL);
		m->conductor_runs = false;
		migration_save(m);
		release(m);
		migrations_trim_later(m->owner);
	}
}

int destination_start(struct migration *m, bool switchover, const struct migration_warm *warm,
                      const struct migration_turn_wanted *turn, struct error *err)
{
	int rc;

	if (m->started_ns && m->state != MIGRATION_FAILED && m->state != MIGRATION_CANCELLED) {
		/* One that warms, and goes on by itself, was told so already. */
		bool held = !m->warming.wanted || m->warming.hold;

		return switchover && held && m->state == MIGRATION_WARMING
		               ? destination_switchover(m, err)
		               : 0;
	}
	if (m->state != MIGRATION_ATTACHED)
		return migration_refuse_now(m, "starting (the VMM must be attached)", err);
	rc = admission_check_start(m, warm, turn->wait, err);
	if (rc == -EUSERS && turn->wait) {
		queue_add(m, switchover, warm, turn->priority);
		return 0;
	}
	if (rc) {
		log_migration_warning(m->params.id, "not started: %s", err->text);
		return rc;
	}
	queue_leave(m);
	m->warming = *warm;
	m->warming.hold = !switchover;
	rc = conductor_start(m);
	if (rc) {
		/* In its record it may wait for its turn still. */
		migration_save(m);
		return error_errno(err, rc, "migration \"%s\": thread", m->params.id);
	}
	m->started_ns = clock_now_ns();
	/* Who warms is asked by the conductor when it is time. */
	m->switchover = switchover && !warm->wanted;
	migration_move(m, MIGRATION_WARMING, "%s", "");
	if (m->switchover)
		migration_order(m, ORDER_SWITCHOVER);
	return 0;
}

int destination_set_warm(struct migration *m, const struct migration_warm *warm, struct error *err)
{
	bool hold;

	if (m->state != MIGRATION_WARMING || !m->warming.wanted)
		return migration_refuse_now(m, "another end of warming (it does not warm)", err);
	pthread_mutex_lock(&m->lock);
	hold = m->warming.hold;
	m->warming = *warm;
	m->warming.hold = hold;
	pthread_mutex_unlock(&m->lock);
	migration_save(m);
	return 0;
}

int destination_switchover(struct migration *m, struct error *err)
{
	if (m->state == MIGRATION_ATTACHED || m->state == MIGRATION_PREPARED ||
	    m->state == MIGRATION_FAILED || m->state == MIGRATION_CANCELLED)
		return migration_refuse_now(m, "switchover (start it first)", err);
	m->switchover = true;
	migration_save(m);
	migration_order(m, ORDER_SWITCHOVER);
	return 0;
}

int destination_recover(struct migration *m, const struct conn_target *target, struct error *err)
{
	if (!m->conductor_runs)
		return migration_refuse_now(m, "recovering (start it first)", err);
	pthread_mutex_lock(&m->lock);
	if (target)
		m->target = *target;
	if (m->control)
		conn_shutdown(m->control);
	pthread_mutex_unlock(&m->lock);
	dialing_interrupt(&m->dialing);
	migration_save(m);
	log_migration_info(m->params.id, "by command: dialling %s:%s anew", m->target.host,
	                   m->target.port);
	if (m->pull && !migration_state_is_final(m->state))
		pull_redirect(m->pull, &m->target);
	return 0;
}

void destination_fail_attached(struct migration *m, const struct error *why)
{
	tell_vmm_failed(m, why);
	release(m);
	migration_move(m, MIGRATION_FAILED, "%s", why->text);
}

int destination_cancel(struct migration *m, struct error *err)
{
	struct error why = { .code = -ECANCELED };

	switch (m->state) {
	case MIGRATION_PREPARED:
	case MIGRATION_ATTACHED:
		snprintf(why.text, sizeof why.text, "cancelled by command");
		tell_vmm_failed(m, &why);
		release(m);
		migration_move(m, MIGRATION_CANCELLED, "by command");
		return 0;
	case MIGRATION_WARMING:
	case MIGRATION_SWITCHING:
		expect_abort(m, "cancelled by command");
		migration_save(m);
		interrupt(m, ORDER_CANCEL);
		/* It is when the source has heard of it, or for long has not. */
		migration_tell(m, "being cancelled, by command");
		return 0;
	default:
		return error_set(err, -EBUSY,
		                 "migration \"%s\" is %s, beyond the point of no return: the guest "
		                 "runs here and can't be cancelled",
		                 m->params.id, migration_state_name(m->state));
	}
}

static int take_channels(struct migration *m, struct error *err)
{
	const char *name;

	for (unsigned int i = 0; (name = migration_channel(m, i)); i++) {
		int fd = fd_store_get(m->owner->config.store, name);

		if (fd < 0)
			return error_errno(err, fd, "\"%s\"", name);
		fetch_channel_ask_again(fd);
		(void)pull_add_channel(m->pull, fd);
		m->n_channels = i + 1;
	}
	return 0;
}

/* Memory, page state, fetch channels, and the vmstate where the guest may not run yet. */
int destination_take_over(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	_cleanup_close_ int state_fd = migration_take_fd(m, "pages");
	_cleanup_close_ int vmstate_fd = -1;
	int rc;

	if (state_fd < 0 && !migration_memory_is_late(m))
		return error_errno(err, state_fd, "the page state");
	m->may_have_run = m->state == MIGRATION_POSTCOPY || m->state == MIGRATION_PAUSED;
	if (m->may_have_run && !m->resumed_ns) {
		vmstate_fd = migration_take_fd(m, "vmstate");
		if (vmstate_fd < 0)
			return error_errno(err, vmstate_fd, "the vmstate");
	}
	rc = destination_attach(m, attach, NULL, state_fd, err);
	if (!rc)
		rc = take_channels(m, err);
	if (!rc)
		m->vmstate_fd = steal_fd(&vmstate_fd);
	return rc;
}

/* Our last word again: the process before may not have got to it. */
static void repeat_last_word(struct migration *m)
{
	struct error why = ERROR_INIT;

	if (m->state == MIGRATION_COMPLETE) {
		(void)vmm_conn_send_type(m->vmm, VMM_WIRE_COMPLETE);
		return;
	}
	error_set(&why, -ECANCELED, "%s", m->reason);
	tell_vmm_failed(m, &why);
}

/* ATTRIBUTES come before anything else. */
static void repeat_attributes(struct migration *m)
{
	uint32_t any = 0;

	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; i < m->table.n; i++)
		any |= m->attributes[i];
	pthread_mutex_unlock(&m->lock);
	if (any && !m->loaded_ns)
		tell_attributes(m);
}

void destination_attached_again(struct migration *m)
{
	if (migration_state_is_final(m->state)) {
		repeat_last_word(m);
		return;
	}
	repeat_attributes(m);
	if (m->state == MIGRATION_SWITCHING && m->vmstate_waits && migration_memory_is_late(m))
		offer_vmstate(m);
	else if (m->state == MIGRATION_SWITCHING && m->vmstate_waits)
		give_vmstate(m);
	else if (m->may_have_run && !m->loaded_ns)
		(void)send_vmstate(m);
}

void destination_adapter_late(struct migration *m, const char *why)
{
	struct error said = ERROR_INIT;

	if (m->may_have_run) {
		fail_load(m, why);
		return;
	}
	error_set(&said, 0, "the destination VMM can't be given the vmstate: %s", why);
	expect_abort(m, said.text);
	migration_order(m, ORDER_CANCEL);
	migration_move(m, MIGRATION_FAILED, "%s", said.text);
}

int destination_go_on(struct migration *m)
{
	bool waits = m->state == MIGRATION_PREPARED || m->state == MIGRATION_ATTACHED;
	bool over = migration_state_is_final(m->state);
	int rc = 0;

	if (m->resumed_ns) {
		note_downtime(m);
		m->orders |= ORDER_RESUMED;
	}
	if (m->switchover || m->state == MIGRATION_SWITCHING)
		m->orders |= ORDER_SWITCHOVER;
	if (!over && m->farewell == FAREWELL_ABORT)
		m->orders |= ORDER_CANCEL;
	/* What the process before has met the record knows only of one that is over. */
	if (m->farewell == FAREWELL_ABORT)
		snprintf(m->farewell_why, sizeof m->farewell_why, "%s",
		         over && *m->reason ? m->reason : "its daemon has ended meanwhile");
	m->goodbye_only = over;
	if (over ? m->farewell != FAREWELL_NONE : !waits)
		rc = conductor_start(m);
	if (rc)
		return rc;
	if (m->vmm && over)
		repeat_last_word(m);
	if (m->vmm)
		vmm_conn_catch_up(m->vmm);
	else if (!over && !m->process)
		destination_vmm_closed(m);
	/* Before the vmstate: behind that a VMM may run its guest. */
	shards_offer(m);
	if (m->vmstate_fd >= 0 && m->vmm && !migration_state_is_final(m->state))
		(void)send_vmstate(m);
	return 0;
}

void destination_stop(struct migration *m)
{
	bool park = fd_store_exists(m->owner->config.store);

	if (m->conductor_runs) {
		if (park)
			migration_order(m, ORDER_PARK);
		interrupt(m, ORDER_STOP);
		pthread_join(m->conductor, NULL);
		m->conductor_runs = false;
	}
	release(m);
}

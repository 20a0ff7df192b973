/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopy/postcopy.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libpostcopy/attachment.h"
#include "libpostcopy/internal.h"
#include "libpostcopy/split.h"
#include "util/cleanup.h"
#include "util/clock.h"

#define COPY_BYTES (64u * 1024u)
#define VMSTATE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)

static const char *const state_names[STATE_COUNT] = {
	[STATE_RUNNING] = "running", [STATE_STOPPING] = "asked to pause",
	[STATE_PAUSED] = "paused",   [STATE_WAITING] = "waiting for the vmstate",
	[STATE_LOADING] = "loading", [STATE_LOADED] = "loaded",
	[STATE_RESUMED] = "resumed", [STATE_COMPLETE] = "complete",
	[STATE_FAILED] = "failed",
};

/* What the daemon may say in which state, and what it leads to. All else is -EPROTO. */
static const struct transition {
	enum attachment_state from;
	enum vmm_wire_type type;
	enum attachment_state to;
	enum postcopy_event_type event;
} transitions[] = {
	{ STATE_RUNNING, VMM_WIRE_PAUSE, STATE_STOPPING, POSTCOPY_EVENT_PAUSE },
	{ STATE_RUNNING, VMM_WIRE_ERROR, STATE_FAILED, POSTCOPY_EVENT_FAILED },
	{ STATE_RUNNING, VMM_WIRE_LOG_START, STATE_RUNNING, POSTCOPY_EVENT_DIRTY_LOG_START },
	{ STATE_RUNNING, VMM_WIRE_LOG_HARVEST, STATE_RUNNING, POSTCOPY_EVENT_DIRTY },
	{ STATE_RUNNING, VMM_WIRE_LOG_STOP, STATE_RUNNING, POSTCOPY_EVENT_DIRTY_LOG_STOP },
	{ STATE_STOPPING, VMM_WIRE_LOG_STOP, STATE_STOPPING, POSTCOPY_EVENT_DIRTY_LOG_STOP },
	{ STATE_STOPPING, VMM_WIRE_RESUME, STATE_RUNNING, POSTCOPY_EVENT_RESUME },
	{ STATE_STOPPING, VMM_WIRE_ERROR, STATE_FAILED, POSTCOPY_EVENT_FAILED },
	{ STATE_PAUSED, VMM_WIRE_RESUME, STATE_RUNNING, POSTCOPY_EVENT_RESUME },
	{ STATE_PAUSED, VMM_WIRE_COMPLETE, STATE_COMPLETE, POSTCOPY_EVENT_COMPLETE },
	{ STATE_PAUSED, VMM_WIRE_ERROR, STATE_FAILED, POSTCOPY_EVENT_FAILED },
	{ STATE_WAITING, VMM_WIRE_ATTRIBUTES, STATE_WAITING, POSTCOPY_EVENT_ATTRIBUTES },
	{ STATE_WAITING, VMM_WIRE_VMSTATE_AHEAD, STATE_WAITING, POSTCOPY_EVENT_VMSTATE_AHEAD },
	{ STATE_WAITING, VMM_WIRE_VMSTATE, STATE_LOADING, POSTCOPY_EVENT_VMSTATE },
	{ STATE_WAITING, VMM_WIRE_ERROR, STATE_FAILED, POSTCOPY_EVENT_FAILED },
	{ STATE_LOADING, VMM_WIRE_ERROR, STATE_FAILED, POSTCOPY_EVENT_FAILED },
	/* A small guest can be whole before its VMM has said that it runs. */
	{ STATE_LOADED, VMM_WIRE_COMPLETE, STATE_COMPLETE, POSTCOPY_EVENT_COMPLETE },
	{ STATE_LOADED, VMM_WIRE_ERROR, STATE_FAILED, POSTCOPY_EVENT_FAILED },
	{ STATE_RESUMED, VMM_WIRE_COMPLETE, STATE_COMPLETE, POSTCOPY_EVENT_COMPLETE },
	{ STATE_RESUMED, VMM_WIRE_ERROR, STATE_FAILED, POSTCOPY_EVENT_FAILED },
	/* These cross what the VMM has just said: that it can't pause, that it can't load. */
	{ STATE_RUNNING, VMM_WIRE_RESUME, STATE_RUNNING, POSTCOPY_EVENT_RESUME },
	{ STATE_FAILED, VMM_WIRE_ERROR, STATE_FAILED, POSTCOPY_EVENT_FAILED },
};

int report_error(struct postcopy_error *to, int rc, const struct error *from)
{
	if (to && rc) {
		to->code = rc;
		snprintf(to->text, sizeof to->text, "%s", from->code ? from->text : strerror(-rc));
	}
	return rc;
}

static int daemon_gone(struct error *err)
{
	return error_set(err, -EPIPE, "postcopyd has closed the connection");
}

int send_message(struct postcopy *p, const struct vmm_wire_msg *msg, const int *fds, size_t n_fds,
                 struct error *err)
{
	int rc = vmm_wire_send(p->sock, msg, fds, n_fds);

	if (rc == -EPIPE)
		return daemon_gone(err);
	if (rc == -EAGAIN)
		return error_set(err, -ETIMEDOUT, "postcopyd has not taken a message for %d s",
		                 TIMEOUT_S);
	if (rc)
		return error_errno(err, rc, "can't send to postcopyd");
	return 0;
}

int wait_readable(int sock, uint64_t deadline_ns)
{
	struct pollfd pfd = { .fd = sock, .events = POLLIN };

	for (;;) {
		uint64_t now = clock_now_ns();
		uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
		struct timespec ts = { .tv_sec = (time_t)(left / NSEC_PER_SEC),
			               .tv_nsec = (long)(left % NSEC_PER_SEC) };
		int n = ppoll(&pfd, 1, deadline_ns == UINT64_MAX ? NULL : &ts, NULL);

		if (n > 0)
			return 0;
		if (!n)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

int receive_message(struct postcopy *p, uint64_t deadline_ns, struct vmm_wire_msg *msg, int *ret_fd,
                    struct error *err)
{
	int fds[VMM_WIRE_FDS_MAX];
	size_t n_fds = 0;
	int rc;

	do {
		rc = wait_readable(p->sock, deadline_ns);
		if (!rc)
			rc = vmm_wire_recv(p->sock, MSG_DONTWAIT, msg, fds, &n_fds, err);
		/* A newer daemon tells more than is known here. */
		if (rc == -ENOMSG)
			*err = ERROR_INIT;
	} while (rc == -EAGAIN || rc == -ENOMSG);
	if (rc == -EPIPE)
		return daemon_gone(err);
	if (rc == -EPROTO || rc == -EINVAL) {
		error_prefix(err, "message from postcopyd");
		return -EPROTO;
	}
	if (rc == -ETIMEDOUT)
		return rc;
	if (rc)
		return error_errno(err, rc, "can't receive from postcopyd");
	if (msg->type == VMM_WIRE_ATTACH) {
		for (size_t i = 0; i < n_fds; i++)
			close(fds[i]);
		return error_set(err, -EPROTO, "postcopyd said ATTACH, which is the VMM's to say");
	}
	*ret_fd = n_fds ? fds[0] : -1;
	return 0;
}

int postcopy_fd(const struct postcopy *p)
{
	return p->sock;
}

/* The VMM will map or read it while others hold it: it must be whole and stay so. */
static int check_vmstate(int fd, uint64_t len, struct error *err)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || (seals & VMSTATE_SEALS) != VMSTATE_SEALS)
		return error_set(err, -EPROTO, "the vmstate from postcopyd is not a sealed memfd");
	if (fstat(fd, &st))
		return error_errno(err, -errno, "can't stat the vmstate from postcopyd");
	if ((uint64_t)st.st_size != len)
		return error_set(err, -EPROTO,
		                 "the vmstate from postcopyd is said to be of %llu bytes, but has "
		                 "%lld",
		                 (unsigned long long)len, (long long)st.st_size);
	return 0;
}

static const struct transition *find_transition(enum attachment_state from, enum vmm_wire_type type)
{
	for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++)
		if (transitions[i].from == from && transitions[i].type == type)
			return &transitions[i];
	return NULL;
}

static void fill_event(const struct postcopy *p, const struct transition *t,
                       const struct vmm_wire_msg *msg, struct postcopy_event *ret)
{
	*ret = (struct postcopy_event){ .type = t->event,
		                        .vmstate_fd = -1,
		                        .vmstate_len = msg->vmstate_len };
	if (t->event == POSTCOPY_EVENT_RESUME)
		snprintf(ret->reason, sizeof ret->reason,
		         "the migration has ended at the source: the guest is to run on here");
	else
		snprintf(ret->reason, sizeof ret->reason, "%s", msg->text);
	if (t->event != POSTCOPY_EVENT_ATTRIBUTES)
		return;
	ret->n_regions = msg->n_regions;
	for (uint32_t i = 0; i < msg->n_regions; i++)
		ret->region_flags[i < p->n_regions ? p->place[i] : i] = msg->regions[i].flags;
}

static int say_paused(struct postcopy *p, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_PAUSED,
		                    .vmstate_len = p->vmstate_len,
		                    .pause_ns = p->pause_ns };
	struct vmm_wire_msg poisoned = { .type = VMM_WIRE_POISONED };
	int rc = p->poison_fd < 0 ? 0 : send_message(p, &poisoned, &p->poison_fd, 1, err);

	return rc ? rc : send_message(p, &msg, &p->vmstate_fd, 1, err);
}

static int say_plain(struct postcopy *p, enum vmm_wire_type type, struct error *err)
{
	return send_message(p, &(struct vmm_wire_msg){ .type = type }, NULL, 0, err);
}

static int say_loaded(struct postcopy *p, struct error *err)
{
	return say_plain(p, VMM_WIRE_LOADED, err);
}

static int say_resumed(struct postcopy *p, struct error *err)
{
	int rc = say_plain(p, VMM_WIRE_LOADED, err);

	return rc ? rc : say_plain(p, VMM_WIRE_RESUMED, err);
}

/* Nothing where it was neither to load nor to run that failed. */
static int say_load_failed(struct postcopy *p, struct error *err)
{
	struct vmm_wire_msg msg = { .type = p->load_error_type, .code = ECANCELED };

	memcpy(msg.text, p->load_error, sizeof msg.text);
	return *p->load_error ? send_message(p, &msg, NULL, 0, err) : 0;
}

static int say_nothing(struct postcopy *p, struct error *err)
{
	(void)p;
	(void)err;
	return 0;
}

/* Of late memory: who waits for the answer says it again. */
static int say_handed(struct postcopy *p, struct error *err)
{
	return p->handed && !p->taken ? say_memory(p, err) : 0;
}

/*
 * A daemon that was started again can't know whether its question had been put, nor whether the
 * answer was read: it asks again. Who has answered says so again, and nothing else happens.
 */
static const struct repeated {
	enum vmm_wire_type type;
	enum attachment_state state;
	int (*say)(struct postcopy *p, struct error *err);
} repeated[] = {
	{ VMM_WIRE_PAUSE, STATE_STOPPING, say_nothing },
	{ VMM_WIRE_PAUSE, STATE_PAUSED, say_paused },
	{ VMM_WIRE_VMSTATE, STATE_LOADING, say_handed },
	{ VMM_WIRE_VMSTATE, STATE_LOADED, say_loaded },
	{ VMM_WIRE_VMSTATE, STATE_RESUMED, say_resumed },
	{ VMM_WIRE_VMSTATE, STATE_COMPLETE, say_nothing },
	{ VMM_WIRE_VMSTATE, STATE_FAILED, say_load_failed },
	{ VMM_WIRE_COMPLETE, STATE_COMPLETE, say_nothing },
	/* What was answered, or not, when it attached. */
	{ VMM_WIRE_OFFER_SHARDS, STATE_WAITING, split_say },
	{ VMM_WIRE_OFFER_SHARDS, STATE_LOADING, split_say },
	{ VMM_WIRE_OFFER_SHARDS, STATE_LOADED, split_say },
	{ VMM_WIRE_OFFER_SHARDS, STATE_RESUMED, split_say },
	{ VMM_WIRE_OFFER_SHARDS, STATE_COMPLETE, say_nothing },
	{ VMM_WIRE_OFFER_SHARDS, STATE_FAILED, say_nothing },
	/* It has all of it, or none: what was ahead is of no use any more. */
	{ VMM_WIRE_VMSTATE_AHEAD, STATE_LOADING, say_nothing },
	{ VMM_WIRE_VMSTATE_AHEAD, STATE_FAILED, say_nothing },
	/* The log ended when the vmstate was taken. */
	{ VMM_WIRE_LOG_STOP, STATE_PAUSED, say_nothing },
	{ VMM_WIRE_LOG_STOP, STATE_FAILED, say_nothing },
};

static const struct repeated *find_repeated(enum attachment_state state, enum vmm_wire_type type)
{
	for (size_t i = 0; i < sizeof repeated / sizeof *repeated; i++)
		if (repeated[i].state == state && repeated[i].type == type)
			return &repeated[i];
	return NULL;
}

int receive_news(struct postcopy *p, uint64_t deadline_ns, struct vmm_wire_msg *msg, int *ret_fd,
                 struct error *err)
{
	for (;;) {
		_cleanup_close_ int fd = -1;
		int rc = receive_message(p, deadline_ns, msg, &fd, err);
		const struct repeated *r = rc ? NULL : find_repeated(p->state, msg->type);

		bool no_log =
		        !rc && !p->dirty.bitmap &&
		        (msg->type == VMM_WIRE_LOG_START || msg->type == VMM_WIRE_LOG_HARVEST);

		if (no_log)
			rc = dirty_say_none(p, msg, err);
		else if (r)
			rc = r->say(p, err);
		if (rc)
			return rc;
		if (!r && !no_log) {
			*ret_fd = steal_fd(&fd);
			return 0;
		}
	}
}

static int next_event(struct postcopy *p, int timeout_ms, struct postcopy_event *ret_event,
                      struct error *err)
{
	struct vmm_wire_msg msg;
	_cleanup_close_ int fd = -1;
	const struct transition *t;
	uint64_t deadline_ns = UINT64_MAX;
	int rc;

	if (timeout_ms >= 0)
		deadline_ns = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
	rc = receive_news(p, deadline_ns, &msg, &fd, err);
	if (rc == -ETIMEDOUT) {
		*ret_event = (struct postcopy_event){ .vmstate_fd = -1 };
		return 0;
	}
	if (rc)
		return rc;
	t = find_transition(p->state, msg.type);
	if (!t)
		return error_set(err, -EPROTO, "postcopyd sent message type %d to a VMM that is %s",
		                 (int)msg.type, state_names[p->state]);
	if (msg.type == VMM_WIRE_VMSTATE) {
		rc = check_vmstate(fd, msg.vmstate_len, err);
		if (rc)
			return rc;
	}
	if (t->to == STATE_STOPPING)
		p->pause_asked_ns = clock_now_ns();
	/* Whoever runs on, or has all at the destination, is not asked for it again. */
	if (t->from == STATE_PAUSED)
		close_fd(&p->vmstate_fd);
	if (t->to == STATE_COMPLETE)
		arriving_remove(&p->arriving);
	p->state = t->to;
	dirty_note(p, &msg);
	if (t->event == POSTCOPY_EVENT_RESUME || t->to == STATE_FAILED)
		dirty_end(p);
	fill_event(p, t, &msg, ret_event);
	close_fd(&p->ahead_fd);
	ret_event->vmstate_fd = steal_fd(&fd);
	if (t->event == POSTCOPY_EVENT_VMSTATE_AHEAD)
		p->ahead_fd = ret_event->vmstate_fd;
	return 0;
}

int postcopy_next_event(struct postcopy *p, int timeout_ms, struct postcopy_event *ret_event,
                        struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, next_event(p, timeout_ms, ret_event, &e), &e);
}

static int write_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

int make_sealed_memfd(const char *name, const void *data, size_t len, int *ret_fd,
                      struct error *err)
{
	_cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int rc;

	if (fd < 0)
		return error_errno(err, -errno, "can't create memfd %s", name);
	rc = write_all(fd, data, len);
	if (rc)
		return error_errno(err, rc, "can't write %zu bytes to memfd %s", len, name);
	if (fcntl(fd, F_ADD_SEALS, VMSTATE_SEALS))
		return error_errno(err, -errno, "can't seal memfd %s", name);
	*ret_fd = steal_fd(&fd);
	return 0;
}

/* A call of the VMM that does not fit is its bug, and sends nothing. */
int require_state(const struct postcopy *p, enum attachment_state state, const char *call,
                  struct error *err)
{
	if (p->state == state)
		return 0;
	return error_set(err, -EINVAL, "%s() is for a VMM that is %s; this one is %s", call,
	                 state_names[state], state_names[p->state]);
}

/* @fd: taken over. */
static int give_vmstate(struct postcopy *p, int fd, uint64_t len, struct error *err)
{
	int rc;

	p->vmstate_fd = fd;
	p->vmstate_len = len;
	p->pause_ns = clock_now_ns() - p->pause_asked_ns;
	rc = say_paused(p, err);
	if (rc) {
		close_fd(&p->vmstate_fd);
		return rc;
	}
	p->state = STATE_PAUSED;
	dirty_end(p);
	return 0;
}

static int source_paused(struct postcopy *p, const void *vmstate, size_t len, struct error *err)
{
	_cleanup_close_ int fd = -1;
	int rc = require_state(p, STATE_STOPPING, "postcopy_source_paused", err);

	if (!rc)
		rc = dirty_check_last(p, err);
	if (!rc && !vmstate && len)
		rc = error_set(err, -EINVAL, "vmstate is NULL");
	if (!rc)
		rc = make_sealed_memfd("postcopy-vmstate", vmstate, len, &fd, err);
	return rc ? rc : give_vmstate(p, steal_fd(&fd), len, err);
}

/* All that comes from @from up to its end, into a memfd. Return: 0 or -errno. */
static int copy_to_end(int from, int to)
{
	_cleanup_free_ char *buf = malloc(COPY_BYTES);
	ssize_t n;
	int rc = buf ? 0 : -ENOMEM;

	while (!rc) {
		n = read(from, buf, COPY_BYTES);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : 0;
		rc = write_all(to, buf, (size_t)n);
	}
	return rc;
}

/* As it is, if it can be sealed; else what it has to say, in a memfd of ours. */
static int seal_vmstate(int from, int *ret_fd, uint64_t *ret_len, struct error *err)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	int seals, rc = 0;

	(void)fcntl(from, F_ADD_SEALS, VMSTATE_SEALS);
	seals = fcntl(from, F_GET_SEALS);
	if (seals >= 0 && (seals & VMSTATE_SEALS) == VMSTATE_SEALS) {
		fd = fcntl(from, F_DUPFD_CLOEXEC, 0);
	} else {
		fd = memfd_create("postcopy-vmstate", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (fd >= 0)
			rc = copy_to_end(from, fd);
		if (!rc && fd >= 0 && fcntl(fd, F_ADD_SEALS, VMSTATE_SEALS))
			rc = -errno;
	}
	if (!rc && (fd < 0 || fstat(fd, &st)))
		rc = -errno;
	if (rc)
		return error_errno(err, rc, "can't take the vmstate from fd %d", from);
	*ret_len = (uint64_t)st.st_size;
	*ret_fd = steal_fd(&fd);
	return 0;
}

static int source_paused_fd(struct postcopy *p, int from, struct error *err)
{
	uint64_t len = 0;
	int fd = -1, rc = require_state(p, STATE_STOPPING, "postcopy_source_paused_fd", err);

	if (!rc)
		rc = dirty_check_last(p, err);
	if (!rc)
		rc = seal_vmstate(from, &fd, &len, err);
	return rc ? rc : give_vmstate(p, fd, len, err);
}

int postcopy_source_vmstate_ahead(struct postcopy *p, int fd, uint64_t len,
                                  struct postcopy_error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_VMSTATE_AHEAD, .vmstate_len = len };
	struct error e = ERROR_INIT;
	int rc = require_state(p, STATE_STOPPING, __func__, &e);

	if (!rc)
		rc = send_message(p, &msg, &fd, 1, &e);
	return report_error(err, rc, &e);
}

int postcopy_source_paused_fd(struct postcopy *p, int fd, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, source_paused_fd(p, fd, &e), &e);
}

int postcopy_source_paused(struct postcopy *p, const void *vmstate, size_t len,
                           struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, source_paused(p, vmstate, len, &e), &e);
}

/* Says @type, which is for a VMM in state @from only; from then on it is in @to. */
static int say(struct postcopy *p, enum vmm_wire_type type, const char *reason,
               enum attachment_state from, enum attachment_state to, const char *call,
               struct postcopy_error *err)
{
	struct vmm_wire_msg msg = { .type = type };
	struct error e = ERROR_INIT;
	int rc = require_state(p, from, call, &e);

	if (type == VMM_WIRE_ERROR || type == VMM_WIRE_COULD_NOT_RUN) {
		msg.code = ECANCELED;
		snprintf(msg.text, sizeof msg.text, "%s", reason ? reason : "no reason given");
	}
	if (!rc)
		rc = send_message(p, &msg, NULL, 0, &e);
	if (!rc)
		p->state = to;
	return report_error(err, rc, &e);
}

int postcopy_source_pause_failed(struct postcopy *p, const char *reason, struct postcopy_error *err)
{
	dirty_end(p);
	return say(p, VMM_WIRE_ERROR, reason, STATE_STOPPING, STATE_RUNNING, __func__, err);
}

int postcopy_destination_loaded(struct postcopy *p, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	if (p->late && !p->taken)
		return report_error(err,
		                    error_set(&e, -EINVAL,
		                              "its memory is late, and was not handed over yet "
		                              "(postcopy_destination_memory())"),
		                    &e);
	return say(p, VMM_WIRE_LOADED, NULL, STATE_LOADING, STATE_LOADED, __func__, err);
}

int postcopy_destination_resumed(struct postcopy *p, struct postcopy_error *err)
{
	/* All pages were there before the VMM came to say it, and the daemon said so first. */
	if (p->role == VMM_WIRE_DESTINATION && p->state == STATE_COMPLETE)
		return say(p, VMM_WIRE_RESUMED, NULL, STATE_COMPLETE, STATE_COMPLETE, __func__,
		           err);
	return say(p, VMM_WIRE_RESUMED, NULL, STATE_LOADED, STATE_RESUMED, __func__, err);
}

/* It is said again to a daemon that was started again. */
static int say_not_running(struct postcopy *p, enum vmm_wire_type type, const char *reason,
                           enum attachment_state from, const char *call, struct postcopy_error *err)
{
	int rc = say(p, type, reason, from, STATE_FAILED, call, err);

	if (rc)
		return rc;
	p->load_error_type = type;
	snprintf(p->load_error, sizeof p->load_error, "%s", reason ? reason : "no reason given");
	return 0;
}

int postcopy_destination_load_failed(struct postcopy *p, const char *reason,
                                     struct postcopy_error *err)
{
	return say_not_running(p, VMM_WIRE_ERROR, reason, STATE_LOADING, __func__, err);
}

int postcopy_destination_could_not_run(struct postcopy *p, const char *reason,
                                       struct postcopy_error *err)
{
	return say_not_running(p, VMM_WIRE_COULD_NOT_RUN, reason, STATE_LOADED, __func__, err);
}

int give_channel(struct postcopy *p, int fd, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_CHANNEL };

	if (p->role != VMM_WIRE_DESTINATION)
		return error_set(err, -EINVAL, "a source has no pages to fetch");
	if (p->state == STATE_FAILED)
		return error_set(err, -EINVAL, "the migration has failed: no pages come any more");
	if (p->state == STATE_COMPLETE)
		return 1;
	return send_message(p, &msg, &fd, 1, err);
}

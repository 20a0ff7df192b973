/* SPDX-License-Identifier: Apache-2.0 */
/* The destination: Cloud Hypervisor listens, is told all of the guest, and asks for its pages. */
#include "cloud_hypervisor/adapter.h"

#include <errno.h>
#include <poll.h>
#include <sys/mman.h>

#include "cloud_hypervisor/envelope.h"
#include "cloud_hypervisor/faults.h"
#include "cloud_hypervisor/stream.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

/* Between two tries to reach a Cloud Hypervisor that does not listen yet. */
#define CONNECT_RETRY_MS 100
/* For an answer that makes, or loads, a guest. */
#define LOAD_MS 60000u
/* For the first page that Cloud Hypervisor asks for: it begins at once. */
#define FIRST_FAULT_MS 5000u
/* Where something is to be tried again; a channel that the daemon does not take. */
#define AGAIN_MS 1
#define CHANNEL_RETRY_MS 500

struct destination {
	struct adapter *adapter;
	struct ch_faults faults;
	bool failed;        /* the daemon has said so */
	uint64_t reopen_ns; /* not before: another channel where one has ended alone */
};

static void heed(struct destination *d, const struct postcopy_event *event)
{
	struct adapter *a = d->adapter;

	if (event->vmstate_fd >= 0)
		close(event->vmstate_fd);
	if (event->type == POSTCOPY_EVENT_COMPLETE) {
		log_migration_info(a->id, "every page is here");
		atomic_store(&a->record->complete, true);
	}
	if (event->type == POSTCOPY_EVENT_FAILED) {
		log_migration_error(a->id, "%s", event->reason);
		d->failed = true;
	}
}

/* The daemon's next event while its answer is not what is waited for. */
static void note_event(struct destination *d)
{
	struct adapter *a = d->adapter;
	struct postcopy_event event = { .type = POSTCOPY_EVENT_NONE };

	if (postcopy_next_event(a->attachment, 0, &event, &a->e)) {
		log_migration_warning(a->id, "%s", a->e.text);
		ch_faults_close_channel(&d->faults);
		a->attachment = postcopy_detach(a->attachment);
		return;
	}
	heed(d, &event);
}

/*
 * Who asks for no page does not trap its memory: its guest would run on zeroes. Who traps it asks
 * for all of its pages in the background, from State on.
 */
static int traps_nothing(struct error *err)
{
	*err = (struct error)ERROR_INIT;
	return error_set(err, -EINVAL,
	                 "Cloud Hypervisor asks for no page: its receive-migration needs "
	                 "memory_mode=postcopy");
}

/*
 * Wait for whatever comes next, and serve what can be served. @watch_vmm: return as well where
 * Cloud Hypervisor says something. Return: 0, or as ch_faults_serve(); the end of the fault
 * connection is none.
 */
static int turn(struct destination *d, bool watch_vmm, int timeout_ms, struct error *err)
{
	struct adapter *a = d->adapter;
	struct ch_faults *f = &d->faults;
	struct pollfd fds[] = {
		{ .fd = f->again ? -1 : f->sock, .events = POLLIN },
		{ .fd = f->channel && !f->channel_ended ? postcopy_channel_fd(f->channel) : -1,
		  .events = POLLIN },
		{ .fd = a->attachment ? postcopy_fd(a->attachment) : -1, .events = POLLIN },
		{ .fd = watch_vmm ? a->sock : -1, .events = POLLIN },
		{ .fd = a->signal_fd, .events = POLLIN },
	};
	int rc = 0;

	/* While one is asked for no other comes: what would be seen is the connection's end. */
	if (f->waits)
		fds[0].events = 0;
	(void)poll(fds, sizeof fds / sizeof *fds,
	           f->again && (timeout_ms < 0 || timeout_ms > AGAIN_MS) ? AGAIN_MS : timeout_ms);
	/* While it loads, too: that is soon over. */
	if (fds[4].revents)
		(void)adapter_is_to_end(a);
	if (fds[2].revents)
		note_event(d);
	if (f->sock >= 0)
		rc = f->waits && fds[0].revents ? -EPIPE : ch_faults_serve(f, err);
	if (rc == -EPIPE && !f->seen)
		return traps_nothing(err);
	if (rc != -EPIPE)
		return rc;
	/* It has all of its pages, or has ended: that the daemon sees. */
	log_migration_info(a->id, "Cloud Hypervisor asks for no more pages");
	ch_faults_end(f);
	return 0;
}

/* Until Cloud Hypervisor answers, its faults being served. Return: 0 where it says ok. */
static int await_answer(struct destination *d, enum ch_command command, struct error *err)
{
	uint64_t deadline_ns = clock_now_ns() + LOAD_MS * NSEC_PER_MSEC;
	struct adapter *a = d->adapter;
	uint8_t buf[CH_RESPONSE_BYTES];
	enum ch_status status;
	int rc = 0;

	for (;;) {
		struct pollfd fd = { .fd = a->sock, .events = POLLIN };

		if (poll(&fd, 1, 0) > 0)
			break;
		if (clock_now_ns() > deadline_ns)
			return error_set(err, -ETIMEDOUT,
			                 "Cloud Hypervisor has not answered %s for %u s",
			                 ch_command_name(command), LOAD_MS / 1000);
		rc = turn(d, true, 100, err);
		if (!rc && d->failed && ch_record_phase(a->record) < CH_PHASE_LOADED)
			rc = error_set(err, -ECANCELED, "the migration has ended meanwhile");
		if (!rc && !a->attachment && ch_record_phase(a->record) == CH_PHASE_LOADING)
			rc = error_set(err, -ECONNRESET, "postcopyd is gone");
		if (rc)
			return rc;
	}
	rc = ch_stream_read(a->sock, buf, sizeof buf, NULL, err);
	if (!rc)
		rc = ch_response_decode(buf, &status, err);
	if (!rc && status != CH_OK)
		rc = error_set(err, -EREMOTEIO, "Cloud Hypervisor refuses %s: its own log says why",
		               ch_command_name(command));
	return rc;
}

static int request(struct destination *d, enum ch_command command, const void *payload, size_t len,
                   int fd, struct error *err)
{
	int rc = ch_stream_request(d->adapter->sock, command, payload, len, fd, err);

	return rc ? rc : await_answer(d, command, err);
}

/* Files of the source's shape, which the daemon fills. */
static int make_memory(struct adapter *a, struct error *err)
{
	const struct ch_layout *layout = &a->record->layout;
	struct postcopy_region regions[CH_SLOTS_MAX];
	int rc = 0;

	for (size_t i = 0; i < layout->n && !rc; i++) {
		rc = ch_slot_make_file(&layout->slots[i], &a->files[i], err);
		if (!rc)
			rc = adapter_keep_file(a, i, err);
		regions[i] = ch_slot_region(&layout->slots[i], a->files[i]);
		regions[i].flags = POSTCOPY_REGION_ASKED;
	}
	if (!rc && postcopy_destination_memory(a->attachment, -1, regions, layout->n, &a->e))
		rc = error_set(err, a->e.code, "%s", a->e.text);
	return rc;
}

static int send_memory(struct destination *d, struct error *err)
{
	struct adapter *a = d->adapter;
	int rc = 0;

	for (size_t i = 0; i < a->record->layout.n && !rc; i++) {
		uint32_t slot = htole32(a->record->layout.slots[i].slot);

		rc = request(d, CH_MEMORY_FD, &slot, sizeof slot, a->files[i], err);
	}
	return rc;
}

/* See traps_nothing(). */
static int await_first_fault(struct destination *d, struct error *err)
{
	uint64_t deadline_ns = clock_now_ns() + FIRST_FAULT_MS * NSEC_PER_MSEC;
	int rc = 0;

	while (!rc && !d->faults.seen)
		rc = clock_now_ns() > deadline_ns ? traps_nothing(err) : turn(d, false, 100, err);
	return rc;
}

/* Up to where the vCPUs may run. Nothing is lost by a failure. */
static int load(struct destination *d, const struct ch_envelope *e, struct error *err)
{
	struct adapter *a = d->adapter;
	int rc;

	a->record->layout = e->layout;
	a->record->runs = e->runs;
	rc = make_memory(a, err);
	if (!rc)
		rc = send_memory(d, err);
	if (!rc)
		rc = request(d, CH_CONFIG, e->config, e->config_len, -1, err);
	if (!rc)
		rc = ch_faults_connect(&d->faults, err);
	if (!rc)
		rc = ch_faults_open_channel(&d->faults, err);
	if (!rc)
		rc = request(d, CH_STATE, e->state, e->state_len, -1, err);
	return rc ? rc : await_first_fault(d, err);
}

static int load_vmstate(struct destination *d, const struct postcopy_event *event,
                        struct error *err)
{
	struct ch_envelope e;
	void *data = mmap(NULL, event->vmstate_len, PROT_READ, MAP_SHARED, event->vmstate_fd, 0);
	int rc;

	if (data == MAP_FAILED)
		return error_errno(err, -errno, "the vmstate");
	ch_record_set(d->adapter->record, CH_PHASE_LOADING);
	rc = ch_envelope_decode(data, event->vmstate_len, &e, err);
	if (!rc)
		rc = load(d, &e, err);
	munmap(data, event->vmstate_len);
	return rc;
}

/* Cloud Hypervisor, which waits for us, sees that nothing comes any more. */
static void hang_up(struct destination *d)
{
	ch_faults_end(&d->faults);
	adapter_drop(d->adapter, "vmm", &d->adapter->sock);
}

static void let_go(struct destination *d)
{
	struct adapter *a = d->adapter;

	hang_up(d);
	a->attachment = postcopy_detach(a->attachment);
	ch_record_set(a->record, CH_PHASE_OVER);
}

/* That it can't be loaded: to another process of the daemon where the one before is gone. */
static void refuse(struct adapter *a, const char *why)
{
	struct postcopy_event event = { .vmstate_fd = -1 };

	if (a->attachment && !postcopy_destination_load_failed(a->attachment, why, &a->e))
		return;
	a->attachment = postcopy_detach(a->attachment);
	if (!adapter_attach_again(a, NULL) &&
	    !postcopy_next_event(a->attachment, CH_STREAM_TIMEOUT_MS, &event, &a->e) &&
	    event.type == POSTCOPY_EVENT_VMSTATE)
		(void)postcopy_destination_load_failed(a->attachment, why, &a->e);
	close_fd(&event.vmstate_fd);
}

static int give_up(struct destination *d, const char *why)
{
	struct adapter *a = d->adapter;

	log_migration_error(a->id, "%s", why);
	/* First: then no vCPU of it can run any more. */
	hang_up(d);
	if (!d->failed && ch_record_phase(a->record) == CH_PHASE_LOADING)
		refuse(a, why);
	let_go(d);
	return ADAPTER_FAILED;
}

/*
 * The vCPUs may run from here on. @again: the process before has said so, too, and may have had the
 * answer, after which Cloud Hypervisor closes. Return: 0, or -errno with @err.
 */
static int run(struct destination *d, bool again, struct error *err)
{
	struct adapter *a = d->adapter;
	int rc = ch_stream_request(a->sock, a->record->runs ? CH_COMPLETE : CH_COMPLETE_PAUSED,
	                           NULL, 0, -1, err);

	if (!rc)
		rc = await_answer(d, CH_COMPLETE, err);
	if (rc && !(again && rc == -EPIPE))
		return error_prefix(err, "whether the guest runs here is not known: if it does "
		                         "not, have it run on at the source (run-on)");
	ch_record_set(a->record, CH_PHASE_RUNS);
	adapter_drop(a, "vmm", &a->sock);
	return 0;
}

static void say(struct adapter *a, int (*what)(struct postcopy *p, struct postcopy_error *err))
{
	/* A daemon that is gone asks again, or is told by where we stand. */
	if (a->attachment && what(a->attachment, &a->e))
		log_migration_warning(a->id, "%s", a->e.text);
}

/* By another process of the daemon, or of ours. @standing: what it has heard */
static void repeat(struct destination *d, enum postcopy_standing standing)
{
	struct adapter *a = d->adapter;
	struct postcopy_event event;

	if (standing == POSTCOPY_STANDS_WAITING || standing == POSTCOPY_STANDS_LOADING) {
		/* VMSTATE comes again, for it has not heard that it was loaded. */
		if (!postcopy_next_event(a->attachment, CH_STREAM_TIMEOUT_MS, &event, &a->e))
			heed(d, &event);
		say(a, postcopy_destination_loaded);
	}
	if (ch_record_phase(a->record) == CH_PHASE_RUNS && standing != POSTCOPY_STANDS_RESUMED)
		say(a, postcopy_destination_resumed);
}

static void come_back(struct destination *d)
{
	struct adapter *a = d->adapter;
	enum postcopy_standing standing = POSTCOPY_STANDS_WAITING;
	struct error err = ERROR_INIT;

	if (adapter_attach_again(a, &standing))
		return;
	repeat(d, standing);
	if (!atomic_load(&a->record->complete) && ch_faults_open_channel(&d->faults, &err))
		log_migration_warning(a->id, "%s", err.text);
}

/* By which pages are asked for, as long as any have to be. Return: false where it is to be tried
 * again. */
static bool have_channel(struct destination *d)
{
	struct adapter *a = d->adapter;
	struct error err = ERROR_INIT;

	if (atomic_load(&a->record->complete) || d->faults.channel)
		return true;
	if (!a->attachment)
		come_back(d);
	/* One may end alone: the daemon that was started again has not found it in its store. */
	else if (clock_now_ns() >= d->reopen_ns && ch_faults_open_channel(&d->faults, &err))
		log_migration_warning(a->id, "%s", err.text);
	return d->faults.channel;
}

/* The guest runs, or is about to: until Cloud Hypervisor has all of its pages, and the daemon too.
 */
static int serve(struct destination *d)
{
	struct adapter *a = d->adapter;
	struct ch_faults *f = &d->faults;
	struct error err = ERROR_INIT;

	while (!d->failed && (f->sock >= 0 || !atomic_load(&a->record->complete))) {
		int rc;

		if (f->channel_ended) {
			ch_faults_close_channel(f);
			/* One that takes no more of them would be asked all the time. */
			d->reopen_ns = clock_now_ns() + CHANNEL_RETRY_MS * NSEC_PER_MSEC;
		}
		rc = turn(d, false, have_channel(d) ? -1 : CHANNEL_RETRY_MS, &err);
		/* What it says makes no sense: it can't be answered. Else it is tried again. */
		if (rc)
			log_migration_error(a->id, "%s", err.text);
		if (rc == -EPROTO || rc == -EPIPE)
			break;
		f->again = f->again || rc;
	}
	a->record->moved = atomic_load(&a->record->complete) && !d->failed;
	let_go(d);
	return a->record->moved ? 0 : ADAPTER_FAILED;
}

/* From VMSTATE on. Return: the exit status. */
static int on_vmstate(struct destination *d, const struct postcopy_event *event)
{
	struct adapter *a = d->adapter;
	struct error err = ERROR_INIT;
	int rc = ch_record_phase(a->record) == CH_PHASE_CONNECTED
	                 ? load_vmstate(d, event, &err)
	                 : error_set(&err, -ECANCELED, "the adapter was ended while it loaded");

	close(event->vmstate_fd);
	if (rc)
		return give_up(d, err.text);
	ch_record_set(a->record, CH_PHASE_LOADED);
	say(a, postcopy_destination_loaded);
	if (run(d, false, &err))
		log_migration_error(a->id, "%s", err.text);
	else
		say(a, postcopy_destination_resumed);
	return serve(d);
}

/* Until the daemon has a vmstate. Return: the exit status. */
static int await_vmstate(struct destination *d)
{
	struct adapter *a = d->adapter;

	for (bool watched = true;;) {
		struct pollfd fds[] = { { .fd = postcopy_fd(a->attachment), .events = POLLIN },
			                { .fd = a->signal_fd, .events = POLLIN },
			                { .fd = watched ? a->sock : -1, .events = 0 } };
		struct postcopy_event event;

		(void)poll(fds, 3, -1);
		if (fds[1].revents && adapter_is_to_end(a))
			return 0;
		/* Its process lives, else the daemon would say so; but it has no place for a guest.
		 */
		if (fds[2].revents & (POLLHUP | POLLERR))
			return give_up(d, "Cloud Hypervisor has closed the connection");
		if (!fds[0].revents)
			continue;
		if (postcopy_next_event(a->attachment, 0, &event, &a->e)) {
			log_migration_warning(a->id, "%s", a->e.text);
			a->attachment = postcopy_detach(a->attachment);
			if (adapter_attach_again(a, NULL))
				return give_up(d, a->e.text);
		} else if (event.type == POSTCOPY_EVENT_VMSTATE) {
			return on_vmstate(d, &event);
		} else if (event.type == POSTCOPY_EVENT_FAILED) {
			d->failed = true;
			return give_up(d, event.reason);
		}
	}
}

/* It may not listen yet. Return: 0; -EINTR where this process is to end; -errno with @err. */
static int connect_vmm(struct adapter *a, struct error *err)
{
	struct pollfd fd = { .fd = a->signal_fd, .events = POLLIN };

	for (bool told = false;; told = true) {
		int rc = ch_stream_connect(a->path, &a->sock, err);

		if (rc != -ENOENT && rc != -ECONNREFUSED)
			return rc;
		if (!told)
			log_migration_info(a->id, "waiting: %s", err->text);
		*err = (struct error)ERROR_INIT;
		if (poll(&fd, 1, CONNECT_RETRY_MS) > 0)
			return -EINTR;
	}
}

static int begin(struct destination *d, struct error *err)
{
	struct adapter *a = d->adapter;
	int rc = connect_vmm(a, err);

	if (!rc)
		rc = adapter_take_peer(a, err);
	if (!rc)
		rc = request(d, CH_START, NULL, 0, -1, err);
	if (!rc)
		rc = adapter_keep(a, "vmm", a->sock, err);
	if (!rc)
		ch_record_set(a->record, CH_PHASE_CONNECTED);
	if (!rc && postcopy_destination_attach_late(a->daemon_path, a->id, a->pidfd, &a->attachment,
	                                            &a->e))
		rc = error_set(err, a->e.code, "%s", a->e.text);
	return rc;
}

/* A process before this one has come to where no vCPU can have run. */
static int go_on_waiting(struct destination *d, struct error *err)
{
	struct adapter *a = d->adapter;
	int rc = adapter_attach_again(a, NULL);

	/* It had not got so far as to attach. */
	if (rc == -ENOENT && ch_record_phase(a->record) == CH_PHASE_CONNECTED)
		rc = postcopy_destination_attach_late(a->daemon_path, a->id, a->pidfd,
		                                      &a->attachment, &a->e);
	return rc && rc != -EINTR ? error_set(err, rc, "%s", a->e.text) : rc;
}

/* A process before this one has come to where they may have. Return: the exit status. */
static int go_on_serving(struct destination *d)
{
	struct adapter *a = d->adapter;
	struct error err = ERROR_INIT;
	int rc = adapter_take_files(a, &err);

	if (!rc)
		rc = ch_faults_take_over(&d->faults, &err);
	if (rc) {
		log_migration_error(a->id, "%s", err.text);
		return ADAPTER_AGAIN;
	}
	if (!atomic_load(&a->record->complete))
		come_back(d);
	if (ch_record_phase(a->record) == CH_PHASE_LOADED) {
		if (run(d, true, &err))
			log_migration_error(a->id, "%s", err.text);
		else
			say(a, postcopy_destination_resumed);
	}
	return serve(d);
}

int destination_run(struct adapter *a)
{
	struct destination d = { .adapter = a };
	struct error err = ERROR_INIT;
	enum ch_phase phase = ch_record_phase(a->record);
	int rc = 0;

	ch_faults_init(&d.faults, a);
	if (phase != CH_PHASE_NEW) {
		rc = adapter_take_process(a, &err);
		a->sock = fd_store_get(a->store, "vmm");
	}
	if (!rc && phase >= CH_PHASE_LOADED)
		return go_on_serving(&d);
	if (!rc)
		rc = phase == CH_PHASE_NEW ? begin(&d, &err) : go_on_waiting(&d, &err);
	if (rc == -EINTR)
		return 0;
	return rc ? give_up(&d, err.text) : await_vmstate(&d);
}

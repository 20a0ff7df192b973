/* SPDX-License-Identifier: Apache-2.0 */
/* The source: Cloud Hypervisor connects, hands over its memory, and is answered late. */
#include "cloud_hypervisor/adapter.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "cloud_hypervisor/envelope.h"
#include "cloud_hypervisor/stream.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/unix_listen.h"

/* For the guest to be paused, and its devices to be saved. */
#define PAUSE_MS 60000

/* A payload, as it comes, into a memfd of that name. */
static int read_payload(struct adapter *a, const char *name, uint64_t len, int *ret_fd,
                        struct error *err)
{
	_cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *to;
	int rc;

	if (fd < 0 || ftruncate(fd, (off_t)len))
		return error_errno(err, -errno, "memory for %s", name);
	to = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (to == MAP_FAILED)
		return error_errno(err, -errno, "memory for %s", name);
	rc = ch_stream_read(a->sock, to, len, NULL, err);
	munmap(to, len);
	if (!rc)
		*ret_fd = steal_fd(&fd);
	return rc;
}

/* The payload of a memfd, to read. NULL with @err. */
static void *map_payload(int fd, size_t *ret_len, struct error *err)
{
	struct stat st;
	void *at;

	if (fstat(fd, &st)) {
		error_errno(err, -errno, "a memfd");
		return NULL;
	}
	*ret_len = (size_t)st.st_size;
	at = mmap(NULL, *ret_len, PROT_READ, MAP_SHARED, fd, 0);
	if (at != MAP_FAILED)
		return at;
	error_errno(err, -errno, "mapping a memfd");
	return NULL;
}

/* Files by Cloud Hypervisor's numbers, in the order in which they come. */
struct files {
	size_t n;
	uint32_t slots[CH_SLOTS_MAX];
	int fds[CH_SLOTS_MAX];
};

static void files_close(struct files *f)
{
	while (f->n)
		close(f->fds[--f->n]);
}

static int take_file(struct adapter *a, struct files *f, struct error *err)
{
	uint8_t buf[CH_SLOT_BYTES];
	int fd, rc = ch_stream_read(a->sock, buf, sizeof buf, &fd, err);

	if (rc)
		return rc;
	if (fd < 0 || f->n == CH_SLOTS_MAX) {
		close_fd(&fd);
		return error_set(err, -EPROTO,
		                 f->n == CH_SLOTS_MAX ? "MemoryFd: more memory slots than a "
		                                        "guest may have"
		                                      : "MemoryFd came without a descriptor");
	}
	memcpy(&f->slots[f->n], buf, sizeof buf);
	f->slots[f->n] = le32toh(f->slots[f->n]);
	f->fds[f->n++] = fd;
	return 0;
}

/* The file of each slot that Config names. */
static int match_files(struct adapter *a, struct files *f, struct error *err)
{
	for (size_t i = 0; i < a->record->layout.n; i++) {
		struct ch_slot *slot = &a->record->layout.slots[i];
		int rc;

		a->files[i] = -1;
		for (size_t j = 0; j < f->n && a->files[i] < 0; j++)
			if (f->slots[j] == slot->slot)
				a->files[i] = fcntl(f->fds[j], F_DUPFD_CLOEXEC, 0);
		if (a->files[i] < 0)
			return error_set(err, -EPROTO,
			                 "Config names memory slot %u, whose file has not come: "
			                 "was \"local=on\" left out?",
			                 slot->slot);
		rc = ch_slot_take_file(slot, a->files[i], err);
		if (rc)
			return rc;
	}
	return 0;
}

static int take_config(struct adapter *a, uint64_t len, struct files *f, int *ret_fd,
                       struct error *err)
{
	size_t size;
	void *config;
	int rc = read_payload(a, "config", len, ret_fd, err);

	if (rc)
		return rc;
	config = map_payload(*ret_fd, &size, err);
	if (!config)
		return err->code;
	rc = ch_layout_read(config, size, &a->record->layout, err);
	munmap(config, size);
	return rc ? rc : match_files(a, f, err);
}

/* From Start up to Config, which is not answered. @ret_fd: Config. */
static int take_memory(struct adapter *a, int *ret_fd, struct error *err)
{
	_cleanup_(files_close) struct files f = { .n = 0 };
	bool started = false;

	for (;;) {
		struct ch_request q;
		int rc = ch_stream_read_request(a->sock, &q, err);

		if (rc)
			return rc;
		if (q.command == CH_CONFIG && started)
			return take_config(a, q.length, &f, ret_fd, err);
		if (q.command == CH_MEMORY_FD && started)
			rc = take_file(a, &f, err);
		else if (q.command == CH_START && !started)
			started = true;
		else
			rc = error_set(err, -EPROTO, "Cloud Hypervisor says %s %s",
			               ch_command_name(q.command),
			               started ? "before Config" : "where Start was due");
		if (!rc)
			rc = ch_stream_answer(a->sock, CH_OK, err);
		if (rc)
			return rc;
	}
}

/* Where a file is mapped in Cloud Hypervisor, from an offset on. 0: it can't be told. */
static uint64_t find_mapping(pid_t pid, int fd, uint64_t offset)
{
	_cleanup_free_ char *line = NULL;
	_cleanup_fclose_ FILE *maps = NULL;
	size_t size = 0;
	struct stat st;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	while (maps && !fstat(fd, &st) && getline(&line, &size, maps) > 0) {
		unsigned long long from, to, at, inode;
		unsigned int dev_major, dev_minor;

		if (sscanf(line, "%llx-%llx %*4s %llx %x:%x %llu", &from, &to, &at, &dev_major,
		           &dev_minor, &inode) == 6 &&
		    inode == st.st_ino && dev_major == major(st.st_dev) &&
		    dev_minor == minor(st.st_dev) && at <= offset && offset - at < to - from)
			return from + (offset - at);
	}
	return 0;
}

static int attach(struct adapter *a, struct error *err)
{
	const struct ch_layout *layout = &a->record->layout;
	struct postcopy_region regions[CH_SLOTS_MAX];
	struct ucred cred = { .pid = 0 };
	socklen_t len = sizeof cred;
	int rc;

	(void)getsockopt(a->sock, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	for (size_t i = 0; i < layout->n; i++) {
		uint64_t addr = find_mapping(cred.pid, a->files[i], layout->slots[i].file_offset);

		regions[i] = ch_slot_region(&layout->slots[i], a->files[i]);
		regions[i].host_addr = (void *)(uintptr_t)addr;
		if (!addr)
			return error_set(err, -EPERM,
			                 "memory slot %u is not found in /proc/%d/maps: this "
			                 "adapter must be of Cloud Hypervisor's user, or root",
			                 layout->slots[i].slot, (int)cred.pid);
	}
	rc = postcopy_source_attach_for(a->daemon_path, a->id, a->pidfd, regions, layout->n,
	                                &a->attachment, &a->e);
	/* By a process before this one, or a try before this one. */
	if (rc == -EBUSY && !postcopy_source_attach_again(a->daemon_path, a->id, a->pidfd,
	                                                  &a->attachment, NULL, NULL))
		rc = 0;
	return rc ? error_set(err, rc, "%s", a->e.text) : 0;
}

/* From a connection that has come until the daemon knows its guest. */
static int take_guest(struct adapter *a, struct error *err)
{
	_cleanup_close_ int config_fd = -1;
	int rc = ch_stream_settle(a->sock, err);

	if (!rc)
		rc = take_memory(a, &config_fd, err);
	if (!rc)
		rc = adapter_take_peer(a, err);
	if (!rc)
		rc = attach(a, err);
	/* From here on the next process can go on. */
	if (!rc)
		rc = adapter_keep(a, "vmm", a->sock, err);
	if (!rc)
		rc = adapter_keep(a, "config", config_fd, err);
	if (!rc)
		ch_record_set(a->record, CH_PHASE_CONFIGURED);
	return rc;
}

/* It did not come so far: Cloud Hypervisor has its guest run on, and may try again. */
static void drop_guest(struct adapter *a)
{
	ch_record_set(a->record, CH_PHASE_NEW);
	a->attachment = postcopy_detach(a->attachment);
	adapter_drop(a, "vmm", &a->sock);
	adapter_drop(a, "process", &a->pidfd);
	for (size_t i = 0; i < CH_SLOTS_MAX; i++)
		close_fd(&a->files[i]);
}

static int await_guest(struct adapter *a)
{
	struct error err = ERROR_INIT;
	_cleanup_close_ int listener = unix_listen(a->path, SOCK_STREAM, "migration socket", &err);

	if (listener < 0) {
		log_error("%s", err.text);
		return listener;
	}
	for (;;) {
		struct pollfd fds[] = { { .fd = listener, .events = POLLIN },
			                { .fd = a->signal_fd, .events = POLLIN } };

		err = (struct error)ERROR_INIT;
		(void)poll(fds, 2, -1);
		if (fds[1].revents && adapter_is_to_end(a))
			return -EINTR;
		a->sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (a->sock < 0)
			continue;
		if (!take_guest(a, &err)) {
			unlink(a->path);
			return 0;
		}
		log_migration_error(a->id, "%s", err.text);
		(void)ch_stream_answer(a->sock, CH_ERROR, &err);
		drop_guest(a);
	}
}

/* Config, and what comes after it, in one memfd. */
static int make_vmstate(struct adapter *a, int state_fd, int *ret_fd, struct error *err)
{
	_cleanup_close_ int config_fd = fd_store_get(a->store, "config");
	_cleanup_close_ int fd = memfd_create("vmstate", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct ch_envelope e = { .runs = a->record->runs, .layout = a->record->layout };
	uint8_t head[CH_ENVELOPE_HEAD_MAX];
	void *config, *state = NULL;
	size_t len;
	int rc = 0;

	if (config_fd < 0 || fd < 0)
		return error_set(err, -ENOENT, "Config is not there any more");
	config = map_payload(config_fd, &e.config_len, err);
	if (config)
		state = map_payload(state_fd, &e.state_len, err);
	if (!config || !state)
		return err->code;
	len = ch_envelope_encode_head(&e, head);
	if (write(fd, head, len) != (ssize_t)len ||
	    write(fd, config, e.config_len) != (ssize_t)e.config_len ||
	    write(fd, state, e.state_len) != (ssize_t)e.state_len)
		rc = error_errno(err, -errno, "memory for the vmstate");
	munmap(config, e.config_len);
	munmap(state, e.state_len);
	if (!rc)
		*ret_fd = steal_fd(&fd);
	return rc;
}

/* Config is answered, so the guest is paused: State, and that it was all. @ret_fd: State */
static int take_state(struct adapter *a, int *ret_fd, struct error *err)
{
	struct ch_request q;
	int rc = ch_stream_answer(a->sock, CH_OK, err);

	if (!rc)
		rc = ch_stream_await(a->sock, PAUSE_MS, "State", err);
	if (!rc)
		rc = ch_stream_read_request(a->sock, &q, err);
	if (!rc && q.command != CH_STATE)
		rc = error_set(err, -EPROTO, "Cloud Hypervisor says %s where State was due",
		               ch_command_name(q.command));
	if (!rc)
		rc = read_payload(a, "state", q.length, ret_fd, err);
	if (!rc)
		rc = ch_stream_answer(a->sock, CH_OK, err);
	if (!rc)
		rc = ch_stream_await(a->sock, PAUSE_MS, "Complete", err);
	if (!rc)
		rc = ch_stream_read_request(a->sock, &q, err);
	if (!rc && q.command != CH_COMPLETE && q.command != CH_COMPLETE_PAUSED)
		rc = error_set(err, -EPROTO, "Cloud Hypervisor says %s where Complete was due",
		               ch_command_name(q.command));
	if (!rc)
		a->record->runs = q.command == CH_COMPLETE;
	return rc;
}

/* Pause, and what must be there before the daemon hears of it. @ret_fd: the vmstate */
static int pause_guest(struct adapter *a, int *ret_fd, struct error *err)
{
	_cleanup_close_ int state_fd = -1;
	int rc = 0;

	if (ch_record_phase(a->record) == CH_PHASE_HELD) {
		*ret_fd = fd_store_get(a->store, "vmstate");
		return *ret_fd < 0 ? error_errno(err, *ret_fd, "the vmstate") : 0;
	}
	if (ch_record_phase(a->record) == CH_PHASE_PAUSING)
		return error_set(err, -ECANCELED,
		                 "the adapter was ended while the guest was being paused");
	ch_record_set(a->record, CH_PHASE_PAUSING);
	rc = take_state(a, &state_fd, err);
	if (!rc)
		rc = make_vmstate(a, state_fd, ret_fd, err);
	if (!rc)
		rc = adapter_keep(a, "vmstate", *ret_fd, err);
	if (!rc)
		ch_record_set(a->record, CH_PHASE_HELD);
	return rc;
}

/* Return: 0; -ECANCELED where the guest could not be paused, and runs on. */
static int on_pause(struct adapter *a)
{
	struct error err = ERROR_INIT;
	_cleanup_close_ int fd = -1;
	int rc = pause_guest(a, &fd, &err);

	if (!rc) {
		/* A daemon that is gone asks again. */
		if (postcopy_source_paused_fd(a->attachment, fd, &a->e))
			log_migration_warning(a->id, "%s", a->e.text);
		return 0;
	}
	/* The daemon first: whatever becomes of the guest, nobody runs a part of its vmstate. */
	log_migration_error(a->id, "%s", err.text);
	(void)postcopy_source_pause_failed(a->attachment, err.text, &a->e);
	return -ECANCELED;
}

/* The migration's end, as Cloud Hypervisor is to hear it. */
static int finish(struct adapter *a, enum ch_status status, const char *what)
{
	struct error err = ERROR_INIT;

	log_migration_info(a->id, "%s", what);
	if (ch_stream_answer(a->sock, status, &err))
		log_migration_warning(a->id, "%s", err.text);
	a->record->moved = status == CH_OK;
	ch_record_set(a->record, CH_PHASE_OVER);
	adapter_drop(a, "vmm", &a->sock);
	return status == CH_OK ? 0 : ADAPTER_FAILED;
}

/* Return: the exit status; -1 where it goes on. */
static int on_event(struct adapter *a, const struct postcopy_event *event)
{
	bool held = ch_record_phase(a->record) == CH_PHASE_HELD;

	switch (event->type) {
	case POSTCOPY_EVENT_PAUSE:
		return on_pause(a) ? finish(a, CH_ERROR, "the guest runs on here") : -1;
	case POSTCOPY_EVENT_RESUME:
		return finish(a, CH_ERROR, event->reason);
	case POSTCOPY_EVENT_COMPLETE:
		return finish(a, CH_OK, "every page is at the destination");
	case POSTCOPY_EVENT_FAILED:
		/* What was handed over is not to run here: its end is the only way to say that. */
		return finish(a, held ? CH_OK : CH_ERROR, event->reason);
	default:
		return -1;
	}
}

/* Return: as on_event(). */
static int next_event(struct adapter *a)
{
	struct postcopy_event event;
	int rc = postcopy_next_event(a->attachment, 0, &event, &a->e);

	if (!rc)
		return on_event(a, &event);
	log_migration_warning(a->id, "%s", a->e.text);
	a->attachment = postcopy_detach(a->attachment);
	rc = adapter_attach_again(a, NULL);
	if (rc == -ENOENT)
		return finish(a, CH_ERROR, a->e.text);
	return rc ? 0 : -1;
}

/* It may end, give up, or be answered late: nothing that it says counts before it is answered. */
static void look_at_vmm(struct adapter *a, bool *watched)
{
	char byte;
	ssize_t n = recv(a->sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return;
	*watched = false;
	log_migration_warning(a->id, "Cloud Hypervisor has %s",
	                      n > 0 ? "given up its migration" : "closed the connection");
}

static int speak(struct adapter *a)
{
	bool watched = true;
	int status = -1;

	while (status < 0) {
		struct pollfd fds[] = { { .fd = postcopy_fd(a->attachment), .events = POLLIN },
			                { .fd = a->signal_fd, .events = POLLIN },
			                { .fd = watched ? a->sock : -1, .events = POLLIN } };

		(void)poll(fds, 3, -1);
		if (fds[1].revents && adapter_is_to_end(a))
			return 0;
		if (fds[2].revents)
			look_at_vmm(a, &watched);
		if (fds[0].revents)
			status = next_event(a);
	}
	return status;
}

/* What the process before has left. Return: 0; -EAGAIN where there is nothing to go on from. */
static int take_over(struct adapter *a)
{
	struct error err = ERROR_INIT;
	int rc;

	a->sock = fd_store_get(a->store, "vmm");
	if (ch_record_phase(a->record) == CH_PHASE_NEW || a->sock < 0) {
		drop_guest(a);
		return -EAGAIN;
	}
	rc = adapter_take_process(a, &err);
	if (rc)
		log_migration_error(a->id, "%s", err.text);
	return rc ? rc : adapter_attach_again(a, NULL);
}

int source_run(struct adapter *a)
{
	int rc = take_over(a);

	if (rc == -EAGAIN)
		rc = await_guest(a);
	if (rc == -EINTR)
		return 0;
	if (rc)
		return ADAPTER_FAILED;
	return speak(a);
}

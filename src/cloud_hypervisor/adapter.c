/* SPDX-License-Identifier: Apache-2.0 */
#include "cloud_hypervisor/adapter.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/log.h"
#include "util/peer.h"

/* Between two tries to reach a daemon that is being started. */
#define RETRY_MS 100

int adapter_take_peer(struct adapter *a, struct error *err)
{
	struct ucred cred;
	int rc = peer_credentials(a->sock, &cred);

	if (!rc)
		rc = peer_pidfd(a->sock, &cred);
	if (rc < 0)
		return error_errno(err, rc, "the process at the other end of %s", a->path);
	a->pidfd = rc;
	return adapter_keep(a, "process", a->pidfd, err);
}

int adapter_take_process(struct adapter *a, struct error *err)
{
	a->pidfd = fd_store_get(a->store, "process");
	return a->pidfd < 0 ? error_errno(err, a->pidfd, "Cloud Hypervisor's pidfd") : 0;
}

int adapter_keep(struct adapter *a, const char *name, int fd, struct error *err)
{
	int rc = fd_store_add(a->store, name, fd);

	return rc ? error_errno(err, rc, "keeping \"%s\" in the store", name) : 0;
}

static const char *file_name(size_t i, char name[FD_STORE_NAME_BYTES])
{
	snprintf(name, FD_STORE_NAME_BYTES, "mem%zu", i);
	return name;
}

int adapter_keep_file(struct adapter *a, size_t i, struct error *err)
{
	char name[FD_STORE_NAME_BYTES];

	return adapter_keep(a, file_name(i, name), a->files[i], err);
}

int adapter_take_files(struct adapter *a, struct error *err)
{
	for (size_t i = 0; i < a->record->layout.n; i++) {
		char name[FD_STORE_NAME_BYTES];

		a->files[i] = fd_store_get(a->store, file_name(i, name));
		if (a->files[i] < 0)
			return error_errno(err, a->files[i], "\"%s\" of the store", name);
	}
	return 0;
}

void adapter_drop(struct adapter *a, const char *name, int *fd)
{
	fd_store_remove(a->store, name);
	close_fd(fd);
}

/* Whether the end of our sockets would have two guests run, or lose one. */
static bool is_vital(const struct adapter *a)
{
	enum ch_phase phase = ch_record_phase(a->record);

	return phase == CH_PHASE_HELD || phase == CH_PHASE_LOADED || phase == CH_PHASE_RUNS;
}

bool adapter_is_to_end(struct adapter *a)
{
	struct signalfd_siginfo info;

	if (read(a->signal_fd, &info, sizeof info) != sizeof info)
		return false;
	if (!is_vital(a))
		return true;
	log_migration_warning(a->id, "not now: %s; this adapter ends with the migration",
	                      a->record->source ? "the guest would run on here, and runs elsewhere "
	                                          "maybe"
	                                        : "the guest would be lost");
	return false;
}

int adapter_attach_again(struct adapter *a, enum postcopy_standing *ret_standing)
{
	for (bool told = false;; told = true) {
		struct pollfd fd = { .fd = a->signal_fd, .events = POLLIN };
		int rc = a->record->source
		                 ? postcopy_source_attach_again(a->daemon_path, a->id, a->pidfd,
		                                                &a->attachment, ret_standing, &a->e)
		                 : postcopy_destination_attach_again(a->daemon_path, a->id,
		                                                     a->pidfd, &a->attachment,
		                                                     ret_standing, &a->e);

		if (!rc || (rc == -ENOENT && !is_vital(a)))
			return rc;
		if (!told)
			log_migration_warning(a->id, "%s; trying again", a->e.text);
		if (poll(&fd, 1, RETRY_MS) > 0 && adapter_is_to_end(a))
			return -EINTR;
	}
}

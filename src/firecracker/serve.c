/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <postcopy/postcopy.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "firecracker/session.h"
#include "util/cleanup.h"
#include "util/log.h"

#define COPY_BYTES (1u << 20)
#define SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct serve {
	const struct options *options;
	int memory_fd, vmstate_fd;
	uint64_t bytes;
	struct postcopy *postcopy[OPTIONS_IDS_MAX]; /* NULL: it has ended */
	unsigned int n_left, n_failed;
};

static int copy_range(int from, int to, uint64_t at, uint64_t end, char *buf)
{
	while (at < end) {
		size_t want = end - at < COPY_BYTES ? end - at : COPY_BYTES;
		ssize_t n = pread(from, buf, want, (off_t)at);

		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		if (pwrite(to, buf, (size_t)n, (off_t)at) != n)
			return errno ? -errno : -ENOSPC;
		at += (uint64_t)n;
	}
	return 0;
}

/* What is a hole stays one. */
static int copy_file(int from, int to, uint64_t size)
{
	_cleanup_free_ char *buf = malloc(COPY_BYTES);
	uint64_t at = 0;
	int rc = buf ? 0 : -ENOMEM;

	while (!rc && at < size) {
		off_t data = lseek(from, (off_t)at, SEEK_DATA), hole;

		if (data < 0)
			return errno == ENXIO ? 0 : -errno;
		hole = lseek(from, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		rc = copy_range(from, to, (uint64_t)data, (uint64_t)hole, buf);
		at = (uint64_t)hole;
	}
	return rc;
}

static int read_memory(struct serve *s, struct error *err)
{
	const char *path = s->options->memory;
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	int rc;

	if (fd < 0 || fstat(fd, &st))
		return error_errno(err, -errno, "%s", path);
	if (!st.st_size || st.st_size % 4096)
		return error_set(err, -EINVAL, "%s has %lld bytes: guest memory is of whole pages",
		                 path, (long long)st.st_size);
	s->bytes = (uint64_t)st.st_size;
	s->memory_fd = memfd_create("snapshot", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	rc = s->memory_fd < 0 || ftruncate(s->memory_fd, st.st_size)
	             ? -errno
	             : copy_file(fd, s->memory_fd, s->bytes);
	if (!rc && fcntl(s->memory_fd, F_ADD_SEALS, SEALS))
		rc = -errno;
	return rc ? error_errno(err, rc, "reading %s into memory", path) : 0;
}

static int attach(struct serve *s, unsigned int i, struct error *err)
{
	struct postcopy_region region = { .memory = POSTCOPY_MEMORY_MEMFD,
		                          .size = s->bytes,
		                          .page_size = 4096,
		                          .host_addr = (void *)4096,
		                          .fd = s->memory_fd };
	struct postcopy_error why = { 0 };
	int rc = postcopy_source_attach(s->options->socket, s->options->ids[i], &region, 1,
	                                &s->postcopy[i], &why);

	s->n_left += !rc;
	return daemon_error(rc, &why, err);
}

static void end(struct serve *s, unsigned int i)
{
	s->postcopy[i] = postcopy_detach(s->postcopy[i]);
	s->n_left--;
}

static int say_paused(struct serve *s, unsigned int i, struct error *err)
{
	struct postcopy_error why = { 0 };

	(void)lseek(s->vmstate_fd, 0, SEEK_SET);
	return daemon_error(postcopy_source_paused_fd(s->postcopy[i], s->vmstate_fd, &why), &why,
	                    err);
}

/* One destination's failure is not the others'. */
static void fail(struct serve *s, unsigned int i, const char *why)
{
	log_migration_error(s->options->ids[i], "%s", why);
	s->n_failed++;
	end(s, i);
}

static void handle(struct serve *s, unsigned int i)
{
	struct postcopy_error why = { 0 };
	struct error err = ERROR_INIT;
	struct postcopy_event event;

	if (postcopy_next_event(s->postcopy[i], 0, &event, &why)) {
		fail(s, i, why.text);
		return;
	}
	switch (event.type) {
	case POSTCOPY_EVENT_PAUSE:
		if (say_paused(s, i, &err))
			fail(s, i, err.text);
		return;
	case POSTCOPY_EVENT_COMPLETE:
		log_migration_info(s->options->ids[i], "restored");
		end(s, i);
		return;
	case POSTCOPY_EVENT_RESUME:
	case POSTCOPY_EVENT_FAILED:
		fail(s, i, event.reason);
		return;
	default: /* nothing that this has offered to do */
		return;
	}
}

static void follow(struct serve *s)
{
	while (s->n_left) {
		struct pollfd fds[OPTIONS_IDS_MAX];

		for (unsigned int i = 0; i < s->options->n_ids; i++)
			fds[i] = (struct pollfd){ .fd = s->postcopy[i] ? postcopy_fd(s->postcopy[i])
				                                       : -1,
				                  .events = POLLIN };
		(void)poll(fds, s->options->n_ids, -1);
		for (unsigned int i = 0; i < s->options->n_ids; i++)
			if (fds[i].revents)
				handle(s, i);
	}
}

int serve_run(const struct options *o, struct error *err)
{
	struct serve s = { .options = o, .memory_fd = -1, .vmstate_fd = -1 };
	int rc = 0;

	s.vmstate_fd = open(o->vmstate, O_RDONLY | O_CLOEXEC);
	if (s.vmstate_fd < 0)
		return error_errno(err, -errno, "%s", o->vmstate);
	rc = read_memory(&s, err);
	for (unsigned int i = 0; i < o->n_ids && !rc; i++)
		rc = attach(&s, i, err);
	if (!rc)
		follow(&s);
	for (unsigned int i = 0; i < o->n_ids; i++)
		s.postcopy[i] = postcopy_detach(s.postcopy[i]);
	close_fd(&s.memory_fd);
	close_fd(&s.vmstate_fd);
	if (!rc && s.n_failed)
		rc = error_set(err, -ECANCELED, "%u of %u were not restored", s.n_failed, o->n_ids);
	return rc;
}

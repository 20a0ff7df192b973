/* SPDX-License-Identifier: Apache-2.0 */
#include "cloud_hypervisor/faults.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cloud_hypervisor/stream.h"
#include "cloud_hypervisor/trap.h"
#include "util/bytes.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/pidfd.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

/* All of a request. */
#define ASK_BYTES (CH_REQUEST_BYTES + CH_RANGE_BYTES)

void ch_faults_init(struct ch_faults *f, struct adapter *a)
{
	*f = (struct ch_faults){ .adapter = a, .sock = -1, .pipe = { -1, -1 } };
}

/* Which nobody traps. Nor may a huge page come of reading a small one. */
static int map_files(struct ch_faults *f, struct error *err)
{
	const struct ch_layout *layout = &f->adapter->record->layout;

	for (size_t i = 0; i < layout->n; i++) {
		const struct ch_slot *s = &layout->slots[i];

		f->maps[i] = mmap(NULL, s->size, PROT_READ, MAP_SHARED, f->adapter->files[i],
		                  (off_t)s->file_offset);
		if (f->maps[i] == MAP_FAILED)
			return error_errno(err, -errno, "mapping memory slot %u", s->slot);
		(void)madvise(f->maps[i], s->size, MADV_NOHUGEPAGE);
		(void)madvise(f->maps[i], s->size, MADV_DONTDUMP);
	}
	return 0;
}

int ch_faults_connect(struct ch_faults *f, struct error *err)
{
	uint8_t role[CH_ROLE_BYTES];
	struct adapter *a = f->adapter;
	int rc = map_files(f, err);

	if (!rc)
		rc = ch_stream_connect(a->path, &f->sock, err);
	if (!rc && pipe2(f->pipe, O_CLOEXEC))
		rc = error_errno(err, -errno, "a pipe for answers");
	if (!rc)
		rc = adapter_keep(a, "fault", f->sock, err);
	if (!rc)
		rc = adapter_keep(a, "answer", f->pipe[0], err);
	if (!rc)
		rc = adapter_keep(a, "answers", f->pipe[1], err);
	put_u16(role, CH_ROLE_FAULT);
	return rc ? rc : ch_stream_write(f->sock, role, sizeof role, err);
}

/* From the pipe to the socket. */
static int move_answer(struct ch_faults *f, struct error *err)
{
	ssize_t n;

	do
		n = splice(f->pipe[0], NULL, f->sock, NULL, CH_RESPONSE_BYTES, 0);
	while (n < 0 && errno == EINTR);
	f->owes = n != CH_RESPONSE_BYTES;
	if (!f->owes)
		return 0;
	return error_errno(err, n < 0 ? (errno == ECONNRESET ? -EPIPE : -errno) : -EIO,
	                   "answering Cloud Hypervisor");
}

static int answer(struct ch_faults *f, enum ch_status status, struct error *err)
{
	uint8_t buf[CH_RESPONSE_BYTES];

	ch_response_encode(status, buf);
	if (write(f->pipe[1], buf, sizeof buf) != sizeof buf)
		return error_errno(err, -errno, "an answer to Cloud Hypervisor");
	f->waits = false;
	atomic_store(&f->adapter->record->asked, false);
	return move_answer(f, err);
}

/* A request that is noted, and lies in the socket still: the process before did not get to it. */
static int finish_taking(struct ch_faults *f, struct error *err)
{
	uint8_t buf[ASK_BYTES];
	int left = 0;

	if (ioctl(f->sock, FIONREAD, &left) || left < ASK_BYTES)
		return 0;
	return ch_stream_read(f->sock, buf, sizeof buf, NULL, err);
}

int ch_faults_take_over(struct ch_faults *f, struct error *err)
{
	struct adapter *a = f->adapter;
	int left = 0, rc;

	f->sock = fd_store_get(a->store, "fault");
	f->pipe[0] = fd_store_get(a->store, "answer");
	f->pipe[1] = fd_store_get(a->store, "answers");
	if (f->sock < 0 || f->pipe[0] < 0 || f->pipe[1] < 0)
		return error_set(err, -ENOENT,
		                 "the fault connection is not among the descriptors that the "
		                 "process before has left");
	rc = map_files(f, err);
	if (rc)
		return rc;
	f->seen = true;
	/* What is noted nobody announces again. */
	f->again = true;
	if (ioctl(f->pipe[0], FIONREAD, &left) || !left)
		return atomic_load(&a->record->asked) ? finish_taking(f, err) : 0;
	atomic_store(&a->record->asked, false);
	return move_answer(f, err);
}

int ch_faults_open_channel(struct ch_faults *f, struct error *err)
{
	struct adapter *a = f->adapter;
	int rc = postcopy_channel_open(a->attachment, &f->channel, &a->e);

	f->channel_ended = false;
	f->waits = false;
	f->again = true;
	return rc ? error_set(err, rc, "%s", a->e.text) : 0;
}

void ch_faults_close_channel(struct ch_faults *f)
{
	f->channel = postcopy_channel_close(f->channel);
	f->channel_ended = false;
	f->waits = false;
	f->again = true;
}

/*
 * Note the request that lies in the socket, and take it. Return: 0 where there is one; -EAGAIN
 * where there is none, or not all of it; -EPIPE; -EPROTO.
 */
static int take_request(struct ch_faults *f, struct error *err)
{
	struct ch_record *record = f->adapter->record;
	uint8_t buf[ASK_BYTES];
	ssize_t n = recv(f->sock, buf, sizeof buf, MSG_PEEK | MSG_DONTWAIT);
	struct ch_request q;
	int rc;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n <= 0)
		return error_set(err, -EPIPE, "Cloud Hypervisor has closed the fault connection");
	f->again = n < ASK_BYTES;
	if (n < CH_REQUEST_BYTES)
		return -EAGAIN;
	rc = ch_request_decode(buf, &q, err);
	if (!rc && q.command != CH_PAGE_FAULT)
		rc = error_set(err, q.command == CH_ABANDON ? -EPIPE : -EPROTO,
		               "Cloud Hypervisor says %s on the fault connection",
		               ch_command_name(q.command));
	if (rc || f->again)
		return rc ? rc : -EAGAIN;
	rc = ch_range_decode(buf + CH_REQUEST_BYTES, &record->range, err);
	if (!rc &&
	    !ch_layout_find(&record->layout, record->range.guest_phys_addr, record->range.len))
		rc = error_set(err, -EPROTO,
		               "Cloud Hypervisor asks for %#llx bytes at %#llx, where it has no "
		               "memory",
		               (unsigned long long)record->range.len,
		               (unsigned long long)record->range.guest_phys_addr);
	/* While it waits for its first answer its userfaultfd is there. */
	if (!rc && !f->seen)
		rc = ch_trap_check(pidfd_pid(f->adapter->pidfd), err);
	if (rc)
		return rc;
	atomic_store(&record->asked, true);
	f->seen = true;
	/* It is all there, and noted. */
	return ch_stream_read(f->sock, buf, sizeof buf, NULL, err);
}

static int ask_part(struct ch_faults *f, struct error *err)
{
	const struct ch_range *range = &f->adapter->record->range;
	uint64_t left = range->len - f->offset;
	int rc = postcopy_channel_ask(f->channel, range->guest_phys_addr + f->offset,
	                              left < POSTCOPY_FETCH_MAX ? left : POSTCOPY_FETCH_MAX, 0,
	                              &f->adapter->e);

	f->waits = !rc;
	if (rc == -EPIPE)
		f->channel_ended = true;
	else if (rc)
		return error_set(err, rc, "%s", f->adapter->e.text);
	return 0;
}

/* Have all of a range be pages. Return: whether they are. */
static bool populate(char *at, uint64_t len, uint64_t page_size)
{
	if (!madvise(at, len, MADV_POPULATE_READ))
		return true;
	if (errno != EINVAL)
		return false;
	/* Before Linux 5.14. */
	for (uint64_t i = 0; i < len; i += page_size)
		(void)*(volatile char *)(at + i);
	return true;
}

/* All of its content is there: have it be pages, and say so. */
static int give(struct ch_faults *f, struct error *err)
{
	const struct ch_record *record = f->adapter->record;
	const struct ch_slot *s =
	        ch_layout_find(&record->layout, record->range.guest_phys_addr, record->range.len);
	char *at = (char *)f->maps[s - record->layout.slots] +
	           (record->range.guest_phys_addr - s->guest_phys_addr);

	if (!populate(at, record->range.len, s->page_size)) {
		log_migration_error(f->adapter->id, "no memory for a page of zeroes: %s",
		                    strerror(errno));
		f->again = true;
		return 0;
	}
	return answer(f, CH_OK, err);
}

/* What the daemon has answered of it. */
static int take_answers(struct ch_faults *f, struct error *err)
{
	struct adapter *a = f->adapter;
	uint64_t tag;
	int result, rc = postcopy_channel_next(f->channel, 0, &tag, &result, &a->e);

	if (rc == -ETIMEDOUT || rc == -ENOENT)
		return 0;
	if (rc == -EPIPE) {
		f->channel_ended = true;
		return 0;
	}
	if (rc)
		return error_set(err, rc, "%s", a->e.text);
	f->waits = false;
	if (result == -EHWPOISON) {
		log_migration_error(a->id,
		                    "the page at %#llx is lost at the source: Cloud Hypervisor is "
		                    "told that it can't be had",
		                    (unsigned long long)a->record->range.guest_phys_addr);
		return answer(f, CH_ERROR, err);
	}
	if (result)
		return error_set(err, result, "the daemon does not know the page at %#llx",
		                 (unsigned long long)a->record->range.guest_phys_addr);
	f->offset += POSTCOPY_FETCH_MAX;
	return 0;
}

int ch_faults_serve(struct ch_faults *f, struct error *err)
{
	struct ch_record *record = f->adapter->record;
	int rc = 0;

	f->again = false;
	if (f->owes)
		rc = move_answer(f, err);
	if (!rc && f->waits)
		rc = take_answers(f, err);
	while (!rc && !f->waits && !f->again && !f->channel_ended) {
		if (!atomic_load(&record->asked)) {
			f->offset = 0;
			rc = take_request(f, err);
		} else if (f->offset >= record->range.len || atomic_load(&record->complete)) {
			rc = give(f, err);
		} else if (f->channel) {
			rc = ask_part(f, err);
			if (!rc && f->waits)
				rc = take_answers(f, err);
		} else {
			break;
		}
	}
	return rc == -EAGAIN ? 0 : rc;
}

void ch_faults_end(struct ch_faults *f)
{
	ch_faults_close_channel(f);
	adapter_drop(f->adapter, "fault", &f->sock);
	adapter_drop(f->adapter, "answer", &f->pipe[0]);
	adapter_drop(f->adapter, "answers", &f->pipe[1]);
}

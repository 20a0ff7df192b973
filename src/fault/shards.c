/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What several fault threads have in common: how memory is divided among them, and what one leaves
 * for another.
 *
 * There is one until the VMM says that it has moved parts of its memory to further userfaultfds.
 * Then the first one gives these parts up, in its own thread, between two rounds: so nothing of
 * them is in its hands any more when the others begin. Of what it had asked for the answers are
 * dropped, and whoever waited is woken and faults anew, at the other userfaultfd.
 */
#include "fault/pull_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fault/uffd.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/thread.h"

/* How often it is looked whether the first fault thread has divided, though it may be kept. */
#define DIVIDE_LOOK_MS 200u

size_t pull_journals_bytes(unsigned int n)
{
	return n > 1 ? (n - 1) * (size_t)EVENTS_ROOM_BYTES : 0;
}

static int check(const struct pull *p, unsigned int n, struct error *err)
{
	if (n < 2 || n > SHARDS_MAX)
		return error_set(err, -EINVAL, "%u userfaultfds, not 2 to %u", n, SHARDS_MAX);
	if (!p->state || region_table_is_asked(&p->config.table))
		return error_set(err, -EOPNOTSUPP,
		                 "several userfaultfds of memory that is watched by none yet");
	if (pull_n_faults(p) > 1)
		return error_set(err, -EINVAL, "there are %u userfaultfds already",
		                 pull_n_faults(p));
	return 0;
}

static int map_journals(struct pull *p, unsigned int n, int fd, struct error *err)
{
	size_t bytes = pull_journals_bytes(n);
	struct stat st;
	void *map;

	if (fstat(fd, &st) || (uint64_t)st.st_size != bytes)
		return error_set(err, -EINVAL, "journals of %u userfaultfds: not of %zu bytes", n,
		                 bytes);
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return error_errno(err, -errno, "journals of %u userfaultfds: mmap", n);
	p->journals = map;
	p->journals_bytes = bytes;
	return 0;
}

/* They are the caller's as before. */
static void forget_shards(struct pull *p)
{
	for (unsigned int i = 1; i < SHARDS_MAX; i++) {
		p->resolver.shards[i].uffd = -1;
		close_fd(&p->faults[i].wake_fd);
	}
	pull_unmap_journals(p);
}

void pull_unmap_journals(struct pull *p)
{
	if (p->journals)
		munmap(p->journals, p->journals_bytes);
	p->journals = NULL;
}

int pull_open_shards(struct pull *p, const int *uffds, unsigned int n, int journals_fd,
                     struct error *err)
{
	int rc = check(p, n, err);

	if (rc)
		return rc;
	rc = map_journals(p, n, journals_fd, err);
	for (unsigned int i = 1; i < n && !rc; i++) {
		struct fault_thread *ft = &p->faults[i];

		rc = uffd_check_kind(uffds[i - 1], err);
		if (!rc)
			rc = events_open(&ft->events, p->journals + (i - 1) * EVENTS_ROOM_BYTES,
			                 err);
		ft->wake_fd = rc ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (!rc && ft->wake_fd < 0)
			rc = error_errno(err, -errno, "pull: eventfd");
		ft->shard->uffd = uffds[i - 1];
	}
	if (rc)
		forget_shards(p);
	return rc;
}

/* A page of another shard, for its fault thread. */
static int ask_elsewhere(void *arg, uint32_t region, uint64_t unit)
{
	struct fault_thread *ft = arg, *other = pull_fault_thread_of(ft->pull, region, unit);
	struct fetch_mail *mail = &other->mail;
	bool room;

	if (other == ft)
		return 0;
	pthread_mutex_lock(&ft->pull->lock);
	room = mail->n < FETCH_MAIL_MAX;
	if (room) {
		mail->pages[mail->n++] = (struct pull_place){ region, unit << UNIT_SHIFT };
		atomic_store(&mail->waits, true);
	}
	pthread_mutex_unlock(&ft->pull->lock);
	if (room)
		pull_wake_fault_thread(other);
	return room ? 1 : -1;
}

/*
 * A journal that is new begins with what the first one's map says by now: what happened to a part
 * before it was moved was told there.
 */
void pull_divide(struct pull *p, unsigned int n)
{
	const struct addrmap whole = p->resolver.shards[0].addrmap;

	for (unsigned int i = 1; i < n; i++) {
		p->resolver.shards[i].addrmap = whole;
		events_take_up(&p->faults[i].events);
	}
	for (unsigned int i = 0; i < n; i++)
		events_keep_part(&p->faults[i].events, n);
	p->faults[0].fetches.elsewhere = ask_elsewhere;
	p->faults[0].fetches.arg = &p->faults[0];
	atomic_store(&p->resolver.n_shards, n);
}

void pull_take_mail(struct fault_thread *ft)
{
	struct fetch_mail *mail = &ft->mail;
	struct pull *p = ft->pull;
	bool was_full;

	if (!atomic_load(&mail->waits) || fault_table_fetched_full(&ft->table))
		return;
	pthread_mutex_lock(&p->lock);
	was_full = mail->n == FETCH_MAIL_MAX;
	while (mail->n && !fault_table_fetched_full(&ft->table)) {
		const struct pull_place *page = &mail->pages[--mail->n];
		uint64_t unit = page->offset >> UNIT_SHIFT;
		struct fault *f = fault_table_find(&ft->table, page->region, unit);

		if (f || page_state_page_present(p->state, page->region, unit))
			continue;
		f = fault_table_add(&ft->table, page->region, unit, FAULT_FETCHED);
		f->record.read_ns = clock_now_ns();
	}
	atomic_store(&mail->waits, mail->n);
	pthread_mutex_unlock(&p->lock);
	/* There may be more, for which there was no room; or all is there already. */
	if (was_full)
		pull_wake_fault_thread(&p->faults[0]);
}

/* By the first fault thread. */
void pull_divide_now(struct fault_thread *ft, unsigned int n)
{
	struct pull *p = ft->pull;

	/* By all that it knew: also of parts that are another's by now. */
	resolver_wake_all(ft->shard);
	pull_divide(p, n);
	for (unsigned int i = 0; i < ft->table.n;) {
		struct fault *f = &ft->table.faults[i];

		if (pull_fault_thread_of(p, f->region, f->first_unit) == ft)
			i++;
		else
			fault_table_remove(&ft->table, f);
	}
	fetch_table_fault_anew(&ft->fetches);
}

/* Threads that begin when there is something for them. Return: 0 or -errno with @err set. */
static int start_parked(struct pull *p, unsigned int n, struct error *err)
{
	int rc = 0;

	for (unsigned int i = 1; i < n && !rc && p->faults[0].runs; i++)
		rc = pull_start_fault_thread(&p->faults[i]);
	return rc ? error_errno(err, rc, "threads for faults") : 0;
}

static void dismiss(struct pull *p, unsigned int n)
{
	pthread_mutex_lock(&p->lock);
	for (unsigned int i = 1; i < n; i++)
		atomic_store(&p->faults[i].done, true);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	for (unsigned int i = 1; i < n; i++) {
		if (p->faults[i].runs)
			pthread_join(p->faults[i].thread, NULL);
		p->faults[i].runs = false;
		atomic_store(&p->faults[i].done, false);
	}
}

/* Where it runs the first fault thread does it. Return: 0; -ECANCELED. */
static int divide(struct pull *p, unsigned int n)
{
	struct fault_thread *first = &p->faults[0];
	int rc = 0;

	if (!first->runs) {
		pull_divide(p, n);
		return 0;
	}
	pthread_mutex_lock(&p->lock);
	p->divide_into = n;
	pull_wake_fault_thread(first);
	while (p->divide_into && !first->only_reads) {
		uint64_t ns = clock_now_ns() + DIVIDE_LOOK_MS * NSEC_PER_MSEC;
		const struct timespec at = { .tv_sec = (time_t)(ns / NSEC_PER_SEC),
			                     .tv_nsec = (long)(ns % NSEC_PER_SEC) };

		if (pthread_cond_clockwait(&p->changed, &p->lock, CLOCK_MONOTONIC, &at))
			events_interrupt(first->thread);
	}
	if (p->divide_into)
		rc = -ECANCELED;
	p->divide_into = 0;
	pthread_mutex_unlock(&p->lock);
	return rc;
}

void pull_begin_shards(struct pull *p)
{
	bool connected;

	for (unsigned int i = 1; i < pull_n_faults(p); i++)
		resolver_wake_all(p->faults[i].shard);
	pthread_mutex_lock(&p->lock);
	for (unsigned int i = 1; i < pull_n_faults(p); i++) {
		pull_note_unconnected_locked(&p->faults[i]);
		p->faults[i].may_begin = true;
	}
	connected = p->connected;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	/* Ahead of time, if it can be: pull_start() will say when there is none. */
	if (connected)
		(void)pull_start_keeper(p);
}

int pull_take_shards(struct pull *p, const int *uffds, unsigned int n, int journals_fd,
                     struct error *err)
{
	int rc = pull_open_shards(p, uffds, n, journals_fd, err);

	if (rc)
		return rc;
	rc = start_parked(p, n, err);
	if (!rc) {
		rc = divide(p, n);
		if (rc)
			error_errno(err, rc, "taking further userfaultfds");
	}
	if (rc) {
		dismiss(p, n);
		forget_shards(p);
		return rc;
	}
	pull_begin_shards(p);
	return 0;
}

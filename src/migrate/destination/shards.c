/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/destination/shards.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault/uffd.h"
#include "migrate/admission.h"
#include "migrate/record/keep.h"
#include "util/cleanup.h"
#include "util/log.h"

/* Where none are given: CPUs to one of them. */
#define CPUS_PER_THREAD 4
/* Between an answer that could not be taken and the next offer. */
#define AGAIN_MS 500u

static unsigned int wanted(const struct migrations *ms)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN) / CPUS_PER_THREAD;

	if (ms->config.fault_threads)
		return ms->config.fault_threads;
	return cpus < 1 ? 1 : cpus > (long)SHARDS_MAX ? SHARDS_MAX : (unsigned int)cpus;
}

static bool has_part(const struct region_table *table, unsigned int n, unsigned int shard)
{
	for (uint32_t i = 0; i < table->n; i++) {
		const struct region *r = &table->regions[i];
		struct shards_region s = { i, r->size, r->page_size };
		uint64_t begin, end;

		shards_part(n, &s, shard, &begin, &end);
		if (end > begin && !(r->flags & POSTCOPY_REGION_PRIVATE))
			return true;
	}
	return false;
}

/* So many, or fewer, that each has something to do. */
static unsigned int fit_table(const struct region_table *table, unsigned int n)
{
	unsigned int shard = 1;

	while (shard < n) {
		if (has_part(table, n, shard)) {
			shard++;
		} else {
			n--;
			shard = 1;
		}
	}
	return n;
}

/* For the conductor: what it has to wait for. */
static void note_owed(struct migration *m)
{
	pthread_mutex_lock(&m->lock);
	m->shard_mail.owed = m->shards.offered;
	m->shard_mail.sure = m->shards.again;
	pthread_mutex_unlock(&m->lock);
	migration_order(m, ORDER_SHARDS);
}

void shards_plan(struct migration *m, bool uffd)
{
	struct error why = ERROR_INIT;
	unsigned int n = wanted(m->owner);

	if (m->params.role != MIGRATION_DESTINATION || !uffd || m->process ||
	    migration_memory_is_late(m))
		return;
	n = fit_table(&m->table, admission_shards(m, fit_table(&m->table, n)));
	while (n > 1 && migration_hold_shards(m, n, &why))
		n = fit_table(&m->table, n - 1);
	if (why.code)
		log_migration_info(m->params.id, "%u userfaultfd%s instead of %u: %s", n,
		                   n > 1 ? "s" : "", wanted(m->owner), why.text);
	m->shards.offered = n > 1 ? n : 0;
	note_owed(m);
}

void shards_offer(struct migration *m)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_OFFER_SHARDS, .n_shards = m->shards.offered };

	if (m->shards.offered && m->vmm && !migration_state_is_final(m->state))
		(void)vmm_conn_send(m->vmm, &msg, -1);
}

static void on_again(uv_timer_t *timer)
{
	struct migrations *ms = timer->data;

	for (struct migration *m = ms->list; m; m = m->next)
		if (m->shards.again)
			shards_offer(m);
}

void shards_ask_again(struct migration *m)
{
	struct migrations *ms = m->owner;

	if (!m->shards.offered)
		return;
	m->shards.again = true;
	note_owed(m);
	ms->offers.data = ms;
	/* It is everybody's: who answers badly all the time does not put it off. */
	if (!uv_is_active((uv_handle_t *)&ms->offers))
		uv_timer_start(&ms->offers, on_again, AGAIN_MS, 0);
}

/* A check that found none for itself says that they are no userfaultfds. */
static bool lacks_descriptors(int fd)
{
	_cleanup_close_ int spare = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	return spare < 0;
}

/* As that of ATTACH was. */
static int check_fds(const struct migration *m, unsigned int n, const int *fds, struct error *err)
{
	int rc = 0;

	for (unsigned int i = 1; i < n && !rc; i++) {
		rc = uffd_check(fds[i - 1], m->shards.uffd_features, false, err);
		if (rc && lacks_descriptors(fds[i - 1]))
			rc = error_set(err, -EMFILE, "no descriptor to look at them by");
		if (rc)
			error_prefix(err, "shard %u", i);
	}
	return rc;
}

static int make_journals(unsigned int n, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = memfd_create("postcopy-journals", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)pull_journals_bytes(n)))
		return error_errno(err, -errno, "a memfd for the journals of %u shards", n);
	*ret_fd = steal_fd(&fd);
	return 0;
}

void shards_log(const struct migration *m, unsigned int n)
{
	log_migration_info(m->params.id, "%u userfaultfds watch the guest's memory", n);
}

void shards_mail_close(struct migration *m)
{
	unsigned int n;

	pthread_mutex_lock(&m->lock);
	n = m->shard_mail.n;
	m->shard_mail.n = 0;
	pthread_mutex_unlock(&m->lock);
	for (unsigned int i = 1; i < n; i++)
		if (m->shard_mail.uffds[i - 1] >= 0)
			close_fd(&m->shard_mail.uffds[i - 1]);
	if (n)
		close_fd(&m->shard_mail.journals_fd);
}

/* To the pull's owner. Return: 0; or -errno with @err set. */
static int hand_over(struct migration *m, unsigned int n, int *fds, int *journals_fd,
                     struct error *err)
{
	int rc;

	if (!m->conductor_runs) {
		rc = pull_take_shards(m->pull, fds, n, *journals_fd, err);
		if (!rc)
			shards_log(m, n);
	} else {
		pthread_mutex_lock(&m->lock);
		memcpy(m->shard_mail.uffds, fds, (n - 1) * sizeof *fds);
		m->shard_mail.journals_fd = steal_fd(journals_fd);
		m->shard_mail.n = n;
		pthread_mutex_unlock(&m->lock);
		rc = 0;
	}
	for (unsigned int i = 1; i < n && !rc; i++)
		fds[i - 1] = -1;
	note_owed(m);
	return rc;
}

/* Kept, written down, used. Return: 0; or -errno with @err set, and all is as before. */
static int take(struct migration *m, unsigned int n, int *fds, struct error *err)
{
	_cleanup_close_ int journals_fd = -1;
	unsigned int offered = m->shards.offered;
	int rc = make_journals(n, &journals_fd, err);

	/* As it was, unless it was tried before. */
	if (!rc && !m->shards.held)
		rc = migration_hold_shards(m, n, err);
	if (!rc)
		rc = migration_keep_shards(m, fds, n, journals_fd, err);
	if (rc)
		return rc;
	m->shards.n = n;
	m->shards.offered = 0;
	migration_save(m);
	rc = hand_over(m, n, fds, &journals_fd, err);
	if (rc) {
		m->shards.n = 0;
		m->shards.offered = offered;
		migration_save(m);
		migration_drop_shards(m);
	}
	return rc;
}

/* For want of what may be there a moment later, of this process or in the store. */
static bool may_come_later(int rc)
{
	return rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE || rc == -EAGAIN || rc == -ENOBUFS ||
	       rc == -EUSERS || rc == -EDQUOT;
}

int shards_answered(struct migration *m, unsigned int n, int *fds, struct error *err)
{
	int rc;

	if (migration_state_is_final(m->state) || !m->pull)
		return 0;
	/* It was offered twice: to this process, or to the one before. */
	if (m->shards.n && (m->taken_over || m->shards.again))
		return 0;
	if (m->shards.n || n > m->shards.offered)
		return error_set(err, -EPROTO, "SHARDS of %u userfaultfds, where %u %s: %s", n,
		                 m->shards.n ? m->shards.n : m->shards.offered,
		                 m->shards.n ? "are known" : "were offered",
		                 m->shards.n ? "it is said once" : "not more can be taken");
	rc = check_fds(m, n, fds, err);
	if (!rc)
		rc = take(m, n, fds, err);
	if (may_come_later(rc)) {
		if (!m->shards.again)
			log_migration_warning(m->params.id,
			                      "%u userfaultfds can't be taken yet, they are asked "
			                      "for again: %s",
			                      n, err->text);
		*err = ERROR_INIT;
		shards_ask_again(m);
		return 0;
	}
	return rc;
}

void shards_declined(struct migration *m)
{
	/* What was said to the process before, or could not be taken, may still come. */
	if (!m->shards.offered || m->taken_over || m->shards.again)
		return;
	m->shards.offered = 0;
	note_owed(m);
	migration_drop_shards(m);
}

int shards_take_up(struct migration *m, struct pull_config *config, struct error *err)
{
	struct error why = ERROR_INIT;

	if (config->state_fd < 0)
		return 0;
	if (m->shards.n) {
		config->n_shards = m->shards.n;
		return migration_take_shards(m, m->shards.n, config->shard_uffds,
		                             &config->journals_fd, err);
	}
	note_owed(m);
	/* What was kept and not written down is said again. */
	if (m->shards.offered) {
		migration_drop_shards(m);
		if (migration_hold_shards(m, m->shards.offered, &why))
			log_migration_warning(m->params.id, "no room is held for userfaultfds: %s",
			                      why.text);
	}
	return 0;
}

void shards_taken_up(struct pull_config *config, int rc)
{
	if (config->n_shards && config->journals_fd >= 0)
		close_fd(&config->journals_fd);
	for (unsigned int i = 1; i < config->n_shards && rc; i++)
		if (config->shard_uffds[i - 1] >= 0)
			close_fd(&config->shard_uffds[i - 1]);
}

void shards_forget(struct migration *m)
{
	shards_mail_close(m);
	m->shards.n = m->shards.offered = 0;
	m->shards.again = false;
	m->shards.uffd_features = 0;
	note_owed(m);
}

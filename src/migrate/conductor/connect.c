/* SPDX-License-Identifier: Apache-2.0 */
/* How the conductor reaches the source: tries, until it has all connections. */
#include "migrate/conductor/inside.h"

#include <errno.h>
#include <string.h>

#include "util/clock.h"
#include "util/log.h"

/*
 * How long a source that can't be reached is tried: longer than networks are away for while they
 * find another path. Where its host says that nobody listens, at the beginning, not so long.
 */
#define REACH_FOR_MS 30000u
#define REFUSED_FOR_MS 10000u
/* Between two tries to dial: doubled from the first to the last, and up to half of it by chance. */
#define RETRY_MIN_MS 50u
#define RETRY_MAX_MS 2000u

bool conductor_is_network_error(int rc)
{
	switch (-rc) {
	case ECONNREFUSED:
	case ETIMEDOUT:
	case EHOSTUNREACH:
	case EHOSTDOWN:
	case ENETUNREACH:
	case ENETDOWN:
	case ECONNRESET:
	case ECONNABORTED:
	case EPIPE:
		return true;
	default:
		return false;
	}
}

/*
 * The source itself has answered, and would answer the same again. Whatever else a try ends with
 * is ours, the network's, or a trouble of the source's daemon: the next one may do better.
 */
bool conductor_is_verdict(const struct error *err)
{
	if (!err->from_peer)
		return false;
	switch (-err->code) {
	case EACCES:
	case EBUSY:
	case ECANCELED:
	case EINVAL:
	case EKEYREVOKED:
	case EPROTO:
	case ESHUTDOWN:
	case ESTALE:
		return true;
	default:
		return false;
	}
}

/*
 * One try to open the control connection. Once warming has begun, only the very attachment of the
 * guest will do that all other connections are to.
 */
int conductor_dial_once(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	struct conn_target target;
	struct conn *c = NULL;
	int rc;

	pthread_mutex_lock(&m->lock);
	target = m->target;
	k->hello.epoch = m->epoch;
	pthread_mutex_unlock(&m->lock);
	rc = conn_dial(&m->dialing, &target, m->owner->config.tls, &k->hello, &c, &k->reply, err);
	if (rc)
		return rc;
	pthread_mutex_lock(&m->lock);
	strcpy(m->peer_version, k->reply.daemon_version);
	pthread_mutex_unlock(&m->lock);
	conductor_set_control(m, c);
	k->retry_ms = 0;
	return 0;
}

static void note(struct migration *m, const char *why, bool is_of_warming)
{
	static const char on[] = "; trying on";

	if (!*why && !*m->note)
		return;
	pthread_mutex_lock(&m->lock);
	if (!*m->note) {
		m->tried_since_ns = clock_now_ns();
		m->tries = 0;
	}
	m->tries++;
	m->note_is_of_warming = is_of_warming;
	snprintf(m->note, sizeof m->note, "%.*s%s", (int)(sizeof m->note - sizeof on), why,
	         *why ? on : "");
	pthread_mutex_unlock(&m->lock);
	migration_post(m, NEWS_NOTE);
}

void conductor_note(struct migration *m, const char *why)
{
	note(m, why, false);
}

void conductor_note_refused(struct migration *m, const char *why)
{
	note(m, why, true);
}

/* When to try again: sources that come back should not be met by all at once. */
uint64_t conductor_next_try_ns(struct conductor *k)
{
	uint64_t now_ns = clock_now_ns(), next_ns;
	unsigned int pause_ms = k->retry_ms ? k->retry_ms : RETRY_MIN_MS;
	uint64_t jitter_ms = now_ns / NSEC_PER_USEC % (pause_ms / 2 + 1);

	k->retry_ms = pause_ms * 2 < RETRY_MAX_MS ? pause_ms * 2 : RETRY_MAX_MS;
	next_ns = now_ns + (pause_ms + jitter_ms) * NSEC_PER_MSEC;
	pthread_mutex_lock(&k->m->lock);
	k->m->next_try_ns = next_ns;
	pthread_mutex_unlock(&k->m->lock);
	return next_ns;
}

struct patience patience_from_now(bool refused_as_well)
{
	return (struct patience){ clock_now_ns(), refused_as_well ? REACH_FOR_MS : REFUSED_FOR_MS };
}

bool patience_has(const struct patience *p, int rc)
{
	unsigned int for_ms = rc == -ECONNREFUSED ? p->refused_for_ms : REACH_FOR_MS;

	return conductor_is_network_error(rc) &&
	       clock_now_ns() < p->since_ns + for_ms * NSEC_PER_MSEC;
}

/*
 * Open the control connection, with patience, or until the migration is to end.
 * Return: 0; or why not, with @err set.
 */
int conductor_dial(struct conductor *k, const struct patience *p, struct error *err)
{
	for (;;) {
		int rc = conductor_dial_once(k, err);

		if (!patience_has(p, rc))
			return rc;
		log_migration_info(k->m->params.id, "%s; dialling again", err->text);
		conductor_note(k->m, err->text);
		if (conductor_wait(k->m, ORDER_STOP | ORDER_CANCEL, conductor_next_try_ns(k)))
			return rc;
	}
}

/* The VMM is told what the source's regions are; then private ones are refused. */
static int check_attributes(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	const struct region_table *theirs = &k->reply.regions;
	uint32_t any = 0;

	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; i < theirs->n; i++)
		any |= m->attributes[i] = theirs->regions[i].flags;
	pthread_mutex_unlock(&m->lock);
	if (any)
		migration_post(m, NEWS_ATTRIBUTES);
	if (region_table_check_readable(theirs, err))
		return err->code;
	return k->late ? 0 : region_table_check_readable(&m->table, err);
}

/* The two sides have the same guest; or here there is to be what the source has. */
static int compare_tables(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;

	if (!k->late)
		return region_table_same_guest(&m->table, &k->reply.regions, err);
	pthread_mutex_lock(&m->lock);
	m->theirs = k->reply.regions;
	pthread_mutex_unlock(&m->lock);
	migration_post(m, NEWS_TABLE);
	return 0;
}

struct conn_target conductor_target(struct migration *m)
{
	struct conn_target target;

	pthread_mutex_lock(&m->lock);
	target = m->target;
	pthread_mutex_unlock(&m->lock);
	return target;
}

/* One try at all connections. */
static int connect_once(struct conductor *k, const struct patience *p, struct error *err)
{
	struct migration *m = k->m;
	struct conn_target target;
	int rc = conductor_dial(k, p, err);

	if (rc)
		return rc;
	/*
	 * From now on the source waits for our word, if only that nothing comes of it; and no other
	 * attachment of the guest will do.
	 */
	pthread_mutex_lock(&m->lock);
	m->epoch = k->reply.epoch;
	pthread_mutex_unlock(&m->lock);
	rc = compare_tables(k, err);
	if (!rc)
		rc = check_attributes(k, err);
	if (rc)
		return rc;
	target = conductor_target(m);
	rc = conn_probe(m->control, &target, err);
	if (rc)
		return rc;
	return pull_connect(m->pull, &target, m->owner->config.tls, &k->hello, k->reply.epoch, err);
}

int conductor_connect(struct conductor *k, struct error *err)
{
	/* Of a guest that was taken over the source's daemon may be on its way back, too. */
	const struct patience p = patience_from_now(k->m->taken_over);
	int rc;

	do {
		rc = connect_once(k, &p, err);
		if (rc)
			conductor_note(k->m, err->text);
	} while (patience_has(&p, rc) && !conductor_check_stopped(k->m, NULL) &&
	         !conductor_wait(k->m, ORDER_STOP | ORDER_CANCEL, conductor_next_try_ns(k)));
	return rc;
}

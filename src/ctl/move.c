/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/move.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "ctl/json.h"
#include "ctl/token.h"
#include "util/cleanup.h"
#include "util/clock.h"

/* Between two looks: doubled from the first to the last. */
#define LOOK_FIRST_MS 4
#define LOOK_LAST_MS 100
#define TELL_EVERY_MS 2000
#define ADDRESS_MAX 300
#define STATE_MAX 24

void move_init(struct move *m, const char *id)
{
	*m = (struct move){ .id = id,
		            .source.role = "source",
		            .destination.role = "destination",
		            .limits = CLIENT_LIMITS_INIT,
		            .cancel_fd = -1 };
}

static int refused_by(struct move *m, const struct move_side *s, struct error *err)
{
	m->asked = s;
	return error_prefix(err, "the %s's daemon", s->role);
}

static bool is_final(const char *state)
{
	return !strcmp(state, "complete") || !strcmp(state, "failed") ||
	       !strcmp(state, "cancelled");
}

static bool is_before_start(const char *state)
{
	return !*state || !strcmp(state, "prepared") || !strcmp(state, "attached");
}

/* @ret: the state of what has not ended there; empty: nothing. */
static int state_at(struct move *m, const struct move_side *s, char ret[STATE_MAX],
                    struct error *err)
{
	_cleanup_json_ struct json_object *migration = NULL;
	int rc = client_get(s->client, m->id, s->role, &migration, err);

	*ret = 0;
	if (rc == -ENOENT)
		return 0;
	if (rc)
		return refused_by(m, s, err);
	snprintf(ret, STATE_MAX, "%s", json_string_or(migration, "state", ""));
	if (is_final(ret))
		*ret = 0;
	return 0;
}

static bool is_any_address(const char *host, size_t len)
{
	return (len == 7 && !memcmp(host, "0.0.0.0", len)) ||
	       (len == 4 && !memcmp(host, "[::]", len));
}

/* Where page streams are served, as the destination may call it. */
static int find_source_address(struct move *m, char ret[ADDRESS_MAX], struct error *err)
{
	_cleanup_json_ struct json_object *info = NULL;
	const char *pages, *colon, *host = m->source.control;
	size_t len;

	if (m->source_address) {
		snprintf(ret, ADDRESS_MAX, "%s", m->source_address);
		return 0;
	}
	if (client_get_info(m->source.client, &info, err))
		return refused_by(m, &m->source, err);
	pages = json_string_or(info, "pages_address", "");
	colon = strrchr(pages, ':');
	if (!colon)
		return error_set(err, -EBUSY,
		                 "the source's daemon serves no page streams: give it \"listen\"");
	len = (size_t)(strrchr(host, ':') ? strrchr(host, ':') - host : 0);
	if (!is_any_address(pages, (size_t)(colon - pages)))
		snprintf(ret, ADDRESS_MAX, "%s", pages);
	else if (*host != '/' && len && strncmp(host, "unix:", 5))
		snprintf(ret, ADDRESS_MAX, "%.*s%s", (int)len, host, colon);
	else
		snprintf(ret, ADDRESS_MAX, "%s%s", json_string_or(info, "hostname", ""), colon);
	return 0;
}

/* @source_address: of a destination; NULL: the source. */
static int prepare_side(struct move *m, const struct move_side *s, const uint8_t *token,
                        const char *source_address, struct error *err)
{
	struct client_prepare p = { .id = m->id, .limits = CLIENT_LIMITS_INIT };
	int rc;

	memcpy(p.token, token, sizeof p.token);
	if (source_address) {
		p.destination = true;
		p.source = source_address;
		p.limits = m->limits;
	}
	rc = client_prepare(s->client, &p, NULL, err);
	explicit_bzero(p.token, sizeof p.token);
	if (rc)
		return refused_by(m, s, err);
	if (source_address)
		m->prepared_destination = true;
	else
		m->prepared_source = true;
	return 0;
}

/* Both halves, with one token. @at_source: what there is already. */
static int prepare_both(struct move *m, const char *at_source, struct error *err)
{
	uint8_t token[CLIENT_TOKEN_BYTES];
	char address[ADDRESS_MAX];
	int rc = find_source_address(m, address, err);

	if (!rc)
		rc = token_make(token, err);
	if (rc)
		return rc;
	if (!*at_source)
		rc = prepare_side(m, &m->source, token, NULL, err);
	else if (client_set_token(m->source.client, m->id, token, NULL, err))
		rc = refused_by(m, &m->source, err);
	if (!rc) {
		m->is_own = true;
		rc = prepare_side(m, &m->destination, token, address, err);
	}
	explicit_bzero(token, sizeof token);
	return rc;
}

/*
 * What was prepared here for a VMM that does not come is taken back; a source that has one keeps
 * it, and what somebody else has prepared is theirs.
 */
static void take_back(struct move *m, const struct move_side *absent)
{
	if (m->prepared_destination)
		(void)client_cancel(m->destination.client, m->id, "destination", NULL, NULL);
	if (absent == &m->source && m->prepared_source)
		(void)client_cancel(m->source.client, m->id, "source", NULL, NULL);
}

/* Return: 0; -ECANCELED. */
static int sleep_a_little(const struct move *m, int *ms)
{
	struct pollfd pfd = { .fd = m->cancel_fd, .events = POLLIN };
	int now_ms = *ms;

	*ms = now_ms * 2 < LOOK_LAST_MS ? now_ms * 2 : LOOK_LAST_MS;
	return poll(&pfd, 1, now_ms) ? -ECANCELED : 0;
}

/* Whether its VMM is still to attach. */
static int is_absent(struct move *m, const struct move_side *s, bool *ret, struct error *err)
{
	char state[STATE_MAX];
	int rc = state_at(m, s, state, err);

	*ret = !rc && !strcmp(state, "prepared");
	return rc;
}

static int tell_absent(struct move *m, const struct move_side *s, bool first, struct error *err)
{
	struct error later = ERROR_INIT;
	int rc = m->on_absent ? m->on_absent(m, s, first, err) : 0;
	bool absent;

	if (!rc && s == &m->source)
		m->is_own = true;
	if (!rc || rc == -ECANCELED)
		return rc;
	/* It may have failed because somebody else was faster. */
	return is_absent(m, s, &absent, &later) || absent ? rc : 0;
}

/* Until a side's VMM is attached. */
static int wait_attached(struct move *m, const struct move_side *s, uint64_t until_ns,
                         struct error *err)
{
	uint64_t tell_ns = 0;
	int nap_ms = LOOK_FIRST_MS, rc;
	bool absent;

	while (!(rc = is_absent(m, s, &absent, err)) && absent) {
		uint64_t now_ns = clock_now_ns();

		if (now_ns >= until_ns) {
			rc = error_set(err, -ETIMEDOUT,
			               "the %s's VMM has not attached for %u s: nothing has been "
			               "moved, the guest runs on where it is",
			               s->role, (unsigned int)m->attach_timeout_s);
		} else if (now_ns >= tell_ns) {
			rc = tell_absent(m, s, !tell_ns, err);
			tell_ns = clock_now_ns() + TELL_EVERY_MS * NSEC_PER_MSEC;
		}
		if (rc && rc != -ECANCELED)
			take_back(m, s);
		if (rc)
			return rc;
		if (sleep_a_little(m, &nap_ms))
			return error_set(err, -ECANCELED, "interrupted");
	}
	return rc;
}

static int wait_both_attached(struct move *m, struct error *err)
{
	uint64_t until_ns = clock_now_ns() + m->attach_timeout_s * NSEC_PER_SEC;
	int rc = wait_attached(m, &m->source, until_ns, err);

	return rc ? rc : wait_attached(m, &m->destination, until_ns, err);
}

static int prepare_and_start(struct move *m, const char *at_source, const char *at_destination,
                             struct error *err)
{
	int rc = *at_destination ? 0 : prepare_both(m, at_source, err);

	/* One that attached before an interruption is not started once more. */
	if (!rc && m->on_prepared && strcmp(at_destination, "attached")) {
		rc = m->on_prepared(m, err);
		if (rc)
			take_back(m, &m->destination);
	}
	if (!rc)
		rc = wait_both_attached(m, err);
	if (rc || !client_start(m->destination.client, m->id, false, NULL, m->queue, NULL, err))
		return rc;
	return refused_by(m, &m->destination, err);
}

static int show_nobody(struct json_object *migration, void *userdata, struct error *err)
{
	(void)migration;
	(void)userdata;
	(void)err;
	return 0;
}

int move_is_under_way(struct move *m, bool *ret, struct error *err)
{
	char state[STATE_MAX];
	int rc = state_at(m, &m->destination, state, err);

	*ret = !rc && !is_before_start(state);
	return rc;
}

int move_follow(struct move *m, struct json_object **ret, struct error *err)
{
	const char *state;

	*ret = NULL;
	if (client_watch(m->destination.client, m->id, m->destination.role, m->interval_ms,
	                 m->on_update ? m->on_update : show_nobody, m->userdata, ret, err)) {
		m->lost_sight = true;
		return refused_by(m, &m->destination, err);
	}
	state = json_string_or(*ret, "state", "");
	if (!strcmp(state, "complete"))
		return 0;
	return error_set(err, -EIO, "%s: %s", state, json_string_or(*ret, "reason", ""));
}

bool move_has_completed(const struct move *m, const struct move_side *s, struct json_object **ret)
{
	_cleanup_json_ struct json_object *newest = NULL;

	if (client_get(s->client, m->id, NULL, &newest, NULL) ||
	    strcmp(json_string_or(newest, "role", ""), s->role) != 0 ||
	    strcmp(json_string_or(newest, "state", ""), "complete") != 0)
		return false;
	if (ret)
		*ret = steal_ptr(&newest);
	return true;
}

int move_guest(struct move *m, struct json_object **ret, struct error *err)
{
	char at_source[STATE_MAX], at_destination[STATE_MAX];
	int rc = state_at(m, &m->source, at_source, err);

	*ret = NULL;
	if (!rc)
		rc = state_at(m, &m->destination, at_destination, err);
	if (!rc && is_before_start(at_destination))
		rc = prepare_and_start(m, at_source, at_destination, err);
	return rc ? rc : move_follow(m, ret, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "telemetry/metrics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "migrate/migrate.h"
#include "telemetry/http.h"
#include "telemetry/migration_metrics.h"
#include "telemetry/process_metrics.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/refused.h"
#include "util/tcp_listen.h"

/* Methods times codes that occur; what has no room is counted as "other". */
#define CALL_COUNTS_MAX 512u

struct call_count {
	const char *method;
	const char *role;
	const char *code;
	uint64_t n;
};

struct metrics {
	struct metrics_config config;
	struct http *servers[TCP_LISTEN_MAX]; /* one at each address of the name */
	unsigned int n_servers;
	unsigned int port;
	double started_s;   /* CLOCK_REALTIME */
	uint64_t loaded_s;  /* the configuration that is in effect, or was found so */
	bool reload_failed; /* the last time */
	struct migrations_totals totals;
	struct metrics_stall stall;
	struct call_count calls[CALL_COUNTS_MAX];
	unsigned int n_calls;
	uint64_t calls_other;
};

static bool is_of(const struct call_count *c, const char *method, const char *role,
                  const char *code)
{
	return !strcmp(c->method, method) && !strcmp(c->role, role) && !strcmp(c->code, code);
}

/* It is the one of a method, a role and a code, whichever place asks. */
void metrics_count_call(struct metrics *m, const char *method, const char *role, const char *code)
{
	if (!m)
		return;
	for (unsigned int i = 0; i < m->n_calls; i++)
		if (is_of(&m->calls[i], method, role, code)) {
			m->calls[i].n++;
			return;
		}
	if (m->n_calls == CALL_COUNTS_MAX)
		m->calls_other++;
	else
		m->calls[m->n_calls++] = (struct call_count){ method, role, code, 1 };
}

static void put_calls(const struct metrics *m, struct openmetrics *om)
{
	static const struct openmetrics_family requests = {
		"postcopyd_control_calls",
		OPENMETRICS_COUNTER,
		NULL,
		"Calls of the control plane that have ended, by what the caller is and their "
		"status.",
	};

	openmetrics_open(om, &requests);
	for (unsigned int i = 0; i < m->n_calls; i++)
		openmetrics_integer(om,
		                    OPENMETRICS_LABELS({ "method", m->calls[i].method },
		                                       { "role", m->calls[i].role },
		                                       { "code", m->calls[i].code }),
		                    m->calls[i].n);
	if (m->calls_other)
		openmetrics_integer(om,
		                    OPENMETRICS_LABELS({ "method", "other" }, { "role", "other" },
		                                       { "code", "other" }),
		                    m->calls_other);
}

static void put_refused(struct openmetrics *om)
{
	static const struct openmetrics_family family = {
		"postcopyd_refused",
		OPENMETRICS_COUNTER,
		NULL,
		"Peers, callers and VMMs that were turned away or cut off, by door and reason.",
	};

	openmetrics_open(om, &family);
	for (enum refused_door door = 0; door < REFUSED_DOORS; door++)
		for (enum refused_reason reason = 0; reason < REFUSED_REASONS; reason++)
			openmetrics_integer(
			        om,
			        OPENMETRICS_LABELS({ "door", refused_door_name(door) },
			                           { "reason", refused_reason_name(reason) }),
			        refused_count(door, reason));
}

static void put_config(const struct metrics *m, struct openmetrics *om)
{
	static const struct openmetrics_family older = {
		"postcopyd_config_older",
		OPENMETRICS_GAUGE,
		NULL,
		"1 where the configuration is wrong and the one of before is in use.",
	};
	static const struct openmetrics_family reload = {
		"postcopyd_config_reload_success",
		OPENMETRICS_GAUGE,
		NULL,
		"Whether the configuration and the certificates could be read the last time.",
	};
	static const struct openmetrics_family loaded = {
		"postcopyd_config_reload_success_timestamp_seconds",
		OPENMETRICS_GAUGE,
		"seconds",
		"When they could be read last, in seconds since 1970.",
	};

	openmetrics_open(om, &older);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, m->config.config_is_older);
	openmetrics_open(om, &reload);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, !m->reload_failed);
	openmetrics_open(om, &loaded);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, m->loaded_s);
}

static void put_log(struct openmetrics *om)
{
	static const struct openmetrics_family suppressed = {
		"postcopyd_log_lines_suppressed",
		OPENMETRICS_COUNTER,
		NULL,
		"Log records left out because one place had too many to say.",
	};
	static const struct openmetrics_family lost = {
		"postcopyd_log_lines_lost",
		OPENMETRICS_COUNTER,
		NULL,
		"Log records that could not be written: disk or pipe full, or closed.",
	};
	struct log_counts log = log_get_counts();

	openmetrics_open(om, &suppressed);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, log.suppressed);
	openmetrics_open(om, &lost);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, log.lost);
}

static void put_daemon(const struct metrics *m, struct openmetrics *om)
{
	static const struct openmetrics_family build = {
		"postcopyd_build",
		OPENMETRICS_INFO,
		NULL,
		"The daemon's version.",
	};
	static const struct openmetrics_family expiry = {
		"postcopyd_certificate_expiry_timestamp_seconds",
		OPENMETRICS_GAUGE,
		"seconds",
		"When this host's certificate ends, in seconds since 1970.",
	};
	int64_t expiry_s =
	        m->config.certificate_expiry ? m->config.certificate_expiry(m->config.arg) : 0;

	openmetrics_open(om, &build);
	openmetrics_integer(om, OPENMETRICS_LABELS({ "version", m->config.version }), 1);
	put_config(m, om);
	put_log(om);
	if (expiry_s > 0) {
		openmetrics_open(om, &expiry);
		openmetrics_integer(om, OPENMETRICS_NO_LABELS, (uint64_t)expiry_s);
	}
}

static void put_records_left(struct openmetrics *om, unsigned int n)
{
	static const struct openmetrics_family left = {
		"postcopyd_records_left",
		OPENMETRICS_GAUGE,
		NULL,
		"Records that this postcopyd can't read: their guests wait for the one that wrote "
		"them.",
	};

	openmetrics_open(om, &left);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, n);
}

static char *get_page(void *arg, const char *accept, size_t *ret_len, const char **ret_type)
{
	bool classic = !strstr(accept, "application/openmetrics-text");
	struct migrations_budget budget;
	struct metrics *m = arg;
	struct openmetrics om;
	char *text;

	memset(&m->stall, 0, sizeof m->stall);
	if (m->config.read_stall)
		m->config.read_stall(m->config.arg, &m->stall);
	migrations_get_totals(m->config.migrations, &m->totals);
	migrations_get_budget(m->config.migrations, &budget);
	openmetrics_init(&om, classic);
	put_daemon(m, &om);
	migration_metrics_put(&om, &m->totals, &budget, &m->stall);
	put_records_left(&om, migrations_records_left(m->config.migrations));
	put_calls(m, &om);
	put_refused(&om);
	process_metrics_put(&om, m->started_s);
	text = openmetrics_finish(&om, ret_len);
	openmetrics_deinit(&om);
	*ret_type = classic ? OPENMETRICS_CLASSIC_CONTENT_TYPE : OPENMETRICS_CONTENT_TYPE;
	return text;
}

int metrics_new(uv_loop_t *loop, const struct metrics_config *config, struct metrics **ret,
                struct error *err)
{
	struct metrics *m = calloc(1, sizeof *m);
	struct http_config http = {
		.tls = config->tls,
		.cert_path = config->cert_path,
		.key_path = config->key_path,
		.ca_path = config->ca_path,
		.path = "/metrics",
		.get = get_page,
		.arg = m,
	};
	struct tcp_listening listening = { .n = 0 };
	struct timespec now;
	int rc;

	if (!m)
		return error_set(err, -ENOMEM, "metrics: out of memory");
	m->config = *config;
	clock_gettime(CLOCK_REALTIME, &now);
	m->loaded_s = (uint64_t)now.tv_sec;
	m->started_s = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
	rc = tcp_listen(config->host, config->port, "metrics address", &listening, err);
	if (!rc)
		m->port = tcp_port(listening.fds[0]);
	while (!rc && m->n_servers < listening.n) {
		http.listen_fd = listening.fds[m->n_servers];
		rc = http_new(loop, &http, &m->servers[m->n_servers], err);
		if (!rc)
			listening.fds[m->n_servers++] = -1;
	}
	if (rc) {
		tcp_listening_close(&listening);
		metrics_close(m);
		return rc;
	}
	*ret = m;
	return 0;
}

int metrics_reload(struct metrics *m, const char *cert_path, const char *key_path,
                   const char *ca_path, struct error *err)
{
	int rc = 0;

	for (unsigned int i = 0; m && m->config.tls && i < m->n_servers && !rc; i++)
		rc = http_reload(m->servers[i], cert_path, key_path, ca_path, err);
	return rc;
}

void metrics_note_reload(struct metrics *m, bool is_good, uint64_t at_real_ns)
{
	if (!m)
		return;
	m->reload_failed = !is_good;
	if (is_good)
		m->loaded_s = at_real_ns / NSEC_PER_SEC;
}

void metrics_close(struct metrics *m)
{
	if (!m)
		return;
	for (unsigned int i = 0; i < m->n_servers; i++)
		http_close(m->servers[i]);
	free(m);
}

unsigned int metrics_port(const struct metrics *m)
{
	return m->port;
}

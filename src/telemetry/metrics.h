/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metrics of the daemon at /metrics, for Prometheus and all who read its formats.
 *
 * Theory of operation
 * -------------------
 * Nothing is kept here but what nobody else counts. A scrape asks everybody for a snapshot (on
 * the loop's thread, without waiting) and writes it: migrations' totals, the log's counts, the
 * process, and what the hooks of the configuration give. No family has a label whose values
 * a peer, a guest or an operator invents (there is no migration's id): how many series there are
 * is known beforehand. Each family is described in docs/metrics.md.
 *
 * Threads: all calls on the loop's thread.
 */
#ifndef TELEMETRY_METRICS_H
#define TELEMETRY_METRICS_H

#include <stdbool.h>

#include <uv.h>

#include "util/error.h"
#include "util/histogram.h"

struct metrics;
struct migrations;

/* How long guests' vCPUs stood still, measured from outside: eBPF. */
struct metrics_stall {
	const char *source; /* "fentry", "kprobe", "tracepoint", or "daemon": nothing; static */
	uint64_t unpaired;  /* stalls whose end was missed */
	uint64_t lost;      /* stalls, or single events of them, that had no room */
	struct histogram stall_ns;
};

struct metrics_config {
	const char *version;
	const char *host; /* where to listen; "0": any port */
	const char *port;
	bool tls; /* with this host's certificate, for clients of the CA */
	const char *cert_path;
	const char *key_path;
	const char *ca_path;
	bool config_is_older;          /* than what is configured, which is wrong */
	struct migrations *migrations; /* must outlive the metrics */
	/* NULL: there is none. @ret is all zeroes. */
	void (*read_stall)(void *arg, struct metrics_stall *ret);
	/* When the certificate in use ends, seconds since 1970; 0: not known. May be NULL. */
	int64_t (*certificate_expiry)(void *arg);
	void *arg;
};

/* @config: copied; its strings, but for host and port, must outlive the metrics. */
int metrics_new(uv_loop_t *loop, const struct metrics_config *config, struct metrics **ret,
                struct error *err);

/* Other certificate, key and CA, or the same read anew; see http_reload(). @m may be NULL. */
int metrics_reload(struct metrics *m, const char *cert_path, const char *key_path,
                   const char *ca_path, struct error *err);

/* The configuration was read anew, at a time of CLOCK_REALTIME. @m may be NULL. */
void metrics_note_reload(struct metrics *m, bool is_good, uint64_t at_real_ns);

/* Memory goes when the loop has run on. @m may be NULL. */
void metrics_close(struct metrics *m);

unsigned int metrics_port(const struct metrics *m);

/*
 * metrics_count_call() - a call of the control plane has ended
 * @method: "/package.Service/Method", of a method that exists (else "other"); static
 * @role: of its caller, "reader", "operator"; static
 * @code: the status' name, "OK", "NOT_FOUND"; static
 *
 * @m may be NULL: nobody wants to know.
 */
void metrics_count_call(struct metrics *m, const char *method, const char *role, const char *code);

#endif

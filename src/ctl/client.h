/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's control service (proto/postcopy/v1/control.proto), seen from its client: a function
 * a method. Answers are JSON objects, in the shape of migration_json.h, and the caller's to put.
 *
 * A client is one connection and does one call at a time.
 *
 * All calls return 0; the daemon's refusal as errno (-ENOENT for NOT_FOUND, -EINVAL, -EBUSY for
 * FAILED_PRECONDITION, -EEXIST, -EACCES, -EOPNOTSUPP, -EAGAIN for UNAVAILABLE, -ETIMEDOUT, -EIO
 * for any other) with its message in @err; -EPIPE, -ETIMEDOUT, -EPROTO, -ECANCELED, after which the
 * connection is of no more use. @ret may be NULL.
 */
#ifndef CTL_CLIENT_H
#define CTL_CLIENT_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "util/error.h"

#define CLIENT_TOKEN_BYTES 32
#define CLIENT_TIMEOUT_MS 30000

struct client;

/* Whose service. */
struct client_target {
	const char *control; /* "/path", "unix:path" or "host:port" */
	/* For host:port: PEM files, and the name that the daemon's certificate must have (NULL: any
	 * that the CA has signed). */
	const char *cert, *key, *ca;
	const char *server_name;
	unsigned int timeout_ms; /* of one answer; 0: CLIENT_TIMEOUT_MS */
};

/* Why the daemon refused the last call; empty strings where it did not. */
struct client_refusal {
	char code[24];   /* "NOT_FOUND" */
	char reason[48]; /* "MIGRATION_NOT_FOUND"; may be empty */
};

/* What is not to be changed keeps its value of CLIENT_LIMITS_INIT. */
struct client_limits {
	int64_t bandwidth_bytes_per_s; /* 0: no cap */
	unsigned int streams;
	int bulk, prefetch;
	unsigned int weight;
};

#define CLIENT_LIMITS_INIT                                                                         \
	((struct client_limits){ .bandwidth_bytes_per_s = -1, .bulk = -1, .prefetch = -1 })

/* As control.proto's Parties; what is not named is 0 or NULL. */
struct client_parties {
	const uint32_t *uids;
	size_t n_uids;
	int64_t pid;
	const char *cgroup;
	const char *peer;
};

/* Memory is copied before the switchover, until one of these that is not 0. */
struct client_warm {
	uint32_t max_rounds;
	uint64_t max_ms;
	uint64_t dirty_bytes;
	uint64_t catch_up_ms;
};

/* A place in the queue for those that come in. */
struct client_queue {
	uint32_t priority;
};

struct client_prepare {
	const char *id;
	bool destination;
	uint8_t token[CLIENT_TOKEN_BYTES];
	struct client_parties parties;
	/* Destination only: */
	const char *source; /* host:port */
	const char *map;    /* "auto", "eager", "lazy"; NULL: auto */
	struct client_limits limits;
};

/*
 * client_new() - connect
 * @target: copied, but for its strings, which must outlive the client
 * @cancel_fd: a descriptor that ends any wait with -ECANCELED once it is readable,
 *             or -1. Borrowed for the client's life.
 *
 * Return: 0; -ENOENT / -ECONNREFUSED where no daemon listens; -EACCES, -ETIMEDOUT, -EINVAL
 */
int client_new(const struct client_target *target, int cancel_fd, struct client **ret,
               struct error *err);

/* NULL is allowed. Return: NULL */
struct client *client_free(struct client *c);

const struct client_refusal *client_refusal(const struct client *c);

int client_prepare(struct client *c, const struct client_prepare *prepare, struct json_object **ret,
                   struct error *err);
/* Source, before a destination has come: another token. */
int client_set_token(struct client *c, const char *id, const uint8_t token[CLIENT_TOKEN_BYTES],
                     struct json_object **ret, struct error *err);
/* @hold: connect only; client_switchover() goes on. @queue: NULL: it waits for no turn. */
int client_start(struct client *c, const char *id, bool hold, const struct client_warm *warm,
                 const struct client_queue *queue, struct json_object **ret, struct error *err);
int client_switchover(struct client *c, const char *id, struct json_object **ret,
                      struct error *err);
/* @role, here and below: "source" or "destination", where the daemon has both halves; NULL: none.
 */
int client_get(struct client *c, const char *id, const char *role, struct json_object **ret,
               struct error *err);
int client_cancel(struct client *c, const char *id, const char *role, struct json_object **ret,
                  struct error *err);
/* {deleted: how many} */
int client_delete(struct client *c, const char *id, const char *role, struct json_object **ret,
                  struct error *err);
/* @source: host:port, or NULL for the one it has. */
int client_recover(struct client *c, const char *id, const char *source, struct json_object **ret,
                   struct error *err);
int client_set_limits(struct client *c, const char *id, const struct client_limits *limits,
                      struct json_object **ret, struct error *err);
int client_get_report(struct client *c, const char *id, const char *role, struct json_object **ret,
                      struct error *err);
int client_poison(struct client *c, const char *id, uint64_t confirm_bytes,
                  struct json_object **ret, struct error *err);
int client_run_on(struct client *c, const char *id, const char *holder, struct json_object **ret,
                  struct error *err);
int client_release(struct client *c, const char *id, const char *holder, struct json_object **ret,
                   struct error *err);

/*
 * client_list() - {migrations: [migration...]}, all pages of it
 * @states: of migration_json_state(), or'ed bits; 0: all
 */
int client_list(struct client *c, uint32_t states, struct json_object **ret, struct error *err);

/* {missing_bytes, ranges: [{region, guest_phys_addr, size_bytes}...]}, all pages of it. */
int client_list_missing(struct client *c, const char *id, struct json_object **ret,
                        struct error *err);

/* {kernel, destination, checks: [{name, ok, detail}...], backends: {NAME: {...}}} */
int client_check(struct client *c, struct json_object **ret, struct error *err);

/*
 * client_set_host_limits() - bytes/s of all page streams; -1: as it is, 0: no limit
 * @ret: the budget, as client_get_info() has it
 */
int client_set_host_limits(struct client *c, int64_t in, int64_t out, struct json_object **ret,
                           struct error *err);

/* {version, kernel, hostname, cpus, pages_address, draining, migrations_active, ...} */
int client_get_info(struct client *c, struct json_object **ret, struct error *err);

/*
 * client_watch() - follow a migration to its end
 * @on_update: for each update; a negative return ends the watch with it. It says why in the
 *             @err it is given.
 * @ret: the migration in its last state; may be NULL
 */
int client_watch(struct client *c, const char *id, const char *role, unsigned int interval_ms,
                 int (*on_update)(struct json_object *migration, void *userdata, struct error *err),
                 void *userdata, struct json_object **ret, struct error *err);

#endif

// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "ctl/bench_qemu.h"
#include "ctl/json.h"
#include "ctl/token.h"
#include "util/clock.h"

#define PSK_FILE "keys.psk" /* QEMU's name for it */
#define MOVE_WAIT_MS 300000

/* What is switched on beside postcopy itself. */
struct native {
	bool preempt;
	bool tls;
};

/* A key of both sides: it takes no certificates of QEMU's own shape, and the records are the same.
 */
static int write_key(const char *dir, struct error *err)
{
	uint8_t token[CLIENT_TOKEN_BYTES];
	char path[128], line[2 * sizeof token + 16] = "qemu:";
	size_t len = strlen(line);
	_cleanup_close_ int fd = -1;
	int r = token_make(token, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < sizeof token; i++)
		len += (size_t)sprintf(line + len, "%02x", token[i]);
	line[len++] = '\n';
	snprintf(path, sizeof path, "%s/" PSK_FILE, dir);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, line, len) != (ssize_t)len)
		return error_errno(err, errno ? -errno : -EIO, "\"%s\"", path);
	return 0;
}

static int prepare_tls(struct bench_vmm *v, const char *endpoint, struct error *err)
{
	char arguments[256];
	int r;

	snprintf(arguments, sizeof arguments,
	         "{\"qom-type\":\"tls-creds-psk\",\"id\":\"tls0\",\"dir\":\"%s\","
	         "\"endpoint\":\"%s\"}",
	         v->b->dir, endpoint);
	r = bench_vmm_ask(v, "object-add", arguments, NULL, err);
	return r < 0 ? r
	             : bench_vmm_ask(v, "migrate-set-parameters", "{\"tls-creds\":\"tls0\"}", NULL,
	                             err);
}

static int prepare(struct bench_vmm *v, const struct native *how, const char *endpoint,
                   struct error *err)
{
	char arguments[256];
	int r;

	snprintf(arguments, sizeof arguments,
	         "{\"capabilities\":[{\"capability\":\"events\",\"state\":true},"
	         "{\"capability\":\"postcopy-ram\",\"state\":true},"
	         "{\"capability\":\"postcopy-preempt\",\"state\":%s}]}",
	         how->preempt ? "true" : "false");
	r = bench_vmm_ask(v, "migrate-set-capabilities", arguments, NULL, err);
	if (!r && how->tls)
		r = prepare_tls(v, endpoint, err);
	return r;
}

/* Prints into @ret where it listens. */
static int listen_at(struct bench_vmm *destination, char *ret, size_t size, struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	struct json_object *addresses;
	int r = bench_vmm_ask(destination, "migrate-incoming", "{\"uri\":\"tcp:127.0.0.1:0\"}",
	                      NULL, err);

	if (!r)
		r = bench_vmm_ask(destination, "query-migrate", NULL, &answer, err);
	if (r < 0)
		return r;
	addresses = json_find(answer, "socket-address");
	if (!addresses || !json_object_is_type(addresses, json_type_array) ||
	    !json_object_array_length(addresses))
		return error_set(err, -EPROTO, "%s does not say where it listens",
		                 destination->process.name);
	snprintf(ret, size, "{\"uri\":\"tcp:127.0.0.1:%s\"}",
	         json_string_or(json_object_array_get_idx(addresses, 0), "port", "0"));
	return 0;
}

/* Until its migration has come to @status. */
static int wait_status(struct bench_vmm *v, const char *status, struct error *err)
{
	uint64_t deadline = clock_now_ns() + MOVE_WAIT_MS * NSEC_PER_MSEC;

	for (;;) {
		_cleanup_json_ struct json_object *answer = NULL;
		const char *now;
		int r = bench_vmm_ask(v, "query-migrate", NULL, &answer, err);

		if (r < 0)
			return r;
		now = json_string_or(answer, "status", "");
		if (!strcmp(now, status))
			return 0;
		if (!strcmp(now, "failed") || !strcmp(now, "cancelled") ||
		    !strcmp(now, "postcopy-paused"))
			return error_set(err, -EIO, "%s: its migration is %s: %s", v->process.name,
			                 now, json_string_or(answer, "error-desc", "no reason"));
		if (clock_now_ns() > deadline)
			return error_set(err, -ETIMEDOUT, "%s: its migration is still %s",
			                 v->process.name, now);
		r = qmp_wait(v->qmp, 100, err);
		if (r < 0)
			return r;
	}
}

static int move(struct bench *b, const struct native *how, struct bench_vmm *source,
                struct bench_vmm *destination, struct pace *pace, struct error *err)
{
	char address[64];
	int r = how->tls ? write_key(b->dir, err) : 0;

	if (!r)
		r = prepare(destination, how, "server", err);
	if (!r)
		r = prepare(source, how, "client", err);
	if (!r)
		r = bench_vmm_ask(source, "migrate-set-parameters", "{\"max-bandwidth\":0}", NULL,
		                  err);
	if (!r)
		r = listen_at(destination, address, sizeof address, err);
	if (r < 0)
		return r;
	pace_begin(pace);
	r = bench_vmm_ask(source, "migrate", address, NULL, err);
	if (!r)
		r = wait_status(source, "active", err);
	if (!r)
		r = bench_vmm_ask(source, "migrate-start-postcopy", NULL, NULL, err);
	if (!r)
		r = wait_status(source, "completed", err);
	return r < 0 ? r : wait_status(destination, "completed", err);
}

static int move_postcopy(struct bench *b, struct bench_vmm *source, struct bench_vmm *destination,
                         unsigned int n, struct pace *pace, struct error *err)
{
	(void)n;
	return move(b, &(struct native){ 0 }, source, destination, pace, err);
}

static int move_preempt_tls(struct bench *b, struct bench_vmm *source,
                            struct bench_vmm *destination, unsigned int n, struct pace *pace,
                            struct error *err)
{
	(void)n;
	return move(b, &(struct native){ .preempt = true, .tls = true }, source, destination, pace,
	            err);
}

const struct bench_way bench_way_postcopy = {
	.name = "qemu-postcopy",
	.title = "QEMU, postcopy, no TLS",
	.move = move_postcopy,
};

const struct bench_way bench_way_preempt_tls = {
	.name = "qemu-postcopy-preempt-tls",
	.title = "QEMU, postcopy-preempt, TLS",
	.move = move_preempt_tls,
};

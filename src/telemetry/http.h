/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small HTTP server for one page: libmicrohttpd, driven by the loop.
 *
 * Theory of operation
 * -------------------
 * libmicrohttpd polls its sockets with an epoll instance of its own. The loop watches that
 * descriptor, and a timer stands for libmicrohttpd's time-outs, so that all of it runs on the
 * loop's thread and nothing of it ever waits.
 *
 * Everything is bounded: HTTP_CONNS_MAX connections of HTTP_CONN_MEMORY_BYTES each, and each
 * of them lives for HTTP_CONN_LIFETIME_MS at the most, however lively it is: one request,
 * one answer. A client that is slow, or silent, or sends one byte at a time, holds up itself.
 *
 * With TLS the client has to have a certificate of the authority that is given. Only this
 * file knows libmicrohttpd and GnuTLS.
 *
 * Threads: all calls on the loop's thread.
 */
#ifndef TELEMETRY_HTTP_H
#define TELEMETRY_HTTP_H

#include <stdbool.h>
#include <stddef.h>

#include <uv.h>

#include "util/error.h"

#define HTTP_CONNS_MAX 64u
#define HTTP_CONN_MEMORY_BYTES 16384u
#define HTTP_CONN_LIFETIME_MS 5000u

struct http;

struct http_config {
	int listen_fd; /* taken over on success */
	bool tls;
	/* With TLS; PEM. */
	const char *cert_path;
	const char *key_path;
	const char *ca_path;
	const char *path; /* of the page, "/metrics" */
	/*
	 * The page.
	 * @accept: the request's Accept header, or ""
	 * @ret_type: the Content-Type; static
	 * Return: a text that is freed with free(), or NULL where memory is short.
	 */
	char *(*get)(void *arg, const char *accept, size_t *ret_len, const char **ret_type);
	void *arg;
};

/* @config: copied; the strings must outlive the server. */
int http_new(uv_loop_t *loop, const struct http_config *config, struct http **ret,
             struct error *err);

/* Other files, or the same read anew. On failure the old ones stay in use. */
int http_reload(struct http *h, const char *cert_path, const char *key_path, const char *ca_path,
                struct error *err);

/* Closes all connections; memory goes when the loop has run on. @h may be NULL. */
void http_close(struct http *h);

#endif

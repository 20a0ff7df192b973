/* SPDX-License-Identifier: Apache-2.0 */
#include "telemetry/http.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "util/cleanup.h"
#include "util/log.h"

#define PEM_MAX_BYTES (1u << 20)
/* A silent connection goes after so long; one that is not silent after its lifetime. */
#define SILENCE_S 3u
#define EXPIRY_CHECK_MS 1000u

struct http_conn {
	int fd; /* -1: free */
	uint64_t since_ms;
};

struct http {
	struct http_config config;
	uv_loop_t *loop;
	uv_poll_t *poll;
	uv_timer_t timeout;
	uv_timer_t expiry;
	unsigned int open_handles;
	bool closing;
	bool has_closed; /* a connection, since libmicrohttpd was last run */
	struct MHD_Daemon *mhd;
	struct http_conn conns[HTTP_CONNS_MAX];
};

DEFINE_CLEANUP(struct MHD_Response *, MHD_destroy_response);

static void run(struct http *h);

static void on_timeout(uv_timer_t *timer)
{
	run(timer->data);
}

static void on_ready(uv_poll_t *poll, int status, int events)
{
	(void)status;
	(void)events;
	run(poll->data);
}

/*
 * Let libmicrohttpd do what there is to do, and come back when it wants. Where all connections
 * were taken it listens again only when it is run once more after one has ended, and does
 * not ask for that.
 */
static void run(struct http *h)
{
	MHD_UNSIGNED_LONG_LONG timeout_ms;

	h->has_closed = false;
	MHD_run(h->mhd);
	if (h->has_closed)
		uv_timer_start(&h->timeout, on_timeout, 0, 0);
	else if (MHD_get_timeout(h->mhd, &timeout_ms) == MHD_YES)
		uv_timer_start(&h->timeout, on_timeout, timeout_ms, 0);
	else
		uv_timer_stop(&h->timeout);
}

/* Shut down what has had its time: libmicrohttpd sees the end, and closes it. */
static void on_expiry(uv_timer_t *timer)
{
	struct http *h = timer->data;
	uint64_t now_ms = uv_now(h->loop);
	unsigned int n_open = 0;

	for (unsigned int i = 0; i < HTTP_CONNS_MAX; i++) {
		if (h->conns[i].fd < 0)
			continue;
		n_open++;
		if (now_ms - h->conns[i].since_ms >= HTTP_CONN_LIFETIME_MS)
			shutdown(h->conns[i].fd, SHUT_RDWR);
	}
	if (!n_open)
		uv_timer_stop(timer);
}

static void on_connection(void *arg, struct MHD_Connection *connection, void **slot,
                          enum MHD_ConnectionNotificationCode code)
{
	const union MHD_ConnectionInfo *info =
	        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct http *h = arg;

	if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
		if (*slot)
			((struct http_conn *)*slot)->fd = -1;
		*slot = NULL;
		h->has_closed = true;
		return;
	}
	for (unsigned int i = 0; i < HTTP_CONNS_MAX && info; i++)
		if (h->conns[i].fd < 0) {
			h->conns[i].fd = info->connect_fd;
			h->conns[i].since_ms = uv_now(h->loop);
			*slot = &h->conns[i];
			break;
		}
	if (!uv_is_active((uv_handle_t *)&h->expiry))
		uv_timer_start(&h->expiry, on_expiry, EXPIRY_CHECK_MS, EXPIRY_CHECK_MS);
}

/* libmicrohttpd asks for the client's certificate, but does not insist. */
static bool may_read(const struct http *h, struct MHD_Connection *connection)
{
	gnutls_typed_vdata_st purpose = {
		.type = GNUTLS_DT_KEY_PURPOSE_OID,
		.data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT,
	};
	const union MHD_ConnectionInfo *info;
	unsigned int status;

	if (!h->config.tls)
		return true;
	info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
	return info && info->tls_session &&
	       !gnutls_certificate_verify_peers(info->tls_session, &purpose, 1, &status) && !status;
}

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned int status,
                              struct MHD_Response *response, const char *type)
{
	if (!response)
		return MHD_NO;
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
	/* One request each, so that a connection's lifetime can be bounded. */
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
	return MHD_queue_response(connection, status, response);
}

static enum MHD_Result refuse(struct MHD_Connection *connection, unsigned int status,
                              const char *text)
{
	_cleanup_(MHD_destroy_response_p) struct MHD_Response *response =
	        MHD_create_response_from_buffer(strlen(text), (void *)text, MHD_RESPMEM_PERSISTENT);

	return answer(connection, status, response, "text/plain; charset=utf-8");
}

static enum MHD_Result send_page(struct http *h, struct MHD_Connection *connection)
{
	_cleanup_(MHD_destroy_response_p) struct MHD_Response *response = NULL;
	const char *accept, *type;
	size_t len;
	char *text;

	accept = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_ACCEPT);
	text = h->config.get(h->config.arg, accept ? accept : "", &len, &type);
	if (!text)
		return refuse(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "out of memory\n");
	response = MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
	if (!response)
		free(text);
	return answer(connection, MHD_HTTP_OK, response, type);
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **request)
{
	struct http *h = arg;

	(void)version;
	(void)upload;
	(void)upload_size;
	(void)request;
	if (!may_read(h, connection))
		return refuse(connection, MHD_HTTP_FORBIDDEN,
		              "a client certificate of the CA is needed\n");
	if (strcmp(method, MHD_HTTP_METHOD_GET) && strcmp(method, MHD_HTTP_METHOD_HEAD))
		return refuse(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "GET only\n");
	if (strcmp(url, h->config.path))
		return refuse(connection, MHD_HTTP_NOT_FOUND, "metrics are at /metrics\n");
	return send_page(h, connection);
}

/* What clients do wrong is no business of the operator's. */
__attribute__((format(printf, 2, 0))) static void on_log(void *arg, const char *fmt, va_list ap)
{
	struct error text = ERROR_INIT;

	(void)arg;
	error_setv(&text, 0, fmt, ap);
	log_debug("metrics: %s", text.text);
}

/* @ret: the file's text, NUL-terminated; to be freed. */
static int read_pem(const char *path, char **ret, struct error *err)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	_cleanup_free_ char *text = malloc(PEM_MAX_BYTES + 1);
	size_t len;

	if (!f || !text)
		return error_errno(err, f ? -ENOMEM : -errno, "metrics: %s", path);
	len = fread(text, 1, PEM_MAX_BYTES + 1, f);
	if (!len || len > PEM_MAX_BYTES || ferror(f))
		return error_set(err, -EINVAL, "metrics: %s: can't be read, or is no PEM file",
		                 path);
	text[len] = 0;
	*ret = steal_ptr(&text);
	return 0;
}

static struct MHD_Daemon *start_mhd(struct http *h, int listen_fd, const char *cert,
                                    const char *key, const char *ca)
{
	unsigned int flags = MHD_USE_EPOLL | MHD_USE_ERROR_LOG | (h->config.tls ? MHD_USE_TLS : 0);
	struct MHD_OptionItem tls_options[] = {
		{ MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)cert },
		{ MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)key },
		{ MHD_OPTION_HTTPS_MEM_TRUST, 0, (void *)ca },
		{ MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)"NORMAL:-VERS-ALL:+VERS-TLS1.3" },
		{ MHD_OPTION_END, 0, NULL },
	};

	return MHD_start_daemon(
	        flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
	        MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_CONNECTION_LIMIT, HTTP_CONNS_MAX,
	        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HTTP_CONN_MEMORY_BYTES,
	        MHD_OPTION_CONNECTION_TIMEOUT, SILENCE_S, MHD_OPTION_NOTIFY_CONNECTION,
	        on_connection, h, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_ARRAY,
	        h->config.tls ? tls_options : &tls_options[4], MHD_OPTION_END);
}

/* A daemon on a descriptor of its own for the one listening socket. */
static int new_mhd(struct http *h, struct MHD_Daemon **ret, struct error *err)
{
	_cleanup_free_ char *cert = NULL, *key = NULL, *ca = NULL;
	_cleanup_close_ int fd = -1;
	int rc = 0;

	if (h->config.tls)
		rc = read_pem(h->config.cert_path, &cert, err);
	if (h->config.tls && !rc)
		rc = read_pem(h->config.key_path, &key, err);
	if (h->config.tls && !rc)
		rc = read_pem(h->config.ca_path, &ca, err);
	if (rc)
		return rc;
	fd = fcntl(h->config.listen_fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return error_errno(err, -errno, "metrics: listening socket");
	*ret = start_mhd(h, fd, cert, key, ca);
	if (!*ret)
		return error_set(err, -EINVAL, "metrics: no HTTP server%s%s",
		                 h->config.tls ? ": certificate, key or CA are not usable: " : "",
		                 h->config.tls ? h->config.cert_path : "");
	steal_fd(&fd);
	return 0;
}

/* The listening socket is taken away first: libmicrohttpd would shut it down for all. */
static void stop_mhd(struct MHD_Daemon *mhd)
{
	int fd = MHD_quiesce_daemon(mhd);

	close_fd(&fd);
	MHD_stop_daemon(mhd);
}

static void on_poll_closed(uv_handle_t *poll)
{
	free(poll);
}

/* Have the loop watch @mhd rather than the one before. */
static int watch(struct http *h, struct MHD_Daemon *mhd)
{
	const union MHD_DaemonInfo *info = MHD_get_daemon_info(mhd, MHD_DAEMON_INFO_EPOLL_FD);
	uv_poll_t *poll = calloc(1, sizeof *poll);
	int rc = poll ? uv_poll_init(h->loop, poll, info->epoll_fd) : -ENOMEM;

	if (rc) {
		free(poll);
		return rc;
	}
	poll->data = h;
	rc = uv_poll_start(poll, UV_READABLE, on_ready);
	if (rc) {
		uv_close((uv_handle_t *)poll, on_poll_closed);
		return rc;
	}
	if (h->poll) {
		uv_poll_stop(h->poll);
		uv_close((uv_handle_t *)h->poll, on_poll_closed);
	}
	h->poll = poll;
	return 0;
}

/* By the files that are configured now. */
static int serve(struct http *h, struct error *err)
{
	struct MHD_Daemon *mhd = NULL;
	int rc = new_mhd(h, &mhd, err);

	if (rc)
		return rc;
	rc = watch(h, mhd);
	if (rc) {
		stop_mhd(mhd);
		return error_errno(err, rc, "metrics: loop");
	}
	if (h->mhd)
		stop_mhd(h->mhd);
	h->mhd = mhd;
	run(h);
	return 0;
}

int http_reload(struct http *h, const char *cert_path, const char *key_path, const char *ca_path,
                struct error *err)
{
	const struct http_config before = h->config;
	int rc;

	h->config.cert_path = cert_path;
	h->config.key_path = key_path;
	h->config.ca_path = ca_path;
	rc = serve(h, err);
	if (rc)
		h->config = before;
	return rc;
}

int http_new(uv_loop_t *loop, const struct http_config *config, struct http **ret,
             struct error *err)
{
	struct http *h = calloc(1, sizeof *h);
	int rc;

	if (!h)
		return error_set(err, -ENOMEM, "metrics: out of memory");
	h->config = *config;
	h->loop = loop;
	for (unsigned int i = 0; i < HTTP_CONNS_MAX; i++)
		h->conns[i].fd = -1;
	uv_timer_init(loop, &h->timeout);
	uv_timer_init(loop, &h->expiry);
	h->timeout.data = h->expiry.data = h;
	h->open_handles = 2;
	rc = serve(h, err);
	if (rc) {
		h->config.listen_fd = -1;
		http_close(h);
		return rc;
	}
	*ret = h;
	return 0;
}

static void on_timer_closed(uv_handle_t *handle)
{
	struct http *h = handle->data;

	if (!--h->open_handles)
		free(h);
}

void http_close(struct http *h)
{
	if (!h || h->closing)
		return;
	h->closing = true;
	if (h->poll) {
		uv_poll_stop(h->poll);
		uv_close((uv_handle_t *)h->poll, on_poll_closed);
	}
	if (h->mhd)
		stop_mhd(h->mhd);
	close_fd(&h->config.listen_fd);
	uv_close((uv_handle_t *)&h->timeout, on_timer_closed);
	uv_close((uv_handle_t *)&h->expiry, on_timer_closed);
}

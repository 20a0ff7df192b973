/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/page_server.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "stream/page_source.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/tcp_listen.h"
#include "util/thread.h"

/* One accepted connection; in the server's list until its thread ends. */
struct server_conn {
	struct page_server *server;
	struct server_conn *next;
	char peer[64];              /* its address, for the log */
	int fd;                     /* before TLS, to cut it; then c's */
	struct conn *c;             /* under the server's lock */
	struct page_source *source; /* under the server's lock; a reference */
	struct page_source_control control;
};

struct page_server {
	struct tls_context *tls;
	int listen_fd;
	int stop_fd;
	unsigned int port;
	pthread_t accepter;
	bool accepter_runs;

	pthread_mutex_t lock;
	pthread_cond_t idle; /* the list of connections became empty */
	struct server_conn *conns;
	unsigned int n_conns;
	bool stopping;
	struct page_source **sources; /* a reference each */
	size_t n_sources;
};

static struct page_source *find_source(struct page_server *server, const char *id)
{
	for (size_t i = 0; i < server->n_sources; i++)
		if (!strcmp(page_source_id(server->sources[i]), id))
			return page_source_ref(server->sources[i]);
	return NULL;
}

/* The TLS and HELLO part of a connection's life. */
static int open_conn(struct server_conn *sc, struct hello *hello, struct error *err)
{
	uint8_t frame[FRAME_HEADER_BYTES + FRAME_HELLO_MAX];
	struct page_server *server = sc->server;
	struct page_source *source;
	struct hello_reply reply;
	struct conn *c;
	int rc = conn_accept(sc->fd, server->tls, &c, hello, err);

	pthread_mutex_lock(&server->lock);
	/* Under the lock: shut_all() must not meet a number that is somebody else's by now. */
	if (rc)
		close_fd(&sc->fd);
	sc->fd = -1;
	sc->c = rc ? NULL : c;
	source = rc ? NULL : find_source(server, hello->migration_id);
	sc->source = source;
	pthread_mutex_unlock(&server->lock);
	if (rc)
		return rc;
	/* A wrong id and a wrong token (page_source_open()) look the same to one who guesses. */
	if (!source)
		rc = error_set(err, -EACCES, "migration \"%s\": unknown here, or wrong token",
		               hello->migration_id);
	else
		rc = page_source_open(source, hello, c, &sc->control, &reply, err);
	if (rc) {
		conn_send_error(c, err);
		return rc;
	}
	rc = conn_send(c, frame, hello_reply_encode(&reply, frame));
	return rc ? error_errno(err, rc, "connection: HELLO_REPLY") : 0;
}

static void remove_conn(struct server_conn *sc)
{
	struct page_server *server = sc->server;
	struct page_source *source;
	struct conn *c;

	pthread_mutex_lock(&server->lock);
	for (struct server_conn **p = &server->conns; *p; p = &(*p)->next)
		if (*p == sc) {
			*p = sc->next;
			break;
		}
	c = sc->c;
	source = sc->source;
	pthread_mutex_unlock(&server->lock);
	if (source)
		page_source_close(source, &sc->control);
	conn_free(c);
	page_source_unref(source);
	free(sc);
	tls_thread_end();
	/* Last: from here on the server may be freed. */
	pthread_mutex_lock(&server->lock);
	if (!--server->n_conns)
		pthread_cond_broadcast(&server->idle);
	pthread_mutex_unlock(&server->lock);
}

static void settle_thread(enum stream_role role)
{
	char name[16];

	snprintf(name, sizeof name, "serve-%s", stream_role_name(role));
	thread_set_name(name);
	if (role == STREAM_CONTROL)
		thread_prefer_promptness();
	else if (role == STREAM_URGENT)
		thread_prefer_latency();
	else if (role == STREAM_BULK)
		thread_prefer_throughput();
}

static void *conn_main(void *arg)
{
	struct server_conn *sc = arg;
	struct error err = ERROR_INIT;
	struct hello *hello = malloc(sizeof *hello);
	int rc = hello ? open_conn(sc, hello, &err) : -ENOMEM;

	if (rc) {
		log_warning("page server: connection from %s refused: %s", sc->peer, err.text);
	} else {
		settle_thread(hello->role);
		rc = page_source_serve(sc->source, sc->c, &sc->control, hello, &err);
		if (rc == -ECONNRESET || rc == -EPIPE) {
			log_migration_debug(hello->migration_id, "%s connection ended",
			                    stream_role_name(hello->role));
		} else {
			conn_send_error(sc->c, &err);
			log_migration_warning(hello->migration_id, "%s connection from \"%s\": %s",
			                      stream_role_name(hello->role),
			                      tls_peer_name(sc->c->tls), err.text);
		}
	}
	free(hello);
	remove_conn(sc);
	return NULL;
}

static void name_peer(int fd, char *buf, size_t size)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof addr;
	char host[48], port[8];

	if (getpeername(fd, (struct sockaddr *)&addr, &len) ||
	    getnameinfo((struct sockaddr *)&addr, len, host, sizeof host, port, sizeof port,
	                NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(buf, size, "(gone)");
	else
		snprintf(buf, size, "%s port %s", host, port);
}

static void start_conn(struct page_server *server, int fd)
{
	struct server_conn *sc = calloc(1, sizeof *sc);
	int rc = 0;

	if (!sc) {
		close(fd);
		return;
	}
	sc->server = server;
	sc->fd = fd;
	name_peer(fd, sc->peer, sizeof sc->peer);
	pthread_mutex_lock(&server->lock);
	if (server->stopping || server->n_conns >= PAGE_SERVER_CONNS_MAX) {
		rc = -EMFILE;
	} else {
		sc->next = server->conns;
		server->conns = sc;
		server->n_conns++;
	}
	pthread_mutex_unlock(&server->lock);
	if (rc) {
		log_warning("page server: connection refused: %u are open", PAGE_SERVER_CONNS_MAX);
		close(fd);
		free(sc);
		return;
	}
	rc = thread_start_detached(conn_main, sc);
	if (rc) {
		log_error("page server: no thread for a connection: %s", strerror(-rc));
		close_fd(&sc->fd);
		remove_conn(sc);
	}
}

static void *accept_main(void *arg)
{
	struct page_server *server = arg;
	struct pollfd fds[] = {
		{ .fd = server->listen_fd, .events = POLLIN },
		{ .fd = server->stop_fd, .events = POLLIN },
	};

	thread_set_name("accept");
	for (;;) {
		int fd;

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			break;
		if (fds[1].revents)
			break;
		fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0) {
			start_conn(server, fd);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
			log_error("page server: accept: %s", strerror(errno));
			/* The connection stays in the backlog: don't spin on it. */
			poll(&fds[1], 1, 100);
		}
	}
	return NULL;
}

int page_server_listen(const char *address, struct error *err)
{
	unsigned int port;
	struct conn_target target;
	int rc = conn_target_parse(address, &target, err);

	if (rc)
		return error_prefix(err, "page stream address");
	return tcp_listen(target.host, target.port, "page stream address", &port, err);
}

static int find_port(int fd, unsigned int *ret, struct error *err)
{
	struct sockaddr_storage bound;
	socklen_t len = sizeof bound;
	char service[16];

	if (getsockname(fd, (struct sockaddr *)&bound, &len) ||
	    getnameinfo((struct sockaddr *)&bound, len, NULL, 0, service, sizeof service,
	                NI_NUMERICSERV))
		return error_set(err, -EINVAL, "page stream: the socket has no port");
	*ret = (unsigned int)strtoul(service, NULL, 10);
	return 0;
}

int page_server_new(int fd, struct tls_context *tls, struct page_server **ret, struct error *err)
{
	struct page_server *server = calloc(1, sizeof *server);
	int rc;

	if (!server) {
		close(fd);
		return error_set(err, -ENOMEM, "page server: out of memory");
	}
	server->tls = tls;
	server->listen_fd = fd;
	pthread_mutex_init(&server->lock, NULL);
	pthread_cond_init(&server->idle, NULL);
	server->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = server->stop_fd < 0 ? error_errno(err, -errno, "page server: eventfd") : 0;
	/* One from the service manager may block. */
	if (!rc && fcntl(fd, F_SETFL, O_NONBLOCK))
		rc = error_errno(err, -errno, "page stream: the socket");
	if (!rc)
		rc = find_port(fd, &server->port, err);
	if (rc) {
		page_server_free(server);
		return rc;
	}
	*ret = server;
	return 0;
}

int page_server_start(struct page_server *server, struct error *err)
{
	int rc = -pthread_create(&server->accepter, NULL, accept_main, server);

	server->accepter_runs = !rc;
	return rc ? error_errno(err, rc, "page server: thread") : 0;
}

static void shut_all(struct page_server *server, const struct page_source *only)
{
	for (struct server_conn *sc = server->conns; sc; sc = sc->next) {
		if (only && sc->source != only)
			continue;
		if (sc->c)
			conn_shutdown(sc->c);
		else if (sc->fd >= 0)
			shutdown(sc->fd, SHUT_RDWR);
	}
}

struct page_server *page_server_free(struct page_server *server)
{
	if (!server)
		return NULL;
	if (server->accepter_runs) {
		(void)!write(server->stop_fd, &(uint64_t){ 1 }, sizeof(uint64_t));
		pthread_join(server->accepter, NULL);
	}
	pthread_mutex_lock(&server->lock);
	server->stopping = true;
	for (size_t i = 0; i < server->n_sources; i++)
		page_source_withdraw(server->sources[i]);
	shut_all(server, NULL);
	while (server->n_conns)
		pthread_cond_wait(&server->idle, &server->lock);
	pthread_mutex_unlock(&server->lock);
	for (size_t i = 0; i < server->n_sources; i++)
		page_source_unref(server->sources[i]);
	free(server->sources);
	close_fd(&server->stop_fd);
	close_fd(&server->listen_fd);
	pthread_cond_destroy(&server->idle);
	pthread_mutex_destroy(&server->lock);
	free(server);
	return NULL;
}

unsigned int page_server_port(const struct page_server *server)
{
	return server->port;
}

int page_server_add(struct page_server *server, struct page_source *source)
{
	struct page_source *known, **grown;
	int rc = 0;

	pthread_mutex_lock(&server->lock);
	known = find_source(server, page_source_id(source));
	grown = known ? NULL
	              : reallocarray(server->sources, server->n_sources + 1,
	                             sizeof *server->sources);
	if (known) {
		rc = -EEXIST;
	} else if (!grown) {
		rc = -ENOMEM;
	} else {
		server->sources = grown;
		server->sources[server->n_sources++] = page_source_ref(source);
	}
	pthread_mutex_unlock(&server->lock);
	page_source_unref(known);
	return rc;
}

void page_server_remove(struct page_server *server, struct page_source *source,
                        bool end_connections)
{
	bool found = false;

	pthread_mutex_lock(&server->lock);
	for (size_t i = 0; i < server->n_sources && !found; i++) {
		found = server->sources[i] == source;
		if (found)
			server->sources[i] = server->sources[--server->n_sources];
	}
	if (end_connections)
		shut_all(server, source);
	pthread_mutex_unlock(&server->lock);
	if (found)
		page_source_unref(source);
}

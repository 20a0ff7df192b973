/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/page_server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "stream/page_source.h"
#include "stream/reception.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/refused.h"
#include "util/thread.h"

/*
 * Connections of one migration, by role; one more takes the place of the oldest: who knows the
 * token dials anew because the one before is of no more use. 16 bulk streams, and as many that are
 * lost and nobody has noticed; and so with those that a guest's faults come by.
 */
static const unsigned int conns_max[] = {
	[STREAM_CONTROL] = 4,
	[STREAM_URGENT] = PAGE_SOURCE_URGENTS,
	[STREAM_BULK] = 32,
};
/* Of one migration, those included that have been cut and are ending. */
#define CONNS_OF_SOURCE_MAX 104u

/* One connection that was let in; in the server's list until its thread ends. */
struct server_conn {
	struct page_server *server;
	struct server_conn *next; /* older */
	char peer[64];            /* its address, for the log */
	enum stream_role role;
	struct conn *c;
	struct page_source *source;    /* a reference */
	struct page_source_conn place; /* in it */
	bool cut; /* under the server's lock: it is ending, and counts no more */
	size_t reply_len;
	uint8_t reply[]; /* PROOF, where it is due, and HELLO_REPLY */
};

/* The longest reply. */
#define REPLY_MAX (2 * FRAME_HEADER_BYTES + FRAME_PROOF_BYTES + FRAME_HELLO_MAX)

/* An id that another process of ours may know. */
struct awaited {
	struct awaited *next;
	char id[MIGRATION_ID_MAX + 1];
};

struct page_server {
	struct tcp_listening listening;
	int stop_fd;
	pthread_t accepter;
	bool accepter_runs;
	struct reception *reception; /* the accepter's */

	pthread_mutex_t lock;
	pthread_cond_t idle; /* the list of connections became empty */
	struct server_conn *conns;
	unsigned int n_conns;
	bool stopping;
	bool incomplete; /* some that were left are not taken over yet */
	struct awaited *awaited;
	unsigned int most;            /* guests that leave at a time; 0: no limit */
	struct pacers pacers;         /* has a lock of its own, which is taken last */
	struct page_source **sources; /* a reference each */
	size_t n_sources;
};

static bool has_id(const struct page_source *s, const char *id)
{
	return !strcmp(page_source_id(s), id);
}

/*
 * Of those with its id the one that a HELLO is meant for.
 * Return: 0; -EACCES: it proves the token of none; -ENOMEM: who could tell?
 */
static int find_source(struct page_server *server, const struct hello *hello, const struct tls *tls,
                       struct page_source **ret)
{
	struct page_source *best = NULL;
	int best_fit = 0;

	for (size_t i = 0; i < server->n_sources; i++) {
		struct page_source *s = server->sources[i];
		int fit = has_id(s, hello->migration_id) ? page_source_fit(s, hello, tls) : 0;

		if (fit == -ENOMEM)
			return fit;
		if (fit > best_fit) {
			best = s;
			best_fit = fit;
		}
	}
	if (!best)
		return -EACCES;
	*ret = page_source_ref(best);
	return 0;
}

/* Whether one of that id can be served still. */
static bool is_offered(const struct page_server *server, const char *id)
{
	for (size_t i = 0; i < server->n_sources; i++)
		if (has_id(server->sources[i], id) && !page_source_has_ended(server->sources[i]))
			return true;
	return false;
}

/* Whether a source that is unknown may be known soon. */
static bool is_awaited(const struct page_server *server, const char *id)
{
	for (const struct awaited *a = server->awaited; a; a = a->next)
		if (!strcmp(a->id, id))
			return true;
	return server->incomplete;
}

/* Of all that it holds, but its place in the list. */
static void leave(struct server_conn *sc)
{
	pacers_leave(&sc->server->pacers, &sc->place.pace);
	if (sc->source)
		page_source_close(sc->source, &sc->place);
	conn_free(sc->c);
	page_source_unref(sc->source);
	free(sc);
}

static void remove_conn(struct server_conn *sc)
{
	struct page_server *server = sc->server;

	pthread_mutex_lock(&server->lock);
	for (struct server_conn **p = &server->conns; *p; p = &(*p)->next)
		if (*p == sc) {
			*p = sc->next;
			break;
		}
	pthread_mutex_unlock(&server->lock);
	leave(sc);
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
	const char *id = page_source_id(sc->source), *role = stream_role_name(sc->role);
	struct error err = ERROR_INIT;
	int rc = conn_send(sc->c, sc->reply, sc->reply_len);

	settle_thread(sc->role);
	if (rc)
		error_errno(&err, rc, "connection: HELLO_REPLY");
	else
		rc = page_source_serve(sc->source, &sc->place, sc->role, &err);
	if (rc == -ECONNRESET || rc == -EPIPE) {
		log_migration_debug(id, "%s connection ended", role);
	} else {
		conn_send_error(sc->c, &err);
		log_migration_warning(id, "%s connection from \"%s\": %s", role,
		                      tls_peer_name(sc->c->tls), err.text);
	}
	remove_conn(sc);
	return NULL;
}

/*
 * So many guests leave already. Who was let in before comes in again: by the attachment that it
 * names, for its guest may be paused, or be its own by now; and where its guest has attached anew
 * since, and it begins again, by who it is.
 */
static int check_most(struct page_server *server, struct page_source *source,
                      const struct hello *hello, struct error *err)
{
	unsigned int n = 0, most;

	if (hello->role != STREAM_CONTROL || hello->epoch ||
	    page_source_has_visited(source, hello->holder))
		return 0;
	pthread_mutex_lock(&server->lock);
	most = server->most;
	for (size_t i = 0; i < server->n_sources && most; i++)
		n += server->sources[i] != source && page_source_is_taken(server->sources[i]);
	pthread_mutex_unlock(&server->lock);
	if (!most || n < most)
		return 0;
	return error_set(
	        err, -EUSERS,
	        "migration \"%s\": %u migrations are leaving its host (max-outgoing of its "
	        "daemon): try again later",
	        hello->migration_id, n);
}

/* Has it proven what it says? Return: 0 with the source that it is for. */
static int check_hello(struct server_conn *sc, const struct hello *hello, struct error *err)
{
	_cleanup_free_ struct hello_reply *reply = malloc(sizeof *reply);
	struct page_server *server = sc->server;
	bool awaited;
	int rc;

	if (!reply)
		return error_set(err, -ENOMEM, "the source's daemon: out of memory");
	pthread_mutex_lock(&server->lock);
	rc = find_source(server, hello, sc->c->tls, &sc->source);
	awaited = is_awaited(server, hello->migration_id);
	pthread_mutex_unlock(&server->lock);
	if (rc == -ENOMEM)
		return error_set(err, rc, "the source's daemon: out of memory");
	if (rc && awaited)
		return error_set(err, -ECONNRESET,
		                 "migration \"%s\": not among those that are taken over by now",
		                 hello->migration_id);
	/* A wrong id and a wrong token look the same to one who guesses. */
	if (rc)
		return error_set(err, -EACCES, "migration \"%s\": unknown here, or wrong token",
		                 hello->migration_id);
	/* It is ours to say then what became of the guest, be it no. */
	sc->reply_len = page_source_prove(sc->source, hello, sc->c->tls, sc->reply);
	if (!sc->reply_len)
		return error_set(err, -ENOMEM, "the source's daemon: out of memory");
	rc = check_most(server, sc->source, hello, err);
	if (!rc)
		rc = page_source_open(sc->source, hello, sc->c, &sc->place, reply, err);
	if (!rc)
		sc->reply_len += hello_reply_encode(reply, sc->reply + sc->reply_len);
	return rc;
}

/* Cut the oldest connections of its kind until there is room for one more. The lock is held. */
static void make_room(const struct page_server *server, const struct page_source *source,
                      enum stream_role role)
{
	unsigned int n = 0;

	/* Newest first. */
	for (struct server_conn *sc = server->conns; sc; sc = sc->next) {
		if (sc->source != source || sc->role != role || sc->cut || ++n < conns_max[role])
			continue;
		sc->cut = true;
		conn_shutdown(sc->c);
	}
}

static unsigned int count_of_source(const struct page_server *server,
                                    const struct page_source *source)
{
	unsigned int n = 0;

	for (const struct server_conn *sc = server->conns; sc; sc = sc->next)
		n += sc->source == source;
	return n;
}

/* Into the list. Return: 0; -EAGAIN, -ECONNRESET with @err set: not now. */
static int list_conn(struct page_server *server, struct server_conn *sc, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&server->lock);
	if (server->stopping) {
		rc = error_set(err, -ECONNRESET, "the source's daemon is ending");
	} else if (count_of_source(server, sc->source) >= CONNS_OF_SOURCE_MAX) {
		rc = error_set(err, -EAGAIN, "migration \"%s\": %u connections are open or ending",
		               page_source_id(sc->source), CONNS_OF_SOURCE_MAX);
	} else {
		make_room(server, sc->source, sc->role);
		sc->next = server->conns;
		server->conns = sc;
		server->n_conns++;
	}
	pthread_mutex_unlock(&server->lock);
	return rc;
}

static int new_conn(struct page_server *server, struct conn *c, enum stream_role role,
                    const char *peer, struct server_conn **ret, struct error *err)
{
	struct server_conn *sc = calloc(1, sizeof *sc + REPLY_MAX);

	if (!sc)
		return error_set(err, -ENOMEM, "the source's daemon: out of memory");
	sc->server = server;
	sc->role = role;
	sc->c = c;
	snprintf(sc->peer, sizeof sc->peer, "%s", peer);
	*ret = sc;
	return 0;
}

static enum refused_reason reason_of(int rc)
{
	switch (rc) {
	case -EACCES:
		return REFUSED_TOKEN;
	case -ENOMEM:
		return REFUSED_RESOURCES;
	case -EAGAIN:
	case -EUSERS:
	case -ECONNRESET:
		return REFUSED_LIMIT;
	default:
		return REFUSED_PROTOCOL;
	}
}

/* On the accepter's thread: who has said HELLO gets a thread of its own, if it may come in. */
static void admit(void *arg, struct conn *c, const struct hello *hello, const char *peer)
{
	struct page_server *server = arg;
	struct error err = ERROR_INIT;
	struct server_conn *sc = NULL;
	int rc = new_conn(server, c, hello->role, peer, &sc, &err);

	if (!rc)
		rc = check_hello(sc, hello, &err);
	if (!rc)
		rc = list_conn(server, sc, &err);
	if (rc) {
		if (sc && sc->reply_len)
			(void)conn_send(c, sc->reply, FRAME_HEADER_BYTES + FRAME_PROOF_BYTES);
		conn_send_error(c, &err);
		refused(REFUSED_AT_PAGES, reason_of(rc), peer, "%s", err.text);
		if (sc)
			leave(sc);
		else
			conn_free(c);
		return;
	}
	rc = conn_accept_end(c, hello->role);
	if (hello->role == STREAM_BULK)
		pacers_join(&server->pacers, &sc->place.pace, c->fd);
	if (!rc)
		rc = thread_start_detached(conn_main, sc);
	if (rc) {
		log_error("page server: no thread for a connection: %s", strerror(-rc));
		remove_conn(sc);
	}
}

static void accept_one(struct page_server *server, int listen_fd)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd >= 0) {
		reception_add(server->reception, fd);
	} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
		log_error("page server: accept: %s", strerror(errno));
		/* The connection stays in the backlog: don't spin on it. */
		poll(&(struct pollfd){ .fd = server->stop_fd, .events = POLLIN }, 1, 100);
	}
}

static void *accept_main(void *arg)
{
	struct page_server *server = arg;
	unsigned int n_listen = server->listening.n, n_own = 1 + n_listen;
	struct pollfd fds[1 + TCP_LISTEN_MAX + STRANGERS_MAX] = {
		{ .fd = server->stop_fd, .events = POLLIN },
	};

	thread_set_name("accept");
	/* A guest may wait for the connection that is being opened. */
	thread_prefer_promptness();
	for (unsigned int i = 0; i < n_listen; i++)
		fds[1 + i] = (struct pollfd){ .fd = server->listening.fds[i], .events = POLLIN };
	for (;;) {
		int timeout_ms = -1;
		unsigned int n = reception_prepare(server->reception, fds + n_own, &timeout_ms);

		if (poll(fds, n_own + n, timeout_ms) < 0 && errno != EINTR)
			break;
		if (fds[0].revents)
			break;
		/* Those who are here first: one more may take the place of one of them. */
		reception_serve(server->reception, fds + n_own, n);
		for (unsigned int i = 1; i <= n_listen; i++)
			if (fds[i].revents)
				accept_one(server, fds[i].fd);
	}
	reception_close(server->reception);
	return NULL;
}

int page_server_listen(const char *address, struct tcp_listening *ret, struct error *err)
{
	struct conn_target target;
	int rc = conn_target_parse(address, &target, err);

	if (rc)
		return error_prefix(err, "page stream address");
	return tcp_listen(target.host, target.port, "page stream address", ret, err);
}

/* One from the service manager may block, and be no TCP socket. */
static int check_listening(const struct tcp_listening *l, struct error *err)
{
	for (unsigned int i = 0; i < l->n; i++) {
		if (!tcp_port(l->fds[i]))
			return error_set(err, -EINVAL, "page stream: the socket has no port");
		if (fcntl(l->fds[i], F_SETFL, O_NONBLOCK))
			return error_errno(err, -errno, "page stream: the socket");
	}
	return 0;
}

void page_server_set_most(struct page_server *server, unsigned int most)
{
	pthread_mutex_lock(&server->lock);
	server->most = most;
	pthread_mutex_unlock(&server->lock);
}

int page_server_new(struct tcp_listening *listening, struct tls_context *tls,
                    struct page_server **ret, struct error *err)
{
	struct page_server *server = calloc(1, sizeof *server);
	int rc;

	if (!server) {
		tcp_listening_close(listening);
		return error_set(err, -ENOMEM, "page server: out of memory");
	}
	server->listening = *listening;
	listening->n = 0;
	pthread_mutex_init(&server->lock, NULL);
	pthread_cond_init(&server->idle, NULL);
	pacers_init(&server->pacers);
	server->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = server->stop_fd < 0 ? error_errno(err, -errno, "page server: eventfd") : 0;
	server->reception = calloc(1, sizeof *server->reception);
	if (!rc && !server->reception)
		rc = error_set(err, -ENOMEM, "page server: out of memory");
	if (!rc)
		*server->reception =
		        (struct reception){ .tls = tls, .admit = admit, .arg = server };
	if (!rc)
		rc = check_listening(&server->listening, err);
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
		if (!only || sc->source == only)
			conn_shutdown(sc->c);
	}
}

void page_server_set_incomplete(struct page_server *server, bool incomplete)
{
	pthread_mutex_lock(&server->lock);
	server->incomplete = incomplete;
	pthread_mutex_unlock(&server->lock);
}

int page_server_await(struct page_server *server, const char *id)
{
	struct awaited *a = malloc(sizeof *a);

	if (!a)
		return -ENOMEM;
	snprintf(a->id, sizeof a->id, "%s", id);
	pthread_mutex_lock(&server->lock);
	a->next = server->awaited;
	server->awaited = a;
	pthread_mutex_unlock(&server->lock);
	return 0;
}

static void free_awaited(struct page_server *server)
{
	for (struct awaited *a = server->awaited, *next; a; a = next) {
		next = a->next;
		free(a);
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
	free_awaited(server);
	free(server->sources);
	free(server->reception);
	close_fd(&server->stop_fd);
	tcp_listening_close(&server->listening);
	pacers_deinit(&server->pacers);
	pthread_cond_destroy(&server->idle);
	pthread_mutex_destroy(&server->lock);
	free(server);
	return NULL;
}

unsigned int page_server_port(const struct page_server *server)
{
	return tcp_port(server->listening.fds[0]);
}

const struct tcp_listening *page_server_listening(const struct page_server *server)
{
	return &server->listening;
}

int page_server_add(struct page_server *server, struct page_source *source)
{
	bool ended = page_source_has_ended(source);
	struct page_source **grown = NULL;
	int rc = 0;

	pthread_mutex_lock(&server->lock);
	if (!ended && is_offered(server, page_source_id(source)))
		rc = -EEXIST;
	else
		grown = reallocarray(server->sources, server->n_sources + 1,
		                     sizeof *server->sources);
	if (!rc && !grown)
		rc = -ENOMEM;
	if (grown) {
		server->sources = grown;
		server->sources[server->n_sources++] = page_source_ref(source);
	}
	pthread_mutex_unlock(&server->lock);
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

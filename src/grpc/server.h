/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A gRPC server: HTTP/2 by nghttp2, on the libuv loop, over unix sockets and TCP with TLS.
 *
 * Theory of operation
 * -------------------
 * This subsystem knows HTTP/2 and gRPC's framing, and nothing of what is called: methods are
 * a table of paths and functions from bytes to bytes.
 *
 *   listener   accepts; a unix peer is checked by its credentials, a TCP peer by its
 *              certificate (TLS 1.3, mutual, ALPN "h2"), before its first HTTP/2 byte counts
 *   connection one nghttp2 session, one uv stream; bytes in -> [TLS] -> nghttp2 -> calls;
 *              calls -> nghttp2 -> [TLS] -> bytes out. What waits to be written is bounded:
 *              above the bound nghttp2 is not asked for more, and the peer's window does the rest.
 *   call       one stream: request headers, one message, then the method is called, which
 *              sends messages and finishes, at once or later; if the peer is what it takes
 *
 * Each peer has a role from the moment it is known, and each method takes one: looked at in
 * one place (call.c), before any method is called.
 *
 * Faults first: all of this runs on the loop's thread, which no fault ever waits for.
 *
 * Whatever a client does wrong ends its call or its connection with a status it can read, and
 * nobody else's. Its limits:
 *   - GRPC_MESSAGE_MAX a request, GRPC_REQUESTS_BYTES_MAX all that are not complete;
 *     GRPC_HEADERS_MAX of headers; GRPC_INFLATED_MAX of what was compressed by gzip
 *   - GRPC_STREAMS_MAX calls a connection, GRPC_CALLS_MAX in all
 *   - GRPC_CONNECTIONS_MAX connections, GRPC_CONNECTIONS_TCP_MAX of them by TCP; of
 *     GRPC_HANDSHAKES_MAX peers that are not known yet the oldest gives way
 *   - no new call or message while GRPC_QUEUE_MAX of a connection's answers wait to be read
 *   - of all that one client has a share, over all its connections: GRPC_CLIENT_*_MAX. A client
 *     is a user of this host, or a certificate's name. Local root has no share but the whole, and
 *     some more where the others have taken that: it always gets in
 *   - a handshake and a request must arrive within GRPC_REQUEST_TIMEOUT_MS; who is told
 *     to go has GRPC_LINGER_MS to read why
 *   - pings more often than GRPC_PING_MIN_MS (where nothing was sent to it meanwhile), and more
 *     calls that come to a bad end than GRPC_RESETS_MAX at once or GRPC_RESETS_PER_S, end in
 *     GOAWAY (ENHANCE_YOUR_CALM)
 * One turn of the loop reads and writes some 10 KiB of each connection, so that a client that
 * sends without end delays nobody for long.
 *
 * Threads: all on the loop's.
 */
#ifndef GRPC_SERVER_H
#define GRPC_SERVER_H

#include <stdbool.h>
#include <sys/types.h>
#include <uv.h>

#include "grpc/role.h"
#include "grpc/status.h"
#include "tls/tls.h"
#include "util/tcp_listen.h"

#define GRPC_MESSAGE_MAX (4u << 20)
#define GRPC_HEADERS_MAX 16384u
#define GRPC_STREAMS_MAX 256u
#define GRPC_CALLS_MAX 4096u
#define GRPC_CONNECTIONS_MAX 1024u
#define GRPC_CONNECTIONS_TCP_MAX 896u
#define GRPC_HANDSHAKES_MAX 256u
#define GRPC_REQUESTS_BYTES_MAX (64u << 20)
#define GRPC_CLIENT_CONNECTIONS_MAX 256u
#define GRPC_CLIENT_CALLS_MAX 512u
#define GRPC_CLIENT_REQUESTS_BYTES_MAX (16u << 20)
#define GRPC_CLIENT_QUEUE_MAX (32u << 20)
#define GRPC_ROOT_SPARE 16u
#define GRPC_QUEUE_MAX (16u << 20)
#define GRPC_REQUEST_TIMEOUT_MS 10000u
#define GRPC_LINGER_MS 1000u
#define GRPC_PING_MIN_MS 1000u
#define GRPC_PING_STRIKES 2u
#define GRPC_RESETS_MAX 500u
#define GRPC_RESETS_PER_S 50u

struct grpc_server;
struct grpc_call;

#define GRPC_NAME_MAX 256
#define GRPC_ADDRESS_MAX 64
#define GRPC_COMM_MAX 16

/* Who calls. */
struct grpc_peer {
	enum grpc_role role; /* grpc_server_judge() may change it */
	bool local;          /* over a unix socket: uid, gid, pid are the kernel's word */
	uid_t uid;
	gid_t gid;
	pid_t pid;
	char comm[GRPC_COMM_MAX];       /* of a local one: its program, as it calls itself */
	char address[GRPC_ADDRESS_MAX]; /* of one by TCP: "192.0.2.7 port 41312" */
	const char *name; /* the certificate's SAN, empty before; "uid 0" for a local one */
};

/*
 * A method. It must finish the call, now or later; a unary method sends one message before.
 * @request: one message, valid during the call only
 */
struct grpc_method {
	const char *path; /* "/postcopy.v1.Migrations/Get" */
	enum grpc_role role;
	void (*call)(struct grpc_call *call, const uint8_t *request, size_t len, void *arg);
	/* The client sends any number of messages: @call is called with each as it comes, and
	 * with a @request of NULL where no more will come; not after grpc_call_finish(). */
	bool client_streams;
};

struct grpc_server_config {
	const struct grpc_method *methods; /* ended by a path of NULL; must outlive the server */
	void *arg;                         /* for the methods */
	/* In the place of a method that takes more than the peer is; NULL: told in general words.
	 */
	void (*denied)(struct grpc_call *call, const uint8_t *request, size_t len, void *arg);
	/* Called at the end of each call; may be NULL. @path is "other" for an unknown one. */
	void (*finished)(void *arg, const struct grpc_peer *peer, const char *path,
	                 enum grpc_code code, uint64_t duration_ns);
};

/* Groups by what their members are; others, but root and our own user, are nobody. */
struct grpc_groups {
	const gid_t *operators;
	size_t n_operators;
	const gid_t *readers;
	size_t n_readers;
};

/* Where to listen. Descriptors that are given are taken over on success; TCP sockets in any case.
 */
struct grpc_listen_unix {
	const char *path; /* a stale socket is replaced, one in use refused; mode 0666, for ... */
	int fd; /* ... credentials decide; or a listening socket (socket activation), else -1 */
	struct grpc_groups groups; /* root and our own user are operators besides; copied */
};

struct grpc_listen_tls {
	const char *address; /* "host:port", "[v6]:port"; port 0: any; all that it stands for */
	const struct tcp_listening *given; /* or sockets that listen, else NULL */
	/* ALPN "h2", the names that may call, and, limited, that may look; must outlive the
	 * server. Read anew at each handshake, so that it may be reloaded. */
	struct tls_context *tls;
};

int grpc_server_new(uv_loop_t *loop, const struct grpc_server_config *config,
                    struct grpc_server **ret, struct error *err);

int grpc_server_listen_unix(struct grpc_server *s, const struct grpc_listen_unix *listen,
                            struct error *err);
int grpc_server_listen_tls(struct grpc_server *s, const struct grpc_listen_tls *listen,
                           struct error *err);

/* For those who connect from now on; copied. Return: 0 or -ENOMEM: all is as it was. */
int grpc_server_set_groups(struct grpc_server *s, const struct grpc_groups *groups);

/*
 * grpc_server_judge() - look at all who are connected by the groups and names of now
 *
 * Each has the role that it would have if it connected; whoever would be turned away is, and its
 * calls with it.
 */
void grpc_server_judge(struct grpc_server *s);

/* The TCP port it listens on; 0: none. The listeners' descriptors, borrowed; -1, or n = 0: none. */
unsigned int grpc_server_port(const struct grpc_server *s);
int grpc_server_unix_fd(const struct grpc_server *s);
void grpc_server_get_listening(const struct grpc_server *s, struct tcp_listening *ret);

/*
 * No new connections or calls: GOAWAY to all; calls that run go on. The listening sockets stay
 * open, for whoever takes them over: what connects meanwhile waits for that.
 */
void grpc_server_drain(struct grpc_server *s);

/* Ends everything: calls that run end as UNAVAILABLE. Memory goes when the loop has run on. */
void grpc_server_close(struct grpc_server *s);

/* What the server holds, for metrics and leak tests. */
struct grpc_server_stats {
	unsigned int connections;
	unsigned int calls;
	uint64_t connections_total;
	uint64_t refused_total; /* peers that were not allowed, limits */
};
void grpc_server_get_stats(const struct grpc_server *s, struct grpc_server_stats *ret);

/* Calls, for methods. */

const struct grpc_peer *grpc_call_peer(const struct grpc_call *call);
const struct grpc_method *grpc_call_method(const struct grpc_call *call);

/*
 * grpc_call_send() - one message; its bytes are copied
 *
 * Never blocks; what the client does not take yet is queued.
 *
 * Return: 0; -ENOMEM; -ENOBUFS where so much waits already; after these the
 * call is to be finished.
 */
int grpc_call_send(struct grpc_call *call, const void *message, size_t len);

/* Bytes that were sent but not taken yet: who streams sends no more while there are any. */
size_t grpc_call_queued(const struct grpc_call *call);

/* @status NULL: OK. After it the call is no longer the method's. */
void grpc_call_finish(struct grpc_call *call, const struct grpc_status *status);

/*
 * grpc_call_watch() - for a method that goes on after it has returned
 * @gone: the client has cancelled, its deadline has passed, its connection is lost, or the
 *        server closes: the call is no longer the method's. Never after grpc_call_finish().
 * @writable: all that was queued is taken; may be NULL
 */
void grpc_call_watch(struct grpc_call *call, void (*gone)(struct grpc_call *call, void *arg),
                     void (*writable)(struct grpc_call *call, void *arg), void *arg);

#endif

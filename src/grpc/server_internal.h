/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the server share.
 *
 *   server.c      the owner of all, and the turn: what a loop iteration has left to be written
 *                 is written before the loop sleeps
 *   listener.c    accepts, checks local peers
 *   connection.c  bytes in and out, TLS, timers, the end
 *   session.c     nghttp2 and its callbacks
 *   call.c        a stream's request, up to its method
 *   answer.c      a stream's answer
 *
 * nghttp2 must not be entered or deleted from inside its own callbacks, and methods are called
 * there. So nothing but server.c's turn pulls output, and a connection that is to end meanwhile
 * (busy) is only marked as doomed.
 */
#ifndef GRPC_SERVER_INTERNAL_H
#define GRPC_SERVER_INTERNAL_H

#include <nghttp2/nghttp2.h>

#include "grpc/server.h"
#include "grpc/wire.h"
#include "tls/tls_pipe.h"
#include "util/refused.h"

/* What a connection reads, and about what it writes, in one turn of the loop. */
#define TURN_READ_BYTES 16384u
#define TURN_WRITE_BYTES 32768u
/* The largest piece that nghttp2 gives at once, and more. */
#define FRAME_BYTES_MAX (16384u + 1024u)

/* "At no time", for the times below. */
#define NEVER UINT64_MAX

struct grpc_connection;

struct grpc_listener {
	struct grpc_server *server;
	int fd; /* -1: none */
	uv_poll_t poll;
	uv_timer_t retry;        /* descriptors have run out */
	struct tls_context *tls; /* NULL: a unix socket */
	struct grpc_groups groups;
	gid_t *gids; /* what groups points to */
};

struct grpc_server {
	struct grpc_server_config config;
	uv_loop_t *loop;
	uv_prepare_t turn;
	struct grpc_listener local;
	struct grpc_listener tcp[TCP_LISTEN_MAX]; /* from the first on */
	struct grpc_connection *connections;
	struct grpc_connection *dirty; /* have something to do in this turn */
	nghttp2_session_callbacks *callbacks;
	nghttp2_option *options;
	unsigned int open_handles; /* of it, its listeners and its connections */
	unsigned int n_connections;
	unsigned int n_tcp;        /* of those */
	unsigned int n_handshakes; /* of those, not known who they are */
	unsigned int n_calls;
	size_t request_bytes; /* of requests that are not complete, but root's */
	struct grpc_share *shares;
	uint64_t connections_total;
	uint64_t refused_total;
	bool draining;
	bool closing;
	uint8_t in[TURN_READ_BYTES];    /* from a socket */
	uint8_t plain[TURN_READ_BYTES]; /* the same without TLS */
	uint8_t out[TURN_WRITE_BYTES + FRAME_BYTES_MAX];
};

/* One client: what all its connections take up. It lives as long as there is one. */
struct grpc_share {
	struct grpc_share *next;
	char name[256]; /* peer.name of each */
	bool local;
	bool is_root; /* local, too */
	unsigned int n_connections;
	unsigned int n_calls;
	size_t request_bytes;
	size_t queued; /* bytes of answers that wait */
};

enum connection_state {
	CONNECTION_HANDSHAKE, /* TLS: nobody knows who it is */
	CONNECTION_PREFACE,   /* the client's first SETTINGS are still to come */
	CONNECTION_OPEN,
	CONNECTION_ENDING, /* last words go out; what comes in is thrown away */
	CONNECTION_CLOSED, /* handles are being closed */
};

/* GOAWAY in two steps, so that no call that is on its way is lost. */
enum drain_state {
	DRAIN_NONE,
	DRAIN_NOTICE, /* "open no more": a ping is on its way behind it */
	DRAIN_FINAL,  /* the last call that is served is named */
};

struct grpc_connection {
	struct grpc_server *server;
	struct grpc_connection *next;
	struct grpc_connection *next_dirty;
	union {
		uv_handle_t handle;
		uv_stream_t stream;
		uv_pipe_t pipe;
		uv_tcp_t tcp;
	};
	uv_timer_t timer;
	unsigned int open_handles;
	enum connection_state state;
	enum drain_state drain;
	unsigned int busy; /* inside nghttp2, or telling methods something */
	bool doomed;       /* to be closed at once, */
	bool last_words;   /* or when what is to be written is written */
	bool dirty;
	bool paused; /* has read its share of this turn */
	bool writing;
	bool shut;       /* for writing */
	bool drained;    /* some call's queue is empty */
	uint64_t due_ns; /* when its state takes too long */
	uint64_t timer_ns;

	struct tls_pipe *tls;
	nghttp2_session *h2;
	struct grpc_peer peer;
	char peer_name[GRPC_NAME_MAX];
	struct grpc_share *share; /* NULL while nobody knows who it is */

	struct grpc_call *calls;
	unsigned int n_calls;
	size_t queued; /* bytes of answers that wait, of all calls */
	uint64_t last_ping_ns;
	unsigned int ping_strikes;
	unsigned int resets; /* that it may still cause */
	uint64_t resets_ns;  /* when that was counted up */
};

struct chunk;

enum call_state {
	CALL_REQUEST, /* it is still coming in */
	CALL_RUNNING, /* the method's */
	CALL_FINISHED,
};

struct grpc_call {
	struct grpc_connection *connection;
	struct grpc_call *next;
	int32_t stream_id;
	enum call_state state;
	const struct grpc_method *method; /* NULL: unknown */
	uint64_t begun_ns;
	uint64_t deadline_ns; /* the client's */
	uint64_t request_ns;  /* until when more of the request must have come */

	size_t header_bytes;
	bool is_post;
	bool is_grpc;
	bool bad_encoding;
	bool bad_timeout;
	bool headers_done;
	bool request_done; /* END_STREAM has come */
	bool has_message;
	struct grpc_assembly in;
	size_t charged; /* to its client's request_bytes */

	bool responded; /* headers are with nghttp2 */
	bool ended;     /* so is, or will be, the status */
	bool deferred;  /* nghttp2 waits to be told of data */
	bool drained;   /* to be told to the method */
	unsigned int http_status;
	enum grpc_code code;
	struct grpc_status *status; /* NULL: the code says all */
	struct chunk *first;
	struct chunk *last;
	size_t queued;

	void (*gone)(struct grpc_call *call, void *arg);
	void (*writable)(struct grpc_call *call, void *arg);
	void *watch_arg;
};

/* server.c */

/* Somebody was turned away, or cut off. */
void server_refused(struct grpc_server *s, const struct grpc_peer *peer, enum refused_reason reason,
                    const char *fmt, ...) __attribute__((format(printf, 4, 5)));
const struct grpc_method *server_method(const struct grpc_server *s, const char *path, size_t len);
/* A handle was opened, or is closed: with the last one the server goes. */
void server_handle_opened(struct grpc_server *s);
void server_handle_closed(struct grpc_server *s);

/* share.c */

/* It is known now who it is. Return: 0; -ENOMEM. */
int share_join(struct grpc_connection *c);
void share_leave(struct grpc_connection *c);
/* Whether its client has room for what is counted already: this connection, a call, a request. */
bool share_has_connection(const struct grpc_share *share);
bool share_has_call(const struct grpc_server *s, const struct grpc_share *share);
bool share_has_request(const struct grpc_server *s, const struct grpc_share *share);
void share_charge_request(struct grpc_connection *c, size_t more, size_t less);
/* Bytes of answers that wait, or don't any more; whether others may join them. */
void share_charge_answer(struct grpc_connection *c, size_t more, size_t less);
bool share_has_answer(const struct grpc_connection *c);

/* listener.c */

void listener_init(struct grpc_listener *l, struct grpc_server *s);
/* What a local connection may do, by the groups as they are now. */
enum grpc_role listener_role_of(const struct grpc_listener *l, const struct grpc_connection *c);
void listener_stop(struct grpc_listener *l);
void listener_close(struct grpc_listener *l);

/* connection.c */

/*
 * connection_new() - of a socket that was accepted
 * @fd: taken over, also on failure
 * @tls: NULL for a local @peer, which is copied
 */
int connection_new(struct grpc_server *s, int fd, struct tls_context *tls,
                   const struct grpc_peer *peer);
/* Has connection_turn() called before the loop sleeps. */
void connection_wake(struct grpc_connection *c);
void connection_turn(struct grpc_connection *c);
/* Wake it at @at_ns at the latest. */
void connection_arm(struct grpc_connection *c, uint64_t at_ns);
void connection_drain(struct grpc_connection *c);
/* Who may call is told anew: its role is another, or its end has come. */
void connection_judge(struct grpc_connection *c);
/* At once; or, from inside it, as soon as it is left. */
void connection_close(struct grpc_connection *c);
/* With a last word to each call that runs. */
void connection_shut_down(struct grpc_connection *c);

/* session.c */

int session_callbacks_new(nghttp2_session_callbacks **ret);
int session_options_new(nghttp2_option **ret);
int session_new(struct grpc_connection *c);
/* Return: 0; -EPROTO where the connection is of no use any more. */
int session_input(struct grpc_connection *c, const uint8_t *data, size_t len);
/* Frames to be sent, into @buf. Return: bytes; -EPROTO */
ssize_t session_output(struct grpc_connection *c, uint8_t *buf, size_t size, size_t enough);
void session_drain(struct grpc_connection *c);
/* GOAWAY of the last call that is served. */
void session_goaway(struct grpc_connection *c, uint32_t error, const char *text);
/* It does too much of something that costs us more than it: GOAWAY, and the end. */
void session_calm_down(struct grpc_connection *c, const char *what);

/* call.c */

struct grpc_call *call_new(struct grpc_connection *c, int32_t stream_id);
struct grpc_call *call_free(struct grpc_call *call);
void call_header(struct grpc_call *call, const char *name, size_t name_len, const char *value,
                 size_t value_len);
void call_headers_done(struct grpc_call *call);
void call_data(struct grpc_call *call, const uint8_t *data, size_t len);
void call_request_end(struct grpc_call *call);
/* What is due is done. Return: when to look again. */
uint64_t call_tick(struct grpc_call *call, uint64_t now_ns);
/* The method, if it has the call, loses it; the status is what finished() will be told. */
void call_lose(struct grpc_call *call, enum grpc_code code);

/* answer.c */

/* The end of a call that no method has: @fmt is for a person. */
void answer_refuse(struct grpc_call *call, unsigned int http_status, enum grpc_code code,
                   const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* Have the status that is set go out. */
void answer_end(struct grpc_call *call);
/* RST_STREAM. */
void answer_reset(struct grpc_call *call, uint32_t error);
/* What waits is dropped. */
void answer_drop(struct grpc_call *call);

#endif

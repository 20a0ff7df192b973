/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc/server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/server_internal.h"

void server_refused(struct grpc_server *s, const struct grpc_peer *peer, enum refused_reason reason,
                    const char *fmt, ...)
{
	struct error why = ERROR_INIT;
	char who[GRPC_NAME_MAX + GRPC_ADDRESS_MAX + 32];
	va_list ap;

	s->refused_total++;
	va_start(ap, fmt);
	error_setv(&why, 0, fmt, ap);
	va_end(ap);
	if (peer->local)
		snprintf(who, sizeof who, "uid %u, gid %u (process %d%s%s)", peer->uid, peer->gid,
		         peer->pid, *peer->comm ? ", " : "", peer->comm);
	else if (*peer->name)
		snprintf(who, sizeof who, "\"%s\" at %s", peer->name, peer->address);
	else
		snprintf(who, sizeof who, "%s", peer->address);
	refused(REFUSED_AT_CONTROL, reason, who, "%s", why.text);
}

const struct grpc_method *server_method(const struct grpc_server *s, const char *path, size_t len)
{
	for (const struct grpc_method *m = s->config.methods; m->path; m++)
		if (strlen(m->path) == len && !memcmp(m->path, path, len))
			return m;
	return NULL;
}

static void server_free(struct grpc_server *s)
{
	nghttp2_session_callbacks_del(s->callbacks);
	nghttp2_option_del(s->options);
	free(s);
}

void server_handle_opened(struct grpc_server *s)
{
	s->open_handles++;
}

void server_handle_closed(struct grpc_server *s)
{
	if (!--s->open_handles)
		server_free(s);
}

static void on_turn(uv_prepare_t *turn)
{
	struct grpc_server *s = turn->data;

	while (s->dirty) {
		struct grpc_connection *c = s->dirty;

		s->dirty = c->next_dirty;
		c->dirty = false;
		connection_turn(c);
	}
}

static void on_turn_closed(uv_handle_t *handle)
{
	server_handle_closed(handle->data);
}

int grpc_server_new(uv_loop_t *loop, const struct grpc_server_config *config,
                    struct grpc_server **ret, struct error *err)
{
	struct grpc_server *s = calloc(1, sizeof *s);

	if (!s || session_callbacks_new(&s->callbacks) || session_options_new(&s->options)) {
		if (s)
			server_free(s);
		return error_set(err, -ENOMEM, "grpc server: out of memory");
	}
	s->config = *config;
	s->loop = loop;
	listener_init(&s->local, s);
	for (unsigned int i = 0; i < TCP_LISTEN_MAX; i++)
		listener_init(&s->tcp[i], s);
	uv_prepare_init(loop, &s->turn);
	s->turn.data = s;
	uv_prepare_start(&s->turn, on_turn);
	/* It is there for others and keeps no loop alive. */
	uv_unref((uv_handle_t *)&s->turn);
	server_handle_opened(s);
	*ret = s;
	return 0;
}

void grpc_server_judge(struct grpc_server *s)
{
	for (struct grpc_connection *c = s->connections; c; c = c->next)
		connection_judge(c);
}

void grpc_server_drain(struct grpc_server *s)
{
	if (s->draining)
		return;
	s->draining = true;
	listener_stop(&s->local);
	for (unsigned int i = 0; i < TCP_LISTEN_MAX; i++)
		listener_stop(&s->tcp[i]);
	for (struct grpc_connection *c = s->connections; c; c = c->next)
		connection_drain(c);
}

void grpc_server_close(struct grpc_server *s)
{
	if (!s || s->closing)
		return;
	s->closing = true;
	s->draining = true;
	listener_close(&s->local);
	for (unsigned int i = 0; i < TCP_LISTEN_MAX; i++)
		listener_close(&s->tcp[i]);
	for (struct grpc_connection *c = s->connections, *next; c; c = next) {
		next = c->next;
		connection_shut_down(c);
	}
	uv_close((uv_handle_t *)&s->turn, on_turn_closed);
}

void grpc_server_get_stats(const struct grpc_server *s, struct grpc_server_stats *ret)
{
	*ret = (struct grpc_server_stats){
		.connections = s->n_connections,
		.calls = s->n_calls,
		.connections_total = s->connections_total,
		.refused_total = s->refused_total,
	};
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What one client takes up, over all its connections. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/server_internal.h"

static struct grpc_share *find(struct grpc_server *s, bool local, const char *name)
{
	for (struct grpc_share *share = s->shares; share; share = share->next)
		if (share->local == local && !strcmp(share->name, name))
			return share;
	return NULL;
}

int share_join(struct grpc_connection *c)
{
	struct grpc_server *s = c->server;
	struct grpc_share *share = find(s, c->peer.local, c->peer.name);

	if (!share) {
		share = calloc(1, sizeof *share);
		if (!share)
			return -ENOMEM;
		share->local = c->peer.local;
		share->is_root = c->peer.local && c->peer.uid == 0;
		memcpy(share->name, c->peer_name, sizeof share->name);
		share->next = s->shares;
		s->shares = share;
	}
	share->n_connections++;
	c->share = share;
	return 0;
}

void share_leave(struct grpc_connection *c)
{
	struct grpc_share *share = c->share;

	c->share = NULL;
	if (!share || --share->n_connections)
		return;
	for (struct grpc_share **p = &c->server->shares; *p; p = &(*p)->next)
		if (*p == share) {
			*p = share->next;
			break;
		}
	free(share);
}

bool share_has_connection(const struct grpc_share *share)
{
	return share->is_root || share->n_connections <= GRPC_CLIENT_CONNECTIONS_MAX;
}

bool share_has_call(const struct grpc_server *s, const struct grpc_share *share)
{
	if (share->is_root)
		return s->n_calls <= GRPC_CALLS_MAX + GRPC_ROOT_SPARE;
	return s->n_calls <= GRPC_CALLS_MAX && share->n_calls <= GRPC_CLIENT_CALLS_MAX;
}

void share_charge_request(struct grpc_connection *c, size_t more, size_t less)
{
	c->share->request_bytes += more;
	c->share->request_bytes -= less;
	if (c->share->is_root)
		return;
	c->server->request_bytes += more;
	c->server->request_bytes -= less;
}

bool share_has_request(const struct grpc_server *s, const struct grpc_share *share)
{
	if (share->is_root)
		return share->request_bytes <= GRPC_REQUESTS_BYTES_MAX;
	return s->request_bytes <= GRPC_REQUESTS_BYTES_MAX &&
	       share->request_bytes <= GRPC_CLIENT_REQUESTS_BYTES_MAX;
}

void share_charge_answer(struct grpc_connection *c, size_t more, size_t less)
{
	c->queued += more;
	c->queued -= less;
	c->share->queued += more;
	c->share->queued -= less;
}

bool share_has_answer(const struct grpc_connection *c)
{
	return c->queued <= GRPC_QUEUE_MAX &&
	       (c->share->is_root || c->share->queued <= GRPC_CLIENT_QUEUE_MAX);
}

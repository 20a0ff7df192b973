/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "postcopyd/groups.h"
#include "postcopyd/listeners.h"
#include "rpc/service.h"
#include "util/cleanup.h"
#include "util/log.h"

struct control {
	struct rpc *rpc;
	/* TCP's: this host's certificate, the names that may drive it. */
	struct tls_config tls_config;
	struct tls_context *tls;
};

static struct grpc_groups grpc_groups(const struct groups *operators, const struct groups *readers)
{
	return (struct grpc_groups){ operators->gids, operators->n, readers->gids, readers->n };
}

static void open_up(const struct options *o)
{
	if (o->control_groups.n || o->control_read_groups.n)
		listener_open_up(o->control_path, "control-group");
}

void control_set(struct control *c, const struct options *o, const struct groups *operators,
                 const struct groups *readers)
{
	const struct grpc_groups groups = grpc_groups(operators, readers);

	open_up(o);
	if (grpc_server_set_groups(rpc_server(c->rpc), &groups))
		log_error("control-group: out of memory; those of before stay");
	/* By these, and by the names that its certificates were loaded with. */
	grpc_server_judge(rpc_server(c->rpc));
	rpc_set_limits(c->rpc, (unsigned int)o->max_streams, o->bandwidth_bytes_per_s);
}

/* Takes over @fd in any case. */
static int listen_unix(struct control *c, const struct options *o, int fd, struct error *err)
{
	struct groups operators, readers;
	struct grpc_listen_unix listen = { .path = o->control_path, .fd = fd };
	int rc = groups_find(&o->control_groups, "control-group", &operators, err);

	if (!rc)
		rc = groups_find(&o->control_read_groups, "control-read-group", &readers, err);
	if (!rc) {
		listen.groups = grpc_groups(&operators, &readers);
		open_up(o);
		rc = grpc_server_listen_unix(rpc_server(c->rpc), &listen, err);
	}
	if (rc)
		close(fd);
	return rc;
}

const struct tls_config *control_tls_config(struct control *c, const struct options *o)
{
	c->tls_config = o->tls;
	c->tls_config.alpn = "h2";
	c->tls_config.wipes = true;
	/* Also where the last of them goes while it listens. */
	c->tls_config.needs_name = true;
	c->tls_config.n_allowed_names = o->control_allow.n;
	c->tls_config.allowed_names = o->control_allow.names;
	c->tls_config.n_limited_names = o->control_read.n;
	c->tls_config.limited_names = o->control_read.names;
	return &c->tls_config;
}

/* Takes over @given in any case. */
static int listen_tls(struct control *c, const struct options *o, struct tcp_listening *given,
                      struct error *err)
{
	struct grpc_listen_tls listen = { .address = o->control_listen,
		                          .given = given->n ? given : NULL };
	char text[TCP_LISTEN_MAX * TCP_ADDRESS_MAX];
	struct tcp_listening at;
	int rc = 0;

	if (!given->n && !o->control_listen)
		return 0;
	if (!o->control_allow.n && !o->control_read.n)
		rc = error_set(err, -EINVAL,
		               "the service manager gives a socket for gRPC over TCP, but "
		               "control-allow and control-read name nobody who may call");
	if (!rc)
		rc = tls_context_new(control_tls_config(c, o), &c->tls, err);
	if (rc) {
		tcp_listening_close(given);
		return rc;
	}
	listen.tls = c->tls;
	rc = grpc_server_listen_tls(rpc_server(c->rpc), &listen, err);
	if (rc)
		return rc;
	grpc_server_get_listening(rpc_server(c->rpc), &at);
	tcp_listening_print(&at, text, sizeof text);
	log_info("gRPC over TCP on port %u: %s", control_port(c), text);
	return 0;
}

int control_new(uv_loop_t *loop, const struct control_config *config, struct control **ret,
                struct error *err)
{
	const struct options *o = config->options;
	struct control *c = calloc(1, sizeof *c);
	struct tcp_listening tcp = config->tcp;
	struct rpc_config rpc;
	int rc;

	if (!c) {
		close(config->unix_fd);
		tcp_listening_close(&tcp);
		return error_set(err, -ENOMEM, "out of memory");
	}
	rpc = (struct rpc_config){
		.migrations = config->migrations,
		.stalls = config->stalls,
		.version = POSTCOPY_VERSION,
		.pages_address = config->pages_address,
		.pages = config->pages,
		.max_streams = (unsigned int)o->max_streams,
		.bandwidth_bytes_per_s = o->bandwidth_bytes_per_s,
		.config_error = config->config_error,
		.reload = config->reload,
		.certificate_expiry_s = config->certificate_expiry_s,
		.finished = config->finished,
		.arg = config->arg,
	};
	rc = rpc_new(loop, &rpc, &c->rpc, err);
	if (rc)
		close(config->unix_fd);
	else
		rc = listen_unix(c, o, config->unix_fd, err);
	if (!rc) {
		rc = listen_tls(c, o, &tcp, err);
		if (rc && config->may_lack_tcp) {
			log_error("gRPC over TCP is not served: %s", err->text);
			rc = 0;
		}
	} else {
		tcp_listening_close(&tcp);
	}
	/* Also half open: the caller closes it, lets the loop run on, and frees it. */
	*ret = c;
	return rc;
}

unsigned int control_port(const struct control *c)
{
	return grpc_server_port(rpc_server(c->rpc));
}

struct tls_context *control_tls(const struct control *c)
{
	return c->tls;
}

struct rpc *control_rpc(struct control *c)
{
	return c->rpc;
}

void control_close(struct control *c)
{
	if (c)
		rpc_close(c->rpc);
}

struct control *control_free(struct control *c)
{
	if (!c)
		return NULL;
	rpc_free(c->rpc);
	tls_context_free(c->tls);
	free(c);
	return NULL;
}

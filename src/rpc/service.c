/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/service.h"

#include <errno.h>
#include <stdlib.h>

#include "rpc/methods.h"

static void on_finished(void *arg, const struct grpc_peer *peer, const char *path,
                        enum grpc_code code, uint64_t duration_ns)
{
	struct rpc *rpc = arg;

	if (rpc->config.finished)
		rpc->config.finished(rpc->config.arg, peer, path, code, duration_ns);
}

int rpc_new(uv_loop_t *loop, const struct rpc_config *config, struct rpc **ret, struct error *err)
{
	struct rpc *rpc = calloc(1, sizeof *rpc);
	struct grpc_server_config server;
	int rc;

	if (!rpc)
		return error_set(err, -ENOMEM, "out of memory");
	rc = rpc_init(rpc, loop, config, err);
	server = (struct grpc_server_config){
		.methods = rpc->methods,
		.arg = rpc,
		.denied = rpc_denied,
		.finished = on_finished,
	};
	if (!rc)
		rc = grpc_server_new(loop, &server, &rpc->server, err);
	if (rc) {
		rpc_free(rpc);
		return rc;
	}
	*ret = rpc;
	return 0;
}

struct grpc_server *rpc_server(struct rpc *rpc)
{
	return rpc->server;
}

void rpc_drain(struct rpc *rpc)
{
	if (rpc->draining)
		return;
	rpc->draining = true;
	health_changed(rpc);
}

void rpc_close(struct rpc *rpc)
{
	if (!rpc || !rpc->server)
		return;
	grpc_server_close(rpc->server);
	rpc->server = NULL;
}

struct rpc *rpc_free(struct rpc *rpc)
{
	if (!rpc)
		return NULL;
	rpc_deinit(rpc);
	free(rpc);
	return NULL;
}

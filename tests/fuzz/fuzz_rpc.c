/* SPDX-License-Identifier: Apache-2.0 */
/* Requests of the gRPC service: the first byte picks the method, the rest is its request. */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migrate/migrate.h"
#include "rpc/methods.h"
#include "util/log.h"
#include "util/unix_listen.h"

const unsigned int fuzz_rounds = 200000;

struct grpc_call {
	bool finished;
	enum grpc_code code;
	size_t sent;
	void (*gone)(struct grpc_call *call, void *arg);
	void *arg;
};

int grpc_call_send(struct grpc_call *call, const void *message, size_t len)
{
	(void)message;
	(void)len;
	FUZZ_CHECK(!call->finished);
	call->sent++;
	return 0;
}

static struct grpc_peer caller = { .local = true, .role = GRPC_OPERATOR, .name = "uid 0" };

const struct grpc_peer *grpc_call_peer(const struct grpc_call *call)
{
	(void)call;
	return &caller;
}

static const struct grpc_method *called;

const struct grpc_method *grpc_call_method(const struct grpc_call *call)
{
	(void)call;
	return called;
}

void grpc_server_get_listening(const struct grpc_server *s, struct tcp_listening *ret)
{
	(void)s;
	ret->n = 0;
}

size_t grpc_call_queued(const struct grpc_call *call)
{
	(void)call;
	return 0;
}

void grpc_call_finish(struct grpc_call *call, const struct grpc_status *status)
{
	FUZZ_CHECK(!call->finished);
	call->finished = true;
	call->gone = NULL;
	if (!status)
		return;
	call->code = status->code;
	FUZZ_CHECK(status->code > GRPC_OK && status->code < GRPC_CODES);
	FUZZ_CHECK(*status->message && status->details_len);
}

void grpc_call_watch(struct grpc_call *call, void (*gone)(struct grpc_call *call, void *arg),
                     void (*writable)(struct grpc_call *call, void *arg), void *arg)
{
	(void)writable;
	FUZZ_CHECK(!call->finished);
	call->gone = gone;
	call->arg = arg;
}

static struct fixture {
	uv_loop_t loop;
	struct migrations *migrations;
	struct rpc rpc;
	size_t n_methods;
} f;

static void set_up(void)
{
	char dir[] = "/tmp/fuzz-rpc-XXXXXX", path[64];
	struct migrations_config config = { .max_vmstate_bytes = 1 };
	struct rpc_config rpc = { .version = "0", .pages_address = "" };

	log_init("fuzz", LOG_LEVEL_ERROR, LOG_FORMAT_LOGFMT);
	FUZZ_CHECK(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/vmm", dir);
	uv_loop_init(&f.loop);
	config.vmm_fd = unix_listen(path, SOCK_SEQPACKET, "VMM socket", NULL);
	FUZZ_CHECK(!migrations_new(&f.loop, &config, &f.migrations, NULL));
	unlink(path);
	rmdir(dir);
	rpc.migrations = f.migrations;
	FUZZ_CHECK(!rpc_init(&f.rpc, &f.loop, &rpc, NULL));
	while (f.rpc.methods[f.n_methods].path)
		f.n_methods++;
}

/* So that they don't grow in number: those that have ended are forgotten by and by. */
static void end_migrations(void)
{
	for (struct migration *m = migrations_next(f.migrations, NULL); m;
	     m = migrations_next(f.migrations, m))
		migration_cancel(m, NULL);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	struct grpc_call call = { .finished = false };
	const struct grpc_method *method;

	if (!f.migrations)
		set_up();
	if (!size)
		return 0;
	method = &f.rpc.methods[data[0] % f.n_methods];
	/* It takes its time, whatever the request. */
	if (!strcmp(method->path, "/postcopy.v1.Host/Check"))
		return 0;
	called = method;
	method->call(&call, data + 1, size - 1, &f.rpc);
	FUZZ_CHECK(call.finished || call.gone || method->client_streams);
	FUZZ_CHECK(call.code || call.sent);
	if (call.gone)
		call.gone(&call, call.arg);
	end_migrations();
	uv_run(&f.loop, UV_RUN_NOWAIT);
	return 0;
}

static size_t pack_seed(uint8_t method, const void *request, uint8_t *buf)
{
	buf[0] = method;
	return 1 + protobuf_c_message_pack(request, buf + 1);
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	Postcopy__V1__PrepareRequest prepare = POSTCOPY__V1__PREPARE_REQUEST__INIT;
	Postcopy__V1__ListRequest list = POSTCOPY__V1__LIST_REQUEST__INIT;
	Postcopy__V1__WatchRequest watch = POSTCOPY__V1__WATCH_REQUEST__INIT;
	Postcopy__V1__Limits limits = POSTCOPY__V1__LIMITS__INIT;
	Google__Protobuf__Duration interval = GOOGLE__PROTOBUF__DURATION__INIT;
	Postcopy__V1__State states[2] = { POSTCOPY__V1__STATE__STATE_PREPARED,
		                          POSTCOPY__V1__STATE__STATE_CANCELLED };

	prepare.id = watch.id = (char *)"v";
	switch (i) {
	case 0:
		prepare.role = POSTCOPY__V1__ROLE__ROLE_DESTINATION;
		prepare.token.data = (uint8_t *)"secretsecretsecretsecretsecretse";
		prepare.token.len = 32;
		prepare.source_address = (char *)"h:1";
		prepare.limits = &limits;
		limits.optional_streams_case = POSTCOPY__V1__LIMITS__OPTIONAL_STREAMS_STREAMS;
		limits.streams = 3;
		return pack_seed(0, &prepare, buf);
	case 1:
		list.states = states;
		list.n_states = 2;
		list.page_size = 1;
		list.page_token = (char *)"00";
		return pack_seed(4, &list, buf);
	case 2:
		interval.seconds = 1;
		interval.nanos = 1;
		watch.interval = &interval;
		return pack_seed(5, &watch, buf);
	default:
		return 0;
	}
}

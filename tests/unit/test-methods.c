/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gRPC methods without a wire: calls are faked here, migrations are real ones that no VMM and
 * no peer ever meets.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "migrate/migrate.h"
#include "rpc/methods.h"
#include "support.h"
#include "util/clock.h"
#include "util/unix_listen.h"

#define MESSAGES_MAX 8
#define MIGRATIONS_MAX 2000
#define CLIENT_MIGRATIONS_MAX 3
#define MIGRATIONS "/postcopy.v1.Migrations/"

/* The transport's half, as grpc/server.h promises it. */
struct grpc_call {
	struct {
		uint8_t *bytes;
		size_t len;
	} messages[MESSAGES_MAX];
	size_t n;
	bool finished;
	struct grpc_status status;
	size_t queued;
	bool no_memory;
	void (*gone)(struct grpc_call *call, void *arg);
	void (*writable)(struct grpc_call *call, void *arg);
	void *arg;
};

int grpc_call_send(struct grpc_call *call, const void *message, size_t len)
{
	assert_false(call->finished);
	if (call->no_memory)
		return -ENOMEM;
	assert_true(call->n < MESSAGES_MAX);
	call->messages[call->n].bytes = malloc(len + 1);
	memcpy(call->messages[call->n].bytes, message, len);
	call->messages[call->n++].len = len;
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
	return call->queued;
}

void grpc_call_finish(struct grpc_call *call, const struct grpc_status *status)
{
	assert_false(call->finished);
	call->finished = true;
	call->gone = call->writable = NULL;
	if (status)
		call->status = *status;
}

void grpc_call_watch(struct grpc_call *call, void (*gone)(struct grpc_call *call, void *arg),
                     void (*writable)(struct grpc_call *call, void *arg), void *arg)
{
	assert_false(call->finished);
	call->gone = gone;
	call->writable = writable;
	call->arg = arg;
}

static void call_clear(struct grpc_call *call)
{
	for (size_t i = 0; i < call->n; i++)
		free(call->messages[i].bytes);
	*call = (struct grpc_call){ .n = 0 };
}

struct fixture {
	char dir[40];
	char socket[64];
	uv_loop_t loop;
	struct migrations *ms;
	struct rpc rpc;
	struct grpc_call call;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct migrations_config config = {
		.max_vmstate_bytes = 1 << 20,
		.max_migrations = MIGRATIONS_MAX,
		.max_ended = 32,
		.max_client_migrations = CLIENT_MIGRATIONS_MAX,
	};
	struct rpc_config rpc = { .version = "1.2.3", .pages_address = "" };
	struct error err = ERROR_INIT;

	strcpy(f->dir, "/tmp/test-methods-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->socket, sizeof f->socket, "%s/vmm.sock", f->dir);
	config.vmm_fd = unix_listen(f->socket, SOCK_SEQPACKET, "VMM socket", NULL);
	uv_loop_init(&f->loop);
	if (migrations_new(&f->loop, &config, &f->ms, &err))
		fail_msg("%s", err.text);
	rpc.migrations = f->ms;
	if (rpc_init(&f->rpc, &f->loop, &rpc, &err))
		fail_msg("%s", err.text);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	migrations_stop(f->ms);
	migrations_close(f->ms);
	uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(f->rpc.n_streams, 0);
	rpc_deinit(&f->rpc);
	migrations_free(f->ms);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	call_clear(&f->call);
	unlink(f->socket);
	rmdir(f->dir);
	free(f);
	return 0;
}

/* A request as the transport hands it over. */
static void call_bytes(struct fixture *f, struct grpc_call *call, const char *path,
                       const void *bytes, size_t len)
{
	for (const struct grpc_method *m = f->rpc.methods; m->path; m++)
		if (!strcmp(m->path, path)) {
			called = m;
			m->call(call, bytes, len, &f->rpc);
			return;
		}
	fail_msg("no method %s", path);
}

static void call_on(struct fixture *f, struct grpc_call *call, const char *path,
                    const void *request)
{
	uint8_t bytes[4096];

	assert_true(protobuf_c_message_get_packed_size(request) <= sizeof bytes);
	call_bytes(f, call, path, bytes, protobuf_c_message_pack(request, bytes));
}

/* The answer in @type; freed by message_free(). */
static void *answer_of(const struct grpc_call *call, size_t i,
                       const ProtobufCMessageDescriptor *type)
{
	ProtobufCMessage *answer;

	assert_true(i < call->n);
	answer = protobuf_c_message_unpack(type, NULL, call->messages[i].len,
	                                   call->messages[i].bytes);
	assert_non_null(answer);
	return answer;
}

/* A unary call that must succeed. */
static void *accepted(struct fixture *f, const char *path, const void *request,
                      const ProtobufCMessageDescriptor *type)
{
	call_clear(&f->call);
	call_on(f, &f->call, path, request);
	if (!f->call.finished || f->call.status.code)
		fail_msg("%s: %s", path, f->call.status.message);
	assert_int_equal(f->call.n, 1);
	return answer_of(&f->call, 0, type);
}

static Postcopy__V1__Migration *migration_of(struct fixture *f, const char *path,
                                             const void *request)
{
	return accepted(f, path, request, &postcopy__v1__migration__descriptor);
}

static void accept_and_drop(struct fixture *f, const char *path, const void *request)
{
	message_free(&migration_of(f, path, request)->base);
}

/* How a call was refused: the code, the reason, the text; and the details say the same. */
static void check_refusal(const struct grpc_call *call, enum grpc_code code, const char *reason,
                          const char *needle)
{
	Google__Rpc__Status *status;
	Google__Rpc__ErrorInfo *info;

	assert_true(call->finished);
	assert_int_equal(call->n, 0);
	if (call->status.code != code || !strstr(call->status.message, needle))
		fail_msg("%s \"%s\", not %s \"%s\"", grpc_code_name(call->status.code),
		         call->status.message, grpc_code_name(code), needle);
	status = google__rpc__status__unpack(NULL, call->status.details_len, call->status.details);
	assert_non_null(status);
	assert_int_equal(status->code, code);
	assert_string_equal(status->message, call->status.message);
	assert_int_equal(status->n_details, 1);
	assert_string_equal(status->details[0]->type_url,
	                    "type.googleapis.com/google.rpc.ErrorInfo");
	info = google__rpc__error_info__unpack(NULL, status->details[0]->value.len,
	                                       status->details[0]->value.data);
	assert_non_null(info);
	assert_string_equal(info->domain, "postcopyd");
	assert_string_equal(info->reason, reason);
	if (!strcmp(reason, "INVALID_FIELD")) {
		assert_int_equal(info->n_metadata, 1);
		assert_string_equal(info->metadata[0]->key, "field");
		assert_non_null(strstr(call->status.message, info->metadata[0]->value));
	}
	google__rpc__error_info__free_unpacked(info, NULL);
	google__rpc__status__free_unpacked(status, NULL);
}

static void refused(struct fixture *f, const char *path, const void *request, enum grpc_code code,
                    const char *reason, const char *needle)
{
	call_clear(&f->call);
	call_on(f, &f->call, path, request);
	check_refusal(&f->call, code, reason, needle);
}

static const uint8_t token[TOKEN_BYTES] = "secretsecretsecretsecretsecret!";

/* A good destination's Prepare. */
static Postcopy__V1__PrepareRequest prepare_request(const char *id)
{
	Postcopy__V1__PrepareRequest r = POSTCOPY__V1__PREPARE_REQUEST__INIT;

	r.id = (char *)id;
	r.role = POSTCOPY__V1__ROLE__ROLE_DESTINATION;
	r.token = (ProtobufCBinaryData){ .len = sizeof token, .data = (uint8_t *)token };
	r.source_address = (char *)"host:1234";
	return r;
}

static void prepare(struct fixture *f, const char *id)
{
	Postcopy__V1__PrepareRequest r = prepare_request(id);

	accept_and_drop(f, MIGRATIONS "Prepare", &r);
}

static void cancel(struct fixture *f, const char *id)
{
	Postcopy__V1__CancelRequest r = POSTCOPY__V1__CANCEL_REQUEST__INIT;

	r.id = (char *)id;
	accept_and_drop(f, MIGRATIONS "Cancel", &r);
}

static size_t count_migrations(struct fixture *f)
{
	Postcopy__V1__ListRequest r = POSTCOPY__V1__LIST_REQUEST__INIT;
	Postcopy__V1__ListResponse *answer =
	        accepted(f, MIGRATIONS "List", &r, &postcopy__v1__list_response__descriptor);
	size_t n = answer->n_migrations;

	message_free(&answer->base);
	return n;
}

/* 4, or as many as there are CPUs. */
static unsigned int default_streams(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	return cpus < 4 ? (unsigned int)cpus : 4;
}

static void test_prepare_announces_a_migration(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__PrepareRequest r = prepare_request("vm7");
	Postcopy__V1__Migration *m;
	uint64_t before_s = clock_real_ns() / NSEC_PER_SEC;

	r.source_address = (char *)"[::1]:1234";
	m = migration_of(f, MIGRATIONS "Prepare", &r);
	assert_string_equal(m->id, "vm7");
	assert_int_equal(m->role, POSTCOPY__V1__ROLE__ROLE_DESTINATION);
	assert_int_equal(m->state, POSTCOPY__V1__STATE__STATE_PREPARED);
	assert_true(m->prepare_time->seconds >= (int64_t)before_s);
	assert_int_equal(m->prepare_time->nanos, m->state_time->nanos);
	assert_int_equal(m->half_case, POSTCOPY__V1__MIGRATION__HALF_DESTINATION);
	assert_string_equal(m->destination->source_address, "[::1]:1234");
	assert_int_equal(m->destination->limits->streams, default_streams());
	assert_true(m->destination->limits->bulk);
	assert_true(m->destination->limits->prefetch);
	assert_null(m->destination->downtime);
	assert_null(m->destination->elapsed);
	message_free(&m->base);
	assert_int_equal(count_migrations(f), 1);
	for (size_t i = 0; i + 6 <= f->call.messages[0].len; i++)
		assert_memory_not_equal(f->call.messages[0].bytes + i, "secret", 6);
}

/* One client had all there was, and the others' guests could not be moved. */
static void test_clients_have_shares(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__PrepareRequest r;
	char id[16];

	caller = (struct grpc_peer){ .local = true, .uid = 1000, .name = "uid 1000" };
	for (unsigned int i = 0; i <= CLIENT_MIGRATIONS_MAX; i++) {
		snprintf(id, sizeof id, "a%u", i);
		r = prepare_request(id);
		if (i < CLIENT_MIGRATIONS_MAX)
			message_free(&migration_of(f, MIGRATIONS "Prepare", &r)->base);
		else
			refused(f, MIGRATIONS "Prepare", &r, GRPC_RESOURCE_EXHAUSTED, "TOO_MANY",
			        "max-client-migrations");
	}
	caller = (struct grpc_peer){ .name = "postcopy:other" };
	r = prepare_request("b");
	message_free(&migration_of(f, MIGRATIONS "Prepare", &r)->base);
	/* Again is no more. */
	caller = (struct grpc_peer){ .local = true, .uid = 1000, .name = "uid 1000" };
	r = prepare_request("a0");
	message_free(&migration_of(f, MIGRATIONS "Prepare", &r)->base);
	caller = (struct grpc_peer){ .local = true, .name = "uid 0" };
}

/* Who prepares and cancels without end had everybody else's forgotten; and a destination that asks
 * its source again how it ended must be told. */
static void test_what_has_ended_is_not_forgotten_for_others(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__PrepareRequest r = prepare_request("mine");
	Postcopy__V1__CancelRequest cancel = POSTCOPY__V1__CANCEL_REQUEST__INIT;
	Postcopy__V1__GetRequest get = POSTCOPY__V1__GET_REQUEST__INIT;
	char id[16];

	cancel.id = get.id = (char *)"mine";
	message_free(&migration_of(f, MIGRATIONS "Prepare", &r)->base);
	message_free(&migration_of(f, MIGRATIONS "Cancel", &cancel)->base);
	caller = (struct grpc_peer){ .local = true, .uid = 1000, .name = "uid 1000" };
	for (unsigned int i = 0; i < 100; i++) {
		snprintf(id, sizeof id, "a%u", i);
		r = prepare_request(id);
		cancel.id = id;
		message_free(&migration_of(f, MIGRATIONS "Prepare", &r)->base);
		message_free(&migration_of(f, MIGRATIONS "Cancel", &cancel)->base);
	}
	caller = (struct grpc_peer){ .local = true, .name = "uid 0" };
	message_free(&migration_of(f, MIGRATIONS "Get", &get)->base);
	assert_int_equal(count_migrations(f), 32 + 1);
}

static void test_each_bad_field_is_refused_by_its_name(void **state)
{
	struct fixture *f = *state;
	const char long_id[] = "0123456789012345678901234567890123456789012345678901234567890123x";
	const char *const ids[] = { "", ".vm7", "vm 7", "../vm7", long_id, "vm\xc3\xa9" };
	const char *const sources[] = { "",      "host",       "host:",   ":1234",
		                        "[]:12", "host:65536", "host:0x", "host:0" };
	Postcopy__V1__PrepareRequest r;
	Postcopy__V1__Limits limits = POSTCOPY__V1__LIMITS__INIT;

	for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
		r = prepare_request(ids[i]);
		refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "id");
	}
	for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
		r = prepare_request("vm7");
		r.source_address = (char *)sources[i];
		refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD",
		        "source_address");
	}
	for (int role = -1; role <= 3; role++) {
		if (role == 1 || role == 2)
			continue;
		r = prepare_request("vm7");
		r.role = (Postcopy__V1__Role)role;
		refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD",
		        "role");
	}
	r = prepare_request("vm7");
	for (r.token.len = 0; r.token.len < TOKEN_BYTES; r.token.len++) {
		refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD",
		        "token");
		assert_null(strstr(f->call.status.message, "secret"));
	}
	r = prepare_request("vm7");
	r.map = (Postcopy__V1__MapPolicy)3;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "map");
	r = prepare_request("vm7");
	r.limits = &limits;
	limits.optional_streams_case = POSTCOPY__V1__LIMITS__OPTIONAL_STREAMS_STREAMS;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "streams");
	limits.streams = 17;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "streams");
	assert_int_equal(count_migrations(f), 0);
	limits.streams = 16;
	accept_and_drop(f, MIGRATIONS "Prepare", &r);
}

/*
 * Of 32 bytes any would do: an orchestrator that forgot to fill them in got a migration that
 * whoever reaches the port could ask for.
 */
static void test_a_token_of_zeroes_is_refused(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__PrepareRequest r = prepare_request("vm7");
	uint8_t zero[TOKEN_BYTES] = { 0 };

	r.token.data = zero;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "token");
	assert_non_null(strstr(f->call.status.message, "openssl rand -hex 32"));
	assert_int_equal(count_migrations(f), 0);
	zero[TOKEN_BYTES - 1] = 1;
	accept_and_drop(f, MIGRATIONS "Prepare", &r);
}

static void test_a_source_takes_nothing_of_a_destination(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__Limits limits = POSTCOPY__V1__LIMITS__INIT;
	Postcopy__V1__PrepareRequest r = prepare_request("vm7");

	r.role = POSTCOPY__V1__ROLE__ROLE_SOURCE;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD",
	        "source_address");
	r.source_address = (char *)"";
	r.map = POSTCOPY__V1__MAP_POLICY__MAP_POLICY_LAZY;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "map");
	r.map = POSTCOPY__V1__MAP_POLICY__MAP_POLICY_UNSPECIFIED;
	r.limits = &limits;
	limits.optional_weight_case = POSTCOPY__V1__LIMITS__OPTIONAL_WEIGHT_WEIGHT;
	limits.optional_bulk_case = POSTCOPY__V1__LIMITS__OPTIONAL_BULK_BULK;
	limits.weight = 7;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "limits");
	limits.optional_bulk_case = 0;
	limits.weight = 1001;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD",
	        "limits.weight");
	limits.weight = 1000;
	/* Its weight is its own. All is well with it but that this daemon does not listen. */
	refused(f, MIGRATIONS "Prepare", &r, GRPC_FAILED_PRECONDITION, "ROLE_UNAVAILABLE",
	        "--listen");
}

static void test_the_same_prepare_again_changes_nothing(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__PrepareRequest r = prepare_request("vm7");
	Postcopy__V1__Limits no_bulk = POSTCOPY__V1__LIMITS__INIT;
	Postcopy__V1__Limits no_prefetch = POSTCOPY__V1__LIMITS__INIT;
	uint8_t other[TOKEN_BYTES] = { 1 };

	prepare(f, "vm7");
	prepare(f, "vm7");
	assert_int_equal(count_migrations(f), 1);
	r.source_address = (char *)"host:1235";
	refused(f, MIGRATIONS "Prepare", &r, GRPC_ALREADY_EXISTS, "MIGRATION_EXISTS", "vm7");
	r = prepare_request("vm7");
	r.map = POSTCOPY__V1__MAP_POLICY__MAP_POLICY_EAGER;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_ALREADY_EXISTS, "MIGRATION_EXISTS", "vm7");
	/* These two were taken for the same: who asked for no bulk got it, and was told OK. */
	no_bulk.optional_bulk_case = POSTCOPY__V1__LIMITS__OPTIONAL_BULK_BULK;
	no_prefetch.optional_prefetch_case = POSTCOPY__V1__LIMITS__OPTIONAL_PREFETCH_PREFETCH;
	r = prepare_request("vm7");
	r.limits = &no_bulk;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_ALREADY_EXISTS, "MIGRATION_EXISTS", "vm7");
	r.limits = &no_prefetch;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_ALREADY_EXISTS, "MIGRATION_EXISTS", "vm7");
	r = prepare_request("vm7");
	r.token.data = other;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_ALREADY_EXISTS, "MIGRATION_EXISTS", "vm7");
	assert_int_equal(count_migrations(f), 1);
}

/* All methods whose request has an id as its first field: so one message packs for all. */
static const char *const methods_with_id[] = {
	MIGRATIONS "Start",     MIGRATIONS "Switchover", MIGRATIONS "Get",
	MIGRATIONS "Watch",     MIGRATIONS "Cancel",     MIGRATIONS "Recover",
	MIGRATIONS "SetLimits", MIGRATIONS "GetReport",  MIGRATIONS "ListMissing",
	MIGRATIONS "Poison",    MIGRATIONS "Delete",     MIGRATIONS "SetToken",
};
#define N_METHODS 24 /* of all services */
#define N_WITH_ID (sizeof methods_with_id / sizeof *methods_with_id)

static void test_ids_that_are_none_or_unknown(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__GetRequest r = POSTCOPY__V1__GET_REQUEST__INIT;

	prepare(f, "vm7");
	for (size_t i = 0; i < N_WITH_ID; i++) {
		r.id = (char *)"vm8";
		refused(f, methods_with_id[i], &r, GRPC_NOT_FOUND, "MIGRATION_NOT_FOUND", "vm8");
		r.id = (char *)"";
		refused(f, methods_with_id[i], &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "id");
		r.id = (char *)"a/b";
		refused(f, methods_with_id[i], &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "id");
	}
}

static void test_text_that_is_none_is_refused(void **state)
{
	/* Field 1: an id with a NUL in it would be cut to another's; and what is not UTF-8. */
	static const uint8_t nul[] = { 0x0a, 5, 'v', 'm', '7', 0, 'x' };
	static const uint8_t latin[] = { 0x0a, 4, 'v', 'm', 0xe9, '7' };
	static const uint8_t surrogate[] = { 0x0a, 4, 'v', 0xed, 0xa0, 0x80 };
	struct fixture *f = *state;

	prepare(f, "vm7");
	for (size_t i = 0; i < N_WITH_ID; i++) {
		call_clear(&f->call);
		call_bytes(f, &f->call, methods_with_id[i], nul, sizeof nul);
		check_refusal(&f->call, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "id");
		call_clear(&f->call);
		call_bytes(f, &f->call, methods_with_id[i], latin, sizeof latin);
		check_refusal(&f->call, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "id");
		call_clear(&f->call);
		call_bytes(f, &f->call, methods_with_id[i], surrogate, sizeof surrogate);
		check_refusal(&f->call, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "id");
	}
}

static void call_garbage(struct fixture *f, const char *path, const void *bytes, size_t len)
{
	call_clear(&f->call);
	call_bytes(f, &f->call, path, bytes, len);
	check_refusal(&f->call, GRPC_INVALID_ARGUMENT, "INVALID_REQUEST", "the request is no ");
}

static void test_garbage_is_refused_by_each_method(void **state)
{
	static const uint8_t cut[] = { 0x0a, 200, 'v' };
	static const uint8_t endless[] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		                           0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	static const uint8_t group[] = { 0x0b, 0x0c };
	static uint8_t large[RPC_REQUEST_MAX + 1];
	struct fixture *f = *state;
	size_t n = 0;

	for (const struct grpc_method *m = f->rpc.methods; m->path; m++, n++) {
		call_garbage(f, m->path, cut, sizeof cut);
		call_garbage(f, m->path, endless, sizeof endless);
		call_garbage(f, m->path, group, sizeof group);
		call_clear(&f->call);
		call_bytes(f, &f->call, m->path, large, sizeof large);
		check_refusal(&f->call, GRPC_RESOURCE_EXHAUSTED, "INVALID_REQUEST", "65537 bytes");
	}
	assert_int_equal(n, N_METHODS);
}

/*
 * A newer client asks for what is not known here. It was dropped, and the client told OK: an
 * attachment that was to be one process's only was anybody's.
 */
static void test_what_a_newer_client_asks_for_is_refused(void **state)
{
	static const uint8_t number[] = { 0x0a, 3, 'v', 'm', '7', 0xf8, 0x06, 1 };
	static const uint8_t text[] = { 0x0a, 3, 'v', 'm', '7', 0xfa, 0x06, 1, 'x' };
	/* SetLimits: limits, and in them such a number. */
	static const uint8_t within[] = { 0x0a, 3, 'v', 'm', '7', 0x12, 3, 0xf8, 0x06, 1 };
	/* What is not ours, health: the same. */
	static const uint8_t foreign[] = { 0xf8, 0x06, 1 };
	struct fixture *f = *state;

	prepare(f, "vm7");
	for (size_t i = 0; i < N_WITH_ID; i++) {
		call_clear(&f->call);
		call_bytes(f, &f->call, methods_with_id[i], number, sizeof number);
		check_refusal(&f->call, GRPC_UNIMPLEMENTED, "NOT_SUPPORTED", "field 111");
		call_clear(&f->call);
		call_bytes(f, &f->call, methods_with_id[i], text, sizeof text);
		check_refusal(&f->call, GRPC_UNIMPLEMENTED, "NOT_SUPPORTED", "field 111");
	}
	call_clear(&f->call);
	call_bytes(f, &f->call, MIGRATIONS "SetLimits", within, sizeof within);
	check_refusal(&f->call, GRPC_UNIMPLEMENTED, "NOT_SUPPORTED", "Limits has field 111");
	call_clear(&f->call);
	call_bytes(f, &f->call, "/grpc.health.v1.Health/Check", foreign, sizeof foreign);
	assert_int_equal(f->call.status.code, GRPC_OK);
}

/* Whatever comes, each call ends or lasts, and nothing else happens (ASan looks on). */
static void test_random_requests_end_somehow(void **state)
{
	struct fixture *f = *state;
	uint64_t random = 1;

	prepare(f, "v");
	for (unsigned int round = 0; round < 20000; round++) {
		const struct grpc_method *m = &f->rpc.methods[random_below(&random, N_METHODS)];
		size_t len = random_below(&random, 24);
		uint8_t bytes[24];

		for (size_t i = 0; i < len; i++)
			bytes[i] = (uint8_t)(random_next(&random) >> 56);
		if (len > 3 && random_below(&random, 2)) {
			bytes[0] = 0x0a;
			bytes[1] = 1;
			bytes[2] = 'v';
		}
		if (strstr(m->path, "Host/Check"))
			continue;
		call_clear(&f->call);
		called = m;
		m->call(&f->call, bytes, len, &f->rpc);
		if (!f->call.finished && f->call.gone)
			f->call.gone(&f->call, f->call.arg);
		uv_run(&f->loop, UV_RUN_NOWAIT);
	}
}

static void test_nothing_starts_before_a_vmm_is_attached(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__StartRequest start = POSTCOPY__V1__START_REQUEST__INIT;
	Postcopy__V1__SwitchoverRequest switchover = POSTCOPY__V1__SWITCHOVER_REQUEST__INIT;

	prepare(f, "vm7");
	start.id = switchover.id = (char *)"vm7";
	refused(f, MIGRATIONS "Start", &start, GRPC_FAILED_PRECONDITION, "WRONG_STATE", "prepared");
	refused(f, MIGRATIONS "Switchover", &switchover, GRPC_FAILED_PRECONDITION, "WRONG_STATE",
	        "prepared");
}

static void test_cancel_ends_it_and_again_changes_nothing(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__CancelRequest r = POSTCOPY__V1__CANCEL_REQUEST__INIT;
	Postcopy__V1__StartRequest start = POSTCOPY__V1__START_REQUEST__INIT;

	prepare(f, "vm7");
	r.id = start.id = (char *)"vm7";
	for (int i = 0; i < 2; i++) {
		Postcopy__V1__Migration *m = migration_of(f, MIGRATIONS "Cancel", &r);

		assert_int_equal(m->state, POSTCOPY__V1__STATE__STATE_CANCELLED);
		message_free(&m->base);
	}
	refused(f, MIGRATIONS "Start", &start, GRPC_FAILED_PRECONDITION, "WRONG_STATE",
	        "cancelled");
}

static void test_limits_change_what_they_name(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__SetLimitsRequest r = POSTCOPY__V1__SET_LIMITS_REQUEST__INIT;
	Postcopy__V1__Limits limits = POSTCOPY__V1__LIMITS__INIT;
	Postcopy__V1__Migration *m;

	prepare(f, "vm7");
	r.id = (char *)"vm7";
	refused(f, MIGRATIONS "SetLimits", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "limits");
	r.limits = &limits;
	limits.optional_bulk_case = POSTCOPY__V1__LIMITS__OPTIONAL_BULK_BULK;
	limits.bulk = false;
	m = migration_of(f, MIGRATIONS "SetLimits", &r);
	assert_false(m->destination->limits->bulk);
	assert_true(m->destination->limits->prefetch);
	message_free(&m->base);
	limits.optional_streams_case = POSTCOPY__V1__LIMITS__OPTIONAL_STREAMS_STREAMS;
	limits.streams = 0;
	refused(f, MIGRATIONS "SetLimits", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "streams");
	limits.streams = 16;
	limits.optional_bulk_case = POSTCOPY__V1__LIMITS__OPTIONAL_BULK__NOT_SET;
	limits.optional_bandwidth_case =
	        POSTCOPY__V1__LIMITS__OPTIONAL_BANDWIDTH_BANDWIDTH_BYTES_PER_S;
	limits.bandwidth_bytes_per_s = UINT64_MAX;
	m = migration_of(f, MIGRATIONS "SetLimits", &r);
	assert_false(m->destination->limits->bulk);
	assert_int_equal(m->destination->limits->streams, 16);
	assert_true(m->destination->limits->bandwidth_bytes_per_s == UINT64_MAX);
	message_free(&m->base);
}

static void test_the_daemon_has_defaults_and_bounds(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__PrepareRequest r = prepare_request("vm7");
	Postcopy__V1__Limits limits = POSTCOPY__V1__LIMITS__INIT;
	Postcopy__V1__Migration *m;

	f->rpc.config.max_streams = 1;
	f->rpc.config.bandwidth_bytes_per_s = 1000;
	r.limits = &limits;
	limits.optional_streams_case = POSTCOPY__V1__LIMITS__OPTIONAL_STREAMS_STREAMS;
	limits.streams = 2;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "1..1");
	r.limits = NULL;
	m = migration_of(f, MIGRATIONS "Prepare", &r);
	assert_int_equal(m->destination->limits->streams, 1);
	assert_int_equal(m->destination->limits->bandwidth_bytes_per_s, 1000);
	message_free(&m->base);
}

/* One page of a list. */
static Postcopy__V1__ListResponse *list_page(struct fixture *f, uint32_t size, const char *from)
{
	Postcopy__V1__ListRequest r = POSTCOPY__V1__LIST_REQUEST__INIT;

	r.page_size = size;
	r.page_token = (char *)from;
	return accepted(f, MIGRATIONS "List", &r, &postcopy__v1__list_response__descriptor);
}

static void test_list_comes_in_pages_that_stay_put(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__ListResponse *page;
	char next[64];

	prepare(f, "a");
	prepare(f, "b");
	prepare(f, "c");
	page = list_page(f, 2, "");
	assert_int_equal(page->n_migrations, 2);
	assert_string_equal(page->migrations[0]->id, "c");
	assert_string_equal(page->migrations[1]->id, "b");
	snprintf(next, sizeof next, "%s", page->next_page_token);
	message_free(&page->base);
	/* What comes meanwhile is newer than any page to come. */
	prepare(f, "d");
	page = list_page(f, 2, next);
	assert_int_equal(page->n_migrations, 1);
	assert_string_equal(page->migrations[0]->id, "a");
	assert_string_equal(page->next_page_token, "");
	message_free(&page->base);
	page = list_page(f, 4, "");
	assert_int_equal(page->n_migrations, 4);
	assert_string_equal(page->next_page_token, "");
	message_free(&page->base);
}

static void test_list_filters_by_state(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__ListRequest r = POSTCOPY__V1__LIST_REQUEST__INIT;
	Postcopy__V1__State wanted = POSTCOPY__V1__STATE__STATE_CANCELLED;
	Postcopy__V1__ListResponse *page;

	prepare(f, "a");
	prepare(f, "b");
	cancel(f, "a");
	r.states = &wanted;
	r.n_states = 1;
	page = accepted(f, MIGRATIONS "List", &r, &postcopy__v1__list_response__descriptor);
	assert_int_equal(page->n_migrations, 1);
	assert_string_equal(page->migrations[0]->id, "a");
	message_free(&page->base);
	for (int bad = -1; bad <= 10; bad += 11) {
		wanted = (Postcopy__V1__State)bad;
		refused(f, MIGRATIONS "List", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "states");
	}
	wanted = POSTCOPY__V1__STATE__STATE_UNSPECIFIED;
	refused(f, MIGRATIONS "List", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "states");
}

static void test_a_page_token_of_another_list_is_refused(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__ListRequest r = POSTCOPY__V1__LIST_REQUEST__INIT;
	Postcopy__V1__State wanted = POSTCOPY__V1__STATE__STATE_PREPARED;
	Postcopy__V1__ListResponse *page;
	char next[64];

	prepare(f, "a");
	prepare(f, "b");
	page = list_page(f, 1, "");
	snprintf(next, sizeof next, "%s", page->next_page_token);
	message_free(&page->base);
	r.page_token = (char *)"x";
	refused(f, MIGRATIONS "List", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "page_token");
	/* The same with a filter; with another daemon's time in it; with something after it. */
	r.page_token = next;
	r.states = &wanted;
	r.n_states = 1;
	refused(f, MIGRATIONS "List", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "page_token");
	r.n_states = 0;
	strcat(next, "0");
	refused(f, MIGRATIONS "List", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "page_token");
	next[strlen(next) - 1] = 0;
	next[0] ^= 1;
	refused(f, MIGRATIONS "List", &r, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "page_token");
}

static void test_a_report_of_nothing_is_whole(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__GetReportRequest r = POSTCOPY__V1__GET_REPORT_REQUEST__INIT;
	Postcopy__V1__Report *report;

	prepare(f, "vm7");
	r.id = (char *)"vm7";
	report = accepted(f, MIGRATIONS "GetReport", &r, &postcopy__v1__report__descriptor);
	assert_string_equal(report->migration->id, "vm7");
	assert_int_equal(report->n_timeline, 0);
	message_free(&report->base);
}

static void watch(struct fixture *f, struct grpc_call *call, const char *id, int64_t seconds,
                  int32_t nanos)
{
	Postcopy__V1__WatchRequest r = POSTCOPY__V1__WATCH_REQUEST__INIT;
	Google__Protobuf__Duration interval = GOOGLE__PROTOBUF__DURATION__INIT;

	interval.seconds = seconds;
	interval.nanos = nanos;
	r.id = (char *)id;
	r.interval = &interval;
	call_clear(call);
	call_on(f, call, MIGRATIONS "Watch", &r);
}

static Postcopy__V1__State state_shown(const struct grpc_call *call, size_t i)
{
	Postcopy__V1__Migration *m = answer_of(call, i, &postcopy__v1__migration__descriptor);
	Postcopy__V1__State state = m->state;

	message_free(&m->base);
	return state;
}

static void test_watch_shows_each_change_and_ends_with_the_last(void **state)
{
	struct fixture *f = *state;
	struct grpc_call call = { .n = 0 };

	prepare(f, "vm7");
	watch(f, &call, "vm7", 3600, 0);
	assert_int_equal(call.n, 1);
	assert_false(call.finished);
	assert_int_equal(state_shown(&call, 0), POSTCOPY__V1__STATE__STATE_PREPARED);
	cancel(f, "vm7");
	assert_int_equal(call.n, 2);
	assert_int_equal(state_shown(&call, 1), POSTCOPY__V1__STATE__STATE_CANCELLED);
	assert_true(call.finished);
	assert_int_equal(call.status.code, GRPC_OK);
	/* What has ended already is shown once. */
	watch(f, &call, "vm7", 3600, 0);
	assert_int_equal(call.n, 1);
	assert_true(call.finished);
	call_clear(&call);
}

static void test_watch_shows_at_each_interval(void **state)
{
	struct fixture *f = *state;
	struct grpc_call call = { .n = 0 };

	prepare(f, "vm7");
	watch(f, &call, "vm7", 0, 50000000);
	while (call.n < 3)
		uv_run(&f->loop, UV_RUN_ONCE);
	call.gone(&call, call.arg);
	call_clear(&call);
}

static void test_a_slow_reader_is_shown_less_and_the_newest(void **state)
{
	struct fixture *f = *state;
	struct grpc_call slow = { .n = 0 }, quick = { .n = 0 };

	prepare(f, "vm7");
	watch(f, &slow, "vm7", 0, 50000000);
	slow.queued = 100;
	watch(f, &quick, "vm7", 0, 50000000);
	while (quick.n < 4)
		uv_run(&f->loop, UV_RUN_ONCE);
	assert_int_equal(slow.n, 1);
	slow.queued = 0;
	slow.writable(&slow, slow.arg);
	assert_int_equal(slow.n, 2);
	/* Nothing is due then: nothing is shown. */
	slow.writable(&slow, slow.arg);
	assert_int_equal(slow.n, 2);
	/* The last state comes even so. */
	slow.queued = 100;
	cancel(f, "vm7");
	assert_int_equal(slow.n, 3);
	assert_true(slow.finished);
	assert_true(quick.finished);
	call_clear(&slow);
	call_clear(&quick);
}

static void test_watchers_go_and_others_stay(void **state)
{
	struct fixture *f = *state;
	struct grpc_call calls[3] = { 0 };

	prepare(f, "vm7");
	for (int i = 0; i < 3; i++)
		watch(f, &calls[i], "vm7", 3600, 0);
	calls[1].gone(&calls[1], calls[1].arg);
	cancel(f, "vm7");
	assert_int_equal(calls[0].n, 2);
	assert_int_equal(calls[1].n, 1);
	assert_int_equal(calls[2].n, 2);
	for (int i = 0; i < 3; i++)
		call_clear(&calls[i]);
}

static void test_watch_without_memory_says_so(void **state)
{
	struct fixture *f = *state;
	struct grpc_call call = { .n = 0 };

	prepare(f, "vm7");
	watch(f, &call, "vm7", 3600, 0);
	call.no_memory = true;
	cancel(f, "vm7");
	assert_true(call.finished);
	assert_int_equal(call.status.code, GRPC_RESOURCE_EXHAUSTED);
	call_clear(&call);
}

static void test_intervals_are_bounded(void **state)
{
	static const struct {
		int64_t seconds;
		int32_t nanos;
	} bad[] = {
		{ 0, 0 },          { 0, 49999999 }, { 0, -1 },           { -1, 0 },
		{ 0, 1000000000 }, { 3600, 1 },     { INT64_MAX, 0 },    { INT64_MIN, 0 },
		{ -1, 50000000 },  { 1, -1 },       { 3601, 999999999 }, { 0, INT32_MIN },
	};
	struct fixture *f = *state;

	prepare(f, "vm7");
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		watch(f, &f->call, "vm7", bad[i].seconds, bad[i].nanos);
		check_refusal(&f->call, GRPC_INVALID_ARGUMENT, "INVALID_FIELD", "interval");
	}
}

static void test_streams_are_bounded(void **state)
{
	struct fixture *f = *state;

	prepare(f, "vm7");
	f->rpc.n_streams = RPC_STREAMS_MAX;
	watch(f, &f->call, "vm7", 1, 0);
	check_refusal(&f->call, GRPC_RESOURCE_EXHAUSTED, "TOO_MANY", "1024");
	f->rpc.n_streams = 0;
}

static void test_nothing_is_recovered_or_given_up_before_it_runs(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__RecoverRequest recover = POSTCOPY__V1__RECOVER_REQUEST__INIT;
	Postcopy__V1__PoisonRequest poison = POSTCOPY__V1__POISON_REQUEST__INIT;
	Postcopy__V1__ListMissingRequest missing = POSTCOPY__V1__LIST_MISSING_REQUEST__INIT;
	Postcopy__V1__ListMissingResponse *answer;

	prepare(f, "vm7");
	recover.id = poison.id = missing.id = (char *)"vm7";
	refused(f, MIGRATIONS "Recover", &recover, GRPC_FAILED_PRECONDITION, "WRONG_STATE",
	        "prepared");
	recover.source_address = (char *)"host";
	refused(f, MIGRATIONS "Recover", &recover, GRPC_INVALID_ARGUMENT, "INVALID_FIELD",
	        "source_address");
	refused(f, MIGRATIONS "Poison", &poison, GRPC_FAILED_PRECONDITION, "WRONG_STATE",
	        "prepared");
	answer = accepted(f, MIGRATIONS "ListMissing", &missing,
	                  &postcopy__v1__list_missing_response__descriptor);
	assert_int_equal(answer->n_ranges, 0);
	assert_int_equal(answer->missing_bytes, 0);
	message_free(&answer->base);
	missing.page_token = (char *)"0";
	refused(f, MIGRATIONS "ListMissing", &missing, GRPC_INVALID_ARGUMENT, "INVALID_FIELD",
	        "page_token");
}

static void test_draining_takes_nothing_new(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__PrepareRequest r = prepare_request("vm8");

	prepare(f, "vm7");
	f->rpc.draining = true;
	refused(f, MIGRATIONS "Prepare", &r, GRPC_FAILED_PRECONDITION, "DRAINING", "is ending");
	/* What is here already is found as before. */
	prepare(f, "vm7");
}

static void test_host_tells_what_it_is(void **state)
{
	struct fixture *f = *state;
	Postcopy__V1__GetInfoRequest r = POSTCOPY__V1__GET_INFO_REQUEST__INIT;
	Postcopy__V1__HostInfo *info;

	prepare(f, "vm7");
	info = accepted(f, "/postcopy.v1.Host/GetInfo", &r, &postcopy__v1__host_info__descriptor);
	assert_string_equal(info->version, "1.2.3");
	assert_int_equal(info->migrations_active, 1);
	assert_true(info->cpus > 0);
	assert_null(info->certificate_expiry);
	assert_true(info->protocols->page_stream && info->protocols->record &&
	            info->protocols->vmm);
	message_free(&info->base);
}

static void test_check_probes_once_for_all_who_ask(void **state)
{
	struct fixture *f = *state;
	struct grpc_call calls[4] = { 0 };
	Postcopy__V1__CheckRequest r = POSTCOPY__V1__CHECK_REQUEST__INIT;
	Postcopy__V1__CheckResponse *answer;
	uint64_t done_ns;

	for (int i = 0; i < 3; i++) {
		call_on(f, &calls[i], "/postcopy.v1.Host/Check", &r);
		assert_false(calls[i].finished);
	}
	calls[1].gone(&calls[1], calls[1].arg);
	while (!calls[0].finished)
		uv_run(&f->loop, UV_RUN_ONCE);
	assert_true(calls[2].finished);
	assert_false(calls[1].finished);
	answer = answer_of(&calls[0], 0, &postcopy__v1__check_response__descriptor);
	assert_int_equal(answer->n_backends, PROBE_BACKENDS);
	assert_true(answer->n_capabilities >= PROBE_FACTS);
	assert_true(strlen(answer->kernel) > 0);
	message_free(&answer->base);
	/* Who asks soon after is told the same, at once. */
	done_ns = f->rpc.check.done_ns;
	call_on(f, &calls[3], "/postcopy.v1.Host/Check", &r);
	assert_true(calls[3].finished);
	assert_int_equal(f->rpc.check.done_ns, done_ns);
	for (int i = 0; i < 4; i++)
		call_clear(&calls[i]);
}

static void test_health_says_when_it_drains(void **state)
{
	struct fixture *f = *state;
	struct grpc_call call = { .n = 0 }, unknown = { .n = 0 }, gone = { .n = 0 };
	Grpc__Health__V1__HealthCheckRequest r = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	Grpc__Health__V1__HealthCheckResponse *answer;

	r.service = (char *)"postcopy.v1.Migrations";
	call_on(f, &call, "/grpc.health.v1.Health/Watch", &r);
	call_on(f, &gone, "/grpc.health.v1.Health/Watch", &r);
	gone.gone(&gone, gone.arg);
	r.service = (char *)"nobody";
	call_on(f, &unknown, "/grpc.health.v1.Health/Watch", &r);
	refused(f, "/grpc.health.v1.Health/Check", &r, GRPC_NOT_FOUND, "SERVICE_UNKNOWN", "nobody");
	f->rpc.draining = true;
	health_changed(&f->rpc);
	assert_int_equal(gone.n, 1);
	assert_int_equal(unknown.n, 1);
	assert_int_equal(call.n, 2);
	answer = answer_of(&call, 1, &grpc__health__v1__health_check_response__descriptor);
	assert_int_equal(answer->status, 2);
	message_free(&answer->base);
	call.gone(&call, call.arg);
	unknown.gone(&unknown, unknown.arg);
	health_changed(&f->rpc);
	call_clear(&call);
	call_clear(&unknown);
	call_clear(&gone);
}

/* One question to reflection, and its answer. */
static Grpc__Reflection__V1__ServerReflectionResponse *
reflect(struct fixture *f, Grpc__Reflection__V1__ServerReflectionRequest *r)
{
	call_clear(&f->call);
	call_on(f, &f->call, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", r);
	assert_false(f->call.finished);
	return answer_of(&f->call, 0,
	                 &grpc__reflection__v1__server_reflection_response__descriptor);
}

/* How many files come with one; 0: it is not found. */
static size_t files_of_symbol(struct fixture *f, const char *symbol)
{
	Grpc__Reflection__V1__ServerReflectionRequest r =
	        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
	Grpc__Reflection__V1__ServerReflectionResponse *answer;
	size_t n = 0;

	r.message_request_case =
	        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL;
	r.file_containing_symbol = (char *)symbol;
	answer = reflect(f, &r);
	if (answer->message_response_case ==
	    GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE)
		n = answer->file_descriptor_response->n_file_descriptor_proto;
	else
		assert_int_equal(answer->error_response->error_code, GRPC_NOT_FOUND);
	message_free(&answer->base);
	return n;
}

static void test_reflection_finds_symbols(void **state)
{
	static const char *const here[] = {
		"postcopy.v1.Migrations", "postcopy.v1.Migrations.Get",
		"postcopy.v1.Migration",  "postcopy.v1.Migration.id",
		"postcopy.v1.State",      "postcopy.v1.STATE_PREPARED",
	};
	static const char *const absent[] = {
		"",
		"postcopy",
		"postcopy.v1",
		"postcopy.v1.",
		"postcopy.v1.Migration.",
		"Migrations",
		"postcopy.v1.Migrations.Gets",
		"postcopy.v1.Migrationsx",
		"postcopy.v1.State.x",
		"postcopy.v1xMigrations",
		"postcopy.v1.MigrationsxGet",
	};
	struct fixture *f = *state;

	/* With duration.proto and timestamp.proto. */
	for (size_t i = 0; i < sizeof here / sizeof *here; i++)
		assert_int_equal(files_of_symbol(f, here[i]), 3);
	assert_int_equal(files_of_symbol(f, "google.rpc.Status"), 2);
	assert_int_equal(files_of_symbol(f, "google.rpc.ErrorInfo.MetadataEntry.key"), 1);
	for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
		assert_int_equal(files_of_symbol(f, absent[i]), 0);
}

static void test_reflection_lists_services_and_ends(void **state)
{
	struct fixture *f = *state;
	Grpc__Reflection__V1__ServerReflectionRequest r =
	        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
	Grpc__Reflection__V1__ServerReflectionResponse *answer;

	r.host = (char *)"h";
	r.message_request_case =
	        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES;
	r.list_services = (char *)"";
	answer = reflect(f, &r);
	assert_string_equal(answer->valid_host, "h");
	assert_string_equal(answer->original_request->host, "h");
	assert_int_equal(answer->list_services_response->n_service, 5);
	message_free(&answer->base);
	call_bytes(f, &f->call, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", NULL,
	           0);
	assert_true(f->call.finished);
	assert_int_equal(f->call.status.code, GRPC_OK);
}

static void test_reflection_cuts_off_who_does_not_read(void **state)
{
	struct fixture *f = *state;
	Grpc__Reflection__V1__ServerReflectionRequest r =
	        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;

	f->call.queued = 2 << 20;
	call_on(f, &f->call, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &r);
	check_refusal(&f->call, GRPC_RESOURCE_EXHAUSTED, "INVALID_REQUEST", "read");
}

static void test_errors_have_codes_of_grpc(void **state)
{
	(void)state;
	assert_int_equal(rpc_error_code(-ENOENT), GRPC_NOT_FOUND);
	assert_int_equal(rpc_error_code(-EINVAL), GRPC_INVALID_ARGUMENT);
	assert_int_equal(rpc_error_code(-EEXIST), GRPC_ALREADY_EXISTS);
	assert_int_equal(rpc_error_code(-EBUSY), GRPC_FAILED_PRECONDITION);
	assert_int_equal(rpc_error_code(-ENOSYS), GRPC_UNIMPLEMENTED);
	assert_int_equal(rpc_error_code(-EACCES), GRPC_PERMISSION_DENIED);
	assert_int_equal(rpc_error_code(-ENOMEM), GRPC_RESOURCE_EXHAUSTED);
	assert_int_equal(rpc_error_code(-EIO), GRPC_INTERNAL);
}

static void test_a_status_is_text_whatever_was_said(void **state)
{
	struct rpc_error e = RPC_ERROR_INIT;
	struct grpc_status status;

	(void)state;
	error_set(&e.error, -EIO, "the peer said \xff\xc3");
	rpc_error_metadata(&e, "state", "\xfe");
	rpc_error_status(&e, &status);
	assert_string_equal(status.message, "the peer said ??");
	assert_true(status.details_len > 0);
}

/* What a reader may call. Everything else changes something, and takes an operator. */
static bool only_looks(const char *path)
{
	static const char *const paths[] = {
		"/postcopy.v1.Host/Check", "/postcopy.v1.Host/GetInfo", MIGRATIONS "Get",
		MIGRATIONS "GetReport",    MIGRATIONS "List",           MIGRATIONS "ListMissing",
		MIGRATIONS "Watch",
	};

	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
		if (!strcmp(path, paths[i]))
			return true;
	return !strncmp(path, "/grpc.health.", 13) || !strncmp(path, "/grpc.reflection.", 17);
}

static const struct grpc_method *find_method(const struct fixture *f, const char *path)
{
	for (const struct grpc_method *m = f->rpc.methods; m->path; m++)
		if (!strcmp(m->path, path))
			return m;
	return NULL;
}

/*
 * Any client that might look could also poison a guest. A method that is added to a .proto file
 * and to no table, or whose row has no role, is found here.
 */
static void test_each_method_of_the_proto_files_has_a_role(void **state)
{
	struct fixture *f = *state;
	const Google__Protobuf__FileDescriptorSet *set = f->rpc.descriptors.set;
	size_t n = 0, rows = 0;

	for (size_t i = 0; i < set->n_file; i++)
		for (size_t j = 0; j < set->file[i]->n_service; j++) {
			const Google__Protobuf__ServiceDescriptorProto *s =
			        set->file[i]->service[j];

			for (size_t k = 0; k < s->n_method; k++, n++) {
				const struct grpc_method *m;
				char path[160];

				snprintf(path, sizeof path, "/%s.%s/%s", set->file[i]->package,
				         s->name, s->method[k]->name);
				m = find_method(f, path);
				if (!m)
					fail_msg("%s is in no table", path);
				if (m->role != (only_looks(path) ? GRPC_READER : GRPC_OPERATOR))
					fail_msg("%s takes a %s", path, grpc_role_name(m->role));
			}
		}
	while (f->rpc.methods[rows].path)
		rows++;
	assert_int_equal(n, rows);
}

static void test_who_is_denied_is_told_what_it_takes(void **state)
{
	static const uint8_t request[] = { 0x0a, 3, 'v', 'm', '1' };
	struct fixture *f = *state;

	called = find_method(f, MIGRATIONS "Poison");
	caller.role = GRPC_READER;
	rpc_denied(&f->call, request, sizeof request, &f->rpc);
	caller.role = GRPC_OPERATOR;
	check_refusal(&f->call, GRPC_PERMISSION_DENIED, "PERMISSION", "uid 0");
	assert_non_null(strstr(f->call.status.message, "postcopy.v1.Migrations/Poison"));
	assert_non_null(strstr(f->call.status.message, "control-group"));
}

/* The audit trail reads the id of requests that are refused, too. */
static void test_a_string_is_read_from_any_bytes(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
		const char *id; /* NULL: none */
	} cases[] = {
		{ "\x0a\x03vm1", 5, "vm1" },
		{ "\x10\x01\x0a\x03vm1\x1d\0\0\0\0", 12, "vm1" },
		{ "\x0a\x01"
		  "a\x0a\x01"
		  "b",
		  6, "b" },
		{ "\x0a\x00", 2, "" },
		{ "", 0, NULL },
		{ "\x0a\x09vm1", 5, NULL },
		{ "\x0a\x03v\0"
		  "1",
		  5, NULL },
		{ "\x0a\x08"
		  "12345678",
		  10, NULL },
		{ "\x0b\x0a\x03vm1", 6, NULL },
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char id[8];
		int rc = message_string((const uint8_t *)cases[i].bytes, cases[i].len, 1, id,
		                        sizeof id);

		assert_int_equal(rc, cases[i].id ? 0 : -ENOENT);
		if (cases[i].id)
			assert_string_equal(id, cases[i].id);
	}
}

#define METHODS_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		METHODS_TEST(test_prepare_announces_a_migration),
		METHODS_TEST(test_clients_have_shares),
		METHODS_TEST(test_what_has_ended_is_not_forgotten_for_others),
		METHODS_TEST(test_each_bad_field_is_refused_by_its_name),
		METHODS_TEST(test_a_token_of_zeroes_is_refused),
		METHODS_TEST(test_a_source_takes_nothing_of_a_destination),
		METHODS_TEST(test_the_same_prepare_again_changes_nothing),
		METHODS_TEST(test_ids_that_are_none_or_unknown),
		METHODS_TEST(test_what_a_newer_client_asks_for_is_refused),
		METHODS_TEST(test_text_that_is_none_is_refused),
		METHODS_TEST(test_garbage_is_refused_by_each_method),
		METHODS_TEST(test_random_requests_end_somehow),
		METHODS_TEST(test_each_method_of_the_proto_files_has_a_role),
		METHODS_TEST(test_who_is_denied_is_told_what_it_takes),
		cmocka_unit_test(test_a_string_is_read_from_any_bytes),
		METHODS_TEST(test_nothing_starts_before_a_vmm_is_attached),
		METHODS_TEST(test_cancel_ends_it_and_again_changes_nothing),
		METHODS_TEST(test_limits_change_what_they_name),
		METHODS_TEST(test_the_daemon_has_defaults_and_bounds),
		METHODS_TEST(test_list_comes_in_pages_that_stay_put),
		METHODS_TEST(test_list_filters_by_state),
		METHODS_TEST(test_a_page_token_of_another_list_is_refused),
		METHODS_TEST(test_a_report_of_nothing_is_whole),
		METHODS_TEST(test_watch_shows_each_change_and_ends_with_the_last),
		METHODS_TEST(test_watch_shows_at_each_interval),
		METHODS_TEST(test_a_slow_reader_is_shown_less_and_the_newest),
		METHODS_TEST(test_watchers_go_and_others_stay),
		METHODS_TEST(test_watch_without_memory_says_so),
		METHODS_TEST(test_intervals_are_bounded),
		METHODS_TEST(test_streams_are_bounded),
		METHODS_TEST(test_nothing_is_recovered_or_given_up_before_it_runs),
		METHODS_TEST(test_draining_takes_nothing_new),
		METHODS_TEST(test_host_tells_what_it_is),
		METHODS_TEST(test_check_probes_once_for_all_who_ask),
		METHODS_TEST(test_health_says_when_it_drains),
		METHODS_TEST(test_reflection_finds_symbols),
		METHODS_TEST(test_reflection_lists_services_and_ends),
		METHODS_TEST(test_reflection_cuts_off_who_does_not_read),
		cmocka_unit_test(test_errors_have_codes_of_grpc),
		cmocka_unit_test(test_a_status_is_text_whatever_was_said),
	};

	return cmocka_run_group_tests_name("methods", tests, NULL, NULL);
}

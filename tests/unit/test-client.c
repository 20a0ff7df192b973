/* SPDX-License-Identifier: Apache-2.0 */
/* postcopyctl's client against a service that answers what the test wants. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/json.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "grpc/server.h"
#include "postcopy/v1/control.pb-c.h"

#define MIGRATIONS "/postcopy.v1.Migrations/"

/* A daemon without a migration: it says what it was told to. */
static struct {
	char dir[32];
	char path[64];
	pthread_t thread;
	uv_loop_t loop;
	uv_async_t stop;
	struct grpc_server *server;
	/* What it was asked last, packed. */
	pthread_mutex_t lock;
	uint8_t request[512];
	size_t request_len;
} fake = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void note(const uint8_t *request, size_t len)
{
	pthread_mutex_lock(&fake.lock);
	assert_true(len <= sizeof fake.request);
	if (len)
		memcpy(fake.request, request, len);
	fake.request_len = len;
	pthread_mutex_unlock(&fake.lock);
}

static void send_message(struct grpc_call *call, const ProtobufCMessage *message)
{
	uint8_t packed[2048];

	assert_true(protobuf_c_message_get_packed_size(message) <= sizeof packed);
	grpc_call_send(call, packed, protobuf_c_message_pack(message, packed));
}

static Postcopy__V1__Migration migration(const char *id, Postcopy__V1__State state)
{
	Postcopy__V1__Migration m = POSTCOPY__V1__MIGRATION__INIT;

	m.id = (char *)id;
	m.role = POSTCOPY__V1__ROLE__ROLE_DESTINATION;
	m.state = state;
	return m;
}

static void answer_migration(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	Postcopy__V1__Migration m = migration("vm7", POSTCOPY__V1__STATE__STATE_PREPARED);

	(void)arg;
	note(request, len);
	send_message(call, &m.base);
	grpc_call_finish(call, NULL);
}

/* NOT_FOUND with the reason that goes with it. */
static void answer_not_found(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct grpc_status s = { .code = GRPC_NOT_FOUND, .message = "no vm7" };
	Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
	Google__Protobuf__Any other = GOOGLE__PROTOBUF__ANY__INIT, any = other;
	Google__Protobuf__Any *details[] = { &other, &any };
	Google__Rpc__Status status = GOOGLE__RPC__STATUS__INIT;
	uint8_t packed[256];

	(void)arg;
	note(request, len);
	info.reason = (char *)"MIGRATION_NOT_FOUND";
	info.domain = (char *)"postcopyd";
	other.type_url = (char *)"type.googleapis.com/google.rpc.Help";
	any.type_url = (char *)"type.googleapis.com/google.rpc.ErrorInfo";
	any.value.data = packed;
	any.value.len = google__rpc__error_info__pack(&info, packed);
	status.code = GRPC_NOT_FOUND;
	status.n_details = 2;
	status.details = details;
	s.details_len = google__rpc__status__pack(&status, s.details);
	grpc_call_finish(call, &s);
}

static void answer_unavailable(struct grpc_call *call, const uint8_t *request, size_t len,
                               void *arg)
{
	struct grpc_status s = { .code = GRPC_UNAVAILABLE, .message = "", .details_len = 3 };

	(void)arg;
	note(request, len);
	memcpy(s.details, "\xff\xff\xff", 3);
	grpc_call_finish(call, &s);
}

static void answer_nothing(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	(void)arg;
	note(request, len);
	grpc_call_finish(call, NULL);
}

static void answer_garbage(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	(void)arg;
	note(request, len);
	grpc_call_send(call, "\xff\xff\xff\xff", 4);
	grpc_call_finish(call, NULL);
}

static void answer_twice(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	Postcopy__V1__Migration m = migration("vm7", POSTCOPY__V1__STATE__STATE_PREPARED);

	(void)arg;
	note(request, len);
	send_message(call, &m.base);
	send_message(call, &m.base);
	grpc_call_finish(call, NULL);
}

/* Two pages: a and b, then c. */
static void answer_list(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	Postcopy__V1__ListRequest *r = postcopy__v1__list_request__unpack(NULL, len, request);
	Postcopy__V1__Migration a = migration("a", POSTCOPY__V1__STATE__STATE_POSTCOPY), b = a,
	                        c = a;
	Postcopy__V1__Migration *first[] = { &a, &b }, *second[] = { &c };
	Postcopy__V1__ListResponse list = POSTCOPY__V1__LIST_RESPONSE__INIT;

	(void)arg;
	note(request, len);
	b.id = (char *)"b";
	c.id = (char *)"c";
	list.n_migrations = *r->page_token ? 1 : 2;
	list.migrations = *r->page_token ? second : first;
	if (!*r->page_token)
		list.next_page_token = (char *)"after b";
	send_message(call, &list.base);
	grpc_call_finish(call, NULL);
	postcopy__v1__list_request__free_unpacked(r, NULL);
}

static void answer_missing(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	Postcopy__V1__ListMissingRequest *r =
	        postcopy__v1__list_missing_request__unpack(NULL, len, request);
	Postcopy__V1__ListMissingResponse list = POSTCOPY__V1__LIST_MISSING_RESPONSE__INIT;
	Postcopy__V1__MissingRange range = POSTCOPY__V1__MISSING_RANGE__INIT;
	Postcopy__V1__MissingRange *ranges[] = { &range };

	(void)arg;
	note(request, len);
	range.region = *r->page_token ? 2 : 1;
	range.guest_phys_addr = 1ull << 40;
	range.size_bytes = 4096;
	list.n_ranges = 1;
	list.ranges = ranges;
	list.missing_bytes = 8192;
	if (!*r->page_token)
		list.next_page_token = (char *)"more";
	send_message(call, &list.base);
	grpc_call_finish(call, NULL);
	postcopy__v1__list_missing_request__free_unpacked(r, NULL);
}

/* Three updates, of which the last is final; for "cut" an end before that. */
static void answer_watch(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	static const Postcopy__V1__State states[] = { POSTCOPY__V1__STATE__STATE_WARMING,
		                                      POSTCOPY__V1__STATE__STATE_POSTCOPY,
		                                      POSTCOPY__V1__STATE__STATE_COMPLETE };
	Postcopy__V1__WatchRequest *r = postcopy__v1__watch_request__unpack(NULL, len, request);
	struct grpc_status s = { .code = GRPC_UNAVAILABLE, .message = "going down" };
	bool cut = !strcmp(r->id, "cut");

	(void)arg;
	note(request, len);
	for (size_t i = 0; i < (cut ? 1 : 3); i++) {
		Postcopy__V1__Migration m = migration("vm7", states[i]);

		send_message(call, &m.base);
	}
	grpc_call_finish(call, cut ? &s : NULL);
	postcopy__v1__watch_request__free_unpacked(r, NULL);
}

/* What somebody wants a terminal to do, in a migration's members and their members. */
static void answer_escapes(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	Postcopy__V1__Migration m = migration("vm\x1b[2J7", POSTCOPY__V1__STATE__STATE_PAUSED);
	Postcopy__V1__DestinationStatus d = POSTCOPY__V1__DESTINATION_STATUS__INIT;
	Postcopy__V1__PhaseLatency phase = POSTCOPY__V1__PHASE_LATENCY__INIT;
	Postcopy__V1__PhaseLatency *phases[] = { &phase };

	(void)arg;
	note(request, len);
	m.reason = (char *)"one\ntwo\xc2\x9b"
	                   "2J \xe2\x80\xaegnp \xff \x7f caf\xc3\xa9 \xf0\x9f\x90\xa7";
	m.half_case = POSTCOPY__V1__MIGRATION__HALF_DESTINATION;
	m.destination = &d;
	d.source_address = (char *)"host\r:1";
	phase.phase = (char *)"\x9d"
	                      "0;title\x07";
	d.n_fault_phases = 1;
	d.fault_phases = phases;
	send_message(call, &m.base);
	grpc_call_finish(call, NULL);
}

static void answer_refusal_with_escapes(struct grpc_call *call, const uint8_t *request, size_t len,
                                        void *arg)
{
	struct grpc_status s = { .code = GRPC_NOT_FOUND,
		                 .message = "no \xc2\x9b"
		                            "31mvm7" };

	(void)arg;
	note(request, len);
	grpc_call_finish(call, &s);
}

static void hold(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	(void)call;
	(void)arg;
	note(request, len);
}

static const struct grpc_method methods[] = {
	{ .path = MIGRATIONS "Prepare", .role = GRPC_READER, .call = answer_migration },
	{ .path = MIGRATIONS "Start", .role = GRPC_READER, .call = answer_migration },
	{ .path = MIGRATIONS "SetLimits", .role = GRPC_READER, .call = answer_migration },
	{ .path = MIGRATIONS "Recover", .role = GRPC_READER, .call = answer_migration },
	{ .path = MIGRATIONS "Poison", .role = GRPC_READER, .call = answer_unavailable },
	{ .path = MIGRATIONS "Get", .role = GRPC_READER, .call = answer_not_found },
	{ .path = MIGRATIONS "List", .role = GRPC_READER, .call = answer_list },
	{ .path = MIGRATIONS "ListMissing", .role = GRPC_READER, .call = answer_missing },
	{ .path = MIGRATIONS "Watch", .role = GRPC_READER, .call = answer_watch },
	{ .path = MIGRATIONS "Switchover", .role = GRPC_READER, .call = answer_nothing },
	{ .path = MIGRATIONS "Cancel", .role = GRPC_READER, .call = answer_garbage },
	{ .path = MIGRATIONS "GetReport", .role = GRPC_READER, .call = answer_twice },
	{ .path = MIGRATIONS "RunOn", .role = GRPC_READER, .call = answer_escapes },
	{ .path = MIGRATIONS "Release", .role = GRPC_READER, .call = answer_refusal_with_escapes },
	{ .path = "/postcopy.v1.Host/Check", .role = GRPC_READER, .call = hold },
	{ .path = NULL },
};

static void on_stop(uv_async_t *async)
{
	grpc_server_close(fake.server);
	uv_close((uv_handle_t *)async, NULL);
}

static void *loop_main(void *arg)
{
	uv_run(&fake.loop, UV_RUN_DEFAULT);
	return arg;
}

static int fake_start(void **state)
{
	const struct grpc_server_config config = { .methods = methods };
	const struct grpc_listen_unix listen = { .path = fake.path, .fd = -1 };
	struct error err = ERROR_INIT;

	(void)state;
	strcpy(fake.dir, "/tmp/test-client-XXXXXX");
	assert_non_null(mkdtemp(fake.dir));
	snprintf(fake.path, sizeof fake.path, "%s/control", fake.dir);
	assert_int_equal(uv_loop_init(&fake.loop), 0);
	assert_int_equal(uv_async_init(&fake.loop, &fake.stop, on_stop), 0);
	assert_int_equal(grpc_server_new(&fake.loop, &config, &fake.server, &err), 0);
	assert_int_equal(grpc_server_listen_unix(fake.server, &listen, &err), 0);
	return pthread_create(&fake.thread, NULL, loop_main, NULL);
}

static int fake_stop(void **state)
{
	(void)state;
	uv_async_send(&fake.stop);
	pthread_join(fake.thread, NULL);
	assert_int_equal(uv_loop_close(&fake.loop), 0);
	unlink(fake.path);
	return rmdir(fake.dir);
}

static struct client *connect_fake(int cancel_fd)
{
	const struct client_target target = { .control = fake.path };
	struct error err = ERROR_INIT;
	struct client *c = NULL;

	assert_int_equal(client_new(&target, cancel_fd, &c, &err), 0);
	return c;
}

/* What the daemon was asked, to be given to free_unpacked(). */
static ProtobufCMessage *asked(const ProtobufCMessageDescriptor *type)
{
	ProtobufCMessage *m;

	pthread_mutex_lock(&fake.lock);
	m = protobuf_c_message_unpack(type, NULL, fake.request_len, fake.request);
	pthread_mutex_unlock(&fake.lock);
	assert_non_null(m);
	return m;
}

static void test_prepare_carries_what_was_given(void **state)
{
	struct client_prepare p = { .id = "vm7",
		                    .destination = true,
		                    .source = "h:7777",
		                    .map = "lazy",
		                    .limits = CLIENT_LIMITS_INIT };
	_cleanup_json_ struct json_object *m = NULL;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);
	Postcopy__V1__PrepareRequest *r;

	(void)state;
	memset(p.token, 0x5a, sizeof p.token);
	p.limits.bandwidth_bytes_per_s = 0;
	p.limits.bulk = 0;
	assert_int_equal(client_prepare(c, &p, &m, &err), 0);
	assert_string_equal(json_string_or(m, "id", ""), "vm7");
	r = (void *)asked(&postcopy__v1__prepare_request__descriptor);
	assert_string_equal(r->id, "vm7");
	assert_int_equal(r->role, POSTCOPY__V1__ROLE__ROLE_DESTINATION);
	assert_int_equal(r->token.len, sizeof p.token);
	assert_memory_equal(r->token.data, p.token, sizeof p.token);
	assert_string_equal(r->source_address, "h:7777");
	assert_int_equal(r->map, POSTCOPY__V1__MAP_POLICY__MAP_POLICY_LAZY);
	/* No cap is a limit that was given; those that were not are absent. */
	assert_true(r->limits->optional_bandwidth_case && !r->limits->bandwidth_bytes_per_s);
	assert_true(r->limits->optional_bulk_case && !r->limits->bulk);
	assert_false(r->limits->optional_streams_case);
	assert_false(r->limits->optional_prefetch_case);
	protobuf_c_message_free_unpacked(&r->base, NULL);
	client_free(c);
}

static void test_limits_carry_only_what_changes(void **state)
{
	struct client_limits limits = CLIENT_LIMITS_INIT;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);
	Postcopy__V1__SetLimitsRequest *r;

	(void)state;
	limits.streams = 3;
	limits.prefetch = 1;
	assert_int_equal(client_set_limits(c, "vm7", &limits, NULL, &err), 0);
	r = (void *)asked(&postcopy__v1__set_limits_request__descriptor);
	assert_int_equal(r->limits->streams, 3);
	assert_true(r->limits->optional_prefetch_case && r->limits->prefetch);
	assert_false(r->limits->optional_bandwidth_case || r->limits->optional_bulk_case);
	protobuf_c_message_free_unpacked(&r->base, NULL);
	client_free(c);
}

static void test_refusal_is_errno_text_and_reason(void **state)
{
	struct json_object *m = NULL;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);

	(void)state;
	assert_int_equal(client_get(c, "vm7", NULL, &m, &err), -ENOENT);
	assert_string_equal(err.text, "no vm7");
	assert_string_equal(client_refusal(c)->code, "NOT_FOUND");
	assert_string_equal(client_refusal(c)->reason, "MIGRATION_NOT_FOUND");
	/* Details that can't be read, and no text. */
	assert_int_equal(client_poison(c, "vm7", 1, &m, &err), -EAGAIN);
	assert_string_equal(client_refusal(c)->code, "UNAVAILABLE");
	assert_string_equal(client_refusal(c)->reason, "");
	assert_true(*err.text);
	/* What the daemon does not know. */
	assert_int_equal(client_get_info(c, &m, &err), -EOPNOTSUPP);
	/* The next success forgets it. */
	assert_int_equal(client_start(c, "vm7", false, NULL, NULL, NULL, &err), 0);
	assert_string_equal(client_refusal(c)->code, "");
	assert_null(m);
	client_free(c);
}

static void test_answers_are_harmless_to_a_terminal(void **state)
{
	_cleanup_json_ struct json_object *m = NULL;
	struct json_object *never = NULL;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);

	(void)state;
	assert_int_equal(client_run_on(c, "vm7", "", &m, &err), 0);
	assert_string_equal(json_string_or(m, "id", ""), "vm?[2J7");
	assert_string_equal(json_string_or(m, "reason", ""),
	                    "one two?2J ?gnp ? ? caf\xc3\xa9 \xf0\x9f\x90\xa7");
	assert_string_equal(json_string_or(m, "source_address", ""), "host?:1");
	assert_non_null(json_find(m, "fault_phases_us"));
	assert_true(json_object_object_get_ex(json_find(m, "fault_phases_us"), "?0;title?", NULL));
	assert_int_equal(client_release(c, "vm7", "", &never, &err), -ENOENT);
	assert_string_equal(err.text, "no ?31mvm7");
	assert_null(never);
	client_free(c);
}

static void test_what_is_no_answer_is_refused(void **state)
{
	struct json_object *m = NULL;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);

	(void)state;
	assert_int_equal(client_switchover(c, "vm7", &m, &err), -EPROTO);
	client_free(c);
	c = connect_fake(-1);
	assert_int_equal(client_cancel(c, "vm7", NULL, &m, &err), -EPROTO);
	client_free(c);
	c = connect_fake(-1);
	assert_int_equal(client_get_report(c, "vm7", NULL, &m, &err), -EPROTO);
	client_free(c);
	assert_null(m);
}

static void test_lists_have_all_their_pages(void **state)
{
	_cleanup_json_ struct json_object *list = NULL, *missing = NULL;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);
	Postcopy__V1__ListRequest *r;
	struct json_object *array;

	(void)state;
	assert_int_equal(client_list(c, 1u << 5 | 1u << 6, &list, &err), 0);
	array = json_find(list, "migrations");
	assert_int_equal(json_object_array_length(array), 3);
	assert_string_equal(json_string_or(json_object_array_get_idx(array, 2), "id", ""), "c");
	r = (void *)asked(&postcopy__v1__list_request__descriptor);
	assert_string_equal(r->page_token, "after b");
	assert_int_equal(r->n_states, 2);
	assert_int_equal(r->states[0], POSTCOPY__V1__STATE__STATE_POSTCOPY);
	protobuf_c_message_free_unpacked(&r->base, NULL);

	assert_int_equal(client_list_missing(c, "vm7", &missing, &err), 0);
	assert_int_equal(json_count_or(missing, "missing_bytes", 0), 8192);
	array = json_find(missing, "ranges");
	assert_int_equal(json_object_array_length(array), 2);
	assert_int_equal(json_count_or(json_object_array_get_idx(array, 1), "region", 0), 2);
	assert_true(json_count_or(json_object_array_get_idx(array, 0), "guest_phys_addr", 0) ==
	            1ull << 40);
	client_free(c);
}

struct seen {
	unsigned int n;
	unsigned int stop_at;
	char last[16];
};

static int count_update(struct json_object *m, void *userdata, struct error *err)
{
	struct seen *seen = userdata;

	snprintf(seen->last, sizeof seen->last, "%s", json_string_or(m, "state", ""));
	return ++seen->n == seen->stop_at ? error_set(err, -ECHILD, "enough") : 0;
}

static void test_watch_takes_each_update_up_to_the_last(void **state)
{
	_cleanup_json_ struct json_object *last = NULL;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);
	struct seen seen = { 0 };
	Postcopy__V1__WatchRequest *r;

	(void)state;
	assert_int_equal(client_watch(c, "vm7", NULL, 1250, count_update, &seen, &last, &err), 0);
	assert_int_equal(seen.n, 3);
	assert_string_equal(seen.last, "complete");
	assert_string_equal(json_string_or(last, "state", ""), "complete");
	r = (void *)asked(&postcopy__v1__watch_request__descriptor);
	assert_int_equal(r->interval->seconds, 1);
	assert_int_equal(r->interval->nanos, 250000000);
	protobuf_c_message_free_unpacked(&r->base, NULL);
	client_free(c);
}

static void test_watch_ends_where_its_reader_wants(void **state)
{
	struct json_object *last = NULL;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);
	struct seen seen = { .stop_at = 2 };

	(void)state;
	assert_int_equal(client_watch(c, "vm7", NULL, 50, count_update, &seen, &last, &err),
	                 -ECHILD);
	assert_int_equal(seen.n, 2);
	assert_string_equal(err.text, "enough");
	assert_null(last);
	client_free(c);
}

/* A watch must not outlive the daemon as if all were well. */
static void test_watch_that_is_cut_fails(void **state)
{
	struct json_object *last = NULL;
	struct error err = ERROR_INIT;
	struct client *c = connect_fake(-1);
	struct seen seen = { 0 };

	(void)state;
	assert_int_equal(client_watch(c, "cut", NULL, 50, count_update, &seen, &last, &err),
	                 -EAGAIN);
	assert_int_equal(seen.n, 1);
	assert_null(last);
	client_free(c);
}

static void test_cancel_ends_a_wait(void **state)
{
	struct error err = ERROR_INIT;
	struct client *c;
	int cancel[2];

	(void)state;
	assert_int_equal(pipe(cancel), 0);
	c = connect_fake(cancel[0]);
	assert_int_equal(write(cancel[1], "x", 1), 1);
	assert_int_equal(client_check(c, NULL, &err), -ECANCELED);
	assert_string_equal(client_refusal(c)->code, "");
	client_free(c);
	close(cancel[0]);
	close(cancel[1]);
}

static void test_no_daemon_is_said_so(void **state)
{
	struct client_target target = { .control = "/nonexistent/control" };
	struct error err = ERROR_INIT;
	struct client *c = NULL;

	(void)state;
	assert_int_equal(client_new(&target, -1, &c, &err), -ENOENT);
	assert_non_null(strstr(err.text, "no postcopyd listens on \"/nonexistent/control\""));
	target.control = "host:1";
	assert_int_equal(client_new(&target, -1, &c, &err), -EINVAL);
	assert_non_null(strstr(err.text, "--cert"));
	assert_null(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_prepare_carries_what_was_given),
		cmocka_unit_test(test_limits_carry_only_what_changes),
		cmocka_unit_test(test_refusal_is_errno_text_and_reason),
		cmocka_unit_test(test_answers_are_harmless_to_a_terminal),
		cmocka_unit_test(test_what_is_no_answer_is_refused),
		cmocka_unit_test(test_lists_have_all_their_pages),
		cmocka_unit_test(test_watch_takes_each_update_up_to_the_last),
		cmocka_unit_test(test_watch_ends_where_its_reader_wants),
		cmocka_unit_test(test_watch_that_is_cut_fails),
		cmocka_unit_test(test_cancel_ends_a_wait),
		cmocka_unit_test(test_no_daemon_is_said_so),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("client", tests, fake_start, fake_stop);
}

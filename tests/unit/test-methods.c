/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket's methods, on real migrations that no VMM and no peer ever meets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rpc/methods.h"

#define TOKEN "00112233445566778899aabbccddeeff0123456789abcdef0123456789ABCDEF"

struct fixture {
	char dir[40];
	char socket[64];
	uv_loop_t loop;
	struct migrations *ms;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct migrations_config config = { .max_vmstate_bytes = 1 << 20 };
	struct error err = ERROR_INIT;

	strcpy(f->dir, "/tmp/test-methods-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->socket, sizeof f->socket, "%s/vmm.sock", f->dir);
	config.vmm_socket = f->socket;
	uv_loop_init(&f->loop);
	if (migrations_new(&f->loop, &config, &f->ms, &err))
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
	migrations_free(f->ms);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	unlink(f->socket);
	rmdir(f->dir);
	free(f);
	return 0;
}

/* A call as the control socket makes it, from the text of its parameters. */
static struct json_object *call(struct fixture *f, const char *method, const char *params,
                                struct error *err)
{
	struct json_object *p = params ? json_tokener_parse(params) : NULL;
	struct migration *watch = NULL;
	struct json_object *result;

	if (params && !p)
		fail_msg("the test's parameters are no JSON: %s", params);
	*err = ERROR_INIT;
	result = methods_call(f->ms, method, p, &watch, err);
	assert_int_equal(!result && !watch, err->code != 0);
	json_object_put(p);
	return result;
}

static void refused(struct fixture *f, const char *method, const char *params, const char *code,
                    const char *needle)
{
	struct error err;
	struct json_object *result = call(f, method, params, &err);

	if (result)
		fail_msg("%s %s was accepted", method, params);
	if (!strstr(err.text, needle))
		fail_msg("%s %s: \"%s\" does not say \"%s\"", method, params, err.text, needle);
	assert_string_equal(methods_code(err.code), code);
	/* Not even a part of the secret. */
	assert_null(strstr(err.text, "00112233"));
	assert_null(strstr(err.text, "cdef0123"));
}

static struct json_object *accepted(struct fixture *f, const char *method, const char *params)
{
	struct error err;
	struct json_object *result = call(f, method, params, &err);

	if (!result)
		fail_msg("%s %s: %s", method, params, err.text);
	assert_null(strcasestr(json_object_to_json_string(result), "00112233"));
	assert_null(strcasestr(json_object_to_json_string(result), "token"));
	return result;
}

static void accept_and_drop(struct fixture *f, const char *method, const char *params)
{
	json_object_put(accepted(f, method, params));
}

static const char *get_text(struct json_object *o, const char *key)
{
	struct json_object *v;

	if (!json_object_object_get_ex(o, key, &v))
		fail_msg("no \"%s\" in %s", key, json_object_to_json_string(o));
	return json_object_get_string(v);
}

static unsigned int count_migrations(struct fixture *f)
{
	struct json_object *list = accepted(f, "List", NULL), *array;
	unsigned int n;

	assert_true(json_object_object_get_ex(list, "migrations", &array));
	n = (unsigned int)json_object_array_length(array);
	json_object_put(list);
	return n;
}

/* Prepare's parameters: a good destination's, with @more that is added or replaces. */
#define DESTINATION(more)                                                                          \
	"{\"id\": \"vm7\", \"role\": \"destination\", \"token\": \"" TOKEN                         \
	"\", \"source\": \"host:1234\"" more "}"
/* The same without one of them. */
#define WITH(id, role, token, source)                                                              \
	"{\"id\": " id ", \"role\": " role ", \"token\": " token ", \"source\": " source "}"
#define ID "\"vm7\""
#define ROLE "\"destination\""
#define SECRET "\"" TOKEN "\""
#define SOURCE "\"host:1234\""

/* 4, or as many as there are CPUs. */
static const char *default_streams(void)
{
	static const char *const texts[] = { "1", "2", "3", "4" };
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	return texts[cpus < 4 ? cpus - 1 : 3];
}

static void test_prepare_announces_a_migration(void **state)
{
	struct fixture *f = *state;
	struct json_object *m = accepted(f, "Prepare", DESTINATION(""));

	assert_string_equal(get_text(m, "id"), "vm7");
	assert_string_equal(get_text(m, "role"), "destination");
	assert_string_equal(get_text(m, "state"), "prepared");
	assert_string_equal(get_text(m, "streams"), default_streams());
	json_object_put(m);
	m = accepted(f, "Get", "{\"id\": \"vm7\"}");
	assert_string_equal(get_text(m, "state"), "prepared");
	json_object_put(m);
	assert_int_equal(count_migrations(f), 1);
}

static void test_each_bad_parameter_is_refused_by_its_name(void **state)
{
	static const struct {
		const char *params, *needle;
	} bad[] = {
		{ WITH("null", ROLE, SECRET, SOURCE), "id" },
		{ WITH("7", ROLE, SECRET, SOURCE), "id" },
		{ WITH("\"\"", ROLE, SECRET, SOURCE), "id" },
		{ WITH("\".vm7\"", ROLE, SECRET, SOURCE), "id" },
		{ WITH("\"vm 7\"", ROLE, SECRET, SOURCE), "id" },
		{ WITH("\"../vm7\"", ROLE, SECRET, SOURCE), "id" },
		{ WITH("\"0123456789012345678901234567890123456789012345678901234567890123x\"",
		       ROLE, SECRET, SOURCE),
		  "id" },
		{ WITH(ID, "null", SECRET, SOURCE), "role" },
		{ WITH(ID, "\"Source\"", SECRET, SOURCE), "role" },
		{ WITH(ID, "1", SECRET, SOURCE), "role" },
		{ WITH(ID, ROLE, "null", SOURCE), "token" },
		{ WITH(ID, ROLE, "17", SOURCE), "token" },
		{ WITH(ID, ROLE, "\"\"", SOURCE), "token" },
		{ WITH(ID, ROLE, "\"" TOKEN "0\"", SOURCE), "token" },
		{ WITH(ID, ROLE, "\"0" TOKEN "0\"", SOURCE), "token" },
		{ WITH(ID, ROLE,
		       "\"00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdeg\"",
		       SOURCE),
		  "token" },
		{ WITH(ID, ROLE,
		       "\"g0112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef\"",
		       SOURCE),
		  "token" },
		{ WITH(ID, ROLE, SECRET, "null"), "source" },
		{ WITH(ID, ROLE, SECRET, "1234"), "source" },
		{ WITH(ID, ROLE, SECRET, "\"\""), "source" },
		{ WITH(ID, ROLE, SECRET, "\"host\""), "source" },
		{ WITH(ID, ROLE, SECRET, "\"host:\""), "source" },
		{ WITH(ID, ROLE, SECRET, "\":1234\""), "source" },
		{ WITH(ID, ROLE, SECRET, "\"[]:1234\""), "source" },
		{ DESTINATION(", \"streams\": 0"), "streams" },
		{ DESTINATION(", \"streams\": 17"), "streams" },
		{ DESTINATION(", \"streams\": -1"), "streams" },
		{ DESTINATION(", \"streams\": 4294967297"), "streams" },
		{ DESTINATION(", \"streams\": 1.5"), "streams" },
		{ DESTINATION(", \"streams\": \"4\""), "streams" },
		{ DESTINATION(", \"map\": \"Eager\""), "map" },
		{ DESTINATION(", \"map\": true"), "map" },
		{ DESTINATION(", \"bulk\": 1"), "bulk" },
		{ DESTINATION(", \"bulk\": \"no\""), "bulk" },
		{ DESTINATION(", \"prefetch\": []"), "prefetch" },
	};

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		refused(*state, "Prepare", bad[i].params, "INVALID_ARGUMENT", bad[i].needle);
	refused(*state, "Prepare", NULL, "INVALID_ARGUMENT", "id");
	refused(*state, "Prepare", "{}", "INVALID_ARGUMENT", "id");
	assert_int_equal(count_migrations(*state), 0);
}

static void test_the_bounds_themselves_are_accepted(void **state)
{
	static const char id[] = "0123456789.ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
	char params[512];

	assert_int_equal(strlen(id), MIGRATION_ID_MAX);
	snprintf(params, sizeof params, WITH("\"%s\"", ROLE, SECRET, "\"[::1]:65535\""), id);
	accept_and_drop(*state, "Prepare", params);
	accept_and_drop(*state, "Prepare",
	                DESTINATION(", \"streams\": 16, \"map\": \"lazy\", "
	                            "\"bulk\": false, \"prefetch\": null"));
	assert_int_equal(count_migrations(*state), 2);
}

static void test_the_same_prepare_again_changes_nothing(void **state)
{
	accept_and_drop(*state, "Prepare", DESTINATION(""));
	accept_and_drop(*state, "Prepare", DESTINATION(""));
	accept_and_drop(*state, "Prepare", DESTINATION(", \"map\": \"auto\""));
	assert_int_equal(count_migrations(*state), 1);
	refused(*state, "Prepare", DESTINATION(", \"streams\": 5"), "ALREADY_EXISTS", "vm7");
	refused(*state, "Prepare", DESTINATION(", \"map\": \"eager\""), "ALREADY_EXISTS", "vm7");
	refused(*state, "Prepare", WITH(ID, ROLE, SECRET, "\"host:1235\""), "ALREADY_EXISTS",
	        "vm7");
	refused(*state, "Prepare", WITH(ID, ROLE, SECRET, "\"hosts:1234\""), "ALREADY_EXISTS",
	        "vm7");
	refused(*state, "Prepare",
	        WITH(ID, ROLE,
	             "\"00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdee\"",
	             SOURCE),
	        "ALREADY_EXISTS", "vm7");
	assert_int_equal(count_migrations(*state), 1);
}

static void test_a_daemon_that_does_not_listen_is_no_source(void **state)
{
	refused(*state, "Prepare", WITH(ID, "\"source\"", SECRET, SOURCE), "FAILED_PRECONDITION",
	        "--listen");
	assert_int_equal(count_migrations(*state), 0);
}

static void test_unknown_ids_and_methods(void **state)
{
	static const char *const methods[] = { "Start",  "Switchover", "Get",  "Cancel",
		                               "Report", "SetLimits",  "Watch" };

	accept_and_drop(*state, "Prepare", DESTINATION(""));
	for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
		refused(*state, methods[i], "{\"id\": \"vm8\"}", "NOT_FOUND", "vm8");
		refused(*state, methods[i], "{}", "INVALID_ARGUMENT", "id");
		refused(*state, methods[i], NULL, "INVALID_ARGUMENT", "id");
		refused(*state, methods[i], "{\"id\": [1]}", "INVALID_ARGUMENT", "id");
	}
	refused(*state, "Fly", "{\"id\": \"vm7\"}", "UNIMPLEMENTED", "Fly");
	refused(*state, "get", "{\"id\": \"vm7\"}", "UNIMPLEMENTED", "get");
	refused(*state, "", NULL, "UNIMPLEMENTED", "");
}

static void test_nothing_starts_before_a_vmm_is_attached(void **state)
{
	accept_and_drop(*state, "Prepare", DESTINATION(""));
	refused(*state, "Start", "{\"id\": \"vm7\"}", "FAILED_PRECONDITION", "prepared");
	refused(*state, "Switchover", "{\"id\": \"vm7\"}", "FAILED_PRECONDITION", "prepared");
	refused(*state, "Start", "{\"id\": \"vm7\", \"switchover\": \"now\"}", "INVALID_ARGUMENT",
	        "switchover");
}

static void test_cancel_ends_it_and_again_changes_nothing(void **state)
{
	struct json_object *m;

	accept_and_drop(*state, "Prepare", DESTINATION(""));
	for (int i = 0; i < 2; i++) {
		m = accepted(*state, "Cancel", "{\"id\": \"vm7\"}");
		assert_string_equal(get_text(m, "state"), "cancelled");
		json_object_put(m);
	}
	refused(*state, "Start", "{\"id\": \"vm7\"}", "FAILED_PRECONDITION", "cancelled");
}

static void test_limits_take_booleans(void **state)
{
	accept_and_drop(*state, "Prepare", DESTINATION(""));
	accept_and_drop(*state, "SetLimits", "{\"id\": \"vm7\", \"bulk\": false}");
	accept_and_drop(*state, "SetLimits", "{\"id\": \"vm7\"}");
	refused(*state, "SetLimits", "{\"id\": \"vm7\", \"bulk\": 0}", "INVALID_ARGUMENT", "bulk");
	refused(*state, "SetLimits", "{\"id\": \"vm7\", \"prefetch\": \"off\"}", "INVALID_ARGUMENT",
	        "prefetch");
}

static void test_a_report_of_nothing_is_whole(void **state)
{
	static const char *const keys[] = { "id", "state", "timeline" };
	struct json_object *m;

	accept_and_drop(*state, "Prepare", DESTINATION(""));
	m = accepted(*state, "Report", "{\"id\": \"vm7\"}");
	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
		get_text(m, keys[i]);
	json_object_put(m);
}

static void test_watch_names_its_migration(void **state)
{
	struct fixture *f = *state;
	struct json_object *params = json_tokener_parse("{\"id\": \"vm7\"}");
	struct error err = ERROR_INIT;
	struct migration *watch = NULL;
	struct migration_info info;

	accept_and_drop(f, "Prepare", DESTINATION(""));
	assert_null(methods_call(f->ms, "Watch", params, &watch, &err));
	assert_int_equal(err.code, 0);
	assert_non_null(watch);
	migration_get_info(watch, &info);
	assert_string_equal(info.id, "vm7");
	json_object_put(params);
}

static void test_codes_are_those_of_grpc(void **state)
{
	(void)state;
	assert_string_equal(methods_code(-ENOENT), "NOT_FOUND");
	assert_string_equal(methods_code(-EINVAL), "INVALID_ARGUMENT");
	assert_string_equal(methods_code(-EEXIST), "ALREADY_EXISTS");
	assert_string_equal(methods_code(-EBUSY), "FAILED_PRECONDITION");
	assert_string_equal(methods_code(-ENOSYS), "UNIMPLEMENTED");
	assert_string_equal(methods_code(-EMSGSIZE), "RESOURCE_EXHAUSTED");
	assert_string_equal(methods_code(-EIO), "INTERNAL");
}

#define METHODS_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		METHODS_TEST(test_prepare_announces_a_migration),
		METHODS_TEST(test_each_bad_parameter_is_refused_by_its_name),
		METHODS_TEST(test_the_bounds_themselves_are_accepted),
		METHODS_TEST(test_the_same_prepare_again_changes_nothing),
		METHODS_TEST(test_a_daemon_that_does_not_listen_is_no_source),
		METHODS_TEST(test_unknown_ids_and_methods),
		METHODS_TEST(test_nothing_starts_before_a_vmm_is_attached),
		METHODS_TEST(test_cancel_ends_it_and_again_changes_nothing),
		METHODS_TEST(test_limits_take_booleans),
		METHODS_TEST(test_a_report_of_nothing_is_whole),
		METHODS_TEST(test_watch_names_its_migration),
		cmocka_unit_test(test_codes_are_those_of_grpc),
	};

	return cmocka_run_group_tests_name("methods", tests, NULL, NULL);
}

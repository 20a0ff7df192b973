/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/json.h"

/* A daemon that answers whatever comes first with what the test wants, and hangs up. */
struct fake {
	char dir[32];
	char path[64];
	int listener;
	const char *answer;
	char request[1024];
	pthread_t thread;
};

static void *fake_main(void *arg)
{
	struct fake *f = arg;
	int fd = accept(f->listener, NULL, NULL);
	const char *p = f->answer;
	size_t len = 0;

	while (len < sizeof f->request - 1 && !memchr(f->request, '\n', len)) {
		ssize_t n = read(fd, f->request + len, sizeof f->request - 1 - len);

		if (n <= 0)
			break;
		len += (size_t)n;
	}
	/* In small pieces, so that lines arrive cut and joined anywhere. */
	for (size_t left = strlen(p); left;) {
		ssize_t n = send(fd, p, left < 7 ? left : 7, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		p += n;
		left -= (size_t)n;
	}
	close(fd);
	return NULL;
}

static void fake_listen(struct fake *f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	*f = (struct fake){ .dir = "/tmp/test-client-XXXXXX" };
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof f->path, "%s/control", f->dir);
	strcpy(addr.sun_path, f->path);
	f->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(f->listener, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(f->listener, 1), 0);
}

static void fake_start(struct fake *f, const char *answer)
{
	fake_listen(f);
	f->answer = answer;
	assert_int_equal(pthread_create(&f->thread, NULL, fake_main, f), 0);
}

static void fake_stop(struct fake *f)
{
	if (f->answer)
		pthread_join(f->thread, NULL);
	close(f->listener);
	unlink(f->path);
	rmdir(f->dir);
}

/* One Get against @answer. */
static int get(const char *answer, struct json_object **ret, struct error *err, char *ret_request)
{
	_cleanup_json_ struct json_object *params = json_tokener_parse("{\"id\": \"vm7\"}");
	struct client *c;
	struct fake f;
	int r;

	fake_start(&f, answer);
	assert_int_equal(client_new(f.path, -1, &c, err), 0);
	r = client_call(c, "Get", params, ret, err);
	client_free(c);
	fake_stop(&f);
	if (ret_request)
		strcpy(ret_request, f.request);
	return r;
}

static void test_call_sends_one_line_and_takes_the_result(void **state)
{
	_cleanup_json_ struct json_object *m = NULL, *sent = NULL;
	struct error err = ERROR_INIT;
	char request[1024];

	(void)state;
	assert_int_equal(get("{\"result\": {\"id\": \"vm7\"}}\n", &m, &err, request), 0);
	assert_string_equal(json_string_or(m, "id", ""), "vm7");
	assert_ptr_equal(strchr(request, '\n'), request + strlen(request) - 1);
	sent = json_tokener_parse(request);
	assert_string_equal(json_string_or(sent, "method", ""), "Get");
	assert_string_equal(json_string_or(sent, "params.id", ""), "vm7");
}

static void test_refusal_becomes_errno_and_text(void **state)
{
	struct json_object *m = NULL;
	struct error err = ERROR_INIT;

	(void)state;
	assert_int_equal(get("{\"error\": {\"code\": \"NOT_FOUND\", \"message\": \"no vm7\"}}\n",
	                     &m, &err, NULL),
	                 -ENOENT);
	assert_string_equal(err.text, "no vm7");
	assert_int_equal(get("{\"error\": {\"code\": \"NEW_CODE\"}}\n", &m, &err, NULL), -EIO);
	assert_null(m);
}

static void test_what_is_no_answer_is_refused(void **state)
{
	static const struct {
		const char *answer;
		int want;
	} cases[] = {
		{ "", -EPIPE },
		{ "{\"result\": {}}", -EPIPE },
		{ "HTTP/1.1 400\n", -EPROTO },
		{ "{}\n", -EPROTO },
		{ "[1]\n", -EPROTO },
		{ "\n", -EPROTO },
		{ "{\"error\": 5}\n", -EIO },
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct json_object *m = NULL;
		struct error err = ERROR_INIT;

		assert_int_equal(get(cases[i].answer, &m, &err, NULL), cases[i].want);
		assert_true(*err.text);
		assert_null(m);
	}
}

struct seen {
	unsigned int n;
	unsigned int stop_at;
};

static int count_update(struct json_object *migration, void *userdata, struct error *err)
{
	struct seen *seen = userdata;

	assert_int_equal(json_count_or(migration, "pages_present", 0), ++seen->n);
	return seen->n == seen->stop_at ? error_set(err, -ECHILD, "enough") : 0;
}

static const char three_updates[] = "{\"event\": {\"pages_present\": 1}}\n"
                                    "{\"event\": {\"pages_present\": 2}}\n"
                                    "{\"event\": {\"pages_present\": 3}}\n"
                                    "{\"result\": {\"state\": \"complete\"}}\n";

static int watch(const char *answer, struct seen *seen, struct json_object **ret, struct error *err)
{
	struct client *c;
	struct fake f;
	int r;

	fake_start(&f, answer);
	assert_int_equal(client_new(f.path, -1, &c, err), 0);
	r = client_watch(c, "vm7", 50, count_update, seen, ret, err);
	client_free(c);
	fake_stop(&f);
	return r;
}

static void test_watch_takes_each_update_up_to_the_last(void **state)
{
	_cleanup_json_ struct json_object *last = NULL;
	struct error err = ERROR_INIT;
	struct seen seen = { 0 };

	(void)state;
	assert_int_equal(watch(three_updates, &seen, &last, &err), 0);
	assert_int_equal(seen.n, 3);
	assert_string_equal(json_string_or(last, "state", ""), "complete");
}

static void test_watch_ends_where_its_reader_wants(void **state)
{
	struct json_object *last = NULL;
	struct error err = ERROR_INIT;
	struct seen seen = { .stop_at = 2 };

	(void)state;
	assert_int_equal(watch(three_updates, &seen, &last, &err), -ECHILD);
	assert_int_equal(seen.n, 2);
	assert_string_equal(err.text, "enough");
	assert_null(last);
}

/* A watch must not outlive the daemon as if all were well. */
static void test_watch_that_is_cut_fails(void **state)
{
	struct json_object *last = NULL;
	struct error err = ERROR_INIT;
	struct seen seen = { 0 };

	(void)state;
	assert_int_equal(watch("{\"event\": {\"pages_present\": 1}}\n", &seen, &last, &err),
	                 -EPIPE);
	assert_int_equal(seen.n, 1);
	assert_null(last);
}

static void test_cancel_ends_a_wait(void **state)
{
	struct error err = ERROR_INIT;
	struct client *c;
	struct fake f;
	int cancel[2];

	(void)state;
	/* Nobody accepts: the backlog takes the connection, and no answer will come. */
	fake_listen(&f);
	assert_int_equal(pipe(cancel), 0);
	assert_int_equal(write(cancel[1], "x", 1), 1);
	assert_int_equal(client_new(f.path, cancel[0], &c, &err), 0);
	assert_int_equal(client_call(c, "List", NULL, NULL, &err), -ECANCELED);
	client_free(c);
	close(cancel[0]);
	close(cancel[1]);
	fake_stop(&f);
}

static void test_no_daemon_is_said_so(void **state)
{
	struct error err = ERROR_INIT;
	struct client *c = NULL;

	(void)state;
	assert_int_equal(client_new("/nonexistent/control", -1, &c, &err), -ENOENT);
	assert_non_null(strstr(err.text, "no postcopyd listens on \"/nonexistent/control\""));
	assert_null(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_call_sends_one_line_and_takes_the_result),
		cmocka_unit_test(test_refusal_becomes_errno_and_text),
		cmocka_unit_test(test_what_is_no_answer_is_refused),
		cmocka_unit_test(test_watch_takes_each_update_up_to_the_last),
		cmocka_unit_test(test_watch_ends_where_its_reader_wants),
		cmocka_unit_test(test_watch_that_is_cut_fails),
		cmocka_unit_test(test_cancel_ends_a_wait),
		cmocka_unit_test(test_no_daemon_is_said_so),
	};

	return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}

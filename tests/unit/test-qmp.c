/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's monitor, whose answers come in whatever pieces, amid news, and wrong. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "qemu/qemu.h"

#define GREETING                                                                                   \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 13, \"minor\": 0, \"major\": 10}, "        \
	"\"package\": \"Debian 1:10.0.13\"}, \"capabilities\": [\"oob\"]}}\r\n"

/*
 * Says one after the other of @says, NULL at the end; before each but the first it hears the
 * commands that it answers, and one at least.
 */
struct monitor {
	char path[64];
	int listener;
	const char *const *says;
	pthread_t thread;
	char heard[4096];
};

static void say(int sock, const char *text)
{
	/* Byte by byte: no message comes whole. */
	for (; *text; text++)
		if (send(sock, text, 1, MSG_NOSIGNAL) != 1)
			return;
}

static size_t count(const char *text, const char *word)
{
	size_t n = 0;

	while ((text = strstr(text, word))) {
		text += strlen(word);
		n++;
	}
	return n;
}

/* Commands may come one by one. Return: false where it is over. */
static bool hear(struct monitor *m, int sock, size_t commands)
{
	while (count(m->heard, "\"execute\"") < commands) {
		size_t len = strlen(m->heard);
		ssize_t n = recv(sock, m->heard + len, sizeof m->heard - 1 - len, 0);

		if (n <= 0)
			return false;
	}
	return true;
}

static void *serve(void *arg)
{
	struct monitor *m = arg;
	int sock = accept(m->listener, NULL, NULL);
	size_t commands = 0;

	for (size_t i = 0; m->says[i]; i++) {
		size_t answers = count(m->says[i], "\"id\"");

		if (i)
			commands += answers ? answers : 1;
		if (!hear(m, sock, commands))
			break;
		say(sock, m->says[i]);
	}
	close(sock);
	return NULL;
}

static struct monitor start(const char *const *says)
{
	static int count;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct monitor m = { .says = says };

	snprintf(m.path, sizeof m.path, "/tmp/test-qmp-%d-%d", (int)getpid(), count++);
	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", m.path);
	m.listener = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(m.listener, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(m.listener, 1), 0);
	return m;
}

static void stop(struct monitor *m)
{
	pthread_join(m->thread, NULL);
	close(m->listener);
	unlink(m->path);
}

#define START(m, ...)                                                                              \
	static const char *const says_[] = { __VA_ARGS__, NULL };                                  \
	struct monitor m = start(says_);                                                           \
	struct error err = ERROR_INIT;                                                             \
	struct qmp *q = NULL;                                                                      \
	(void)state;                                                                               \
	pthread_create(&m.thread, NULL, serve, &m)

static void news_come_amid_answers(void **state)
{
	char why[QEMU_WHY_BYTES];
	enum qemu_migration migration;
	struct qemu_state s;
	int rc;

	START(m, GREETING, "{\"return\": {}, \"id\": 1}\r\n",
	      "{\"event\": \"RESUME\"}\r\n{\"return\": {\"status\": \"postmigrate\"}, \"id\": "
	      "2}\r\n",
	      "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": "
	      "\"guest-shutdown\"}}"
	      "\r\n{\"return\": {\"status\": \"failed\", \"error-desc\": \"no\"}, \"id\": 3}\r\n"
	      "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\r\n");
	assert_int_equal(qmp_open(m.path, &q, &err), 0);
	assert_int_equal(qmp_version(q)->major, 10);
	assert_true(qmp_is_at_least(q, 9, 1) && !qmp_is_at_least(q, 10, 1));
	assert_int_equal(qmp_peer(q), getpid());
	assert_int_equal(qemu_state(q, &s, &err), 0);
	assert_int_equal(s.status, QEMU_POSTMIGRATE);
	assert_true(qmp_news(q)->resumed);
	assert_int_equal(qemu_migration(q, &migration, why, &err), 0);
	assert_int_equal(migration, QEMU_MIGRATION_FAILED);
	assert_string_equal(why, "its migration has failed: no");
	assert_string_equal(qmp_news(q)->reason, "guest-shutdown");
	while (!*qmp_news(q)->migration)
		assert_int_equal(qmp_wait(q, -1, &err), 0);
	assert_int_equal(qemu_await_migration(q, &migration, why, &err), 0);
	assert_int_equal(migration, QEMU_MIGRATION_COMPLETED);
	/* The message's end may come apart from it. */
	while (!(rc = qmp_wait(q, -1, &err)))
		;
	assert_int_equal(rc, -ECONNRESET);
	qmp_close(q);
	stop(&m);
}

static void of_commands_together_the_first_failure_counts(void **state)
{
	const struct qmp_command commands[] = { { "stop", NULL, -1 },
		                                { "getfd", NULL, -1 },
		                                { "migrate", NULL, -1 } };

	START(m, GREETING, "{\"return\": {}, \"id\": 1}\r\n",
	      "{\"return\": {}, \"id\": 2}\r\n{\"error\": {\"desc\": \"no fd\"}, \"id\": 3}\r\n"
	      "{\"error\": {\"desc\": \"not now\"}, \"id\": 4}\r\n",
	      "{\"return\": {}, \"id\": 5}\r\n");
	assert_int_equal(qmp_open(m.path, &q, &err), 0);
	assert_int_equal(qmp_tell_all(q, commands, 3, &err), -EREMOTEIO);
	assert_string_equal(err.text, "QEMU refuses getfd: no fd");
	/* The answers of those before are not taken for its own. */
	assert_int_equal(qmp_tell(q, "cont", &err), 0);
	qmp_close(q);
	stop(&m);
	assert_non_null(strstr(m.heard, "\"execute\":\"migrate\""));
}

static void what_is_no_qmp_is_refused(void **state)
{
	START(m, "HTTP/1.1 400 Bad Request\r\n\r\n");
	assert_int_equal(qmp_open(m.path, &q, &err), -EPROTO);
	assert_null(q);
	stop(&m);
}

static void a_monitor_that_closes_is_told(void **state)
{
	START(m, GREETING, "{\"return\": {}, \"id\": 1}\r\n", "{\"ret");
	assert_int_equal(qmp_open(m.path, &q, &err), 0);
	assert_int_equal(qmp_tell(q, "stop", &err), -ECONNRESET);
	qmp_close(q);
	stop(&m);
}

static void nobody_listens(void **state)
{
	struct error err = ERROR_INIT;
	struct qmp *q = NULL;

	(void)state;
	assert_int_equal(qmp_open("/nowhere/qmp", &q, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nowhere/qmp"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(news_come_amid_answers),
		cmocka_unit_test(of_commands_together_the_first_failure_counts),
		cmocka_unit_test(what_is_no_qmp_is_refused),
		cmocka_unit_test(a_monitor_that_closes_is_told),
		cmocka_unit_test(nobody_listens),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

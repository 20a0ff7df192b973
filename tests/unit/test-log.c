/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "util/log.h"
#include "util/log_text.h"

static struct log_site site = { .file = "../src/fault/pull.c", .line = 42 };

static struct log_record record(const char *message)
{
	struct log_record r = {
		.name = "postcopyd",
		.at = { .tv_sec = 1700000000, .tv_nsec = 7999999 },
		.level = LOG_LEVEL_WARNING,
		.site = &site,
		.function = "pull_new",
	};

	snprintf(r.message, sizeof r.message, "%s", message);
	return r;
}

static const char *encode(enum log_format format, const struct log_record *r)
{
	static struct log_text t;

	log_text_put(&t, format, r);
	assert_true(t.len < sizeof t.bytes);
	t.bytes[t.len] = 0;
	return t.bytes;
}

static const struct log_field fields[] = {
	{ "STATE", "warming" }, { "REASON", "a \"b\"" }, { "EMPTY", "" },
	{ "ABSENT", NULL },     { NULL, NULL },
};

static void test_logfmt_line(void **state)
{
	struct log_record r = record("it is so");

	(void)state;
	assert_string_equal(encode(LOG_FORMAT_LOGFMT, &r), "ts=2023-11-14T22:13:20.007Z "
	                                                   "level=warning msg=\"it is so\"\n");
	r.id = "vm1";
	r.fields = fields;
	r.suppressed = 12;
	assert_string_equal(encode(LOG_FORMAT_LOGFMT, &r),
	                    "ts=2023-11-14T22:13:20.007Z level=warning migration=vm1 "
	                    "state=warming reason=\"a \\\"b\\\"\" suppressed=12 "
	                    "msg=\"it is so\"\n");
}

static void test_json_line(void **state)
{
	struct log_record r = record("it is so");

	(void)state;
	r.id = "17";
	r.fields = fields;
	r.suppressed = 12;
	assert_string_equal(encode(LOG_FORMAT_JSON, &r),
	                    "{\"ts\":\"2023-11-14T22:13:20.007Z\",\"level\":\"warning\","
	                    "\"migration\":\"17\",\"state\":\"warming\",\"reason\":\"a \\\"b\\\"\","
	                    "\"suppressed\":12,\"msg\":\"it is so\"}\n");
}

/* The value of a native field in a datagram, in memory that the next call reuses. */
static const char *native(const char *datagram, size_t len, const char *key)
{
	static char value[LOG_TEXT_MAX];
	size_t pos = 0;

	while (pos < len) {
		const char *name = datagram + pos;
		const char *end = memchr(name, '\n', len - pos);
		uint64_t n;

		assert_non_null(end);
		memcpy(&n, end + 1, sizeof n);
		n = le64toh(n);
		pos = (size_t)(end - datagram) + 1 + sizeof n;
		assert_true(n < len - pos);
		assert_int_equal(datagram[pos + n], '\n');
		memcpy(value, datagram + pos, n);
		value[n] = 0;
		pos += n + 1;
		if ((size_t)(end - name) == strlen(key) && !memcmp(name, key, strlen(key)))
			return value;
	}
	return NULL;
}

static void test_journal_datagram(void **state)
{
	static const char *const expected[][2] = {
		{ "MESSAGE", "migration vm1: two\nlines" },
		{ "PRIORITY", "4" },
		{ "SYSLOG_IDENTIFIER", "postcopyd" },
		{ "CODE_FILE", "src/fault/pull.c" },
		{ "CODE_LINE", "42" },
		{ "CODE_FUNC", "pull_new" },
		{ "POSTCOPY_MIGRATION_ID", "vm1" },
		{ "POSTCOPY_STATE", "warming" },
		{ "POSTCOPY_REASON", "a \"b\"" },
		{ "POSTCOPY_SUPPRESSED", "12" },
	};
	struct log_record r = record("two\nlines");
	struct log_text t;

	(void)state;
	r.id = "vm1";
	r.fields = fields;
	r.suppressed = 12;
	log_text_put(&t, LOG_FORMAT_JOURNAL, &r);
	for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
		assert_string_equal(native(t.bytes, t.len, expected[i][0]), expected[i][1]);
	assert_null(native(t.bytes, t.len, "POSTCOPY_EMPTY"));
	assert_null(native(t.bytes, t.len, "POSTCOPY_ABSENT"));
}

static void test_hostile_text_forges_nothing(void **state)
{
	struct log_record r = record("x\" level=error\nts=1\r\x1b[2J\x7f\xc2\x9b \xff \xc0\xaf "
	                             "\xed\xa0\x80 \\ \xe2\x82\xac \xe2\x82");

	(void)state;
	assert_string_equal(strstr(encode(LOG_FORMAT_LOGFMT, &r), "msg="),
	                    "msg=\"x\\\" level=error\\nts=1\\u000d\\u001b[2J\\u007f\\u009b \\ufffd "
	                    "\\ufffd\\ufffd \\ufffd\\ufffd\\ufffd \\\\ \xe2\x82\xac "
	                    "\\ufffd\\ufffd\"\n");
	r = record("fine");
	r.id = "vm1 level=error\n";
	assert_non_null(strstr(encode(LOG_FORMAT_LOGFMT, &r),
	                       " migration=\"vm1 level=error\\n\" msg=\"fine\"\n"));
}

static struct json_object *parse_line(const char *line)
{
	struct json_object *o = json_tokener_parse(line);

	assert_non_null(o);
	assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
	return o;
}

/* The longest of all: every byte becomes six. */
static void test_long_records_are_cut_and_stay_well_formed(void **state)
{
	char value[LOG_MESSAGE_MAX];
	struct log_record r = record("");

	(void)state;
	memset(value, 1, sizeof value);
	for (size_t n = 0; n < sizeof value; n++) {
		struct log_field long_fields[] = { { "STATE", "failed" },
			                           { "REASON", value },
			                           { NULL, NULL } };
		struct json_object *o;

		value[n] = 0;
		memcpy(r.message, value, n + 1);
		r.fields = long_fields;
		o = parse_line(encode(LOG_FORMAT_JSON, &r));
		assert_string_equal(json_object_get_string(json_object_object_get(o, "state")),
		                    "failed");
		assert_non_null(json_object_object_get(o, "msg"));
		json_object_put(o);
		encode(LOG_FORMAT_JOURNAL, &r);
		value[n] = 1;
	}
}

static int real_stderr = -1;

static int save_stderr(void **state)
{
	(void)state;
	real_stderr = dup(STDERR_FILENO);
	unsetenv("JOURNAL_STREAM");
	return real_stderr < 0;
}

static int restore_stderr(void **state)
{
	(void)state;
	dup2(real_stderr, STDERR_FILENO);
	close(real_stderr);
	log_init("test", LOG_LEVEL_INFO, LOG_FORMAT_LOGFMT);
	return 0;
}

/* Have the log write to @fd, which is closed. */
static void log_to(int fd, enum log_format format)
{
	dup2(fd, STDERR_FILENO);
	close(fd);
	log_init("test", LOG_LEVEL_INFO, format);
}

/* Reads what there is. */
static size_t drain(int fd, char *ret, size_t size)
{
	size_t len = 0;
	ssize_t n;

	fcntl(fd, F_SETFL, O_NONBLOCK);
	while ((n = read(fd, ret + len, size - 1 - len)) > 0)
		len += (size_t)n;
	ret[len] = 0;
	return len;
}

static unsigned int count(const char *text, const char *what)
{
	unsigned int n = 0;

	for (; (text = strstr(text, what)); text += strlen(what))
		n++;
	return n;
}

static uint64_t monotonic_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec;
}

static void flood(unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		log_warning("flood");
}

static void test_flood_is_limited_and_the_rest_is_told(void **state)
{
	static char text[1 << 16];
	uint64_t before = log_get_counts().suppressed, since_s = monotonic_s();
	unsigned int lines, told;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	log_to(fds[1], LOG_FORMAT_LOGFMT);
	flood(1000);
	drain(fds[0], text, sizeof text);
	lines = count(text, "flood");
	told = (unsigned int)(log_get_counts().suppressed - before);
	assert_int_equal(lines + told, 1000);
	assert_true(lines >= LOG_LINES_PER_S);
	assert_true(lines <= LOG_LINES_PER_S * (monotonic_s() - since_s + 1));
	/* Sooner or later the next second comes. */
	do {
		flood(1);
		drain(fds[0], text, sizeof text);
	} while (!strstr(text, "flood"));
	assert_non_null(strstr(text, " suppressed="));
	close(fds[0]);
}

static void test_debug_below_the_level_is_not_written(void **state)
{
	char text[64];
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	log_to(fds[1], LOG_FORMAT_AUTO);
	log_debug("not this");
	assert_int_equal(drain(fds[0], text, sizeof text), 0);
	close(fds[0]);
}

static void say(const char *what)
{
	log_event(LOG_LEVEL_INFO, "vm1", LOG_FIELDS({ "STATE", "warming" }), "%s", what);
}

/* Nothing is suppressed here, so that it is the descriptor that refuses. */
static void check_never_blocks(int read_fd)
{
	static char text[4 << 20];
	uint64_t before = log_get_counts().lost;
	unsigned int said = 0;

	while (log_get_counts().lost == before && said < 1000000) {
		say("event");
		said++;
	}
	assert_true(log_get_counts().lost > before);
	if (read_fd < 0)
		return;
	drain(read_fd, text, sizeof text);
	assert_int_equal(count(text, "event"), said - 1);
	say("after");
	drain(read_fd, text, sizeof text);
	assert_non_null(strstr(text, "after"));
	close(read_fd);
}

static void test_full_pipe_blocks_nobody(void **state)
{
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	log_to(fds[1], LOG_FORMAT_LOGFMT);
	check_never_blocks(fds[0]);
}

static void test_full_socket_blocks_nobody(void **state)
{
	int fds[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	log_to(fds[1], LOG_FORMAT_JSON);
	check_never_blocks(fds[0]);
}

static void test_full_disk_and_closed_pipe_are_counted(void **state)
{
	int fds[2];

	(void)state;
	log_to(open("/dev/full", O_WRONLY | O_CLOEXEC), LOG_FORMAT_LOGFMT);
	check_never_blocks(-1);
	signal(SIGPIPE, SIG_IGN);
	assert_int_equal(pipe(fds), 0);
	log_to(fds[1], LOG_FORMAT_LOGFMT);
	close(fds[0]);
	check_never_blocks(-1);
}

/* A journal of our own where the real one would be, in a mount namespace. Return: its socket. */
static int fake_journal(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX,
		                    .sun_path = "/run/systemd/journal/socket" };
	int fd;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", "/run", "tmpfs", 0, NULL))
		return -errno;
	mkdir("/run/systemd", 0755);
	mkdir("/run/systemd/journal", 0755);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	return fd;
}

static void test_journal_is_used_where_stderr_is_the_journal(void **state)
{
	int journal = fake_journal();
	char datagram[LOG_TEXT_MAX], stream[64];
	struct stat st;
	ssize_t len;
	int fds[2];

	(void)state;
	if (journal < 0) {
		print_message("SKIP: no mount namespace of our own: %s\n", strerror(-journal));
		skip();
	}
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(fstat(fds[1], &st), 0);
	snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)st.st_dev,
	         (unsigned long long)st.st_ino + 1);
	setenv("JOURNAL_STREAM", stream, 1);
	dup2(fds[1], STDERR_FILENO);
	log_init("test", LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
	say("to the pipe");
	assert_true(drain(fds[0], datagram, sizeof datagram) > 0);

	snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)st.st_dev,
	         (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", stream, 1);
	log_to(fds[1], LOG_FORMAT_AUTO);
	say("to the journal");
	len = recv(journal, datagram, sizeof datagram, MSG_DONTWAIT);
	assert_true(len > 0);
	assert_string_equal(native(datagram, (size_t)len, "MESSAGE"),
	                    "migration vm1: to the journal");
	assert_string_equal(native(datagram, (size_t)len, "POSTCOPY_STATE"), "warming");
	/* The build directory may lie outside of the tree. */
	assert_non_null(
	        strstr(native(datagram, (size_t)len, "CODE_FILE"), "tests/unit/test-log.c"));
	assert_string_equal(native(datagram, (size_t)len, "CODE_FUNC"), "say");
	/* Nobody reads it. */
	check_never_blocks(-1);
	close(journal);
	close(fds[0]);
	unsetenv("JOURNAL_STREAM");
}

#define WITH_STDERR(test) cmocka_unit_test_setup_teardown(test, save_stderr, restore_stderr)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_logfmt_line),
		cmocka_unit_test(test_json_line),
		cmocka_unit_test(test_journal_datagram),
		cmocka_unit_test(test_hostile_text_forges_nothing),
		cmocka_unit_test(test_long_records_are_cut_and_stay_well_formed),
		WITH_STDERR(test_flood_is_limited_and_the_rest_is_told),
		WITH_STDERR(test_debug_below_the_level_is_not_written),
		WITH_STDERR(test_full_pipe_blocks_nobody),
		WITH_STDERR(test_full_socket_blocks_nobody),
		WITH_STDERR(test_full_disk_and_closed_pipe_are_counted),
		WITH_STDERR(test_journal_is_used_where_stderr_is_the_journal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

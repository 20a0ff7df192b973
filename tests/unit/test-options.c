/* SPDX-License-Identifier: Apache-2.0 */
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

#include "postcopyd/options.h"

#define ARGS_MAX 16
#define TLS_KEYS "[tls]\ncert = c.pem\nkey = k.pem\nca = a.pem\n"
#define TLS_ARGS "--cert", "c.pem", "--key", "k.pem", "--ca", "a.pem"

struct fixture {
	struct options o;
	struct config_errors errors;
	char path[64]; /* a file of its own */
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);

	if (!f)
		return -1;
	strcpy(f->path, "/tmp/postcopyd-test-options-XXXXXX");
	close(mkstemp(f->path));
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	options_deinit(&f->o);
	unlink(f->path);
	free(f);
	return 0;
}

/* A file alone; what it was before is forgotten. */
static int read_text_of(struct fixture *f, const char *text, size_t len)
{
	FILE *file = fmemopen((void *)(uintptr_t)text, len, "r");
	int rc;

	options_deinit(&f->o);
	memset(&f->errors, 0, sizeof f->errors);
	assert_non_null(file);
	rc = options_parse_file(file, "t.conf", &f->o, &f->errors);
	fclose(file);
	assert_int_equal(rc, f->errors.n ? -EINVAL : 0);
	return rc;
}

static int read_text(struct fixture *f, const char *text)
{
	return read_text_of(f, text, strlen(text));
}

/* One error, which begins with its place and names @why. */
static void refused(struct fixture *f, const char *text, const char *place, const char *why)
{
	assert_int_equal(read_text(f, text), -EINVAL);
	if (f->errors.n != 1 || strncmp(f->errors.list[0].text, place, strlen(place)) ||
	    !strstr(f->errors.list[0].text, why))
		fail_msg("%zu errors, the first \"%s\"; not \"%s ... %s\"", f->errors.n,
		         f->errors.list[0].text, place, why);
}

/* A command line, without the program's name, ended by NULL; @file: what --config names. */
static int parse(struct fixture *f, const char *file, const char *const *args)
{
	char *argv[ARGS_MAX + 4] = { (char *)"postcopyd", (char *)"--config" };
	int argc = 3, rc;
	FILE *to = fopen(f->path, "w");

	fputs(file, to);
	fclose(to);
	argv[2] = f->path;
	for (; *args; args++)
		argv[argc++] = (char *)(uintptr_t)*args;
	options_deinit(&f->o);
	memset(&f->errors, 0, sizeof f->errors);
	rc = options_parse(argc, argv, &f->o, &f->errors);
	assert_int_equal(rc<0, f->errors.n> 0);
	return rc;
}

#define PARSE(f, file, ...) parse(f, file, (const char *const[]){ __VA_ARGS__, NULL })

static void test_defaults(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(PARSE(f, "", TLS_ARGS), 0);
	assert_string_equal(f->o.control_path, "/run/postcopyd/control.sock");
	assert_string_equal(f->o.vmm_path, "/run/postcopyd/vmm.sock");
	assert_null(f->o.listen);
	assert_null(f->o.control_listen);
	assert_null(f->o.metrics_listen);
	assert_false(f->o.metrics_tls);
	assert_int_equal(f->o.max_vmstate_bytes, 64 << 20);
	assert_int_equal(f->o.max_streams, 16);
	assert_int_equal(f->o.bandwidth_bytes_per_s, 0);
	assert_int_equal(f->o.trace, FAULT_TRACER_AUTO);
	assert_int_equal(f->o.trace_slow_us, 1000);
	assert_int_equal(f->o.log_level, LOG_LEVEL_INFO);
	assert_int_equal(f->o.log_format, LOG_FORMAT_AUTO);
	assert_int_equal(f->o.drain_timeout_s, 0);
	assert_int_equal(f->o.ready_fd, -1);
	assert_int_equal(f->o.tls.n_allowed_names + f->o.control_groups.n + f->o.vmm_groups.n, 0);
}

/* Each key, with a value that is not its default. */
static const char whole_file[] = "# of all keys\n"
                                 "[control]\n"
                                 "control = /c.sock\n"
                                 "control-group = ops\n"
                                 "control-group = adm\n"
                                 "control-listen = [::1]:1\n"
                                 "control-allow = URI:spiffe://x/a;b\n"
                                 "\n"
                                 "[vmm]\n"
                                 "vmm = /v.sock ; here\n"
                                 "vmm-group = kvm\n"
                                 "max-vmstate = 3G\n"
                                 "[stream]\n"
                                 "  listen=0.0.0.0:7777\n"
                                 "\tallow-peer : *.a.b\n"
                                 "  allow-peer = c\n"
                                 "max-streams = 3\n"
                                 "bandwidth = 1500K\r\n" TLS_KEYS "[metrics]\n"
                                 "metrics-listen = localhost:9464\n"
                                 "metrics-tls = yes\n"
                                 "[trace]\n"
                                 "trace = tracepoint\n"
                                 "trace-slow-us = 0\n"
                                 "[log]\n"
                                 "log-level = debug\n"
                                 "log-format = json\n"
                                 "[daemon]\n"
                                 "drain-timeout = 86400";

static void test_each_key_of_a_file_is_taken(void **state)
{
	struct fixture *f = *state;

	if (read_text(f, whole_file))
		fail_msg("%s", f->errors.list[0].text);
	assert_string_equal(f->o.control_path, "/c.sock");
	assert_int_equal(f->o.control_groups.n, 2);
	assert_string_equal(f->o.control_groups.names[0], "ops");
	assert_string_equal(f->o.control_groups.names[1], "adm");
	assert_string_equal(f->o.control_listen, "[::1]:1");
	assert_string_equal(f->o.control_allow.names[0], "URI:spiffe://x/a;b");
	assert_string_equal(f->o.vmm_path, "/v.sock");
	assert_string_equal(f->o.vmm_groups.names[0], "kvm");
	assert_true(f->o.max_vmstate_bytes == 3ull << 30);
	assert_string_equal(f->o.listen, "0.0.0.0:7777");
	assert_int_equal(f->o.tls.n_allowed_names, 2);
	assert_string_equal(f->o.tls.allowed_names[0], "*.a.b");
	assert_int_equal(f->o.max_streams, 3);
	assert_int_equal(f->o.bandwidth_bytes_per_s, 1500 << 10);
	assert_string_equal(f->o.tls.cert_path, "c.pem");
	assert_string_equal(f->o.tls.key_path, "k.pem");
	assert_string_equal(f->o.tls.ca_path, "a.pem");
	assert_string_equal(f->o.metrics_listen, "localhost:9464");
	assert_true(f->o.metrics_tls);
	assert_int_equal(f->o.trace, FAULT_TRACER_TRACEPOINT);
	assert_int_equal(f->o.trace_slow_us, 0);
	assert_int_equal(f->o.log_level, LOG_LEVEL_DEBUG);
	assert_int_equal(f->o.log_format, LOG_FORMAT_JSON);
	assert_int_equal(f->o.drain_timeout_s, 86400);
}

static char *print(const struct options *o)
{
	char *text = NULL;
	size_t len;
	FILE *to = open_memstream(&text, &len);

	options_print(o, to);
	fclose(to);
	return text;
}

static void test_what_is_printed_says_the_same(void **state)
{
	static const char *const files[] = { whole_file, TLS_KEYS };
	struct fixture *f = *state;

	for (size_t i = 0; i < 2; i++) {
		char *first, *second;

		assert_int_equal(read_text(f, files[i]), 0);
		first = print(&f->o);
		assert_int_equal(read_text(f, first), 0);
		second = print(&f->o);
		assert_string_equal(first, second);
		assert_non_null(strstr(first, i ? "listen=none" : "bandwidth=1500K"));
		free(first);
		free(second);
	}
}

static void test_the_command_line_wins(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(
	        PARSE(f, TLS_KEYS "[stream]\nlisten = a:1\nmax-streams = 3\n", "--listen", "b:2"),
	        0);
	assert_string_equal(f->o.listen, "b:2");
	assert_int_equal(f->o.max_streams, 3);
	assert_int_equal(PARSE(f, TLS_KEYS "[stream]\nlisten = a:1\n", "--listen", "none"), 0);
	assert_null(f->o.listen);
	/* Of two on the command line the last. */
	assert_int_equal(PARSE(f, "", "--vmm", "/a", "--vmm", "/b", TLS_ARGS), 0);
	assert_string_equal(f->o.vmm_path, "/b");
}

static void test_a_list_of_the_command_line_replaces_the_files(void **state)
{
	static const char file[] = TLS_KEYS "[stream]\nallow-peer = a\nallow-peer = b\n"
	                                    "[vmm]\nvmm-group = kvm\n";
	struct fixture *f = *state;

	assert_int_equal(PARSE(f, file, "--allow-peer", "c", "--allow-peer=d"), 0);
	assert_int_equal(f->o.tls.n_allowed_names, 2);
	assert_string_equal(f->o.tls.allowed_names[0], "c");
	assert_string_equal(f->o.tls.allowed_names[1], "d");
	assert_int_equal(f->o.vmm_groups.n, 1);
}

static void test_what_the_command_line_overrules_is_checked_all_the_same(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(PARSE(f, "[stream]\nmax-streams = 17\n", "--max-streams", "2", TLS_ARGS),
	                 -EINVAL);
	assert_non_null(strstr(f->errors.list[0].text, ":2: [stream] max-streams: 17 is not"));
}

static void test_each_kind_of_error_has_its_place(void **state)
{
	static const struct {
		const char *text;
		const char *place;
		const char *why;
	} cases[] = {
		/* Lines. */
		{ "[stream]\nlisten\n", "t.conf:2: ", "key = value" },
		{ "[stream\nlisten = a:1\n", "t.conf:1: ", "]" },
		{ "\n[stream] listen = a:1\n", "t.conf:2: ", "line of its own" },
		{ "[stream]\n# x\n\n; y\n = 3\n", "t.conf:5: [stream] : ", "no such key" },
		/* Sections and keys. */
		{ "[steam]\nlisten = a:1\n", "t.conf:1: [steam]: ", "[stream]" },
		{ "listen = a:1\n", "t.conf:1: [] listen: ", "belongs in [stream]" },
		{ "[vmm]\nlisten = a:1\n", "t.conf:2: [vmm] listen: ", "belongs in [stream]" },
		{ "[stream]\nspeed = 1\n", "t.conf:2: [stream] speed: ", "bandwidth" },
		{ "[stream]\nListen = a:1\n", "t.conf:2: [stream] Listen: ", "no such key" },
		{ "[daemon]\nready-fd = 3\n", "t.conf:2: [daemon] ready-fd: ", "command line" },
		{ "[daemon]\nhelp = 3\n", "t.conf:2: [daemon] help: ", "command line" },
		{ "[daemon]\nconfig = x\n", "t.conf:2: [daemon] config: ", "command line" },
		{ "[vmm]\nvmm = /a\n[log]\n[vmm]\nvmm = /a\n", "t.conf:5: [vmm] vmm: ", "line 2" },
		/* Values. */
		{ "[vmm]\nvmm =\n", "t.conf:2: [vmm] vmm: ", "empty" },
		{ "[vmm]\nvmm = a\x01"
		  "b\n",
		  "t.conf:2: [vmm] vmm: ", "control character" },
		{ "[vmm]\nvmm-group = ; none\n", "t.conf:2: [vmm] vmm-group: ", "empty" },
		{ "[stream]\nlisten = 7777\n", "t.conf:2: [stream] listen: ", "HOST:PORT" },
		{ "[stream]\nlisten = a:b\n", "t.conf:2: [stream] listen: ", "port" },
		{ "[stream]\nlisten = a:65536\n", "t.conf:2: [stream] listen: ", "65535" },
		{ "[stream]\nmax-streams = 0\n", "t.conf:2: [stream] max-streams: ", "1..16" },
		{ "[stream]\nmax-streams = 17\n", "t.conf:2: [stream] max-streams: ", "1..16" },
		{ "[stream]\nmax-streams = 4K\n", "t.conf:2: [stream] max-streams: ", "number" },
		{ "[stream]\nmax-streams = -1\n", "t.conf:2: [stream] max-streams: ", "number" },
		{ "[stream]\nmax-streams = +1\n", "t.conf:2: [stream] max-streams: ", "number" },
		{ "[stream]\nbandwidth = fast\n", "t.conf:2: [stream] bandwidth: ", "64M" },
		{ "[stream]\nbandwidth = 1Mb\n", "t.conf:2: [stream] bandwidth: ", "64M" },
		{ "[stream]\nbandwidth = 16777216T\n", "t.conf:2: [stream] bandwidth: ", "within" },
		{ "[stream]\nbandwidth = 18446744073709551616\n",
		  "t.conf:2: [stream] bandwidth: ", "within" },
		{ "[vmm]\nmax-vmstate = 0\n", "t.conf:2: [vmm] max-vmstate: ", "within" },
		{ "[metrics]\nmetrics-tls = true\n",
		  "t.conf:2: [metrics] metrics-tls: ", "yes nor no" },
		{ "[trace]\ntrace = ebpf\n",
		  "t.conf:2: [trace] trace: ", "auto, fentry, kprobe, tracepoint, off" },
		{ "[log]\nlog-level = loud\n",
		  "t.conf:2: [log] log-level: ", "error, warning, info, debug" },
	};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		refused(*state, cases[i].text, cases[i].place, cases[i].why);
}

static void test_all_errors_of_a_file_are_told(void **state)
{
	static const char *const places[] = { "t.conf:2", "t.conf:3", "t.conf:4", "t.conf:7",
		                              "t.conf:8" };
	struct fixture *f = *state;

	read_text(f, "[stream]\nlisten\nmax-streams = 99\nspeed = 1\nlisten = a:1\n"
	             "bandwidth = 1M\n[nowhere]\n[log\nlog-level = debug\n");
	assert_int_equal(f->errors.n, sizeof places / sizeof *places);
	for (size_t i = 0; i < f->errors.n; i++)
		assert_memory_equal(f->errors.list[i].text, places[i], strlen(places[i]));
}

static void test_more_errors_than_there_is_room_for_are_counted(void **state)
{
	char text[16 + 8 * (CONFIG_ERRORS_MAX + 5)] = "[log]\n";
	struct fixture *f = *state;

	for (int i = 0; i < CONFIG_ERRORS_MAX + 5; i++)
		strcat(text, "x = 1\n");
	read_text(f, text);
	assert_int_equal(f->errors.n, CONFIG_ERRORS_MAX);
	assert_int_equal(f->errors.n_more, 5);
}

static void test_lines_that_are_no_text(void **state)
{
	static const char nul[] = "[vmm]\nvmm = /a\0b\n";
	struct fixture *f = *state;
	char text[1024] = "[vmm]\nvmm = /";

	read_text_of(f, nul, sizeof nul - 1);
	assert_int_equal(f->errors.n, 1);
	assert_non_null(strstr(f->errors.list[0].text, "t.conf:2: a NUL byte"));
	memset(text + strlen(text), 'x', 900);
	refused(f, text, "t.conf:2: ", "longer than");
	/* An editor's mark at the head of the file is no harm. */
	assert_int_equal(read_text(f, "\xef\xbb\xbf[vmm]\nvmm = /a\n"), 0);
	assert_string_equal(f->o.vmm_path, "/a");
}

static void test_too_many_names(void **state)
{
	/* A fleet of more than 64 hosts could not be named. */
	static char text[32 * (OPTIONS_SANS_MAX + 3)];
	struct fixture *f = *state;
	int len = sprintf(text, "[stream]\n");

	for (int i = 0; i < OPTIONS_SANS_MAX; i++)
		len += sprintf(text + len, "allow-peer = p%d\n", i);
	assert_int_equal(read_text(f, text), 0);
	assert_int_equal(f->o.tls.n_allowed_names, OPTIONS_SANS_MAX);
	/* One that is there already needs no place. */
	strcat(text, "allow-peer = p0\n");
	assert_int_equal(read_text(f, text), 0);
	strcat(text, "allow-peer = more\n");
	refused(f, text, "t.conf:4099: [stream] allow-peer: ", "at most 4096");
}

static void test_credentials_are_found_in_their_directory(void **state)
{
	struct fixture *f = *state;

	setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x", 1);
	assert_int_equal(read_text(f, "[tls]\ncert = %d/host.crt\nkey = /%d/k\nca = %dx\n"), 0);
	assert_string_equal(f->o.tls.cert_path, "/run/credentials/x/host.crt");
	assert_string_equal(f->o.tls.key_path, "/%d/k");
	assert_string_equal(f->o.tls.ca_path, "%dx");
	unsetenv("CREDENTIALS_DIRECTORY");
	refused(f, "[tls]\ncert = %d/host.crt\n",
	        "t.conf:2: [tls] cert: ", "$CREDENTIALS_DIRECTORY is not set");
}

static void test_a_file_that_is_named_must_be_there(void **state)
{
	char *argv[] = { (char *)"postcopyd", (char *)"--config", (char *)"/nowhere/x.conf", NULL };
	struct fixture *f = *state;

	assert_int_equal(options_parse(3, argv, &f->o, &f->errors), -EINVAL);
	assert_int_equal(f->errors.n, 1);
	assert_string_equal(f->errors.list[0].text, "/nowhere/x.conf: No such file or directory");
}

static void test_what_belongs_together(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(PARSE(f, "[tls]\ncert = c\n", "--key", "k"), -EINVAL);
	assert_non_null(strstr(f->errors.list[0].text, "cert, key and ca are needed"));
	assert_int_equal(PARSE(f, TLS_KEYS, "--control-listen", "a:1"), -EINVAL);
	assert_non_null(strstr(f->errors.list[0].text, "control-allow"));
	assert_int_equal(
	        PARSE(f, TLS_KEYS "[control]\ncontrol-allow = x\n", "--control-listen", "a:1"), 0);
}

static void test_wrong_command_lines(void **state)
{
	static const struct {
		const char *args[3];
		const char *why;
	} cases[] = {
		{ { "--no-such" }, "--no-such: unknown option" },
		{ { "--listen" }, "--listen: needs a value" },
		{ { "--listen", "x" }, "--listen: \"x\" is not HOST:PORT" },
		{ { "--ready-fd", "x" }, "--ready-fd: \"x\" is not a whole number" },
		{ { "--vmm", "" }, "--vmm: its value is empty" },
		{ { "--vmm", "a " }, "--vmm: \"a \": a blank at its end" },
		{ { "--vmm", "a ;b" }, "--vmm: \"a ;b\": here \";\" begins a comment" },
		{ { "--check-config=x" }, "--check-config" },
		{ { "surplus" }, "\"surplus\": no arguments" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		assert_int_equal(parse(f, "", cases[i].args), -EINVAL);
		assert_int_equal(f->errors.n, 1);
		if (!strstr(f->errors.list[0].text, cases[i].why))
			fail_msg("\"%s\", not %s", f->errors.list[0].text, cases[i].why);
	}
}

#define OPTIONS_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		OPTIONS_TEST(test_defaults),
		OPTIONS_TEST(test_each_key_of_a_file_is_taken),
		OPTIONS_TEST(test_what_is_printed_says_the_same),
		OPTIONS_TEST(test_the_command_line_wins),
		OPTIONS_TEST(test_a_list_of_the_command_line_replaces_the_files),
		OPTIONS_TEST(test_what_the_command_line_overrules_is_checked_all_the_same),
		OPTIONS_TEST(test_each_kind_of_error_has_its_place),
		OPTIONS_TEST(test_all_errors_of_a_file_are_told),
		OPTIONS_TEST(test_more_errors_than_there_is_room_for_are_counted),
		OPTIONS_TEST(test_lines_that_are_no_text),
		OPTIONS_TEST(test_too_many_names),
		OPTIONS_TEST(test_credentials_are_found_in_their_directory),
		OPTIONS_TEST(test_a_file_that_is_named_must_be_there),
		OPTIONS_TEST(test_what_belongs_together),
		OPTIONS_TEST(test_wrong_command_lines),
	};

	return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}

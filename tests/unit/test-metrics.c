/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ctl/pki.h"
#include "migrate/migrate.h"
#include "telemetry/metrics.h"
#include "util/unix_listen.h"
#include "tls/tls.h"
#include "util/error.h"

#define PAGE_MAX (1u << 17)
#define REQUEST "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

struct fixture {
	char dir[32], vmm[64], cert[64], key[64], ca[64];
	uv_loop_t loop;
	struct migrations *migrations;
	struct metrics_config config;
	struct metrics *metrics;
	struct tls_context *client; /* NULL: no TLS */
	struct tls_config client_config;
	/* The client's thread. */
	uv_async_t done;
	bool answered;
	char page[PAGE_MAX];
};

static void in_dir(const struct fixture *f, char ret[64], const char *name)
{
	snprintf(ret, 64, "%s/%s", f->dir, name);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct migrations_config config = { .max_vmstate_bytes = 1 << 20 };
	struct error err = ERROR_INIT;

	strcpy(f->dir, "/tmp/test-metrics-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	in_dir(f, f->vmm, "vmm.sock");
	in_dir(f, f->cert, PKI_SOURCE_CERT);
	in_dir(f, f->key, PKI_SOURCE_KEY);
	in_dir(f, f->ca, PKI_CA);
	config.vmm_fd = unix_listen(f->vmm, SOCK_SEQPACKET, "VMM socket", &err);
	uv_loop_init(&f->loop);
	if (migrations_new(&f->loop, &config, &f->migrations, &err))
		fail_msg("%s", err.text);
	f->config = (struct metrics_config){
		.version = "1.2.3",
		.host = "127.0.0.1",
		.port = "0",
		.cert_path = f->cert,
		.key_path = f->key,
		.ca_path = f->ca,
		.migrations = f->migrations,
	};
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char command[128];

	metrics_close(f->metrics);
	migrations_stop(f->migrations);
	migrations_close(f->migrations);
	uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	migrations_free(f->migrations);
	tls_context_free(f->client);
	snprintf(command, sizeof command, "rm -r %s", f->dir);
	assert_int_equal(system(command), 0);
	free(f);
	return 0;
}

static void start(struct fixture *f)
{
	struct error err = ERROR_INIT;

	if (metrics_new(&f->loop, &f->config, &f->metrics, &err))
		fail_msg("%s", err.text);
}

static int connect_to(const struct fixture *f)
{
	struct sockaddr_in to = { .sin_family = AF_INET,
		                  .sin_port = htons((uint16_t)metrics_port(f->metrics)),
		                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	return connect(fd, (struct sockaddr *)&to, sizeof to) ? -1 : fd;
}

/* Return: bytes of the answer, in f->page; -1 where there is none. */
static ssize_t ask(struct fixture *f, int fd, struct tls *tls)
{
	size_t len = 0;
	ssize_t n = tls ? tls_write(tls, REQUEST, strlen(REQUEST))
	                : send(fd, REQUEST, strlen(REQUEST), MSG_NOSIGNAL);

	while (n >= 0 && len < PAGE_MAX - 1) {
		n = tls ? tls_read(tls, f->page + len, PAGE_MAX - 1 - len)
		        : read(fd, f->page + len, PAGE_MAX - 1 - len);
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	f->page[len] = 0;
	return len ? (ssize_t)len : -1;
}

static void *client_main(void *arg)
{
	struct fixture *f = arg;
	struct error err = ERROR_INIT;
	struct tls *tls = NULL;
	int fd = connect_to(f);

	if (fd >= 0 && (!f->client || !tls_handshake(f->client, fd, false, &tls, &err)))
		f->answered = ask(f, fd, tls) > 0;
	tls_free(tls);
	tls_thread_end();
	close(fd);
	uv_async_send(&f->done);
	return NULL;
}

static void on_done(uv_async_t *done)
{
	uv_close((uv_handle_t *)done, NULL);
	uv_stop(done->loop);
}

/* A scrape, while the loop runs; the answer is in f->page. */
static void scrape(struct fixture *f)
{
	pthread_t thread;

	f->answered = false;
	uv_async_init(&f->loop, &f->done, on_done);
	assert_int_equal(pthread_create(&thread, NULL, client_main, f), 0);
	uv_run(&f->loop, UV_RUN_DEFAULT);
	pthread_join(thread, NULL);
	uv_run(&f->loop, UV_RUN_NOWAIT);
	if (!f->answered)
		fail_msg("no answer");
}

static void assert_line(const struct fixture *f, const char *line)
{
	if (!strstr(f->page, line))
		fail_msg("no line \"%s\" in:\n%s", line, f->page);
}

static void assert_no_line(const struct fixture *f, const char *line)
{
	if (strstr(f->page, line))
		fail_msg("\"%s\" in:\n%s", line, f->page);
}

static void test_what_no_hook_gives_is_left_out_or_the_daemons(void **state)
{
	struct fixture *f = *state;

	start(f);
	scrape(f);
	assert_line(f, "\npostcopyd_build_info{version=\"1.2.3\"} 1\n");
	assert_line(f, "\npostcopyd_guest_stall_seconds_count{source=\"daemon\"} 0\n");
	assert_no_line(f, "certificate_expiry");
	metrics_count_call(NULL, "/x", "reader", "OK");
}

static void read_stall(void *arg, struct metrics_stall *ret)
{
	(void)arg;
	ret->source = "fentry";
	ret->unpaired = 3;
	ret->lost = 4;
	histogram_add(&ret->stall_ns, 1000000);
}

static int64_t expiry(void *arg)
{
	return *(const int64_t *)arg;
}

static void test_hooks_are_asked_with_each_scrape(void **state)
{
	struct fixture *f = *state;
	int64_t expiry_s = 1800000000;

	f->config.read_stall = read_stall;
	f->config.certificate_expiry = expiry;
	f->config.arg = &expiry_s;
	start(f);
	scrape(f);
	expiry_s = 1900000000;
	scrape(f);
	assert_line(f, "\npostcopyd_certificate_expiry_timestamp_seconds 1900000000\n");
	assert_line(f, "\npostcopyd_guest_stall_seconds_count{source=\"fentry\"} 1\n");
	assert_line(f, "\npostcopyd_guest_stall_seconds_sum{source=\"fentry\"} 0.001\n");
	assert_line(f, "\npostcopyd_guest_stalls_unpaired_total 3\n");
	assert_line(f, "\npostcopyd_guest_stalls_lost_total 4\n");
}

static void read_nothing(void *arg, struct metrics_stall *ret)
{
	(void)arg;
	ret->source = "daemon";
	histogram_add(&ret->stall_ns, 1000000);
}

/* The daemon's own times are the migrations', and there was none. */
static void test_without_ebpf_the_daemons_own_times_stand_in(void **state)
{
	struct fixture *f = *state;

	f->config.read_stall = read_nothing;
	start(f);
	scrape(f);
	assert_line(f, "\npostcopyd_guest_stall_seconds_count{source=\"daemon\"} 0\n");
}

static void test_calls_are_counted_by_method_and_code(void **state)
{
	static char names[1000][16];
	struct fixture *f = *state;

	start(f);
	for (int i = 0; i < 3; i++)
		metrics_count_call(f->metrics, "/a.B/C", "operator", i ? "OK" : "NOT_FOUND");
	scrape(f);
	assert_line(f, "\npostcopyd_control_calls_total{method=\"/a.B/"
	               "C\",role=\"operator\",code=\"OK\"} 2\n");
	assert_line(f, "\npostcopyd_control_calls_total{method=\"/a.B/"
	               "C\",role=\"operator\",code=\"NOT_FOUND\"} 1\n");
	assert_no_line(f, "\"other\"");
	for (int i = 0; i < 1000; i++) {
		snprintf(names[i], sizeof names[i], "/a.B/M%d", i);
		metrics_count_call(f->metrics, names[i], "reader", "OK");
	}
	scrape(f);
	assert_line(f, "{method=\"/a.B/M509\",role=\"reader\",code=\"OK\"} 1\n");
	assert_no_line(f, "M510");
	assert_line(f, "{method=\"other\",role=\"other\",code=\"other\"} 490\n");
}

static void remove_pki(const struct fixture *f)
{
	static const char *const names[] = { PKI_CA, PKI_SOURCE_CERT, PKI_SOURCE_KEY,
		                             PKI_DESTINATION_CERT, PKI_DESTINATION_KEY };
	char path[64];

	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		in_dir(f, path, names[i]);
		unlink(path);
	}
}

static int reload(struct fixture *f, struct error *err)
{
	return metrics_reload(f->metrics, f->cert, f->key, f->ca, err);
}

static void start_tls(struct fixture *f)
{
	struct error err = ERROR_INIT;

	if (pki_make(f->dir, &err))
		fail_msg("%s", err.text);
	f->config.tls = true;
	f->client_config = (struct tls_config){
		.alpn = "http/1.1",
		.cert_path = f->cert,
		.key_path = f->key,
		.ca_path = f->ca,
	};
	if (tls_context_new(&f->client_config, &f->client, &err))
		fail_msg("%s", err.text);
	start(f);
}

static void test_certificates_are_read_anew(void **state)
{
	struct fixture *f = *state;
	struct error err = ERROR_INIT;
	FILE *file;

	start_tls(f);
	scrape(f);
	assert_line(f, "\npostcopyd_build_info");
	/* Another authority: what the client believes now, the server has only after a reload. */
	remove_pki(f);
	assert_int_equal(pki_make(f->dir, &err), 0);
	assert_int_equal(reload(f, &err), 0);
	tls_context_free(f->client);
	assert_int_equal(tls_context_new(&f->client_config, &f->client, &err), 0);
	scrape(f);
	assert_line(f, "\npostcopyd_build_info");
	/* What can't be used leaves everything as it is. */
	file = fopen(f->key, "w");
	fputs("no key\n", file);
	fclose(file);
	assert_true(reload(f, &err) < 0);
	assert_non_null(strstr(err.text, f->cert));
	scrape(f);
	assert_line(f, "\npostcopyd_build_info");
	unlink(f->ca);
	assert_true(reload(f, &err) < 0);
	assert_non_null(strstr(err.text, f->ca));
	scrape(f);
	assert_line(f, "\npostcopyd_build_info");
}

static void test_without_its_files_there_is_no_tls(void **state)
{
	struct fixture *f = *state;
	struct error err = ERROR_INIT;

	f->config.tls = true;
	assert_true(metrics_new(&f->loop, &f->config, &f->metrics, &err) < 0);
	assert_null(f->metrics);
	assert_non_null(strstr(err.text, f->cert));
}

#define WITH_FIXTURE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_FIXTURE(test_what_no_hook_gives_is_left_out_or_the_daemons),
		WITH_FIXTURE(test_hooks_are_asked_with_each_scrape),
		WITH_FIXTURE(test_without_ebpf_the_daemons_own_times_stand_in),
		WITH_FIXTURE(test_calls_are_counted_by_method_and_code),
		WITH_FIXTURE(test_certificates_are_read_anew),
		WITH_FIXTURE(test_without_its_files_there_is_no_tls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

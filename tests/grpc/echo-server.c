/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gRPC server library with methods that are easy to test against.
 *
 *   echo-server --unix PATH [--group GID] [--tls HOST:PORT --cert F --key F --ca F [--allow SAN]]
 *
 * Says "READY port=N" when it serves. SIGUSR1 drains it, SIGTERM ends it. Requests are text, of
 * numbers where there are any.
 *
 *   Echo   the request
 *   Chat   the same for a stream of requests
 *   Count  N SIZE: a stream of N messages of SIZE bytes, of which each begins with its number
 *   Sleep  MS: an empty message, so much later
 *   Big    SIZE: one message of so many bytes
 *   Fail   CODE: that status, with text and details
 *   Peer   who calls
 *   Stats  "connections calls connections_total refused_total gone finished rss_kib fds"
 */
#include <errno.h>
#include <getopt.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "grpc/server.h"
#include "util/log.h"

#define COUNT_SIZE_MAX (1u << 20)

struct echo {
	uv_loop_t loop;
	uv_signal_t on_term;
	uv_signal_t on_usr1;
	struct grpc_server *server;
	unsigned int gone;
	unsigned int finished;
};

/* A call that goes on after its method has returned. */
struct job {
	uv_timer_t timer;
	struct echo *echo;
	struct grpc_call *call;
	unsigned long next, n;
	size_t size;
};

static void numbers(const uint8_t *request, size_t len, unsigned long *a, unsigned long *b)
{
	char text[64] = "";

	memcpy(text, request, len < sizeof text ? len : sizeof text - 1);
	*a = *b = 0;
	sscanf(text, "%lu %lu", a, b);
}

static void reply(struct grpc_call *call, const void *message, size_t len)
{
	struct grpc_status status = { .code = GRPC_RESOURCE_EXHAUSTED };

	grpc_call_finish(call, grpc_call_send(call, message, len) ? &status : NULL);
}

static void echo_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	(void)arg;
	reply(call, request, len);
}

static void chat_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct grpc_status status = { .code = GRPC_RESOURCE_EXHAUSTED };

	(void)arg;
	if (!request)
		grpc_call_finish(call, NULL);
	else if (grpc_call_send(call, request, len))
		grpc_call_finish(call, &status);
}

static void on_job_closed(uv_handle_t *handle)
{
	free(handle->data);
}

static void job_end(struct job *job)
{
	uv_close((uv_handle_t *)&job->timer, on_job_closed);
}

static void on_gone(struct grpc_call *call, void *arg)
{
	struct job *job = arg;

	(void)call;
	job->echo->gone++;
	job_end(job);
}

static struct job *job_new(struct echo *echo, struct grpc_call *call,
                           void (*writable)(struct grpc_call *call, void *arg))
{
	struct job *job = calloc(1, sizeof *job);

	if (!job)
		abort();
	job->echo = echo;
	job->call = call;
	uv_timer_init(&echo->loop, &job->timer);
	job->timer.data = job;
	grpc_call_watch(call, on_gone, writable, job);
	return job;
}

static void count_on(struct grpc_call *call, void *arg)
{
	static uint8_t message[COUNT_SIZE_MAX];
	struct job *job = arg;

	while (job->next < job->n && !grpc_call_queued(call)) {
		int len = snprintf((char *)message, 32, "%lu ", job->next++);

		if (grpc_call_send(call, message,
		                   job->size < (size_t)len ? (size_t)len : job->size))
			abort();
	}
	if (job->next < job->n)
		return;
	grpc_call_finish(call, NULL);
	job_end(job);
}

static void count_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct job *job = job_new(arg, call, count_on);

	numbers(request, len, &job->n, &job->size);
	if (job->size > COUNT_SIZE_MAX)
		job->size = COUNT_SIZE_MAX;
	count_on(call, job);
}

static void on_slept(uv_timer_t *timer)
{
	struct job *job = timer->data;

	reply(job->call, NULL, 0);
	job_end(job);
}

static void sleep_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct job *job = job_new(arg, call, NULL);
	unsigned long ms, ignored;

	numbers(request, len, &ms, &ignored);
	uv_timer_start(&job->timer, on_slept, ms, 0);
}

static void big_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	unsigned long size, ignored;
	uint8_t *message;

	(void)arg;
	numbers(request, len, &size, &ignored);
	message = calloc(1, size + 1);
	if (!message)
		abort();
	reply(call, message, size);
	free(message);
}

static void fail_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct grpc_status status = { .message = "100% wr\xc3\xb6ng\n",
		                      .details = { 0, 1, 0xff },
		                      .details_len = 3 };
	unsigned long code, ignored;

	(void)arg;
	numbers(request, len, &code, &ignored);
	status.code = (enum grpc_code)code;
	grpc_call_finish(call, &status);
}

static void peer_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	const char *name = grpc_call_peer(call)->name;

	(void)request;
	(void)len;
	(void)arg;
	reply(call, name, strlen(name));
}

static unsigned int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int n = 0;

	while (dir && readdir(dir))
		n++;
	if (dir)
		closedir(dir);
	return n;
}

static long rss_kib(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	long size = 0, resident = 0;

	if (!f || fscanf(f, "%ld %ld", &size, &resident) != 2)
		resident = -1;
	if (f)
		fclose(f);
	return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void stats_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct grpc_server_stats stats;
	struct echo *echo = arg;
	char text[256];

	(void)request;
	(void)len;
	grpc_server_get_stats(echo->server, &stats);
	snprintf(text, sizeof text, "%u %u %llu %llu %u %u %ld %u", stats.connections, stats.calls,
	         (unsigned long long)stats.connections_total,
	         (unsigned long long)stats.refused_total, echo->gone, echo->finished, rss_kib(),
	         count_fds());
	reply(call, text, strlen(text));
}

static void on_finished(void *arg, const struct grpc_peer *peer, const char *path,
                        enum grpc_code code, uint64_t duration_ns)
{
	struct echo *echo = arg;

	(void)path;
	(void)peer;
	(void)code;
	(void)duration_ns;
	echo->finished++;
}

static const struct grpc_method methods[] = {
	{ "/test.Echo/Echo", GRPC_READER, echo_call, false },
	{ "/test.Echo/Chat", GRPC_READER, chat_call, true },
	{ "/test.Echo/Count", GRPC_READER, count_call, false },
	{ "/test.Echo/Sleep", GRPC_READER, sleep_call, false },
	{ "/test.Echo/Big", GRPC_READER, big_call, false },
	{ "/test.Echo/Fail", GRPC_READER, fail_call, false },
	{ "/test.Echo/Peer", GRPC_READER, peer_call, false },
	{ "/test.Echo/Stats", GRPC_READER, stats_call, false },
	{ .path = NULL },
};

static void on_signal(uv_signal_t *signal, int number)
{
	struct echo *echo = signal->data;

	if (number == SIGUSR1) {
		grpc_server_drain(echo->server);
		return;
	}
	grpc_server_close(echo->server);
	uv_close((uv_handle_t *)&echo->on_term, NULL);
	uv_close((uv_handle_t *)&echo->on_usr1, NULL);
}

static int serve(const struct grpc_listen_unix *local, const struct grpc_listen_tls *tls,
                 struct error *err)
{
	struct echo echo = { .gone = 0 };
	const struct grpc_server_config config = { .methods = methods,
		                                   .arg = &echo,
		                                   .finished = on_finished };
	int rc;

	uv_loop_init(&echo.loop);
	rc = grpc_server_new(&echo.loop, &config, &echo.server, err);
	if (rc)
		return rc;
	if (local->path)
		rc = grpc_server_listen_unix(echo.server, local, err);
	if (!rc && tls->address)
		rc = grpc_server_listen_tls(echo.server, tls, err);
	uv_signal_init(&echo.loop, &echo.on_term);
	uv_signal_init(&echo.loop, &echo.on_usr1);
	echo.on_term.data = echo.on_usr1.data = &echo;
	uv_signal_start(&echo.on_term, on_signal, SIGTERM);
	uv_signal_start(&echo.on_usr1, on_signal, SIGUSR1);
	if (rc)
		on_signal(&echo.on_term, SIGTERM);
	else
		printf("READY port=%u\n", grpc_server_port(echo.server));
	fflush(stdout);
	uv_run(&echo.loop, UV_RUN_DEFAULT);
	return uv_loop_close(&echo.loop) ? error_set(err, -EBUSY, "handles are left") : rc;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "unix", required_argument, NULL, 'u' },
		{ "group", required_argument, NULL, 'g' },
		{ "tls", required_argument, NULL, 't' },
		{ "cert", required_argument, NULL, 'c' },
		{ "key", required_argument, NULL, 'k' },
		{ "ca", required_argument, NULL, 'a' },
		{ "allow", required_argument, NULL, 'n' },
		{ NULL, 0, NULL, 0 },
	};
	const char *names[16];
	struct tls_config tls_config = { .alpn = "h2", .allowed_names = names };
	struct grpc_listen_unix local = { .fd = -1 };
	struct grpc_listen_tls tls = { .address = NULL };
	struct error err = ERROR_INIT;
	gid_t group;
	int option;

	signal(SIGPIPE, SIG_IGN);
	log_init("echo-server", LOG_LEVEL_DEBUG, LOG_FORMAT_AUTO);
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'u':
			local.path = optarg;
			break;
		case 'g':
			group = (gid_t)strtoul(optarg, NULL, 10);
			local.groups.operators = &group;
			local.groups.n_operators = 1;
			break;
		case 't':
			tls.address = optarg;
			break;
		case 'c':
			tls_config.cert_path = optarg;
			break;
		case 'k':
			tls_config.key_path = optarg;
			break;
		case 'a':
			tls_config.ca_path = optarg;
			break;
		case 'n':
			names[tls_config.n_allowed_names++] = optarg;
			break;
		default:
			return 2;
		}
	}
	if (!tls.address || !tls_context_new(&tls_config, &tls.tls, &err))
		serve(&local, &tls, &err);
	tls_context_free(tls.tls);
	if (err.code)
		log_error("%s", err.text);
	return err.code ? 1 : 0;
}

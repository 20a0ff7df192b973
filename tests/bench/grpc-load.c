/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load on a daemon's gRPC service: streams that watch one migration, each over a connection of its
 * own, and unary calls at a fixed rate. Ends after its time, or when the daemon does.
 *
 *   grpc-load TARGET ID WATCHES CALLS_PER_S SECONDS
 *
 * Says one JSON object: how much was asked and answered, and how long the calls took.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "grpc/client.h"
#include "postcopy/v1/control.pb-c.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/histogram.h"

#define WATCHES_MAX 1024u
#define CALLERS 8u
#define CALL_TIMEOUT_MS 10000u
#define REQUEST_MAX 128u

struct load {
	const char *target;
	uint8_t request[REQUEST_MAX]; /* {id}: Get's and Watch's are the same bytes */
	size_t request_len;
	uint64_t interval_ns; /* between the calls of one caller */
	int stop_fd;          /* readable: it is over */
	atomic_uint watches;  /* that are running */
	_Atomic uint64_t messages, calls, errors;
	struct histogram call_ns;
};

static int count_message(const uint8_t *message, size_t len, void *arg, struct error *err)
{
	struct load *load = arg;

	(void)message;
	(void)len;
	(void)err;
	atomic_fetch_add(&load->messages, 1);
	return 0;
}

static int ignore_message(const uint8_t *message, size_t len, void *arg, struct error *err)
{
	(void)message;
	(void)len;
	(void)arg;
	(void)err;
	return 0;
}

static bool is_over(const struct load *load)
{
	struct pollfd p = { .fd = load->stop_fd, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

static void *watch_main(void *arg)
{
	struct load *load = arg;
	struct error err = ERROR_INIT;
	struct grpc_client *client = NULL;
	struct grpc_status status;
	int rc = grpc_client_new(load->target, NULL, load->stop_fd, &client, &err);

	if (!rc) {
		atomic_fetch_add(&load->watches, 1);
		rc = grpc_client_call(client, "/postcopy.v1.Migrations/Watch", load->request,
		                      load->request_len, 0, count_message, load, &status, &err);
		if (!rc && status.code)
			rc = -EPROTO;
	}
	if (rc && rc != -ECANCELED)
		atomic_fetch_add(&load->errors, 1);
	grpc_client_free(client);
	return NULL;
}

static void sleep_until(uint64_t ns)
{
	struct timespec t = { .tv_sec = (time_t)(ns / NSEC_PER_SEC),
		              .tv_nsec = (long)(ns % NSEC_PER_SEC) };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void *call_main(void *arg)
{
	struct load *load = arg;
	struct error err = ERROR_INIT;
	struct grpc_client *client = NULL;
	struct grpc_status status;
	uint64_t due_ns = clock_now_ns();
	int rc = grpc_client_new(load->target, NULL, load->stop_fd, &client, &err);

	while (!rc && !is_over(load)) {
		uint64_t begun_ns;

		due_ns += load->interval_ns;
		sleep_until(due_ns);
		begun_ns = clock_now_ns();
		rc = grpc_client_call(client, "/postcopy.v1.Migrations/Get", load->request,
		                      load->request_len, CALL_TIMEOUT_MS, ignore_message, NULL,
		                      &status, &err);
		if (!rc && status.code)
			rc = -EPROTO;
		if (rc)
			break;
		atomic_fetch_add(&load->calls, 1);
		histogram_add(&load->call_ns, clock_now_ns() - begun_ns);
	}
	if (rc && rc != -ECANCELED)
		atomic_fetch_add(&load->errors, 1);
	grpc_client_free(client);
	return NULL;
}

static void print_result(const struct load *load, uint64_t ns)
{
	double s = (double)ns / (double)NSEC_PER_SEC;

	printf("{\"seconds\": %.3f, \"watches\": %u, \"messages\": %llu, \"calls\": %llu, "
	       "\"calls_per_s\": %.0f, \"errors\": %llu, \"call_us\": {\"p50\": %.1f, \"p99\": "
	       "%.1f}}\n",
	       s, load->watches, (unsigned long long)load->messages,
	       (unsigned long long)load->calls, (double)load->calls / s,
	       (unsigned long long)load->errors,
	       (double)histogram_quantile(&load->call_ns, 500) / NSEC_PER_USEC,
	       (double)histogram_quantile(&load->call_ns, 990) / NSEC_PER_USEC);
}

/* All threads; @n of them were begun. */
static int run(struct load *load, unsigned int watches, unsigned int callers, double seconds)
{
	pthread_t threads[WATCHES_MAX + CALLERS];
	uint64_t begun_ns = clock_now_ns(), end_ns;
	unsigned int n = 0;

	while (n < watches + callers &&
	       !pthread_create(&threads[n], NULL, n < watches ? watch_main : call_main, load))
		n++;
	end_ns = begun_ns + (uint64_t)(seconds * (double)NSEC_PER_SEC);
	/* Whatever happens to the daemon meanwhile: a thread that has lost it just ends. */
	sleep_until(end_ns);
	(void)!eventfd_write(load->stop_fd, 1);
	for (unsigned int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	print_result(load, end_ns - begun_ns);
	return n == watches + callers ? 0 : 1;
}

int main(int argc, char **argv)
{
	Postcopy__V1__GetRequest request = POSTCOPY__V1__GET_REQUEST__INIT;
	static struct load load;
	unsigned long watches = argc == 6 ? strtoul(argv[3], NULL, 10) : WATCHES_MAX + 1;
	double per_s, seconds;

	if (watches > WATCHES_MAX) {
		fprintf(stderr, "usage: grpc-load TARGET ID WATCHES CALLS_PER_S SECONDS\n");
		return 2;
	}
	per_s = strtod(argv[4], NULL);
	seconds = strtod(argv[5], NULL);
	request.id = argv[2];
	if (postcopy__v1__get_request__get_packed_size(&request) > sizeof load.request)
		return 2;
	load.request_len = postcopy__v1__get_request__pack(&request, load.request);
	load.target = argv[1];
	load.interval_ns = per_s > 0 ? (uint64_t)(CALLERS * (double)NSEC_PER_SEC / per_s) : 0;
	load.stop_fd = eventfd(0, EFD_CLOEXEC);
	if (load.stop_fd < 0)
		return 1;
	return run(&load, (unsigned int)watches, per_s > 0 ? CALLERS : 0, seconds);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source for tests: a page server in this process, with a guest of PAGES pages, and a pull on
 * a guest's memory (guest.h) that can be connected to it.
 */
#ifndef TESTS_UNIT_SOURCE_H
#define TESTS_UNIT_SOURCE_H

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "ctl/pki.h"
#include "fault/pull.h"
#include "guest.h"
#include "stream/page_server.h"
#include "support.h"

#ifndef PAGES
#define PAGES 1024u
#endif
#define SIZE (PAGES * (size_t)UNIT_BYTES)
#define TIMEOUT_MS 20000

static const uint8_t token[TOKEN_BYTES] = "test";

struct tls_side {
	char paths[3][64];
	struct tls_config config;
	struct tls_context *context;
};

struct source {
	char dir[32];
	uint8_t *content;
	struct tls_side server_side, client_side;
	struct page_server *server;
	struct page_source *source;
	struct conn_target target;
	struct hello hello;
	uint64_t epoch;
};

static inline void fill_content(uint8_t *content)
{
	uint64_t seed = 7;

	for (size_t i = 0; i < SIZE; i += sizeof seed) {
		uint64_t word = random_next(&seed);

		/* Each seventh page, from 7 on, is a zero page. */
		if (i / UNIT_BYTES % 7 || i < 7 * UNIT_BYTES)
			memcpy(content + i, &word, sizeof word);
	}
}

static inline void nothing(void *arg)
{
	(void)arg;
}

/* @side stays in use. */
static inline void make_tls(struct tls_side *side, const char *dir, const char *cert,
                            const char *key)
{
	struct error err = ERROR_INIT;

	snprintf(side->paths[0], sizeof side->paths[0], "%s/%s", dir, cert);
	snprintf(side->paths[1], sizeof side->paths[1], "%s/%s", dir, key);
	snprintf(side->paths[2], sizeof side->paths[2], "%s/%s", dir, PKI_CA);
	side->config = (struct tls_config){ .alpn = STREAM_ALPN,
		                            .cert_path = side->paths[0],
		                            .key_path = side->paths[1],
		                            .ca_path = side->paths[2] };
	if (tls_context_new(&side->config, &side->context, &err))
		fail_msg("%s", err.text);
}

static inline struct page_source *make_page_source(const struct source *s)
{
	static const struct page_source_ops ops = { nothing, nothing, nothing, nothing, nothing };
	struct region r = { .memory = POSTCOPY_MEMORY_MEMFD,
		            .size = SIZE,
		            .page_size = UNIT_BYTES };
	struct region_table table = { 0 };
	struct error err = ERROR_INIT;
	struct page_source *source;
	struct memory *memory;
	int fd = memfd_create("test-source", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_int_equal(write(fd, s->content, SIZE), SIZE);
	assert_int_equal(region_table_add(&table, &r, &err), 0);
	assert_int_equal(memory_open_source(&table.regions[0], 0, fd, &memory, &err), 0);
	assert_int_equal(page_source_new("vm", token, &table, &memory, &ops, NULL, &source, &err),
	                 0);
	/* Paused: its memory may be read. */
	page_source_set_vmstate(source, memfd_create("vmstate", MFD_CLOEXEC), 0, 0);
	return source;
}

static inline void source_start(struct source *s, const struct guest *g)
{
	struct error err = ERROR_INIT;
	struct hello_reply *reply = malloc(sizeof *reply);
	struct tcp_listening listening;
	struct dialing dialing;
	struct conn *control;

	/* As the daemon: a connection that its other end has left is an error, and no end. */
	signal(SIGPIPE, SIG_IGN);
	dialing_init(&dialing);
	strcpy(s->dir, "/tmp/test-source-XXXXXX");
	assert_non_null(mkdtemp(s->dir));
	if (pki_make(s->dir, &err))
		fail_msg("%s", err.text);
	make_tls(&s->server_side, s->dir, PKI_SOURCE_CERT, PKI_SOURCE_KEY);
	make_tls(&s->client_side, s->dir, PKI_DESTINATION_CERT, PKI_DESTINATION_KEY);
	assert_int_equal(page_server_listen("127.0.0.1:0", &listening, &err), 0);
	assert_int_equal(page_server_new(&listening, s->server_side.context, &s->server, &err), 0);
	assert_int_equal(page_server_start(s->server, &err), 0);
	s->source = make_page_source(s);
	assert_int_equal(page_server_add(s->server, s->source), 0);
	strcpy(s->target.host, "127.0.0.1");
	snprintf(s->target.port, sizeof s->target.port, "%u", page_server_port(s->server));
	s->hello = (struct hello){ .role = STREAM_CONTROL, .migration_id = "vm", .holder = "h" };
	s->hello.token = token;
	s->hello.regions = g->table;
	if (conn_dial(&dialing, &s->target, s->client_side.context, &s->hello, &control, reply,
	              &err))
		fail_msg("%s", err.text);
	s->epoch = reply->epoch;
	conn_free(control);
	dialing_deinit(&dialing);
	free(reply);
}

static inline void source_stop(struct source *s)
{
	static const char *const files[] = { PKI_CA, PKI_SOURCE_CERT, PKI_SOURCE_KEY,
		                             PKI_DESTINATION_CERT, PKI_DESTINATION_KEY };
	char path[64];

	page_server_free(s->server);
	page_source_unref(s->source);
	tls_context_free(s->server_side.context);
	tls_context_free(s->client_side.context);
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		snprintf(path, sizeof path, "%s/%s", s->dir, files[i]);
		unlink(path);
	}
	rmdir(s->dir);
}

static inline void on_complete(void *arg)
{
	eventfd_write(*(int *)arg, 1);
}

static inline void on_connection(void *arg)
{
	(void)arg;
}

/* A pull on a guest's memory, with the state that is there. */
static inline struct pull *make_pull(const struct guest *g, int state_fd, enum resolver_map map,
                                     int *complete_fd)
{
	struct pull_config config = {
		.id = "vm",
		.table = g->table,
		.memories = { guest_memory(g) },
		.uffd = fcntl(g->uffd, F_DUPFD_CLOEXEC, 0),
		.state_fd = state_fd,
		.map = map,
		.streams = 1,
		.bulk = true,
		.complete = on_complete,
		.connection = on_connection,
		.arg = complete_fd,
	};
	struct error err = ERROR_INIT;
	struct pull *p;

	if (pull_new(&config, &p, &err)) {
		printf("%s\n", err.text);
		return NULL;
	}
	return p;
}

static inline bool readable(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, timeout_ms) == 1;
}

#endif

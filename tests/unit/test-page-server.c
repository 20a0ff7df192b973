/* SPDX-License-Identifier: Apache-2.0 */
/* A page server on this host's loopback, and what a destination says to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ctl/pki.h"
#include "libpostcopy/poison_wire.h"
#include "stream/dirty.h"
#include "stream/page_server.h"
#include "stream/window.h"

#include "support.h"
#include "util/clock.h"

/* Two regions, of which one ends within a word. */
static const uint64_t units[] = { 130, 64 };
#define REGIONS 2u
#define VMSTATE_BYTES (600u * 1024u)
#define SILENCE_MS 50
#define WAIT_S 10
/* Less than a VMM has to answer. */
#define AT_ONCE_MS 5000

enum op { CONNECTED, SWITCHOVER, RESUMED, COMPLETE, ABORTED, LOG, OPS };

/* A source guest and what its owner was told. */
struct guest {
	struct region_table table;
	struct page_source *source;
	uint8_t token[TOKEN_BYTES];
	uint8_t seed;
	char id[MIGRATION_ID_MAX + 1];
	pthread_mutex_t lock;
	pthread_cond_t told;
	unsigned int ops[OPS];
	/* What it writes, told by its VMM, who answers at once, or never; NULL: nobody tells it. */
	_Atomic uint64_t *bitmap;
	uint64_t session; /* of its log; 0: it is off */
	bool silent;
};

static char dir[] = "/tmp/test-page-server-XXXXXX";
static struct tls_config config;
static struct tls_context *tls;
static struct page_server *server;
static struct conn_target target;

static void note(struct guest *g, enum op op)
{
	pthread_mutex_lock(&g->lock);
	g->ops[op]++;
	pthread_cond_broadcast(&g->told);
	pthread_mutex_unlock(&g->lock);
}

static unsigned int told(struct guest *g, enum op op)
{
	unsigned int n;

	pthread_mutex_lock(&g->lock);
	n = g->ops[op];
	pthread_mutex_unlock(&g->lock);
	return n;
}

static void wait_told(struct guest *g, enum op op, unsigned int n)
{
	struct timespec until;
	int rc = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += WAIT_S;
	pthread_mutex_lock(&g->lock);
	while (g->ops[op] < n && !rc)
		rc = pthread_cond_timedwait(&g->told, &g->lock, &until);
	pthread_mutex_unlock(&g->lock);
	assert_int_equal(rc, 0);
}

static void on_connected(void *arg)
{
	note(arg, CONNECTED);
}

static void on_switchover(void *arg)
{
	note(arg, SWITCHOVER);
}

static void on_resumed(void *arg)
{
	note(arg, RESUMED);
}

static void on_complete(void *arg)
{
	note(arg, COMPLETE);
}

static void on_aborted(void *arg)
{
	note(arg, ABORTED);
}

static void on_log(void *arg)
{
	struct guest *g = arg;
	struct source_log_order order;

	page_source_get_log_order(g->source, &order);
	pthread_mutex_lock(&g->lock);
	g->session = order.session;
	pthread_mutex_unlock(&g->lock);
	if (order.session && !g->silent)
		page_source_answer_log(g->source, order.number, 0, "");
	note(g, LOG);
}

static const struct page_source_ops ops = {
	.connected = on_connected,
	.switchover = on_switchover,
	.resumed = on_resumed,
	.complete = on_complete,
	.aborted = on_aborted,
	.log = on_log,
};

/* Every third unit is a hole, one of seven is written zeroes, the others have a pattern. */
static uint8_t byte_of(const struct guest *g, uint32_t region, uint64_t unit)
{
	uint8_t value = (uint8_t)(g->seed + region * 50 + unit);

	return unit % 3 == 0 || unit % 7 == 0 ? 0 : value | 1;
}

static struct memory *make_memory(struct guest *g, uint32_t region)
{
	int fd = memfd_create("test-page-server", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct error err = ERROR_INIT;
	uint8_t page[UNIT_BYTES];
	struct memory *m;

	assert_int_equal(ftruncate(fd, (off_t)(units[region] * UNIT_BYTES)), 0);
	for (uint64_t unit = 0; unit < units[region]; unit++) {
		/* The last byte alone makes the difference. */
		memset(page, 0, sizeof page);
		page[UNIT_BYTES - 1] = byte_of(g, region, unit);
		if (unit % 3)
			assert_int_equal(pwrite(fd, page, sizeof page, (off_t)(unit * UNIT_BYTES)),
			                 sizeof page);
	}
	if (memory_open_source(&g->table.regions[region], region, fd, &m, &err))
		fail_msg("%s", err.text);
	return m;
}

static struct guest *new_guest(const char *id, uint8_t seed)
{
	struct guest *g = calloc(1, sizeof *g);
	struct memory *memories[REGIONS];
	struct error err = ERROR_INIT;

	g->seed = seed;
	strcpy(g->id, id);
	memset(g->token, seed, sizeof g->token);
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->told, NULL);
	for (uint32_t i = 0; i < REGIONS; i++) {
		struct region r = {
			.memory = POSTCOPY_MEMORY_MEMFD,
			.guest_phys_addr = (uint64_t)i << 30,
			.size = units[i] * UNIT_BYTES,
			.page_size = UNIT_BYTES,
		};

		assert_int_equal(region_table_add(&g->table, &r, &err), 0);
		memories[i] = make_memory(g, i);
	}
	if (page_source_new(id, g->token, &g->table, memories, &ops, g, &g->source, &err))
		fail_msg("%s", err.text);
	assert_int_equal(page_server_add(server, g->source), 0);
	return g;
}

/* After page_server_free(), or where no connection of it is left. */
static void free_guest(struct guest *g)
{
	assert_true(page_source_is_idle(g->source));
	page_source_unref(g->source);
	pthread_cond_destroy(&g->told);
	pthread_mutex_destroy(&g->lock);
	free(g);
}

static int make_vmstate(void)
{
	int fd = memfd_create("test-vmstate", MFD_CLOEXEC);
	uint8_t *bytes = malloc(VMSTATE_BYTES);

	for (size_t i = 0; i < VMSTATE_BYTES; i++)
		bytes[i] = (uint8_t)(i * 7 + i / 4096);
	assert_int_equal(write(fd, bytes, VMSTATE_BYTES), VMSTATE_BYTES);
	free(bytes);
	return fd;
}

static void pause_guest(struct guest *g)
{
	page_source_set_vmstate(g->source, make_vmstate(), VMSTATE_BYTES, 1234);
}

static int setup(void **state)
{
	struct error err = ERROR_INIT;
	struct tcp_listening listening;

	(void)state;
	if (page_server_listen("127.0.0.1:0", &listening, &err) ||
	    page_server_new(&listening, tls, &server, &err) || page_server_start(server, &err))
		fail_msg("%s", err.text);
	strcpy(target.host, "127.0.0.1");
	snprintf(target.port, sizeof target.port, "%u", page_server_port(server));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	server = page_server_free(server);
	return 0;
}

static struct hello *new_hello(const struct guest *g, enum stream_role role, uint64_t epoch)
{
	struct hello *h = calloc(1, sizeof *h);

	h->role = role;
	strcpy(h->migration_id, g->id);
	h->token = g->token;
	memset(h->holder, 'A', HOLDER_BYTES);
	h->epoch = epoch;
	if (role == STREAM_CONTROL)
		h->regions = g->table;
	return h;
}

/* Takes over @hello. */
static int dial(struct hello *hello, struct conn **ret, uint64_t *ret_epoch, struct error *err)
{
	struct hello_reply *reply = calloc(1, sizeof *reply);
	struct dialing dialing;
	int rc;

	dialing_init(&dialing);
	rc = conn_dial(&dialing, &target, tls, hello, ret, reply, err);
	dialing_deinit(&dialing);
	if (!rc && hello->role == STREAM_CONTROL && !hello->epoch)
		assert_int_equal(reply->regions.n, REGIONS);
	if (!rc)
		*ret_epoch = reply->epoch;
	free(reply);
	free(hello);
	return rc;
}

static struct conn *open_control(const struct guest *g, uint64_t *ret_epoch)
{
	struct error err = ERROR_INIT;
	struct conn *c;

	if (dial(new_hello(g, STREAM_CONTROL, 0), &c, ret_epoch, &err))
		fail_msg("%s", err.text);
	return c;
}

static struct conn *open_pages(const struct guest *g, enum stream_role role, uint64_t epoch)
{
	struct error err = ERROR_INIT;
	struct conn *c;

	if (dial(new_hello(g, role, epoch), &c, &epoch, &err))
		fail_msg("%s", err.text);
	return c;
}

/* The server's last word is an ERROR with @needle, then it hangs up. */
/* Nothing has come by now: an answer that must not come yet would be there. */
static void expect_silence(struct conn *c)
{
	struct error err = ERROR_INIT;
	struct frame_header h;
	const void *payload;

	conn_set_receive_timeout(c, SILENCE_MS);
	assert_int_equal(conn_next_frame(c, &h, &payload, &err), -EAGAIN);
	conn_set_receive_timeout(c, 0);
}

static void expect_error(struct conn *c, int code, const char *needle)
{
	struct error err = ERROR_INIT;
	struct frame_header h;
	const void *payload;

	assert_int_equal(conn_expect_frame(c, FRAME_PAGES, &h, &payload, &err), code);
	if (!strstr(err.text, needle))
		fail_msg("\"%s\" does not say \"%s\"", err.text, needle);
	assert_int_equal(conn_next_frame(c, &h, &payload, &err), -ECONNRESET);
}

static void ask(struct conn *c, struct window *w, uint32_t region, uint64_t word, uint64_t mask)
{
	struct scheduler_item item = { .region = region, .word = word, .want_mask = mask };
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_GET_BYTES];

	assert_int_equal(conn_send(c, buf, window_ask(w, &item, buf)), 0);
}

/* The next answer: data and zero masks as the guest has it, and the very bytes. */
static void check_answer(const struct guest *g, struct conn *c, struct window *w)
{
	struct error err = ERROR_INIT;
	struct scheduler_item item;
	struct frame_pages pages;
	struct frame_header h;
	const uint8_t *data;
	const void *payload;

	if (conn_next_frame(c, &h, &payload, &err) ||
	    window_answer(w, &h, payload, &pages, &item, &err))
		fail_msg("%s", err.text);
	data = (const uint8_t *)payload + FRAME_PAGES_BYTES;
	for (unsigned int i = 0; i < WORD_UNITS; i++) {
		uint8_t value = byte_of(g, item.region, item.word * WORD_UNITS + i);

		if (!(item.want_mask >> i & 1))
			continue;
		assert_int_equal(pages.zero_mask >> i & 1, value == 0);
		assert_int_equal(pages.data_mask >> i & 1, value != 0);
		if (!value)
			continue;
		assert_int_equal(data[0], 0);
		assert_int_equal(data[UNIT_BYTES - 1], value);
		data += UNIT_BYTES;
	}
}

static void fetch_everything(const struct guest *g, struct conn *c)
{
	struct window w = { 0 };
	uint64_t random = 4;

	for (uint32_t r = 0; r < REGIONS; r++)
		for (uint64_t word = 0; word < g->table.regions[r].words; word++) {
			uint64_t all = region_word_mask(&g->table.regions[r], word);

			ask(c, &w, r, word, all);
			ask(c, &w, r, word, (random_next(&random) & all) | 1);
		}
	while (w.n)
		check_answer(g, c, &w);
}

static void check_vmstate(struct conn *c)
{
	struct error err = ERROR_INIT;
	struct frame_vmstate v;
	struct frame_header h;
	const void *payload;

	if (conn_expect_frame(c, FRAME_VMSTATE, &h, &payload, &err) ||
	    frame_vmstate_decode(payload, &v, &err))
		fail_msg("%s", err.text);
	assert_int_equal(v.len, VMSTATE_BYTES);
	assert_int_equal(v.pause_ns, 1234);
	for (size_t at = 0; at < VMSTATE_BYTES; at += h.payload_len) {
		if (conn_expect_frame(c, FRAME_VMSTATE_DATA, &h, &payload, &err))
			fail_msg("%s", err.text);
		for (size_t i = at; i < at + h.payload_len; i++)
			assert_int_equal(((const uint8_t *)payload)[i - at],
			                 (uint8_t)(i * 7 + i / 4096));
	}
}

static void switch_over(struct guest *g, struct conn *control)
{
	assert_int_equal(conn_send_plain(control, FRAME_SWITCHOVER), 0);
	wait_told(g, SWITCHOVER, 1);
	pause_guest(g);
	check_vmstate(control);
}

static void expect_plain(struct conn *c, enum frame_type type)
{
	struct error err = ERROR_INIT;
	struct frame_header h;
	const void *payload;

	if (conn_expect_frame(c, type, &h, &payload, &err))
		fail_msg("%s", err.text);
}

/* Ends the server, with everything that was connected, and the guest. */
static void end(struct guest *g)
{
	server = page_server_free(server);
	free_guest(g);
}

static void test_a_whole_migration(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	const struct page_source_stats *stats = page_source_stats(g->source);
	struct conn *control, *urgent, *bulk;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	wait_told(g, CONNECTED, 1);
	assert_true(page_source_is_connected(g->source));
	urgent = open_pages(g, STREAM_URGENT, epoch);
	bulk = open_pages(g, STREAM_BULK, epoch);
	switch_over(g, control);
	fetch_everything(g, urgent);
	assert_true(atomic_load(&stats->fault_bytes) > 0 && !atomic_load(&stats->bulk_bytes));
	fetch_everything(g, bulk);
	/* The same pages twice: whoever is told what faults took is told no byte of bulk's. */
	assert_int_equal(atomic_load(&stats->fault_bytes), atomic_load(&stats->bulk_bytes));
	assert_int_equal(atomic_load(&stats->fault_bytes) * 2, atomic_load(&stats->bytes));
	assert_int_equal(conn_send_plain(control, FRAME_RESUMED), 0);
	wait_told(g, RESUMED, 1);
	assert_int_equal(conn_send_plain(control, FRAME_COMPLETE), 0);
	wait_told(g, COMPLETE, 1);
	expect_silence(control);
	page_source_end(g->source, SOURCE_LET_GO, "");
	expect_plain(control, FRAME_COMPLETE_ACK);
	assert_int_equal(told(g, SWITCHOVER), 1);
	assert_int_equal(told(g, ABORTED), 0);
	assert_int_equal(atomic_load(&stats->requests), 16);
	assert_true(atomic_load(&stats->pages) > 0 && atomic_load(&stats->zero_pages) > 0);
	conn_free(control);
	wait_told(g, CONNECTED, 2);
	assert_false(page_source_is_connected(g->source));
	conn_free(urgent);
	conn_free(bulk);
	end(g);
}

/* So many GETs as one record. */
static void ask_together(struct conn *c, struct window *w, const struct scheduler_item *items,
                         unsigned int n)
{
	uint8_t buf[8 * (FRAME_HEADER_BYTES + FRAME_GET_BYTES)];
	size_t len = 0;

	for (unsigned int i = 0; i < n; i++)
		len += window_ask(w, &items[i], buf + len);
	assert_int_equal(conn_send(c, buf, len), 0);
}

/* Faults that come at once cost one record each way. What is larger is not waited for. */
static void test_faults_asked_for_together_are_answered_together(void **state)
{
	static const unsigned int with_data[8] = { 1, 2, 4, 5, 8, 10, 11, 13 };
	struct scheduler_item items[8] = { 0 };
	struct guest *g = new_guest("vm1", 1);
	struct window w = { 0 };
	struct conn *control, *urgent;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	switch_over(g, control);
	urgent = open_pages(g, STREAM_URGENT, epoch);
	for (unsigned int i = 0; i < 8; i++)
		items[i].want_mask = 1ull << with_data[i];
	ask_together(urgent, &w, items, 3);
	check_answer(g, urgent, &w);
	assert_true(tls_decrypted(urgent->tls) >=
	            2 * (FRAME_HEADER_BYTES + FRAME_PAGES_BYTES + UNIT_BYTES));
	while (w.n)
		check_answer(g, urgent, &w);
	assert_int_equal(tls_decrypted(urgent->tls), 0);
	/* More than a record takes, and one among them that is many. */
	items[2].want_mask = region_word_mask(&g->table.regions[0], 0);
	ask_together(urgent, &w, items, 8);
	while (w.n)
		check_answer(g, urgent, &w);
	/* What was asked for before that which can't be is not lost. */
	items[1].word = g->table.regions[0].words;
	ask_together(urgent, &w, items, 2);
	check_answer(g, urgent, &w);
	expect_error(urgent, -EPROTO, "beyond");
	conn_free(urgent);
	conn_free(control);
	end(g);
}

static void test_a_lost_control_connection_gets_the_same_vmstate_again(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *control;
	uint64_t epoch, again;

	(void)state;
	control = open_control(g, &epoch);
	switch_over(g, control);
	conn_free(control);
	wait_told(g, CONNECTED, 2);
	assert_false(page_source_is_connected(g->source));
	control = open_control(g, &again);
	assert_true(epoch == again);
	assert_int_equal(conn_send_plain(control, FRAME_SWITCHOVER), 0);
	check_vmstate(control);
	assert_int_equal(told(g, SWITCHOVER), 1);
	conn_free(control);
	end(g);
}

static void log_writes(struct guest *g)
{
	int fds[DIRTY_LOG_FDS] = { memfd_create("test-dirty", MFD_CLOEXEC | MFD_ALLOW_SEALING), -1,
		                   -1 };
	uint64_t bytes = dirty_log_bytes(&g->table);
	struct dirty_log *log;

	assert_int_equal(ftruncate(fds[0], (off_t)bytes), 0);
	assert_int_equal(fcntl(fds[0], F_ADD_SEALS, F_SEAL_SHRINK), 0);
	g->bitmap = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	assert_int_equal(dirty_log_new(&g->table, DIRTY_LOG_BY_VMM, fds, &log, NULL), 0);
	assert_int_equal(page_source_set_log(g->source, log, ""), 0);
	assert_int_equal(page_source_set_log(g->source, NULL, "late"), -EBUSY);
}

static uint64_t session_of(struct guest *g)
{
	uint64_t session;

	pthread_mutex_lock(&g->lock);
	session = g->session;
	pthread_mutex_unlock(&g->lock);
	return session;
}

static void expect_tracked(struct conn *c, int code, const char *needle)
{
	struct error err = ERROR_INIT;
	struct frame_header h;
	const void *payload;

	assert_int_equal(conn_expect_frame(c, FRAME_TRACKED, &h, &payload, &err), 0);
	assert_int_equal(frame_tracked_decode(&h, payload, &err), code);
	assert_non_null(strstr(err.text, needle));
}

/* The next harvest: these units, by region, and no other. */
static void expect_dirty(const struct guest *g, struct conn *c, const uint64_t want[REGIONS][3])
{
	uint64_t got[REGIONS][3] = { 0 };
	struct error err = ERROR_INIT;
	struct dirty_reader d = { 0 };
	struct frame_header h;
	const void *payload;

	while (!d.last) {
		uint64_t first, n;

		if (conn_expect_frame(c, FRAME_DIRTY, &h, &payload, &err) ||
		    dirty_decode(&h, payload, &g->table, &d, &err))
			fail_msg("%s", err.text);
		while (!d.last && dirty_next(&d, &first, &n, &err) == 1)
			for (; n--; first++)
				got[d.region][first / WORD_UNITS] |= 1ull << first % WORD_UNITS;
	}
	assert_memory_equal(got, want, sizeof got);
}

static void test_what_a_running_guest_writes_is_told(void **state)
{
	static const uint64_t first[REGIONS][3] = { { 1, 0, 2 }, { 1ull << 63 } };
	static const uint64_t last[REGIONS][3] = { { 0, 6 }, { 0 } }, none[REGIONS][3] = { 0 };
	struct guest *g = new_guest("vm1", 1);
	struct conn *control, *bulk;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	assert_int_equal(conn_send_plain(control, FRAME_TRACK), 0);
	expect_tracked(control, -EOPNOTSUPP, "postcopy_source_offer_dirty_log");
	log_writes(g);
	assert_int_equal(conn_send_plain(control, FRAME_SYNC), 0);
	expect_tracked(control, -ECANCELED, "TRACK");
	assert_int_equal(conn_send_plain(control, FRAME_TRACK), 0);
	expect_tracked(control, 0, "");
	assert_true(session_of(g));
	bulk = open_pages(g, STREAM_BULK, epoch);
	fetch_everything(g, bulk);
	g->bitmap[0] = 1;
	g->bitmap[2] = UINT64_MAX << 1 & 2; /* the last of 130 */
	g->bitmap[3] = 1ull << 63;
	assert_int_equal(conn_send_plain(control, FRAME_SYNC), 0);
	expect_dirty(g, control, first);
	assert_int_equal(conn_send_plain(control, FRAME_SYNC), 0);
	expect_dirty(g, control, none);
	g->bitmap[1] = 6;
	assert_int_equal(conn_send_plain(control, FRAME_SWITCHOVER), 0);
	wait_told(g, SWITCHOVER, 1);
	assert_true(page_source_is_warm(g->source));
	pause_guest(g);
	expect_dirty(g, control, last);
	check_vmstate(control);
	/* Again, to one who has not heard it. */
	conn_free(control);
	control = open_control(g, &epoch);
	assert_int_equal(conn_send_plain(control, FRAME_SWITCHOVER), 0);
	expect_dirty(g, control, last);
	check_vmstate(control);
	conn_free(control);
	conn_free(bulk);
	munmap((void *)g->bitmap, dirty_log_bytes(&g->table));
	end(g);
}

static void test_a_log_ends_with_its_connection(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *control;
	uint64_t epoch;

	(void)state;
	log_writes(g);
	control = open_control(g, &epoch);
	assert_int_equal(conn_send_plain(control, FRAME_TRACK), 0);
	expect_tracked(control, 0, "");
	conn_free(control);
	wait_told(g, CONNECTED, 2);
	assert_int_equal(session_of(g), 0);
	/* Another that never asked for it: its VMSTATE comes alone. */
	control = open_control(g, &epoch);
	switch_over(g, control);
	assert_false(page_source_is_warm(g->source));
	conn_free(control);
	munmap((void *)g->bitmap, dirty_log_bytes(&g->table));
	end(g);
}

static void test_nothing_is_read_while_the_guest_runs(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct window w = { 0 };
	struct conn *control, *bulk;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	bulk = open_pages(g, STREAM_BULK, epoch);
	ask(bulk, &w, 0, 0, 1);
	expect_error(bulk, -EPROTO, "not paused");
	conn_free(bulk);
	/* Nor can it be complete. */
	assert_int_equal(conn_send_plain(control, FRAME_COMPLETE), 0);
	expect_error(control, -EPROTO, "its guest was not paused");
	assert_int_equal(told(g, COMPLETE), 0);
	conn_free(control);
	end(g);
}

/* It told so with its answers alone, each of which waited for longer than what is told counts. */
static void test_a_share_of_next_to_nothing_is_told(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	const struct page_source_stats *stats = page_source_stats(g->source);
	uint64_t epoch, told_ns, last_ns = 0, begin_ns = clock_now_ns();
	unsigned int times = 0;
	struct window w = { 0 };
	struct conn *control, *bulk;

	(void)state;
	page_source_set_share(g->source, 1);
	control = open_control(g, &epoch);
	bulk = open_pages(g, STREAM_BULK, epoch);
	switch_over(g, control);
	for (unsigned int i = 0; i < 3; i++)
		ask(bulk, &w, 0, i, 1);
	while (times <= atomic_load(&stats->requests) ||
	       load_limit(&stats->load, clock_now_ns()) != LOAD_CAP) {
		told_ns = atomic_load(&stats->load.told_ns);
		times += told_ns != last_ns;
		last_ns = told_ns;
		assert_true(clock_now_ns() - begin_ns < 60 * NSEC_PER_SEC);
		poll(NULL, 0, 1);
	}
	conn_free(bulk);
	conn_free(control);
	end(g);
}

/* Whatever bulk owes: a vCPU stands still. */
static void test_a_fault_pays_for_no_share(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct window of_bulk = { 0 }, of_faults = { 0 };
	struct conn *control, *bulk, *urgent;
	uint64_t epoch;

	(void)state;
	/* One answer of bulk is owed for for hours. */
	page_source_set_share(g->source, 1);
	control = open_control(g, &epoch);
	bulk = open_pages(g, STREAM_BULK, epoch);
	urgent = open_pages(g, STREAM_URGENT, epoch);
	switch_over(g, control);
	ask(bulk, &of_bulk, 0, 0, 1);
	check_answer(g, bulk, &of_bulk);
	(void)page_source_was_held(g->source);
	for (unsigned int i = 0; i < 8; i++) {
		ask(urgent, &of_faults, 0, 1, 1ull << i);
		check_answer(g, urgent, &of_faults);
	}
	assert_false(page_source_was_held(g->source));
	conn_free(urgent);
	conn_free(bulk);
	conn_free(control);
	end(g);
}

/* What is known of the next answer's masks. */
static void check_masks(struct conn *c, struct window *w, uint64_t data, uint64_t zero,
                        uint64_t error)
{
	struct error err = ERROR_INIT;
	struct scheduler_item item;
	struct frame_pages pages;
	struct frame_header h;
	const void *payload;

	if (conn_next_frame(c, &h, &payload, &err) ||
	    window_answer(w, &h, payload, &pages, &item, &err))
		fail_msg("%s", err.text);
	assert_true(pages.data_mask == data && pages.zero_mask == zero &&
	            pages.error_mask == error);
}

/* Memory that can't be read any more; and no thread's stack comes to lie in its place. */
static void lose(uint8_t *p, size_t len)
{
	int fd = memfd_create("test-empty", MFD_CLOEXEC);

	assert_true(mmap(p, len, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == p);
	close(fd);
}

/*
 * One page that can't be read ended its connection, and every one that asked for it again. Here
 * memory is lost as a VMM loses it: unmapped, where it is read by /proc/PID/mem.
 */
static void test_what_can_not_be_read_costs_no_connection(void **state)
{
	struct region r = { .memory = POSTCOPY_MEMORY_ANONYMOUS,
		            .size = 8 * UNIT_BYTES,
		            .page_size = UNIT_BYTES };
	struct guest *g = calloc(1, sizeof *g);
	struct error err = ERROR_INIT;
	struct window w = { 0 };
	struct memory *memory;
	struct conn *c;
	uint8_t *p;

	(void)state;
	p = mmap(NULL, r.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(p, 1, r.size);
	lose(p + 2 * UNIT_BYTES, UNIT_BYTES);
	lose(p + 5 * UNIT_BYTES, 2 * UNIT_BYTES);
	r.fd_offset = (uintptr_t)p;
	strcpy(g->id, "vm1");
	assert_int_equal(region_table_add(&g->table, &r, &err), 0);
	assert_int_equal(memory_open_source(&g->table.regions[0], 0,
	                                    open("/proc/self/mem", O_RDONLY | O_CLOEXEC), &memory,
	                                    &err),
	                 0);
	assert_int_equal(
	        page_source_new("vm1", g->token, &g->table, &memory, &ops, g, &g->source, &err), 0);
	assert_int_equal(page_server_add(server, g->source), 0);
	pause_guest(g);
	c = open_pages(g, STREAM_URGENT, page_source_epoch(g->source));
	ask(c, &w, 0, 0, 0xff);
	check_masks(c, &w, 0x9b, 0, 0x64);
	ask(c, &w, 0, 0, 0x04);
	check_masks(c, &w, 0, 0, 0x04);
	ask(c, &w, 0, 0, 0x81);
	check_masks(c, &w, 0x81, 0, 0);
	assert_int_equal(page_source_stats(g->source)->unreadable_pages, 4);
	conn_free(c);
	end(g);
	munmap(p, r.size);
}

static int make_poison_list(const struct poison_record *records, size_t n)
{
	int fd = memfd_create("test-poison", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t buf[POISON_RECORD_BYTES];

	for (size_t i = 0; i < n; i++) {
		poison_record_encode(&records[i], buf);
		assert_int_equal(write(fd, buf, sizeof buf), sizeof buf);
	}
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK), 0);
	return fd;
}

/* Poison is in the VMM's mapping only: what its memory reads as is not what the guest has. */
static void test_what_the_vmm_has_poisoned_is_served_as_unreadable(void **state)
{
	static const struct poison_record records[] = {
		{ 0, 1 * UNIT_BYTES, UNIT_BYTES },
		{ 0, 60 * UNIT_BYTES, 70 * UNIT_BYTES },
		{ 1, 63 * UNIT_BYTES, UNIT_BYTES },
	};
	struct guest *g = new_guest("vm1", 1);
	int fd = make_poison_list(records, 3);
	struct error err = ERROR_INIT;
	struct poison_list *list;
	struct window w = { 0 };
	struct conn *c;

	(void)state;
	assert_int_equal(poison_list_read(&g->table, fd, &list, &err), 0);
	close(fd);
	assert_int_equal(poison_list_units(list), 72);
	page_source_set_poisoned(g->source, list);
	pause_guest(g);
	c = open_pages(g, STREAM_BULK, page_source_epoch(g->source));
	/* 1 and 2 have content, 0 and 3 are zero. */
	ask(c, &w, 0, 0, 0xf00000000000000full);
	check_masks(c, &w, 0x4, 0x9, 0xf000000000000002ull);
	ask(c, &w, 0, 1, UINT64_MAX);
	check_masks(c, &w, 0, 0, UINT64_MAX);
	ask(c, &w, 0, 2, 3);
	check_masks(c, &w, 0, 0, 3);
	ask(c, &w, 1, 0, 1ull << 63 | 1ull << 62);
	check_masks(c, &w, 1ull << 62, 0, 1ull << 63);
	conn_free(c);
	end(g);
}

/* Of what comes from either side so much goes through; the rest is swallowed. */
#define SMALL_BYTES 20000

struct swallower {
	int from, to;
	pthread_t thread;
};

static void *swallower_main(void *arg)
{
	struct swallower *s = arg;
	size_t left = SMALL_BYTES;
	char buf[4096];
	ssize_t n;

	while ((n = recv(s->from, buf, sizeof buf, 0)) > 0) {
		size_t part = (size_t)n < left ? (size_t)n : left;

		if (part && send(s->to, buf, part, MSG_NOSIGNAL) < 0)
			break;
		left -= part;
	}
	shutdown(s->to, SHUT_RDWR);
	return NULL;
}

static int connect_to(unsigned int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
		                 .sin_port = htons((uint16_t)port),
		                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
	return fd;
}

/* One connection, from a listener to the server. */
struct small_path {
	int listener;
	struct swallower there, back;
};

static void *small_path_main(void *arg)
{
	struct small_path *p = arg;

	p->there.from = accept(p->listener, NULL, NULL);
	p->there.to = connect_to(page_server_port(server));
	p->back = (struct swallower){ .from = p->there.to, .to = p->there.from };
	pthread_create(&p->back.thread, NULL, swallower_main, &p->back);
	swallower_main(&p->there);
	pthread_join(p->back.thread, NULL);
	close(p->there.from);
	close(p->there.to);
	return NULL;
}

/* A path on which only what is small gets through is told from one that is well. */
static void test_probe_finds_a_path_for_small_packets_only(void **state)
{
	struct tcp_listening listening;
	struct guest *g = new_guest("vm1", 1);
	struct small_path path = { 0 };
	struct error err = ERROR_INIT;
	struct sockaddr_in a;
	socklen_t len = sizeof a;
	pthread_t thread;
	struct conn *c;
	uint64_t epoch;

	(void)state;
	c = open_control(g, &epoch);
	if (conn_probe(c, &target, &err))
		fail_msg("%s", err.text);
	assert_int_equal(conn_send_plain(c, FRAME_PING), 0);
	expect_plain(c, FRAME_PONG);
	conn_free(c);

	assert_int_equal(page_server_listen("127.0.0.1:0", &listening, &err), 0);
	path.listener = listening.fds[0];
	/* It does not block, as the server wants it. */
	assert_int_equal(fcntl(path.listener, F_SETFL, 0), 0);
	assert_int_equal(getsockname(path.listener, (struct sockaddr *)&a, &len), 0);
	snprintf(target.port, sizeof target.port, "%u", ntohs(a.sin_port));
	assert_int_equal(pthread_create(&thread, NULL, small_path_main, &path), 0);
	c = open_control(g, &epoch);
	assert_int_equal(conn_probe(c, &target, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.text, "full-size packets do not get through"));
	conn_free(c);
	pthread_join(thread, NULL);
	close(path.listener);
	end(g);
}

/* The head of a TLS record that never becomes whole. */
static const uint8_t record_head[] = { 0x16, 0x03, 0x01, 0x3f, 0xff };
#define TRICKLERS 100u
#define TRICKLE_MS 100

/* Strangers that say a byte now and then. */
struct tricklers {
	int fds[TRICKLERS];
	pthread_t thread;
	atomic_bool ending;
};

static void *trickle_main(void *arg)
{
	struct tricklers *t = arg;

	while (!atomic_load(&t->ending)) {
		for (unsigned int i = 0; i < TRICKLERS; i++)
			(void)!send(t->fds[i], "", 1, MSG_NOSIGNAL);
		poll(NULL, 0, TRICKLE_MS);
	}
	return NULL;
}

static int connect_from(const char *address)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	struct sockaddr_in to = { .sin_family = AF_INET,
		                  .sin_port = htons((uint16_t)page_server_port(server)),
		                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, address, &a.sin_addr);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
	assert_int_equal(send(fd, record_head, sizeof record_head, MSG_NOSIGNAL),
	                 sizeof record_head);
	return fd;
}

static unsigned int count_threads(void)
{
	DIR *d = opendir("/proc/self/task");
	unsigned int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Whether the server has hung up. */
static bool is_closed(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	char byte;

	return poll(&pfd, 1, timeout_ms) == 1 && recv(fd, &byte, 1, MSG_DONTWAIT) <= 0;
}

/*
 * 1,024 of these held all slots and a thread each, for as long as they liked: guests' own
 * destinations could not come back to them. Now each has 5 s, however it fills them, no thread, and
 * one of a few slots; and a crowd from one host pushes out itself alone.
 */
static void test_strangers_have_little_and_not_for_long(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	unsigned int threads = count_threads();
	struct tricklers t = { .ending = false };
	struct conn *control, *urgent;
	uint64_t epoch, begin_ns;
	int other;

	(void)state;
	begin_ns = clock_now_ns();
	other = connect_from("127.0.0.2");
	for (unsigned int i = 0; i < TRICKLERS; i++)
		t.fds[i] = connect_from("127.0.0.1");
	assert_int_equal(pthread_create(&t.thread, NULL, trickle_main, &t), 0);
	/* Who can say who it is gets in at once. */
	control = open_control(g, &epoch);
	pause_guest(g);
	urgent = open_pages(g, STREAM_URGENT, epoch);
	fetch_everything(g, urgent);
	/* The trickler here, and the two that were let in. */
	assert_true(count_threads() <= threads + 3);
	assert_true(is_closed(t.fds[0], WAIT_S * 1000));
	assert_false(is_closed(other, 0));
	assert_true(clock_now_ns() - begin_ns < CONN_OPEN_TIMEOUT_MS * NSEC_PER_MSEC);
	for (unsigned int i = 0; i < TRICKLERS; i++)
		assert_true(is_closed(t.fds[i], 2 * CONN_OPEN_TIMEOUT_MS));
	assert_true(is_closed(other, 0));
	assert_true(clock_now_ns() - begin_ns < 2ull * CONN_OPEN_TIMEOUT_MS * NSEC_PER_MSEC);
	atomic_store(&t.ending, true);
	pthread_join(t.thread, NULL);
	for (unsigned int i = 0; i < TRICKLERS; i++)
		close(t.fds[i]);
	close(other);
	conn_free(control);
	conn_free(urgent);
	end(g);
}

/* A source that answers a byte at a time made the dialling thread wait for as long as it liked. */
static void *trickle_source_main(void *arg)
{
	int fd = accept(*(int *)arg, NULL, NULL);

	(void)!send(fd, record_head, sizeof record_head, MSG_NOSIGNAL);
	while (send(fd, "", 1, MSG_NOSIGNAL) == 1)
		poll(NULL, 0, TRICKLE_MS);
	close(fd);
	return NULL;
}

static void test_dialling_a_source_that_trickles_ends_in_time(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct error err = ERROR_INIT;
	struct tcp_listening listening;
	int listener;
	uint64_t epoch, begin_ns = clock_now_ns();
	struct sockaddr_in a;
	socklen_t len = sizeof a;
	pthread_t thread;
	struct conn *c;

	(void)state;
	assert_int_equal(page_server_listen("127.0.0.1:0", &listening, &err), 0);
	listener = listening.fds[0];
	assert_int_equal(fcntl(listener, F_SETFL, 0), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&a, &len), 0);
	snprintf(target.port, sizeof target.port, "%u", ntohs(a.sin_port));
	assert_int_equal(pthread_create(&thread, NULL, trickle_source_main, &listener), 0);
	assert_int_equal(dial(new_hello(g, STREAM_CONTROL, 0), &c, &epoch, &err), -ETIMEDOUT);
	assert_true(clock_now_ns() - begin_ns < 2ull * CONN_OPEN_TIMEOUT_MS * NSEC_PER_MSEC);
	pthread_join(thread, NULL);
	close(listener);
	end(g);
}

static bool answers(const struct guest *g, struct conn *c)
{
	struct window w = { 0 };

	ask(c, &w, 0, 0, 1);
	check_answer(g, c, &w);
	return true;
}

static void expect_end(struct conn *c)
{
	struct error err = ERROR_INIT;
	struct frame_header h;
	const void *payload;

	conn_set_receive_timeout(c, WAIT_S * 1000);
	assert_int_equal(conn_next_frame(c, &h, &payload, &err), -ECONNRESET);
}

/*
 * Bulk connections that are lost and dialled anew, again and again, filled the 1,024 slots of all
 * migrations: a guest's fault had no connection to go by. Each kind has its own places in each
 * migration, and the newest is the one that is meant.
 */
#define DIALLED 40u
#define BULK_PLACES 32u
#define CONTROL_PLACES 4u
static void test_bulk_that_reconnects_takes_no_other_place(void **state)
{
	struct guest *g = new_guest("vm1", 1), *other = new_guest("vm2", 2);
	struct conn *bulk[DIALLED], *controls[CONTROL_PLACES + 2], *urgent, *others;
	uint64_t epoch;

	(void)state;
	pause_guest(g);
	pause_guest(other);
	for (unsigned int i = 0; i < CONTROL_PLACES + 2; i++)
		controls[i] = open_control(g, &epoch);
	urgent = open_pages(g, STREAM_URGENT, epoch);
	for (unsigned int i = 0; i < DIALLED; i++)
		bulk[i] = open_pages(g, STREAM_BULK, epoch);
	others = open_pages(other, STREAM_URGENT, page_source_epoch(other->source));
	for (unsigned int i = 0; i < DIALLED - BULK_PLACES; i++)
		expect_end(bulk[i]);
	for (unsigned int i = DIALLED - BULK_PLACES; i < DIALLED; i++)
		assert_true(answers(g, bulk[i]));
	expect_end(controls[0]);
	expect_end(controls[1]);
	assert_int_equal(conn_send_plain(controls[CONTROL_PLACES + 1], FRAME_PING), 0);
	expect_plain(controls[CONTROL_PLACES + 1], FRAME_PONG);
	assert_true(answers(g, urgent) && answers(other, others));
	for (unsigned int i = 0; i < DIALLED; i++)
		conn_free(bulk[i]);
	for (unsigned int i = 0; i < CONTROL_PLACES + 2; i++)
		conn_free(controls[i]);
	conn_free(urgent);
	conn_free(others);
	server = page_server_free(server);
	free_guest(g);
	free_guest(other);
}

/* Lost: who had the token before kept its bulk, and could read the guest that was given away. */
static void test_what_is_open_by_the_token_before_ends(void **state)
{
	static const uint8_t next[TOKEN_BYTES] = { 9 };
	struct guest *g = new_guest("vm1", 1);
	struct conn *control, *bulk;
	uint64_t epoch;
	int rc;

	(void)state;
	control = open_control(g, &epoch);
	bulk = open_pages(g, STREAM_BULK, epoch);
	assert_int_equal(page_source_set_token(g->source, next), -EBUSY);
	conn_free(control);
	wait_told(g, CONNECTED, 2);
	/* Its place goes a moment after that is told. */
	for (int tries = 0; (rc = page_source_set_token(g->source, next)) && tries < 1000; tries++)
		poll(NULL, 0, 1);
	assert_int_equal(rc, 0);
	expect_end(bulk);
	conn_free(bulk);
	end(g);
}

static void test_requests_beyond_the_table_are_refused(void **state)
{
	static const struct scheduler_item bad[] = {
		{ .region = REGIONS, .word = 0, .want_mask = 1 },
		{ .region = UINT32_MAX, .word = 0, .want_mask = 1 },
		{ .region = 1, .word = 1, .want_mask = 1 },
		{ .region = 0, .word = 3, .want_mask = 1 },
		{ .region = 0, .word = UINT64_MAX / WORD_UNITS, .want_mask = 1 },
		/* The last word has two units. */
		{ .region = 0, .word = 2, .want_mask = 4 },
		{ .region = 0, .word = 2, .want_mask = UINT64_MAX },
	};
	struct guest *g = new_guest("vm1", 1);
	struct conn *control;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	switch_over(g, control);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct conn *c = open_pages(g, STREAM_URGENT, epoch);
		struct window w = { 0 };

		ask(c, &w, 0, 2, 3);
		check_answer(g, c, &w);
		ask(c, &w, bad[i].region, bad[i].word, bad[i].want_mask);
		expect_error(c, -EPROTO, "GET of region");
		conn_free(c);
	}
	conn_free(control);
	end(g);
}

static void refused_hello(struct hello *hello, int code, const char *needle)
{
	struct error err = ERROR_INIT;
	struct conn *c;
	uint64_t epoch;

	assert_int_equal(dial(hello, &c, &epoch, &err), code);
	if (!strstr(err.text, needle))
		fail_msg("\"%s\" does not say \"%s\"", err.text, needle);
}

/* Somebody who guesses must not learn which ids there are. */
static void test_wrong_id_and_wrong_token_look_the_same(void **state)
{
	static const uint8_t other[TOKEN_BYTES] = { 7 };
	struct guest *g = new_guest("vm1", 1);
	struct error id_err = ERROR_INIT, token_err = ERROR_INIT;
	struct hello *hello = new_hello(g, STREAM_CONTROL, 0);
	struct conn *c;
	uint64_t epoch;
	char *id;

	(void)state;
	hello->token = other;
	assert_int_equal(dial(hello, &c, &epoch, &token_err), -EACCES);
	hello = new_hello(g, STREAM_CONTROL, 0);
	strcpy(hello->migration_id, "vm2");
	assert_int_equal(dial(hello, &c, &epoch, &id_err), -EACCES);
	id = strstr(id_err.text, "vm2");
	assert_non_null(id);
	id[2] = '1';
	assert_string_equal(id_err.text, token_err.text);
	end(g);
}

/* Its record may be another process's to read: its destination is not to give up, and others are.
 */
static void test_who_asks_for_what_is_awaited_asks_again(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct error err = ERROR_INIT;
	struct hello *hello;
	struct conn *c;
	uint64_t epoch;

	(void)state;
	assert_int_equal(page_server_await(server, "vm2"), 0);
	hello = new_hello(g, STREAM_CONTROL, 0);
	strcpy(hello->migration_id, "vm2");
	assert_int_equal(dial(hello, &c, &epoch, &err), -ECONNRESET);
	hello = new_hello(g, STREAM_CONTROL, 0);
	strcpy(hello->migration_id, "vm3");
	refused_hello(hello, -EACCES, "unknown here");
	/* One that is prepared anew is found. */
	conn_free(open_control(g, &epoch));
	end(g);
}

static void test_only_who_knows_the_secret_gets_in(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	uint8_t other[TOKEN_BYTES];
	struct hello *hello;
	uint64_t epoch;

	(void)state;
	for (size_t i = 0; i < TOKEN_BYTES; i += TOKEN_BYTES - 1)
		for (int role = STREAM_CONTROL; role <= STREAM_BULK; role++) {
			hello = new_hello(g, (enum stream_role)role, 0);
			memcpy(other, g->token, sizeof other);
			other[i] ^= 0x80;
			hello->token = other;
			refused_hello(hello, -EACCES, "wrong token");
		}
	hello = new_hello(g, STREAM_CONTROL, 0);
	strcpy(hello->migration_id, "vm2");
	refused_hello(hello, -EACCES, "unknown here");
	assert_int_equal(told(g, CONNECTED), 0);
	/* And right after them who does. */
	conn_free(open_control(g, &epoch));
	end(g);
}

static void test_another_epoch_is_refused(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *control;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	refused_hello(new_hello(g, STREAM_URGENT, epoch + 1), -ESTALE, "attached anew");
	refused_hello(new_hello(g, STREAM_BULK, 0), -ESTALE, "attached anew");
	conn_free(control);
	end(g);
}

static void test_another_guests_shape_is_refused(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct hello *hello = new_hello(g, STREAM_CONTROL, 0);

	(void)state;
	hello->regions.regions[1].size -= UNIT_BYTES;
	refused_hello(hello, -EINVAL, "region 1");
	hello = new_hello(g, STREAM_CONTROL, 0);
	hello->regions.n = 1;
	refused_hello(hello, -EINVAL, "2 regions here, 1 on the other side");
	end(g);
}

static void test_two_migrations_at_once_do_not_mix(void **state)
{
	struct guest *a = new_guest("vm-a", 1), *b = new_guest("vm-b", 77);
	struct conn *control_a, *control_b, *bulk_a, *bulk_b;
	uint64_t epoch_a, epoch_b;

	(void)state;
	assert_int_equal(page_server_add(server, a->source), -EEXIST);
	control_a = open_control(a, &epoch_a);
	control_b = open_control(b, &epoch_b);
	assert_true(epoch_a != epoch_b);
	/* The token of one opens the other to nobody. */
	refused_hello(new_hello(a, STREAM_BULK, epoch_b), -ESTALE, "attached anew");
	switch_over(a, control_a);
	bulk_a = open_pages(a, STREAM_BULK, epoch_a);
	bulk_b = open_pages(b, STREAM_BULK, epoch_b);
	/* One that waits for its vmstate holds nobody up. */
	assert_int_equal(conn_send_plain(control_b, FRAME_SWITCHOVER), 0);
	wait_told(b, SWITCHOVER, 1);
	fetch_everything(a, bulk_a);
	pause_guest(b);
	check_vmstate(control_b);
	fetch_everything(b, bulk_b);
	fetch_everything(a, bulk_a);
	/* Taking one away leaves the other. */
	page_server_remove(server, a->source, true);
	assert_int_equal(
	        conn_next_frame(bulk_a, &(struct frame_header){ 0 }, &(const void *){ 0 }, NULL),
	        -ECONNRESET);
	refused_hello(new_hello(a, STREAM_CONTROL, 0), -EACCES, "unknown here");
	fetch_everything(b, bulk_b);
	conn_free(control_a);
	conn_free(control_b);
	conn_free(bulk_a);
	conn_free(bulk_b);
	server = page_server_free(server);
	free_guest(a);
	free_guest(b);
}

static void test_abort_before_the_guest_ran_is_acknowledged(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct window w = { 0 };
	struct conn *control, *bulk;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	switch_over(g, control);
	bulk = open_pages(g, STREAM_BULK, epoch);
	assert_int_equal(conn_send_plain(control, FRAME_ABORT), 0);
	wait_told(g, ABORTED, 1);
	expect_silence(control);
	page_source_end(g->source, SOURCE_RUNS_ON, "the destination has given up");
	expect_plain(control, FRAME_ABORT_ACK);
	/* The guest may run here again: its memory is no longer to be had. */
	ask(bulk, &w, 0, 0, 1);
	expect_error(bulk, -EPROTO, "not paused");
	conn_free(bulk);
	conn_free(control);
	end(g);
}

/* The fence: a guest that ran at the destination must never run here as well. */
static void test_abort_after_the_guest_ran_is_refused(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *control, *bulk;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	switch_over(g, control);
	assert_int_equal(conn_send_plain(control, FRAME_RESUMED), 0);
	assert_int_equal(conn_send_plain(control, FRAME_ABORT), 0);
	expect_error(control, -EPROTO, "ABORT after the guest ran");
	conn_free(control);
	/* Nor over another connection. */
	control = open_control(g, &epoch);
	assert_int_equal(conn_send_plain(control, FRAME_ABORT), 0);
	expect_error(control, -EPROTO, "ABORT after the guest ran");
	conn_free(control);
	assert_int_equal(told(g, ABORTED), 0);
	/* It serves on. */
	bulk = open_pages(g, STREAM_BULK, epoch);
	fetch_everything(g, bulk);
	conn_free(bulk);
	end(g);
}

static void test_a_guest_that_can_not_be_paused(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *control;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	assert_int_equal(conn_send_plain(control, FRAME_SWITCHOVER), 0);
	wait_told(g, SWITCHOVER, 1);
	page_source_end(g->source, SOURCE_RUNS_ON, "a vCPU does not stop");
	expect_error(control, -EKEYREVOKED, "its guest stays: a vCPU does not stop");
	conn_free(control);
	end(g);
}

static void test_cancelled_at_the_source_while_it_is_waited_for(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *control;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	assert_int_equal(conn_send_plain(control, FRAME_SWITCHOVER), 0);
	wait_told(g, SWITCHOVER, 1);
	page_source_end(g->source, SOURCE_RUNS_ON, "by command");
	expect_error(control, -EKEYREVOKED, "where its guest stays: by command");
	conn_free(control);
	end(g);
}

/* Another destination that has the same token, each time another one. */
static struct hello *new_stranger(const struct guest *g, enum stream_role role, uint64_t epoch)
{
	static int n;
	struct hello *h = new_hello(g, role, epoch);

	memset(h->holder, 'B' + n++ % 16, HOLDER_BYTES);
	return h;
}

static struct conn *open_stranger(const struct guest *g, enum stream_role role, uint64_t *epoch)
{
	struct error err = ERROR_INIT;
	struct conn *c;

	if (dial(new_stranger(g, role, role == STREAM_CONTROL ? 0 : *epoch), &c, epoch, &err))
		fail_msg("%s", err.text);
	return c;
}

/* Lost: downtime. A VMSTATE with no harvest waited for the end of another connection's. */
static void test_a_vmstate_that_comes_alone_waits_for_no_log(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *tracking, *control;
	uint64_t epoch;

	(void)state;
	g->silent = true;
	log_writes(g);
	tracking = open_control(g, &epoch);
	assert_int_equal(conn_send_plain(tracking, FRAME_TRACK), 0);
	wait_told(g, LOG, 1);
	control = open_stranger(g, STREAM_CONTROL, &epoch);
	conn_set_receive_timeout(control, AT_ONCE_MS);
	switch_over(g, control);
	assert_false(page_source_is_warm(g->source));
	conn_free(control);
	conn_free(tracking);
	munmap((void *)g->bitmap, dirty_log_bytes(&g->table));
	end(g);
}

/*
 * Lost: A had RESUMED; B, with the same token, was answered SWITCHOVER and COMPLETE, the source let
 * the memory go, and A's guest stood still for good. And: A had LOADED, B's ABORT had the source's
 * guest run on: it ran twice.
 */
static void test_only_the_holder_is_answered(void **state)
{
	static const enum frame_type words[] = { FRAME_SWITCHOVER, FRAME_COMPLETE, FRAME_ABORT };
	struct guest *g = new_guest("vm1", 1);
	struct conn *a, *b[sizeof words / sizeof *words], *b_bulk, *bulk;
	struct stream_holder holder;
	struct window w = { 0 };
	uint64_t epoch;

	(void)state;
	/* All warm, and nobody holds it yet. */
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		b[i] = open_stranger(g, STREAM_CONTROL, &epoch);
	b_bulk = open_stranger(g, STREAM_BULK, &epoch);
	page_source_get_holder(g->source, &holder);
	assert_false(holder.bound);
	a = open_control(g, &epoch);
	switch_over(g, a);
	page_source_get_holder(g->source, &holder);
	assert_true(holder.bound && holder.id[0] == 'A');
	assert_string_equal(holder.name, "postcopy:source");
	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		assert_int_equal(conn_send_plain(b[i], words[i]), 0);
		expect_error(b[i], -EBUSY,
		             "held by another destination, 41414141 (postcopy:source)");
		conn_free(b[i]);
	}
	ask(b_bulk, &w, 0, 0, 1);
	expect_error(b_bulk, -EBUSY, "held by another destination");
	conn_free(b_bulk);
	for (int role = STREAM_CONTROL; role <= STREAM_BULK; role++)
		refused_hello(new_stranger(g, (enum stream_role)role, epoch), -EBUSY, "41414141");
	assert_int_equal(told(g, SWITCHOVER), 1);
	assert_int_equal(told(g, RESUMED) + told(g, COMPLETE) + told(g, ABORTED), 0);
	/* And the holder is served. */
	bulk = open_pages(g, STREAM_BULK, epoch);
	fetch_everything(g, bulk);
	conn_free(bulk);
	conn_free(a);
	end(g);
}

/*
 * Lost: words of a connection that its destination had left were read late. A SWITCHOVER bound the
 * migration to one that had said ABORT since; an ABORT of a process that was killed let the guest
 * run here, when the process after it had been given its state.
 */
static void test_only_the_latest_connection_counts(void **state)
{
	static const enum frame_type words[] = { FRAME_SWITCHOVER, FRAME_ABORT, FRAME_PING };
	struct guest *g = new_guest("vm1", 1);
	struct conn *old, *control;
	uint64_t epoch;

	(void)state;
	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		struct frame_header h;
		const void *payload;

		old = open_control(g, &epoch);
		control = open_control(g, &epoch);
		/* It may be reset already. */
		(void)conn_send_plain(old, words[i]);
		assert_true(conn_next_frame(old, &h, &payload, NULL) || h.type == FRAME_ERROR);
		conn_free(old);
		conn_free(control);
	}
	/* Even where the later one was not let in. */
	old = open_control(g, &epoch);
	refused_hello(new_hello(g, STREAM_CONTROL, epoch + 1), -ESTALE, "attached anew");
	(void)conn_send_plain(old, FRAME_SWITCHOVER);
	control = open_stranger(g, STREAM_CONTROL, &epoch);
	assert_int_equal(told(g, SWITCHOVER) + told(g, ABORTED), 0);
	/* Another destination's are none of its business. */
	conn_free(open_control(g, &epoch));
	switch_over(g, control);
	conn_free(old);
	conn_free(control);
	end(g);
}

/* Before anybody holds it each destination may end it; who is late finds it ended. */
static void test_an_abort_that_comes_first_wins(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *a, *b;
	uint64_t epoch;

	(void)state;
	a = open_control(g, &epoch);
	b = open_stranger(g, STREAM_CONTROL, &epoch);
	assert_int_equal(conn_send_plain(b, FRAME_ABORT), 0);
	wait_told(g, ABORTED, 1);
	assert_int_equal(conn_send_plain(a, FRAME_SWITCHOVER), 0);
	expect_error(a, -ECANCELED, "given up at the source");
	page_source_end(g->source, SOURCE_RUNS_ON, "");
	expect_plain(b, FRAME_ABORT_ACK);
	assert_int_equal(told(g, SWITCHOVER), 0);
	conn_free(a);
	conn_free(b);
	end(g);
}

/* An ABORT, or anything else, that is meant for an attachment of the guest before this one. */
static void test_a_word_for_another_attachment_is_refused(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct conn *control;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	conn_free(control);
	refused_hello(new_hello(g, STREAM_CONTROL, epoch + 1), -ESTALE, "attached anew");
	end(g);
}

static void end_as(struct guest *g, enum source_verdict verdict)
{
	struct stream_holder holder;
	struct page_source *ended;
	struct error err = ERROR_INIT;

	page_source_get_holder(g->source, &holder);
	page_source_end(g->source, verdict, "as it was");
	page_source_withdraw(g->source);
	page_server_remove(server, g->source, true);
	assert_int_equal(page_source_new_ended(g->id, g->token, page_source_epoch(g->source),
	                                       &holder, verdict, "as it was", &ended, &err),
	                 0);
	assert_int_equal(page_server_add(server, ended), 0);
	page_source_unref(ended);
}

static void expect_word(const struct guest *g, uint64_t epoch, enum frame_type say,
                        enum frame_type answer, int code)
{
	struct error err = ERROR_INIT;
	struct conn *c;

	if (dial(new_hello(g, STREAM_CONTROL, epoch), &c, &epoch, &err))
		fail_msg("%s", err.text);
	assert_int_equal(conn_send_plain(c, say), 0);
	if (code)
		expect_error(c, code, "as it was");
	else
		expect_plain(c, answer);
	conn_free(c);
}

/*
 * An ACK that got lost: the source is asked again, and must not have forgotten. It answers the
 * same, as often as it is asked, and nothing else; and to nobody else.
 */
static void test_what_has_ended_answers_the_same_again(void **state)
{
	static const enum source_verdict verdicts[] = { SOURCE_LET_GO, SOURCE_RUNS_ON };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		bool let_go = verdicts[i] == SOURCE_LET_GO;
		int code = let_go ? -ESHUTDOWN : -EKEYREVOKED;
		struct guest *g = new_guest(let_go ? "vm1" : "vm2", 1);
		struct conn *control;
		uint64_t epoch;

		control = open_control(g, &epoch);
		switch_over(g, control);
		conn_free(control);
		wait_told(g, CONNECTED, 2);
		end_as(g, verdicts[i]);
		for (int again = 0; again < 2; again++) {
			expect_word(g, epoch, FRAME_COMPLETE, FRAME_COMPLETE_ACK,
			            let_go ? 0 : code);
			expect_word(g, epoch, FRAME_ABORT, FRAME_ABORT_ACK, let_go ? code : 0);
			expect_word(g, epoch, FRAME_SWITCHOVER, 0, code);
			expect_word(g, epoch, FRAME_PING, 0, code);
		}
		refused_hello(new_hello(g, STREAM_CONTROL, 0), code, "as it was");
		refused_hello(new_hello(g, STREAM_URGENT, epoch), code, "as it was");
		refused_hello(new_stranger(g, STREAM_CONTROL, epoch), -EBUSY, "41414141");
		while (!page_source_is_idle(g->source))
			sched_yield();
		free_guest(g);
	}
}

static void test_frames_of_the_wrong_connection_are_refused(void **state)
{
	struct guest *g = new_guest("vm1", 1);
	struct window w = { 0 };
	struct conn *control, *bulk;
	uint64_t epoch;

	(void)state;
	control = open_control(g, &epoch);
	bulk = open_pages(g, STREAM_BULK, epoch);
	assert_int_equal(conn_send_plain(bulk, FRAME_COMPLETE), 0);
	expect_error(bulk, -EPROTO, "must come");
	ask(control, &w, 0, 0, 1);
	expect_error(control, -EPROTO, "not for a control connection");
	assert_int_equal(told(g, COMPLETE), 0);
	conn_free(bulk);
	conn_free(control);
	end(g);
}

static unsigned int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int connect_silently(void)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)page_server_port(server)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
	return fd;
}

static void test_free_ends_everything_that_is_connected(void **state)
{
	struct guest *g;
	struct conn *conns[4];
	unsigned int before;
	uint64_t epoch;
	int silent;

	(void)state;
	page_server_free(server);
	before = count_fds();
	setup(NULL);
	g = new_guest("vm1", 1);
	conns[0] = open_control(g, &epoch);
	conns[1] = open_pages(g, STREAM_URGENT, epoch);
	conns[2] = open_pages(g, STREAM_BULK, epoch);
	/* Waits for a vmstate that will not come. */
	conns[3] = open_control(g, &epoch);
	assert_int_equal(conn_send_plain(conns[3], FRAME_SWITCHOVER), 0);
	wait_told(g, SWITCHOVER, 1);
	/* In the middle of a frame, and one that says nothing at all. */
	assert_int_equal(conn_send(conns[2], "\x04", 1), 0);
	silent = connect_silently();
	server = page_server_free(server);
	assert_true(page_source_is_idle(g->source));
	for (int i = 0; i < 3; i++) {
		struct error err = ERROR_INIT;
		struct frame_header h;
		const void *payload;

		assert_true(conn_next_frame(conns[i], &h, &payload, &err) < 0);
		conn_free(conns[i]);
	}
	conn_free(conns[3]);
	close(silent);
	free_guest(g);
	assert_int_equal(count_fds(), before);
}

static void test_garbage_instead_of_tls_harms_nobody(void **state)
{
	static const char garbage[] = "GET / HTTP/1.0\r\n\r\n";
	struct guest *g = new_guest("vm1", 1);
	int fd = connect_silently();
	uint64_t epoch;
	char byte;

	(void)state;
	assert_int_equal(send(fd, garbage, sizeof garbage - 1, MSG_NOSIGNAL), sizeof garbage - 1);
	/* Answered by an alert or not: in the end it hangs up. */
	while (recv(fd, &byte, 1, 0) > 0)
		;
	close(fd);
	conn_free(open_control(g, &epoch));
	end(g);
}

static void test_an_address_in_use_is_an_error(void **state)
{
	struct tcp_listening listening;
	struct error err = ERROR_INIT;
	char address[32];

	(void)state;
	snprintf(address, sizeof address, "127.0.0.1:%u", page_server_port(server));
	assert_int_equal(page_server_listen(address, &listening, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, address));
	assert_int_equal(page_server_listen("nonsense", &listening, &err), -EINVAL);
}

/*
 * An id and its token are used again. Who held the guest before has not heard the answer to its
 * COMPLETE: it would have been told that the guest was attached anew, and never that it is its own;
 * and what has ended would have kept the next one from being offered.
 */
static void test_an_id_that_is_used_again(void **state)
{
	struct guest *g = new_guest("vm1", 1), *next, *other;
	struct conn *control;
	uint64_t epoch, next_epoch;

	(void)state;
	control = open_control(g, &epoch);
	switch_over(g, control);
	conn_free(control);
	wait_told(g, CONNECTED, 2);
	end_as(g, SOURCE_LET_GO);
	next = new_guest("vm1", 1);
	expect_word(g, epoch, FRAME_COMPLETE, FRAME_COMPLETE_ACK, 0);
	refused_hello(new_hello(g, STREAM_BULK, epoch), -ESHUTDOWN, "as it was");
	/* Who means no attachment gets the one that is offered. */
	control = open_control(next, &next_epoch);
	assert_true(next_epoch != epoch);
	switch_over(next, control);
	conn_free(control);
	wait_told(next, CONNECTED, 2);
	end_as(next, SOURCE_RUNS_ON);
	expect_word(next, next_epoch, FRAME_ABORT, FRAME_ABORT_ACK, 0);
	expect_word(g, epoch, FRAME_COMPLETE, FRAME_COMPLETE_ACK, 0);
	/* Another token, another migration. */
	other = new_guest("vm1", 2);
	control = open_control(other, &next_epoch);
	conn_free(control);
	expect_word(g, epoch, FRAME_COMPLETE, FRAME_COMPLETE_ACK, 0);
	server = page_server_free(server);
	free_guest(g);
	free_guest(next);
	free_guest(other);
}

/* Certificates of a throw-away authority, for both ends. */
static int group_setup(void **state)
{
	static char cert[64], key[64], ca[64];
	struct error err = ERROR_INIT;

	(void)state;
	/* As the daemon does: a peer that hangs up is an error code. */
	signal(SIGPIPE, SIG_IGN);
	if (!mkdtemp(dir) || pki_make(dir, &err)) {
		print_message("certificates: %s\n", err.text);
		return -1;
	}
	snprintf(cert, sizeof cert, "%s/%s", dir, PKI_SOURCE_CERT);
	snprintf(key, sizeof key, "%s/%s", dir, PKI_SOURCE_KEY);
	snprintf(ca, sizeof ca, "%s/%s", dir, PKI_CA);
	config = (struct tls_config){
		.alpn = STREAM_ALPN, .cert_path = cert, .key_path = key, .ca_path = ca
	};
	if (tls_context_new(&config, &tls, &err)) {
		print_message("TLS: %s\n", err.text);
		return -1;
	}
	return 0;
}

static int group_teardown(void **state)
{
	static const char *const names[] = { PKI_CA, PKI_SOURCE_CERT, PKI_SOURCE_KEY,
		                             PKI_DESTINATION_CERT, PKI_DESTINATION_KEY };
	char path[96];

	(void)state;
	tls_context_free(tls);
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, names[i]);
		unlink(path);
	}
	return rmdir(dir);
}

#define SERVER_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVER_TEST(test_a_whole_migration),
		SERVER_TEST(test_faults_asked_for_together_are_answered_together),
		SERVER_TEST(test_a_lost_control_connection_gets_the_same_vmstate_again),
		SERVER_TEST(test_what_a_running_guest_writes_is_told),
		SERVER_TEST(test_a_log_ends_with_its_connection),
		SERVER_TEST(test_nothing_is_read_while_the_guest_runs),
		SERVER_TEST(test_a_share_of_next_to_nothing_is_told),
		SERVER_TEST(test_a_fault_pays_for_no_share),
		SERVER_TEST(test_what_can_not_be_read_costs_no_connection),
		SERVER_TEST(test_what_the_vmm_has_poisoned_is_served_as_unreadable),
		SERVER_TEST(test_probe_finds_a_path_for_small_packets_only),
		SERVER_TEST(test_strangers_have_little_and_not_for_long),
		SERVER_TEST(test_dialling_a_source_that_trickles_ends_in_time),
		SERVER_TEST(test_bulk_that_reconnects_takes_no_other_place),
		SERVER_TEST(test_what_is_open_by_the_token_before_ends),
		SERVER_TEST(test_requests_beyond_the_table_are_refused),
		SERVER_TEST(test_wrong_id_and_wrong_token_look_the_same),
		SERVER_TEST(test_who_asks_for_what_is_awaited_asks_again),
		SERVER_TEST(test_only_who_knows_the_secret_gets_in),
		SERVER_TEST(test_another_epoch_is_refused),
		SERVER_TEST(test_another_guests_shape_is_refused),
		SERVER_TEST(test_two_migrations_at_once_do_not_mix),
		SERVER_TEST(test_abort_before_the_guest_ran_is_acknowledged),
		SERVER_TEST(test_abort_after_the_guest_ran_is_refused),
		SERVER_TEST(test_a_guest_that_can_not_be_paused),
		SERVER_TEST(test_cancelled_at_the_source_while_it_is_waited_for),
		SERVER_TEST(test_a_vmstate_that_comes_alone_waits_for_no_log),
		SERVER_TEST(test_only_the_holder_is_answered),
		SERVER_TEST(test_only_the_latest_connection_counts),
		SERVER_TEST(test_an_abort_that_comes_first_wins),
		SERVER_TEST(test_a_word_for_another_attachment_is_refused),
		SERVER_TEST(test_what_has_ended_answers_the_same_again),
		SERVER_TEST(test_an_id_that_is_used_again),
		SERVER_TEST(test_frames_of_the_wrong_connection_are_refused),
		SERVER_TEST(test_free_ends_everything_that_is_connected),
		SERVER_TEST(test_garbage_instead_of_tls_harms_nobody),
		SERVER_TEST(test_an_address_in_use_is_an_error),
	};

	return cmocka_run_group_tests_name("page-server", tests, group_setup, group_teardown);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The VMM socket's server on a loop that the test turns itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/refused.h"
#include "util/unix_listen.h"
#include "vmm/vmm_server.h"

#define VMMS 8
#define TURNS_MAX 100

/* More than a socket holds, and than anybody would say in earnest. */
#define MESSAGES_MAX 1000u

static unsigned int attached, messages, ends, cut;
static struct vmm_conn *last_conn;
/* Who answers each message by another, without end; -1: nobody. */
static int talker = -1;

static void say(int fd, enum vmm_wire_type type)
{
	struct vmm_wire_msg msg = { .type = type };

	assert_int_equal(vmm_wire_send(fd, &msg, NULL, 0), 0);
}

static int attach(void *arg, struct vmm_conn *conn, struct vmm_attach *attach, void **ret_owner,
                  struct error *err)
{
	(void)attach;
	(void)err;
	attached++;
	last_conn = conn;
	*ret_owner = arg;
	return 0;
}

static int message(void *owner, const struct vmm_wire_msg *msg, int *fd, struct error *err)
{
	(void)owner;
	(void)msg;
	(void)fd;
	(void)err;
	if (++messages < MESSAGES_MAX && talker >= 0)
		say(talker, VMM_WIRE_RESUMED);
	return 0;
}

static void cut_message(void *owner, enum vmm_wire_type type, const struct error *why)
{
	(void)owner;
	assert_int_equal(type, VMM_WIRE_SHARDS);
	assert_int_equal(why->code, -EMFILE);
	cut++;
}

static void closed(void *owner)
{
	(void)owner;
	ends++;
}

static const struct vmm_server_ops ops = {
	.attach = attach,
	.message = message,
	.cut_message = cut_message,
	.closed = closed,
};

static int connect_to(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (const struct sockaddr *)address, sizeof *address), 0);
	return fd;
}

static void say_attach(int fd)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ATTACH, .role = VMM_WIRE_SOURCE, .id = "vm1" };

	msg.n_regions = 1;
	msg.regions[0].size = msg.regions[0].page_size = 4096;
	assert_int_equal(vmm_wire_send(fd, &msg, &fd, 1), 0);
}

struct scene {
	struct vmm_server *server;
	struct sockaddr_un address;
	uv_loop_t loop;
};

static void open_scene(struct scene *s)
{
	struct vmm_server_config config = { .ops = &ops, .arg = &attached };
	struct error err = ERROR_INIT;

	attached = messages = ends = cut = 0;
	talker = -1;
	s->address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(s->address.sun_path, sizeof s->address.sun_path, "/tmp/test-vmm-server-%d",
	         getpid());
	assert_int_equal(uv_loop_init(&s->loop), 0);
	config.fd = unix_listen(s->address.sun_path, SOCK_SEQPACKET, "VMM socket", &err);
	assert_true(config.fd >= 0);
	assert_int_equal(vmm_server_new(&s->loop, &config, &s->server, &err), 0);
}

static void close_scene(struct scene *s)
{
	vmm_server_close(s->server);
	uv_run(&s->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&s->loop), 0);
	unlink(s->address.sun_path);
}

/* All that had come were looked at before anybody else of the loop had a turn: up to 50 ms each. */
static void test_one_attach_is_looked_at_in_two_turns(void **state)
{
	int fds[VMMS], turns = 0;
	struct scene s;

	(void)state;
	open_scene(&s);
	for (int i = 0; i < VMMS; i++)
		fds[i] = connect_to(&s.address);
	/* One is let in at a turn. */
	for (int i = 0; i < 2 * VMMS; i++)
		uv_run(&s.loop, UV_RUN_NOWAIT);
	for (int i = 0; i < VMMS; i++)
		say_attach(fds[i]);
	for (unsigned int before = 0; attached < VMMS; before = attached) {
		uv_run(&s.loop, UV_RUN_NOWAIT);
		assert_true(attached <= before + 1);
		if (attached > before && attached < VMMS) {
			uv_run(&s.loop, UV_RUN_NOWAIT);
			assert_int_equal(attached, before + 1);
		}
		assert_true(++turns < TURNS_MAX);
	}
	for (int i = 0; i < VMMS; i++)
		close(fds[i]);
	close_scene(&s);
}

/* Return: a VMM that is attached, with last_conn. */
static int attached_vmm(struct scene *s)
{
	int fd = connect_to(&s->address);

	say_attach(fd);
	for (int turns = 0; !attached; turns++) {
		uv_run(&s->loop, UV_RUN_NOWAIT);
		assert_true(turns < TURNS_MAX);
	}
	return fd;
}

/* A tenant that says one thing after another held the loop for as long as it liked. */
static void test_who_goes_on_talking_is_heard_in_later_turns(void **state)
{
	struct scene s;

	(void)state;
	open_scene(&s);
	talker = attached_vmm(&s);
	for (int i = 0; i < 3; i++)
		say(talker, VMM_WIRE_RESUMED);
	vmm_conn_catch_up(last_conn);
	assert_in_range(messages, 3, 4);
	/* What it has said since is not lost. */
	for (unsigned int i = 0; messages < MESSAGES_MAX; i++) {
		uv_run(&s.loop, UV_RUN_NOWAIT);
		assert_true(i < 2 * MESSAGES_MAX);
	}
	close(talker);
	close_scene(&s);
}

/* @heard: it has read what it was told; else the kernel says ECONNRESET first, once. */
static void hang_up(bool heard)
{
	struct scene s;
	char told[256];
	int fd;

	open_scene(&s);
	fd = attached_vmm(&s);
	for (int i = 0; i < 3; i++)
		say(fd, VMM_WIRE_RESUMED);
	while (heard && recv(fd, told, sizeof told, MSG_DONTWAIT) > 0)
		;
	close(fd);
	vmm_conn_catch_up(last_conn);
	assert_int_equal(messages, 3);
	assert_int_equal(ends, 1);
	close_scene(&s);
}

/* Nor is a hang-up, behind all that was said. */
static void test_a_hang_up_is_seen_behind_what_was_said(void **state)
{
	(void)state;
	hang_up(true);
	hang_up(false);
}

/* A newer libpostcopy that gives hints all the time: it was told each time, in place of others. */
static void test_what_is_not_known_is_told_once_and_costs_no_vmm(void **state)
{
	uint64_t before = refused_count(REFUSED_AT_VMM, REFUSED_PROTOCOL);
	/* As vmm_wire_send() has it: type, version, length of what follows. */
	const uint8_t unknown[] = { 99, 0, VMM_WIRE_VERSION, 0, 0, 0, 0, 0 };
	struct scene s;
	int fd;

	(void)state;
	open_scene(&s);
	fd = attached_vmm(&s);
	for (int i = 0; i < 100; i++)
		assert_int_equal(send(fd, unknown, sizeof unknown, MSG_DONTWAIT), sizeof unknown);
	say(fd, VMM_WIRE_RESUMED);
	vmm_conn_catch_up(last_conn);
	assert_int_equal(messages, 1);
	assert_int_equal(ends, 0);
	assert_int_equal(refused_count(REFUSED_AT_VMM, REFUSED_PROTOCOL), before + 1);
	close(fd);
	close_scene(&s);
}

/* Hints to a VMM that reads nothing would fill its socket, and what matters find no room. */
static void test_who_leaves_hints_unread_is_behind_until_they_are_read(void **state)
{
	struct scene s;
	char told[256];
	int fd;

	(void)state;
	open_scene(&s);
	fd = attached_vmm(&s);
	while (recv(fd, told, sizeof told, MSG_DONTWAIT) > 0)
		;
	for (unsigned int n = 0; !vmm_conn_is_behind(last_conn); n++) {
		assert_true(n < MESSAGES_MAX);
		assert_int_equal(vmm_conn_send_type(last_conn, VMM_WIRE_VMSTATE_AHEAD), 0);
		/* A few that wait to be read are nothing. */
		assert_true(n > 8 || !vmm_conn_is_behind(last_conn));
	}
	/* There is room for the words that a migration needs. */
	for (int i = 0; i < 16; i++)
		assert_int_equal(vmm_conn_send_type(last_conn, VMM_WIRE_COMPLETE), 0);
	while (recv(fd, told, sizeof told, MSG_DONTWAIT) > 0)
		;
	assert_false(vmm_conn_is_behind(last_conn));
	close(fd);
	close_scene(&s);
}

/* Its userfaultfds did not come: they are in its hands still, and the owner can ask again. */
static void test_shards_without_descriptors_cost_no_vmm(void **state)
{
	static const struct vmm_wire_msg msg = { .type = VMM_WIRE_SHARDS, .n_shards = 2 };
	struct rlimit limit, none;
	struct scene s;
	int fd;

	(void)state;
	open_scene(&s);
	fd = attached_vmm(&s);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = limit.rlim_max };
	for (int lacking = 1; lacking >= 0; lacking--) {
		assert_int_equal(vmm_wire_send(fd, &msg, &fd, 1), 0);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, lacking ? &none : &limit), 0);
		vmm_conn_catch_up(last_conn);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
		assert_int_equal(ends, 0);
		assert_int_equal(cut, 1);
		assert_int_equal(messages, lacking ? 0 : 1);
	}
	close(fd);
	close_scene(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_attach_is_looked_at_in_two_turns),
		cmocka_unit_test(test_who_goes_on_talking_is_heard_in_later_turns),
		cmocka_unit_test(test_a_hang_up_is_seen_behind_what_was_said),
		cmocka_unit_test(test_what_is_not_known_is_told_once_and_costs_no_vmm),
		cmocka_unit_test(test_who_leaves_hints_unread_is_behind_until_they_are_read),
		cmocka_unit_test(test_shards_without_descriptors_cost_no_vmm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

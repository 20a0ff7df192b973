/* SPDX-License-Identifier: Apache-2.0 */
/* The VMM socket's server on a loop that the test turns itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/unix_listen.h"
#include "vmm/vmm_server.h"

#define VMMS 8
#define TURNS_MAX 100

static unsigned int attached;

static int attach(void *arg, struct vmm_conn *conn, struct vmm_attach *attach, void **ret_owner,
                  struct error *err)
{
	(void)conn;
	(void)attach;
	(void)err;
	attached++;
	*ret_owner = arg;
	return 0;
}

static int message(void *owner, const struct vmm_wire_msg *msg, int *fd, struct error *err)
{
	(void)owner;
	(void)msg;
	(void)fd;
	(void)err;
	return 0;
}

static void closed(void *owner)
{
	(void)owner;
}

static const struct vmm_server_ops ops = {
	.attach = attach,
	.message = message,
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

/* All that had come were looked at before anybody else of the loop had a turn: up to 50 ms each. */
static void test_one_attach_is_looked_at_in_two_turns(void **state)
{
	struct vmm_server_config config = { .ops = &ops, .arg = &attached };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct error err = ERROR_INIT;
	struct vmm_server *server;
	int fds[VMMS], turns = 0;
	uv_loop_t loop;

	(void)state;
	snprintf(address.sun_path, sizeof address.sun_path, "/tmp/test-vmm-server-%d", getpid());
	assert_int_equal(uv_loop_init(&loop), 0);
	config.fd = unix_listen(address.sun_path, SOCK_SEQPACKET, "VMM socket", &err);
	assert_true(config.fd >= 0);
	assert_int_equal(vmm_server_new(&loop, &config, &server, &err), 0);
	for (int i = 0; i < VMMS; i++)
		fds[i] = connect_to(&address);
	/* One is let in at a turn. */
	for (int i = 0; i < 2 * VMMS; i++)
		uv_run(&loop, UV_RUN_NOWAIT);
	for (int i = 0; i < VMMS; i++)
		say_attach(fds[i]);
	for (unsigned int before = 0; attached < VMMS; before = attached) {
		uv_run(&loop, UV_RUN_NOWAIT);
		assert_true(attached <= before + 1);
		if (attached > before && attached < VMMS) {
			uv_run(&loop, UV_RUN_NOWAIT);
			assert_int_equal(attached, before + 1);
		}
		assert_true(++turns < TURNS_MAX);
	}
	for (int i = 0; i < VMMS; i++)
		close(fds[i]);
	vmm_server_close(server);
	uv_run(&loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&loop), 0);
	unlink(address.sun_path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_attach_is_looked_at_in_two_turns),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

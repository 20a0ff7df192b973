/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault connection's adapter is killed before and after each system call that it makes for one
 * request, and another process goes on: the request is answered, once, and so is the next one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cloud_hypervisor/faults.h"

#define PAGE 4096ull
#define PAGES 16u
#define KILLED 9

static struct {
	struct ch_record *record;
	int vmm, sock, pipe[2], file;
} world;

/* At which of its points the process ends; 0: at none. */
static unsigned int kill_at, points;

static void point(void)
{
	if (kill_at && ++points == kill_at)
		_exit(KILLED);
}

#define WRAP(type, name, params, args)                                                             \
	type __real_##name params;                                                                 \
	type __wrap_##name params;                                                                 \
	type __wrap_##name params                                                                  \
	{                                                                                          \
		type ret;                                                                          \
                                                                                                   \
		point();                                                                           \
		ret = __real_##name args;                                                          \
		point();                                                                           \
		return ret;                                                                        \
	}

WRAP(ssize_t, recv, (int fd, void *buf, size_t len, int flags), (fd, buf, len, flags))
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *msg, int flags), (fd, msg, flags))
WRAP(ssize_t, write, (int fd, const void *buf, size_t len), (fd, buf, len))
WRAP(ssize_t, splice,
     (int in, off_t *in_at, int out, off_t *out_at, size_t len, unsigned int flags),
     (in, in_at, out, out_at, len, flags))
WRAP(int, madvise, (void *at, size_t len, int advice), (at, len, advice))

/* The service manager's store. */
int fd_store_get(struct fd_store *store, const char *name)
{
	int fd = !strcmp(name, "fault")    ? world.sock
	         : !strcmp(name, "answer") ? world.pipe[0]
	                                   : world.pipe[1];

	(void)store;
	return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

int adapter_keep(struct adapter *a, const char *name, int fd, struct error *err)
{
	(void)a;
	(void)name;
	(void)fd;
	(void)err;
	return 0;
}

void adapter_drop(struct adapter *a, const char *name, int *fd)
{
	(void)a;
	(void)name;
	close(*fd);
	*fd = -1;
}

static struct adapter make_adapter(void)
{
	return (struct adapter){ .id = "vm1", .record = world.record, .files = { world.file } };
}

/* Whether the adapter would serve, or wait for ever: nobody announces what was announced before. */
static bool is_called(const struct ch_faults *f)
{
	struct pollfd fd = { .fd = f->sock, .events = POLLIN };

	return f->again || poll(&fd, 1, 0) > 0;
}

/* A process: takes over what there is, and serves. Return: what serving returned. */
static int serve(void)
{
	struct adapter a = make_adapter();
	struct error err = ERROR_INIT;
	struct ch_faults f;
	int rc;

	ch_faults_init(&f, &a);
	rc = ch_faults_take_over(&f, &err);
	if (!rc && is_called(&f))
		rc = ch_faults_serve(&f, &err);
	close(f.sock);
	close(f.pipe[0]);
	close(f.pipe[1]);
	return rc;
}

static void ask(uint64_t page)
{
	const struct ch_request q = { .command = CH_PAGE_FAULT, .length = CH_RANGE_BYTES };
	const struct ch_range range = { .guest_phys_addr = page * PAGE, .len = PAGE };
	uint8_t buf[CH_REQUEST_BYTES + CH_RANGE_BYTES];

	ch_request_encode(&q, buf);
	ch_range_encode(&range, buf + CH_REQUEST_BYTES);
	assert_int_equal(__real_write(world.vmm, buf, sizeof buf), sizeof buf);
}

/* Whether there is one answer, which says ok, and no byte more. */
static void assert_answered_once(void)
{
	uint8_t buf[4 * CH_RESPONSE_BYTES], ok[CH_RESPONSE_BYTES];

	ch_response_encode(CH_OK, ok);
	assert_int_equal(__real_recv(world.vmm, buf, sizeof buf, MSG_DONTWAIT), sizeof ok);
	assert_memory_equal(buf, ok, sizeof ok);
}

/* Return: whether it was killed. */
static bool serve_and_be_killed(unsigned int at)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		kill_at = at;
		_exit(serve() ? 1 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == KILLED);
	return WEXITSTATUS(status) == KILLED;
}

static int set_up(void **state)
{
	const struct ch_slot slot = { .size = PAGES * PAGE, .page_size = PAGE };
	int pair[2];

	(void)state;
	world.record = mmap(NULL, sizeof *world.record, PROT_READ | PROT_WRITE,
	                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(world.record != MAP_FAILED);
	world.record->complete = true;
	assert_int_equal(ch_layout_add(&world.record->layout, &slot, NULL), 0);
	assert_int_equal(ch_slot_make_file(&slot, &world.file, NULL), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	world.vmm = pair[0];
	world.sock = pair[1];
	assert_int_equal(pipe(world.pipe), 0);
	return 0;
}

static void each_request_is_answered_once_whenever_the_process_ends(void **state)
{
	unsigned int at = 1;
	bool killed;

	(void)state;
	do {
		ask(at % PAGES);
		killed = serve_and_be_killed(at++);
		assert_int_equal(serve(), 0);
		assert_answered_once();
	} while (killed);
	/* Two for each of: look, take, make a page, put into the pipe, move, look again. */
	assert_true(at > 12);
}

static void half_a_request_waits_for_its_other_half(void **state)
{
	const struct ch_request q = { .command = CH_PAGE_FAULT, .length = CH_RANGE_BYTES };
	const struct ch_range range = { .len = PAGE };
	uint8_t buf[CH_REQUEST_BYTES];

	(void)state;
	ch_request_encode(&q, buf);
	assert_int_equal(__real_write(world.vmm, buf, sizeof buf), sizeof buf);
	assert_int_equal(serve(), 0);
	assert_int_equal(__real_recv(world.vmm, buf, sizeof buf, MSG_DONTWAIT), -1);
	ch_range_encode(&range, buf);
	assert_int_equal(__real_write(world.vmm, buf, CH_RANGE_BYTES), CH_RANGE_BYTES);
	assert_int_equal(serve(), 0);
	assert_answered_once();
}

/* The daemon has let go of the channel; then it says that every page is there. */
static void what_a_channel_that_ended_was_asked_is_answered(void **state)
{
	struct adapter a = make_adapter();
	struct error err = ERROR_INIT;
	struct ch_faults f;

	(void)state;
	world.record->complete = false;
	ask(1);
	ch_faults_init(&f, &a);
	assert_int_equal(ch_faults_take_over(&f, &err), 0);
	assert_int_equal(ch_faults_serve(&f, &err), 0);
	assert_true(world.record->asked);
	f.channel_ended = true;
	ch_faults_close_channel(&f);
	world.record->complete = true;
	assert_true(is_called(&f));
	assert_int_equal(ch_faults_serve(&f, &err), 0);
	assert_answered_once();
	ch_faults_end(&f);
}

static void what_is_no_memory_is_refused(void **state)
{
	(void)state;
	ask(PAGES);
	assert_int_equal(serve(), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(each_request_is_answered_once_whenever_the_process_ends,
		                       set_up),
		cmocka_unit_test_setup(half_a_request_waits_for_its_other_half, set_up),
		cmocka_unit_test_setup(what_a_channel_that_ended_was_asked_is_answered, set_up),
		cmocka_unit_test_setup(what_is_no_memory_is_refused, set_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

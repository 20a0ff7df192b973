/* SPDX-License-Identifier: Apache-2.0 */
/* A command of the user's: its end is seen, and it does not outlive its time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ctl/hook.h"

#define LONG_MS 60000

static const char *const nothing[] = { NULL };

static void test_status_and_environment(void **state)
{
	const char *const environment[] = { "POSTCOPY_ID=vm7", "PATH=/nowhere", NULL };
	struct error err = ERROR_INIT;

	(void)state;
	assert_int_equal(hook_run("test $POSTCOPY_ID = vm7 -a $PATH = /nowhere", environment,
	                          LONG_MS, -1, &err),
	                 0);
	assert_int_equal(hook_run("exit 3", nothing, LONG_MS, -1, &err), -EIO);
	assert_non_null(strstr(err.text, "\"exit 3\" ended with status 3"));
	assert_int_equal(hook_run("kill -9 $$", nothing, LONG_MS, -1, &err), -EIO);
	assert_non_null(strstr(err.text, "killed by signal 9"));
}

/* SIGTERM is blocked here, where a descriptor takes it: not so in what it runs. */
static void test_signals_reach_it(void **state)
{
	struct error err = ERROR_INIT;
	sigset_t term;

	(void)state;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, NULL);
	assert_int_equal(hook_run("kill -TERM $$; exit 0", nothing, LONG_MS, -1, &err), -EIO);
	assert_non_null(strstr(err.text, "killed by signal 15"));
}

static void test_it_is_ended(void **state)
{
	int cancel_fd = eventfd(1, EFD_CLOEXEC);
	struct error err = ERROR_INIT;

	(void)state;
	assert_int_equal(hook_run("sleep 1000; true", nothing, 1, -1, &err), -ETIMEDOUT);
	assert_int_equal(hook_run("sleep 1000; true", nothing, LONG_MS, cancel_fd, &err),
	                 -ECANCELED);
	close(cancel_fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_status_and_environment),
		cmocka_unit_test(test_signals_reach_it),
		cmocka_unit_test(test_it_is_ended),
	};

	return cmocka_run_group_tests_name("hook", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Linked with a clock of its own (--wrap=clock_gettime). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "util/log.h"
#include "util/refused.h"

static time_t now_s = 1000;
static int log_fd;

int __wrap_clock_gettime(clockid_t clock, struct timespec *ret);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ret)
{
	(void)clock;
	*ret = (struct timespec){ .tv_sec = now_s };
	return 0;
}

/* Lines with @text since the log was looked at last. */
static unsigned int lines_with(const char *text)
{
	static char log[1 << 20];
	ssize_t len = pread(log_fd, log, sizeof log - 1, 0);
	unsigned int n = 0;

	assert_true(len >= 0);
	log[len] = 0;
	for (const char *at = log; (at = strstr(at, text)); at += strlen(text))
		n++;
	assert_int_equal(ftruncate(log_fd, 0), 0);
	lseek(STDERR_FILENO, 0, SEEK_SET);
	return n;
}

static void refuse(unsigned int n, enum refused_door door)
{
	while (n--)
		refused(door, REFUSED_CERTIFICATE, "192.0.2.7 port 4", "not \"good\"\n");
}

/* Anybody could fill the log's disk; or, where lines were left out, nobody knew how many. */
static void test_a_flood_is_some_lines_and_a_number(void **state)
{
	(void)state;
	refuse(1000, REFUSED_AT_PAGES);
	assert_int_equal(lines_with("192.0.2.7 port 4 refused"), REFUSED_LINES);
	/* One door's flood leaves the others' lines alone. */
	refuse(1, REFUSED_AT_VMM);
	assert_int_equal(lines_with("refused_door=vmm refused_reason=certificate"), 1);
	now_s += 59;
	refused_tell_rest();
	assert_int_equal(lines_with("refused"), 0);
	now_s += 1;
	refused_tell_rest();
	assert_int_equal(lines_with("page server: and 990 more were refused in the last minute"),
	                 1);
	now_s += 600;
	refused_tell_rest();
	assert_int_equal(lines_with("refused"), 0);
	refuse(1, REFUSED_AT_PAGES);
	assert_int_equal(lines_with("192.0.2.7 port 4 refused"), 1);
	assert_int_equal(refused_count(REFUSED_AT_PAGES, REFUSED_CERTIFICATE), 1001);
	assert_int_equal(refused_count(REFUSED_AT_PAGES, REFUSED_TOKEN), 0);
}

/* Where nobody looks meanwhile the next one says it. */
static void test_the_next_one_says_it_too(void **state)
{
	(void)state;
	now_s += 600;
	refuse(REFUSED_LINES + 3, REFUSED_AT_CONTROL);
	lines_with("refused");
	now_s += 61;
	refuse(1, REFUSED_AT_CONTROL);
	assert_int_equal(lines_with("control: and 3 more were refused in the last minute"), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_flood_is_some_lines_and_a_number),
		cmocka_unit_test(test_the_next_one_says_it_too),
	};

	log_fd = memfd_create("log", 0);
	dup2(log_fd, STDERR_FILENO);
	log_init("test", LOG_LEVEL_INFO, LOG_FORMAT_LOGFMT);
	return cmocka_run_group_tests_name("refused", tests, NULL, NULL);
}

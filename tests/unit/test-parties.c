/* SPDX-License-Identifier: Apache-2.0 */
/* Cgroups' paths: a prefix is a place in the tree, and no text that happens to begin so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "migrate/parties.h"

static void test_below_and_beside(void **state)
{
	(void)state;
	assert_true(parties_cgroup_is_in("/a.slice/vm7", "/a.slice/vm7"));
	assert_true(parties_cgroup_is_in("/a.slice/vm7/emulator", "/a.slice/vm7"));
	assert_true(parties_cgroup_is_in("/", "/"));
	assert_true(parties_cgroup_is_in("/a.slice", "/"));
	assert_false(parties_cgroup_is_in("/a.slice/vm70", "/a.slice/vm7"));
	assert_false(parties_cgroup_is_in("/a.slice", "/a.slice/vm7"));
	assert_false(parties_cgroup_is_in("/", "/a.slice"));
	/* As the kernel writes it of one that is gone; and of one outside of our namespace. */
	assert_false(parties_cgroup_is_in("/a.slice/vm7 (deleted)", "/a.slice/vm7"));
	assert_false(parties_cgroup_is_in("/../vm7", "/vm7"));
}

static void expect_path(const char *file, const char *path)
{
	char text[256];
	const char *found;

	strcpy(text, file);
	found = parties_find_cgroup(text);
	if (path)
		assert_string_equal(found, path);
	else
		assert_null(found);
}

/* Where there are hierarchies of version 1 as well, they don't count: their names are others. */
static void test_the_unified_hierarchy_is_found(void **state)
{
	(void)state;
	expect_path("0::/a\n", "/a");
	expect_path("0::/a", "/a");
	expect_path("9:name=systemd:/x\n4:memory:/0::/y\n0::/a b\n", "/a b");
	expect_path("9:name=systemd:/x\n10::/y\n", NULL);
	expect_path("", NULL);
}

static void test_what_is_no_path_is_refused(void **state)
{
	static const char *const wrong[] = { "", "a", "/a/", "//", "/a//b", "/a\n0::/b" };
	struct error err = ERROR_INIT;
	char path[PARTIES_CGROUP_BYTES + 1];

	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
		assert_int_equal(parties_check_cgroup(wrong[i], &err), -EINVAL);
	assert_int_equal(parties_check_cgroup("/", &err), 0);
	memset(path, 'x', sizeof path);
	path[0] = '/';
	path[PARTIES_CGROUP_BYTES] = 0;
	assert_int_equal(parties_check_cgroup(path, &err), -EINVAL);
	path[PARTIES_CGROUP_BYTES - 1] = 0;
	assert_int_equal(parties_check_cgroup(path, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_below_and_beside),
		cmocka_unit_test(test_the_unified_hierarchy_is_found),
		cmocka_unit_test(test_what_is_no_path_is_refused),
	};

	return cmocka_run_group_tests_name("parties", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe on the kernel that this runs on. Nothing is expected of the kernel but
 * what every kernel we support has; what it may lack must come with a reason.
 * tests/vm runs the same program, and more, on a kernel that has everything.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <linux/userfaultfd.h>

#include "mem/probe_internal.h"

static struct probe probe;

static int run_once(void **state)
{
	struct error err = ERROR_INIT;

	(void)state;
	return probe_run(&probe, &err);
}

static unsigned int entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Without the right to create one, nothing can be trapped: then the reason must say so. */
static void skip_without_userfaultfd(void)
{
	const struct probe_row *uffd = &probe.facts[PROBE_USERFAULTFD];

	if (uffd->ok)
		return;
	assert_non_null(strstr(uffd->detail, "needs"));
	print_message("skipped: %s\n", uffd->detail);
	skip();
}

static void test_every_row_has_a_name_and_a_reason(void **state)
{
	const struct probe_row *row;
	size_t i, n_destinations = 0;

	(void)state;
	for (i = 0; (row = probe_row_at(&probe, i)); i++) {
		assert_non_null(row->name);
		assert_true(strlen(row->detail) > 3);
		assert_true(strlen(row->detail) < PROBE_DETAIL_MAX - 1);
		assert_null(strchr(row->detail, '\n'));
		n_destinations += !!strstr(row->name, " destination");
	}
	assert_int_equal(i, PROBE_FACTS + 2 * PROBE_BACKENDS);
	assert_int_equal(n_destinations, PROBE_BACKENDS);
	assert_true(probe.facts[PROBE_KERNEL].ok);
}

static void test_what_a_guest_writes_is_told(void **state)
{
	(void)state;
	skip_without_userfaultfd();
	if (!probe.facts[PROBE_WRITE_PROTECTION].ok) {
		assert_non_null(strstr(probe.facts[PROBE_WRITE_PROTECTION].detail, "6.7"));
		skip();
	}
	assert_non_null(strstr(probe.facts[PROBE_WRITE_PROTECTION].detail, "of memfd"));
	assert_non_null(strstr(probe.facts[PROBE_WRITE_PROTECTION].detail, "anonymous"));
	if (probe.facts[PROBE_KVM].ok)
		assert_true(probe.facts[PROBE_KVM_LOG].ok);
}

static void test_memfd_works(void **state)
{
	const struct probe_backend *b = &probe.backends[PROBE_MEMFD];

	(void)state;
	assert_true(b->source.ok);
	assert_int_equal(b->write, PROBE_WRITE_OVERWRITING);
	skip_without_userfaultfd();
	assert_true(b->destination.ok);
	assert_int_equal(b->mode, PROBE_MODE_MISSING_MINOR);
	assert_int_equal(b->modes[b->mode].absent, PROBE_ABSENT_MISSING);
	assert_true(b->modes[b->mode].present_minor);
	assert_true(b->memcpy_fill);
	assert_int_equal(b->resolve,
	                 PROBE_RESOLVE_CONTINUE | PROBE_RESOLVE_COPY | PROBE_RESOLVE_ZEROPAGE);
}

static void test_anonymous_works(void **state)
{
	const struct probe_backend *b = &probe.backends[PROBE_ANONYMOUS];

	(void)state;
	assert_true(b->source.ok);
	assert_int_equal(b->write, PROBE_WRITE_NONE);
	skip_without_userfaultfd();
	assert_true(b->destination.ok);
	assert_int_equal(b->mode, PROBE_MODE_MISSING);
	assert_false(b->memcpy_fill);
	assert_int_equal(b->resolve, PROBE_RESOLVE_COPY | PROBE_RESOLVE_ZEROPAGE);
}

/* Shared memory behaves with MINOR alone as the dangerous guest_memfd ABI does. */
static void test_silent_mode_is_refused(void **state)
{
	const struct probe_backend *b = &probe.backends[PROBE_MEMFD];
	struct error err = ERROR_INIT;

	(void)state;
	skip_without_userfaultfd();
	assert_int_equal(b->modes[PROBE_MODE_MINOR].absent, PROBE_ABSENT_SILENT);
	assert_false(b->modes[PROBE_MODE_MINOR].ok);
	assert_int_equal(probe_mode_check(b, UFFDIO_REGISTER_MODE_MINOR, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "zeroes"));
	assert_int_equal(probe_mode_check(b, UFFDIO_REGISTER_MODE_MISSING, &err), -EOPNOTSUPP);
	assert_int_equal(probe_mode_check(b,
	                                  UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	                                  &err),
	                 0);
	assert_int_equal(probe_mode_check(b, 0, &err), -EINVAL);
	assert_int_equal(probe_mode_check(b, UFFDIO_REGISTER_MODE_WP, &err), -EINVAL);
}

static void test_guest_memfd_yes_or_reason(void **state)
{
	const struct probe_backend *b = &probe.backends[PROBE_GUEST_MEMFD];

	(void)state;
	if (b->destination.ok) {
		assert_true(b->abi == PROBE_GMEM_MINOR || b->abi == PROBE_GMEM_MISSING_MINOR);
		assert_true(b->resolve & PROBE_RESOLVE_CONTINUE);
		assert_non_null(strstr(b->destination.detail, probe_gmem_abi_name(b->abi)));
	} else {
		assert_int_equal(b->mode, PROBE_MODES);
		assert_int_equal(b->resolve, 0);
		assert_true(b->abi == PROBE_GMEM_NONE || b->abi == PROBE_GMEM_MINOR_PRESENT_ONLY);
	}
	/* what is needed is told exactly on a kernel that has the rest */
	if (probe.facts[PROBE_USERFAULTFD].ok && b->source.ok && !b->destination.ok)
		assert_non_null(strstr(b->destination.detail, "MINOR"));
}

static void test_one_backend_alone_is_the_same(void **state)
{
	struct error err = ERROR_INIT;
	struct probe_backend b;

	(void)state;
	assert_int_equal(probe_backend_run(PROBE_MEMFD, &b, &err), 0);
	assert_int_equal(b.mode, probe.backends[PROBE_MEMFD].mode);
	assert_string_equal(b.destination.detail, probe.backends[PROBE_MEMFD].destination.detail);
}

static void test_abi_is_named_from_what_was_seen(void **state)
{
	struct probe_mode_result m[PROBE_MODES] = { 0 };

	(void)state;
	assert_int_equal(probe_gmem_abi_of(m), PROBE_GMEM_NONE);
	m[PROBE_MODE_MINOR].absent = PROBE_ABSENT_SILENT;
	assert_int_equal(probe_gmem_abi_of(m), PROBE_GMEM_MINOR_PRESENT_ONLY);
	m[PROBE_MODE_MINOR] =
	        (struct probe_mode_result){ .absent = PROBE_ABSENT_MINOR, .ok = true };
	assert_int_equal(probe_gmem_abi_of(m), PROBE_GMEM_MINOR);
	m[PROBE_MODE_MISSING_MINOR].ok = true;
	assert_int_equal(probe_gmem_abi_of(m), PROBE_GMEM_MISSING_MINOR);
}

static void test_names_are_total(void **state)
{
	(void)state;
	for (unsigned int i = 0; i <= 16; i++) {
		assert_non_null(probe_backend_name(i));
		assert_non_null(probe_mode_name(i));
		assert_non_null(probe_absent_name(i));
		assert_non_null(probe_write_name(i));
		assert_non_null(probe_resolve_name(i));
		assert_non_null(probe_gmem_abi_name(i));
	}
	assert_int_equal(probe_mode_bits(PROBE_MODES), 0);
}

static void test_nothing_is_left_behind(void **state)
{
	unsigned int fds = entries("/proc/self/fd"), threads = entries("/proc/self/task");
	struct error err = ERROR_INIT;
	static struct probe again;

	(void)state;
	for (int i = 0; i < 20; i++)
		assert_int_equal(probe_run(&again, &err), 0);
	assert_int_equal(entries("/proc/self/fd"), fds);
	assert_int_equal(entries("/proc/self/task"), threads);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_row_has_a_name_and_a_reason),
		cmocka_unit_test(test_what_a_guest_writes_is_told),
		cmocka_unit_test(test_memfd_works),
		cmocka_unit_test(test_anonymous_works),
		cmocka_unit_test(test_silent_mode_is_refused),
		cmocka_unit_test(test_guest_memfd_yes_or_reason),
		cmocka_unit_test(test_one_backend_alone_is_the_same),
		cmocka_unit_test(test_abi_is_named_from_what_was_seen),
		cmocka_unit_test(test_names_are_total),
		cmocka_unit_test(test_nothing_is_left_behind),
	};

	return cmocka_run_group_tests_name("probe", tests, run_once, NULL);
}

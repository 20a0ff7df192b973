/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench/qemu.h"

#define PROGRESS_GPA 8192
#define GUEST_BYTES 16384
#define STEPS 20
#define STILL_MS 40

/* A guest of two workers whose memory is two files, and that is where the test puts it. */
struct world {
	struct bench_vmm source, destination;
	struct pace pace;
	uint64_t count;
};

static const struct bench_guest guest = { .workers = 2,
	                                  .n_pages = 1,
	                                  .progress_gpa = PROGRESS_GPA };

static int make_memory(void)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, GUEST_BYTES), 0);
	return fd;
}

static void nap(unsigned int ms)
{
	nanosleep(&(struct timespec){ .tv_nsec = (long)ms * 1000000 }, NULL);
}

static void set_count(const struct bench_vmm *v, uint64_t count)
{
	for (unsigned int worker = 0; worker < guest.workers; worker++)
		assert_int_equal(pwrite(v->memory_fd, &count, sizeof count,
		                        PROGRESS_GPA + 64 * (off_t)worker),
		                 sizeof count);
}

static void run_guest(struct world *w, const struct bench_vmm *where)
{
	for (int i = 0; i < STEPS; i++) {
		set_count(where, ++w->count);
		nap(1);
	}
}

static void begin(struct world *w)
{
	*w = (struct world){ .source = BENCH_VMM_INIT, .destination = BENCH_VMM_INIT, .count = 1 };
	w->source.memory_fd = make_memory();
	w->destination.memory_fd = make_memory();
	set_count(&w->source, w->count);
	assert_int_equal(pace_start(&w->pace, &w->source, &w->destination, &guest, NULL), 0);
	run_guest(w, &w->source);
	pace_begin(&w->pace);
	run_guest(w, &w->source);
}

static void end(struct world *w)
{
	pace_stop(&w->pace);
	close(w->source.memory_fd);
	close(w->destination.memory_fd);
}

static void test_a_page_that_arrives_is_no_progress(void **state)
{
	struct world w;
	struct bench_moved moved = { 0 };

	(void)state;
	begin(&w);
	/* an old copy, and then the newest */
	set_count(&w.destination, w.count - 5);
	nap(STILL_MS);
	set_count(&w.destination, w.count);
	nap(STILL_MS);
	end(&w);
	pace_result(&w.pace, &moved);
	assert_int_equal(w.pace.arrived_ns, 0);
	assert_true(moved.downtime_ms == 0);
	assert_int_equal(w.pace.at_end, 2 * w.count);
}

static void test_downtime_is_from_here_to_there(void **state)
{
	struct world w;
	struct bench_moved moved = { 0 };

	(void)state;
	begin(&w);
	nap(STILL_MS);
	set_count(&w.destination, w.count);
	run_guest(&w, &w.destination);
	end(&w);
	pace_result(&w.pace, &moved);
	/* It stood still for no less, whatever else this host was at. */
	assert_true(moved.downtime_ms >= STILL_MS - 1);
	assert_true(moved.gap_ms >= moved.downtime_ms - 1);
	assert_true(moved.total_ms > moved.gap_ms);
	assert_int_equal(w.pace.at_end, 2 * w.count);
}

static void test_a_worker_that_hangs_is_a_gap(void **state)
{
	struct world w;
	struct bench_moved moved = { 0 };

	(void)state;
	begin(&w);
	/* the other one goes on */
	for (int i = 0; i < STILL_MS; i++) {
		w.count++;
		assert_int_equal(pwrite(w.source.memory_fd, &w.count, sizeof w.count, PROGRESS_GPA),
		                 sizeof w.count);
		nap(1);
	}
	end(&w);
	pace_result(&w.pace, &moved);
	assert_true(moved.gap_ms >= STILL_MS - 1);
}

static void test_no_work_is_lost_where_more_is_done(void **state)
{
	struct world w;
	struct bench_moved moved = { 0 };

	(void)state;
	begin(&w);
	w.count *= 1000;
	set_count(&w.destination, w.count);
	nap(STILL_MS);
	end(&w);
	pace_result(&w.pace, &moved);
	assert_true(moved.lost_ms == 0);
}

static void test_a_hole_stays_one(void **state)
{
	struct world w;

	(void)state;
	begin(&w);
	assert_true(lseek(w.destination.memory_fd, 0, SEEK_DATA) < 0);
	end(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_page_that_arrives_is_no_progress),
		cmocka_unit_test(test_downtime_is_from_here_to_there),
		cmocka_unit_test(test_a_worker_that_hangs_is_a_gap),
		cmocka_unit_test(test_no_work_is_lost_where_more_is_done),
		cmocka_unit_test(test_a_hole_stays_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

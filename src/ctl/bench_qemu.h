/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The benchmark with QEMU: the same guest moved by the daemons, and by QEMU itself.
 *
 * Theory of operation
 * -------------------
 * Each run starts two QEMUs, moves the guest from one to the other in one way, and has it look at
 * each of its pages twice. The guest is one of ours that fits into a page (guest/bare.c), or a
 * Linux that says the same (tests/vmms/guest/linux-init.c).
 *
 * Who moves a guest has a clock of its own, and starts and stops it where it likes: QEMU's
 * "downtime" ends before the guest's first fault. So all ways are measured from outside, and alike:
 * the guest counts the pages it has looked at in its own memory, which is a file of this process. A
 * thread reads the counters on both sides, by pread(), which leaves a hole a hole, some thousand
 * times a second (struct pace). What the guest has not counted meanwhile it has lost.
 *
 * bench_qemu.c        the ways in turn, medians, what is printed
 * bench_qemu_vmm.c    one QEMU with its guest
 * bench_qemu_pace.c   how the guest gets on
 * bench_qemu_ours.c   moved by postcopyd and postcopy-qemu
 * bench_qemu_native.c moved by QEMU's own postcopy
 */
#ifndef CTL_BENCH_QEMU_H
#define CTL_BENCH_QEMU_H

#include <pthread.h>
#include <stdatomic.h>

#include "ctl/bench.h"
#include "qemu/qmp.h"

#define PACE_WORKERS_MAX 16
#define QEMU_GUEST_WAIT_MS 180000

/* What is known of the guest once it has said "ready". */
struct bench_guest {
	unsigned int workers;
	uint64_t n_pages;      /* that each of them looks at */
	uint64_t progress_gpa; /* their counters, 64 bytes apart */
};

/* The guest that is built in has one. */
static inline uint64_t bench_qemu_vcpus(const struct bench_options *o)
{
	return o->kernel ? o->vcpus : 1;
}

struct bench_vmm {
	struct bench *b;
	struct process process;
	struct qmp *qmp;
	int memory_fd;
	char qmp_path[128];         /* this benchmark's own monitor */
	char adapter_qmp_path[128]; /* another one, for postcopy-qemu */
};

#define BENCH_VMM_INIT ((struct bench_vmm){ .process = PROCESS_INIT, .memory_fd = -1 })

/* bench_vmm_stop() also after failure. */
int bench_vmm_start(struct bench_vmm *v, struct bench *b, bool incoming, struct error *err);
void bench_vmm_stop(struct bench_vmm *v);

/* Until it says so. */
int bench_vmm_wait_ready(struct bench_vmm *v, struct bench_guest *ret, struct error *err);

/* Two whole passes of each worker from now on. @ret_bad: pages that were wrong. */
int bench_vmm_check_guest(struct bench_vmm *v, const struct bench_guest *g, uint64_t *ret_bad,
                          struct error *err);

/* A command whose arguments are JSON text; @ret may be NULL. */
int bench_vmm_ask(struct bench_vmm *v, const char *command, const char *arguments,
                  struct json_object **ret, struct error *err);

/* How the guest gets on, from pace_start() to pace_stop(). */
struct pace {
	pthread_t thread;
	bool running;
	atomic_bool stop;
	atomic_uint_fast64_t begun_ns; /* of the migration; 0: not yet */
	/* The thread's, and the caller's after pace_stop(): */
	int fds[2]; /* source, destination */
	struct bench_guest guest;
	uint64_t count[PACE_WORKERS_MAX];
	uint64_t since_ns[PACE_WORKERS_MAX]; /* when it last moved */
	uint64_t started_ns, before;         /* before the migration */
	uint64_t at_begin, at_end, end_ns;
	uint64_t longest_gap_ns; /* of any worker */
	uint64_t left_ns;        /* when any worker last moved at the source */
	uint64_t arrived_ns;     /* when one first moved at the destination */
};

int pace_start(struct pace *p, const struct bench_vmm *source, const struct bench_vmm *destination,
               const struct bench_guest *guest, struct error *err);
/* From here on it is measured; what was before is the guest's speed when nothing disturbs it. */
void pace_begin(struct pace *p);
void pace_stop(struct pace *p);

/* What one migration is like; in milliseconds. */
struct bench_moved {
	double downtime_ms; /* from the guest's last step here to its first one there */
	double gap_ms;      /* the longest time that a vCPU stood still, all in all */
	double lost_ms;  /* of the guest's work, in time it would have taken for it undisturbed */
	double total_ms; /* from the command to: the source may go */
	uint64_t bad_pages;
};

void pace_result(const struct pace *p, struct bench_moved *ret);

/* One way to move it: from both QEMUs ready to the source no longer needed. */
struct bench_way {
	const char *name;  /* in JSON */
	const char *title; /* for people */
	int (*move)(struct bench *b, struct bench_vmm *source, struct bench_vmm *destination,
	            unsigned int n, struct pace *pace, struct error *err);
};

extern const struct bench_way bench_way_ours;
extern const struct bench_way bench_way_postcopy;
extern const struct bench_way bench_way_preempt_tls;

/* What can't be asked for together. Return: 0 or -EINVAL */
int bench_qemu_check(const struct bench_options *o, struct error *err);

/* The programs that it takes. Return: 0 or -ENOENT */
int bench_qemu_find(struct bench *b, struct error *err);

/* All ways, all runs: appends one result to @results. */
int bench_qemu(struct bench *b, struct json_object *results, struct error *err);

/* As bench_result_good(). */
bool bench_qemu_good(struct json_object *result, struct error *err);

void bench_qemu_print(struct json_object *result);

#endif

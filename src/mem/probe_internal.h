/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the files of the probe only.
 */
#ifndef MEM_PROBE_INTERNAL_H
#define MEM_PROBE_INTERNAL_H

#include <pthread.h>
#include <linux/userfaultfd.h>

#include "mem/probe.h"
#include "util/cleanup.h"

/* What is compared of each page; what is written by one pwrite(). */
#define PROBE_COPY_BYTES 4096u

/* What all parts of a probe share. */
struct probe_env {
	int copy_fd;          /* a memfd through which memory is copied */
	int kvm;              /* /dev/kvm, or -1 */
	int vm;               /* a VM for guest_memfds, or -1 */
	struct error kvm_err; /* why not */
};

int probe_env_init(struct probe_env *env, struct error *err);
void probe_env_deinit(struct probe_env *env);

/*
 * probe_copy() - PROBE_COPY_BYTES from one place to another, by system calls
 *
 * Return: 0, or -EFAULT where one of them can't be touched.
 */
int probe_copy(const struct probe_env *env, void *to, const void *from);

/*
 * probe_uffd_open() - a userfaultfd that traps the kernel's (thus KVM's) accesses too
 * @ret_way: by what it was created; static
 *
 * Return: the descriptor, or a negative errno with @err set.
 */
int probe_uffd_open(const char **ret_way, struct error *err);
/* The same, asked for features. */
int probe_uffd_open_with(uint64_t features, const char **ret_way, struct error *err);

/* "EINVAL" for -EINVAL */
const char *probe_errno_name(int code);

/* Fills a row. */
void probe_row_yes(struct probe_row *row, const char *fmt, ...)
        __attribute__((format(printf, 2, 3)));
void probe_row_no(struct probe_row *row, const char *fmt, ...)
        __attribute__((format(printf, 2, 3)));

/* One page's worth of a backend's memory. */
struct scratch {
	size_t len;
	int fd;      /* -1 for anonymous memory */
	char *alias; /* a plain mapping, as the daemon's; NULL for anonymous memory */
};

#define SCRATCH_INIT ((struct scratch){ .fd = -1 })

int scratch_init(struct scratch *s, const struct probe_env *env, enum probe_backend_id id,
                 uint64_t guest_memfd_flags, struct error *err);
void scratch_deinit(struct scratch *s);

/* One more mapping of it; NULL with @err set. */
char *scratch_map(const struct scratch *s, struct error *err);

/* A mapping of scratch memory that a userfaultfd watches, as the VMM's. */
struct trap {
	int uffd;
	char *map;
	size_t len;
};

#define TRAP_INIT ((struct trap){ .uffd = -1 })

/* Maps and opens. Then trap_register(): 0 or the negative errno of UFFDIO_REGISTER. */
int trap_init(struct trap *t, const struct scratch *s, struct error *err);
int trap_register(const struct trap *t, uint64_t mode);
/* Lets every waiting thread go before it unmaps. */
void trap_release(struct trap *t);
void trap_deinit(struct trap *t);

int trap_continue(const struct trap *t);
int trap_copy(const struct trap *t, const void *from);
int trap_zeropage(const struct trap *t);

/*
 * A thread that reads the start of a trap's mapping, as a vCPU would. Order: the
 * trap is released before touch_deinit(), which joins.
 */
struct touch {
	pthread_t thread;
	bool started;
	int read_fd;  /* readable when the thread has read, end of file where it failed */
	int write_fd; /* the thread's */
	const char *addr;
};

#define TOUCH_INIT ((struct touch){ .read_fd = -1, .write_fd = -1 })

int touch_start(struct touch *touch, const char *addr, struct error *err);
/*
 * touch_or_event() - what comes first
 *
 * Return: 1 for an event (in @ret_msg), 0 where the thread went on without one,
 * -ETIMEDOUT for neither, or another negative errno.
 */
int touch_or_event(const struct touch *touch, const struct trap *t, struct uffd_msg *ret_msg);
/* What the thread has read: 0, -ETIMEDOUT where it still waits, -EFAULT where it couldn't. */
int touch_result(const struct touch *touch, char ret_content[PROBE_COPY_BYTES]);
void touch_deinit(struct touch *touch);

/* Fills @ret with all there is to know about a backend. */
void probe_backend_fill(const struct probe_env *env, enum probe_backend_id id,
                        struct probe_backend *ret);

/* guest_memfd whose pages are not in the kernel's direct map, as a destination. */
void probe_no_direct_map_fill(const struct probe_env *env, struct probe_row *row);

/* Which ABI these results of guest_memfd amount to. */
enum probe_gmem_abi probe_gmem_abi_of(const struct probe_mode_result modes[PROBE_MODES]);

/* Whether a memfd's absent pages stay absent. */
void probe_collapse_fill(const struct probe_env *env, struct probe_row *row);

/* What can tell what a running guest writes. */
void probe_write_protection_fill(const struct probe_env *env, struct probe_row *row);
void probe_kvm_log_fill(const struct probe_env *env, struct probe_row *row);

/* Fills @rows with the facts about the host, by enum probe_fact_id. */
void probe_host_fill(const struct probe_env *env, struct probe_row rows[PROBE_FACTS]);

#endif

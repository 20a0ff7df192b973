/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this kernel can do for postcopy, found by doing it on scratch objects.
 *
 * Theory of operation
 * -------------------
 * Feature bits and versions lie: three userfaultfd ABIs for guest_memfd are about,
 * one of them lets the guest read zeroes for pages that have not arrived. So each
 * backend is taken through the life of one page, as a migration would: create a page's
 * worth of memory, register its mapping, touch the absent page from a thread and look
 * whether an event comes, fill it through a second mapping, resolve the fault, and
 * compare what the thread read. Then the same with a page that is present already,
 * and pwrite() twice.
 *
 * A thread waits in a fault at most PROBE_FAULT_LIMIT_MS; closing the userfaultfd
 * lets it go, so that none stays behind. Memory is touched by system calls only
 * (pipes): what the kernel can't give is an error then, not a SIGBUS. Nothing
 * outlives a call: no descriptor, no thread, no VM. Huge pages are taken one at
 * a time and given back.
 *
 * What is told holds for the process that asks: a daemon without the right to
 * create a userfaultfd still serves VMMs that have it.
 */
#ifndef MEM_PROBE_H
#define MEM_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

#define PROBE_DETAIL_MAX ERROR_TEXT_MAX
#define PROBE_FAULT_LIMIT_MS 2000

/* One line of the result, for tables and JSON alike. */
struct probe_row {
	const char *name; /* static, e.g. "memfd destination" */
	bool ok;
	char detail[PROBE_DETAIL_MAX]; /* how it works, or why it doesn't and what to do */
};

enum probe_backend_id {
	PROBE_MEMFD,
	PROBE_HUGETLB_2M,
	PROBE_HUGETLB_1G,
	PROBE_GUEST_MEMFD,
	PROBE_ANONYMOUS,
	PROBE_BACKENDS, /* how many */
};

/* The registration modes that are tried, best first. */
enum probe_mode {
	PROBE_MODE_MISSING_MINOR,
	PROBE_MODE_MINOR,
	PROBE_MODE_MISSING,
	PROBE_MODES, /* how many; as a value: none works */
};

/* What the first touch of a page that is absent did. */
enum probe_absent {
	PROBE_ABSENT_UNKNOWN, /* the mode was not accepted, or was not tried */
	PROBE_ABSENT_SILENT,  /* no event, a zero page: never use this mode */
	PROBE_ABSENT_MISSING, /* a MISSING event */
	PROBE_ABSENT_MINOR,   /* a MINOR event (the page was allocated before it) */
};

/* What pwrite() to the memory's descriptor does. */
enum probe_write {
	PROBE_WRITE_NONE,        /* refused: fill by memcpy */
	PROBE_WRITE_EXCLUSIVE,   /* absent pages only: EEXIST or a short count on others */
	PROBE_WRITE_OVERWRITING, /* pages that are present are overwritten */
};

/* What resolves a fault and wakes its thread; a bit mask. */
enum probe_resolve {
	PROBE_RESOLVE_CONTINUE = 1 << 0,
	PROBE_RESOLVE_COPY = 1 << 1,
	PROBE_RESOLVE_ZEROPAGE = 1 << 2,
};

/* Which of the interfaces for guest_memfd this kernel has. */
enum probe_gmem_abi {
	PROBE_GMEM_NONE,               /* no userfaultfd for it, or it is another backend */
	PROBE_GMEM_MINOR,              /* MINOR; an absent page is allocated, then raises MINOR */
	PROBE_GMEM_MISSING_MINOR,      /* MISSING for absent, MINOR for present pages */
	PROBE_GMEM_MINOR_PRESENT_ONLY, /* MINOR, present pages only: dangerous, refused */
};

/* One registration mode, tried. */
struct probe_mode_result {
	int register_code; /* of UFFDIO_REGISTER: 0 or a negative errno; -ENODATA: not tried */
	enum probe_absent absent;
	bool present_minor; /* a page that is present, not mapped, raises a MINOR event */
	unsigned int resolve;
	bool ok;                       /* fit for a destination */
	char reason[PROBE_DETAIL_MAX]; /* why not ok */
};

struct probe_backend {
	enum probe_backend_id id;
	uint64_t page_bytes;
	struct probe_row source;      /* can be read as the source of a migration */
	struct probe_row destination; /* can be trapped, filled and resolved */
	enum probe_mode mode;         /* the one to use; PROBE_MODES where none works */
	struct probe_mode_result modes[PROBE_MODES];
	enum probe_write write;     /* fill ahead by pwrite() */
	bool memcpy_fill;           /* fill ahead by memcpy through a second mapping */
	unsigned int resolve;       /* enum probe_resolve bits, with @mode */
	enum probe_gmem_abi abi;    /* guest_memfd only */
	uint64_t guest_memfd_flags; /* guest_memfd only: to create it with, so that all of the
	                               above holds (GUEST_MEMFD_FLAG_*) */
};

enum probe_fact_id {
	PROBE_KERNEL,                /* always ok; the detail is its release */
	PROBE_KVM,                   /* /dev/kvm can be opened and makes VMs */
	PROBE_USERFAULTFD,           /* may be created; the detail says which way */
	PROBE_UFFDIO_POISON,         /* lost pages can be poisoned */
	PROBE_HOLES,                 /* absent pages stay absent where huge pages are made */
	PROBE_WRITE_PROTECTION,      /* what a running guest writes can be told by it */
	PROBE_KVM_LOG,               /* and by KVM */
	PROBE_KVM_PRE_FAULT,         /* KVM_PRE_FAULT_MEMORY */
	PROBE_KVM_MEMORY_ATTRIBUTES, /* private / shared ranges */
	PROBE_KVM_USERFAULT,         /* faults as KVM exits */
	PROBE_NO_DIRECT_MAP,         /* guest_memfd that the kernel itself can't reach */
	PROBE_KTLS,
	PROBE_HUGE_2M, /* huge pages that are free now */
	PROBE_HUGE_1G,
	PROBE_FACTS, /* how many */
};

struct probe {
	struct probe_row facts[PROBE_FACTS];           /* by enum probe_fact_id */
	struct probe_backend backends[PROBE_BACKENDS]; /* by enum probe_backend_id */
};

/*
 * probe_run() - everything; some 10 ms, more where there are 1 GiB pages to zero
 *
 * Return: 0, with each "no" explained in its row; a negative errno only where nothing
 * could be tried at all (no memory, no descriptors left).
 */
int probe_run(struct probe *ret, struct error *err);

/* probe_backend_run() - one backend alone. Errors as probe_run(). */
int probe_backend_run(enum probe_backend_id id, struct probe_backend *ret, struct error *err);

/*
 * probe_row_at() - all rows in the order to be shown
 *
 * Return: NULL beyond the last.
 *
 *   for (size_t i = 0; (row = probe_row_at(&probe, i)); i++)
 */
const struct probe_row *probe_row_at(const struct probe *probe, size_t i);

/*
 * probe_mode_check() - is memory that a VMM registered with this mode safe here?
 * @uffd_mode: UFFDIO_REGISTER_MODE_MISSING and _MINOR bits
 *
 * Return: 0, -EINVAL for a combination that doesn't exist, -EOPNOTSUPP with @err set where
 * the guest could read zeroes for pages that have not arrived, or faults can't be resolved.
 */
int probe_mode_check(const struct probe_backend *backend, uint64_t uffd_mode, struct error *err);

/* UFFDIO_REGISTER_MODE_* bits; 0 for PROBE_MODES. */
uint64_t probe_mode_bits(enum probe_mode mode);

/* Names for people: never NULL, static. */
const char *probe_backend_name(enum probe_backend_id id);
const char *probe_mode_name(enum probe_mode mode);
const char *probe_absent_name(enum probe_absent absent);
const char *probe_write_name(enum probe_write write);
const char *probe_resolve_name(unsigned int resolve);
const char *probe_gmem_abi_name(enum probe_gmem_abi abi);

#endif

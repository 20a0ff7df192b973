/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a descriptor from outside is.
 *
 * Theory of operation
 * -------------------
 * A VMM is not trusted, and a descriptor of its choice is no plain thing. It may carry the name
 * of something else (a memfd may be called "[userfaultfd]"). It may lie in a filesystem whose
 * server the VMM is itself: each call that asks this filesystem (fstat, fstatfs, lseek, mmap,
 * read, also close) then waits for as long as the server likes, and beyond SIGKILL. So before
 * anything else its kind is established by what the kernel alone can say, and without a question
 * to a filesystem. What is of no kind that we know is never used, never given to anybody else,
 * and closed by a process of its own.
 *
 * Threads: any.
 */
#ifndef MEM_DESCRIPTOR_H
#define MEM_DESCRIPTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "postcopy/postcopy.h"
#include "util/error.h"

enum descriptor_kind {
	DESCRIPTOR_OTHER,        /* no descriptor at all, or one to keep away from */
	DESCRIPTOR_SHMEM,        /* a memfd, or a file of a tmpfs */
	DESCRIPTOR_HUGETLB,      /* a memfd of huge pages, or a file of a hugetlbfs */
	DESCRIPTOR_GUEST_MEMFD,  /* of KVM_CREATE_GUEST_MEMFD */
	DESCRIPTOR_PROC_MEM,     /* an open /proc/PID/mem: whose, was decided when it was opened */
	DESCRIPTOR_PROC_PAGEMAP, /* likewise /proc/PID/pagemap */
	DESCRIPTOR_USERFAULTFD,
	DESCRIPTOR_UNIX_SOCKET,
};

/* Asks nobody but the kernel. */
enum descriptor_kind descriptor_identify(int fd);

/* Where it leads, as the kernel names it, for messages only; empty where there is none. */
void descriptor_name(int fd, char *buf, size_t size);

/*
 * descriptor_check_memory() - is it what a region of this kind is opened with?
 * @index: of the region, for @err
 *
 * Return: 0; -EBADF where there is no such descriptor; -EINVAL with @err naming what it is.
 */
int descriptor_check_memory(int fd, enum postcopy_memory memory, uint32_t index, struct error *err);

/* Whether a name is that of a /proc/PID/mem, or of another @file there. */
bool descriptor_names_mem(const char *name);
bool descriptor_names_proc(const char *name, const char *file);

/* As descriptor_check_memory() for a userfaultfd. */
int descriptor_check_userfaultfd(int fd, struct error *err);

/* Which file it is, however many descriptors there are of it. All 0: none. */
struct descriptor_file {
	uint64_t dev;
	uint64_t ino;
	bool frozen; /* F_SEAL_WRITE: nobody can write it any more, so no guest runs in it */
};

/* @fd: of a kind that is memory. Return: 0 or -errno. */
int descriptor_file(int fd, struct descriptor_file *ret);

static inline bool descriptor_same_file(const struct descriptor_file *a,
                                        const struct descriptor_file *b)
{
	return a->ino && a->dev == b->dev && a->ino == b->ino;
}

/*
 * descriptor_discard() - close what a stranger has sent, whatever it is
 * @fd: -1 afterwards; it may be -1 before
 *
 * Never waits. A strange kind is closed by a child process that shares our descriptors, for its
 * filesystem may never answer; a child that has ended is reaped by the next call.
 */
void descriptor_discard(int *fd);

#endif

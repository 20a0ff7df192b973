/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The benchmark's children: each has a log file for what it prints, and a pipe on
 * which it reports, line by line. None outlives the benchmark: they are stopped by
 * process_stop(), and where the benchmark is killed the kernel kills them.
 */
#ifndef CTL_BENCH_PROCESS_H
#define CTL_BENCH_PROCESS_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"

/* Where a child finds its end of the status pipe. */
#define PROCESS_STATUS_FD 3
#define PROCESS_STATUS_FD_TEXT "3"
#define PROCESS_LINE_MAX 16384

struct process {
	char name[48]; /* for messages: "destination's minivmm" */
	pid_t pid;     /* 0 while none runs */
	int pidfd;
	int status_fd;
	char log_path[PATH_MAX];
	char buf[PROCESS_LINE_MAX];
	size_t len;      /* bytes in buf */
	size_t consumed; /* of them, those of the line taken last */
};

#define PROCESS_INIT ((struct process){ .pidfd = -1, .status_fd = -1 })

/*
 * process_find() - where a program of ours is
 *
 * Beside this executable, in the build tree's sibling directory, or in $PATH.
 *
 * @sibling: that directory's name
 * @ret: PATH_MAX bytes
 * Return: 0 or -ENOENT
 */
int process_find(const char *program, const char *sibling, char *ret, struct error *err);

/*
 * process_start() - run a program
 * @p: PROCESS_INIT, or one that was stopped
 * @name: for messages; copied
 * @argv: argv[0] is the path
 * @log_path: what it prints is appended there; copied
 */
int process_start(struct process *p, const char *name, char *const *argv, const char *log_path,
                  struct error *err);

/*
 * process_read_line() - the next line of the status pipe, without newline
 * @cancel_fd: ends the wait with -ECANCELED once readable; -1 for none
 * @ret: valid until the next call
 *
 * Return: 0, -ETIMEDOUT, -EPIPE where the child ended, with the reason from its log.
 */
int process_read_line(struct process *p, int timeout_ms, int cancel_fd, char **ret,
                      struct error *err);

/* Return: 0 while it runs or has ended well; -ECHILD where it failed, with the reason. */
int process_check(struct process *p, struct error *err);

/* Waits for a child that is to end by itself. Return: 0, -ETIMEDOUT, -ECHILD, -ECANCELED */
int process_wait(struct process *p, int timeout_ms, int cancel_fd, struct error *err);

/* Ends it: asks, waits, kills. Nothing to do where none runs. */
void process_stop(struct process *p);

/* The most memory it has had, VmHWM. Return: bytes, 0 where it can't be told. */
uint64_t process_peak_rss_bytes(const struct process *p);

#endif

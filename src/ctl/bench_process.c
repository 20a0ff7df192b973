/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/bench_process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"

#define STOP_GRACE_MS 5000

static bool is_program(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISREG(st.st_mode) && !access(path, X_OK);
}

static bool find_in_path(const char *program, char *ret)
{
	const char *path = getenv("PATH");

	while (path && *path) {
		int len = (int)(strchrnul(path, ':') - path);

		if (len && snprintf(ret, PATH_MAX, "%.*s/%s", len, path, program) < PATH_MAX &&
		    is_program(ret))
			return true;
		path += len + (path[len] == ':');
	}
	return false;
}

int process_find(const char *program, const char *sibling, char *ret, struct error *err)
{
	char self[PATH_MAX], found[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	char *slash;

	self[n > 0 ? n : 0] = 0;
	slash = strrchr(self, '/');
	if (slash) {
		*slash = 0;
		if ((snprintf(found, sizeof found, "%s/%s", self, program) < PATH_MAX &&
		     is_program(found)) ||
		    (snprintf(found, sizeof found, "%s/../%s/%s", self, sibling, program) <
		             PATH_MAX &&
		     is_program(found))) {
			strcpy(ret, found);
			return 0;
		}
	}
	if (find_in_path(program, found)) {
		strcpy(ret, found);
		return 0;
	}
	return error_set(err, -ENOENT,
	                 "%s not found beside postcopyctl or in $PATH: install it, or build it",
	                 program);
}

/* In the child: never returns. */
static _Noreturn void become(char *const *argv, int log_fd, int status_fd, pid_t parent)
{
	sigset_t none;
	int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	/* Ctrl-C is for the benchmark, which then ends its children in order. */
	setpgid(0, 0);
	/* Where the parent died before this took effect nobody would send the signal. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(127);
	/* Out of the way of the numbers that are to be taken. */
	status_fd = fcntl(status_fd, F_DUPFD_CLOEXEC, PROCESS_STATUS_FD + 1);
	if (null_fd < 0 || status_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 ||
	    dup2(log_fd, STDOUT_FILENO) < 0 || dup2(log_fd, STDERR_FILENO) < 0 ||
	    dup2(status_fd, PROCESS_STATUS_FD) < 0)
		_exit(127);
	execv(argv[0], argv);
	dprintf(STDERR_FILENO, "exec %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

int process_start(struct process *p, const char *name, char *const *argv, const char *log_path,
                  struct error *err)
{
	_cleanup_close_ int log_fd = -1;
	_cleanup_close_ int read_fd = -1;
	_cleanup_close_ int write_fd = -1;
	pid_t parent = getpid(), pid;
	int pipe_fds[2];

	snprintf(p->name, sizeof p->name, "%s", name);
	snprintf(p->log_path, sizeof p->log_path, "%s", log_path);
	log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log_fd < 0)
		return error_errno(err, -errno, "log \"%s\"", log_path);
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "starting %s: pipe", name);
	read_fd = pipe_fds[0];
	write_fd = pipe_fds[1];
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "starting %s", name);
	if (!pid)
		become(argv, log_fd, write_fd, parent);
	p->pid = pid;
	p->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	p->status_fd = steal_fd(&read_fd);
	p->len = p->consumed = 0;
	if (p->pidfd < 0) {
		int r = error_errno(err, -errno, "starting %s: pidfd", name);

		process_stop(p);
		return r;
	}
	return 0;
}

/* The last line that is not empty, as far as it matters: what it died of. */
static void last_log_line(const struct process *p, char *ret, size_t size)
{
	_cleanup_fclose_ FILE *f = fopen(p->log_path, "re");
	char line[256];

	snprintf(ret, size, "its log is empty");
	while (f && fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		if (*line)
			snprintf(ret, size, "%.*s", (int)size - 1, line);
	}
}

static int report_end(const struct process *p, const siginfo_t *info, int code, struct error *err)
{
	char line[200];

	last_log_line(p, line, sizeof line);
	if (info->si_code == CLD_EXITED)
		return error_set(err, code, "%s ended with status %d: %s", p->name, info->si_status,
		                 line);
	return error_set(err, code, "%s was killed by signal %d (%s): %s", p->name, info->si_status,
	                 strsignal(info->si_status), line);
}

/* How it ended, without reaping it, so that pid stays its own. False while it runs. */
static bool has_ended(const struct process *p, siginfo_t *info)
{
	memset(info, 0, sizeof *info);
	return p->pid > 0 && !waitid(P_PID, (id_t)p->pid, info, WEXITED | WNOHANG | WNOWAIT) &&
	       info->si_pid;
}

int process_check(struct process *p, struct error *err)
{
	siginfo_t info;

	if (!has_ended(p, &info) || (info.si_code == CLD_EXITED && !info.si_status))
		return 0;
	return report_end(p, &info, -ECHILD, err);
}

/* Waits until @fd reads. Return: 0, -ETIMEDOUT, -ECANCELED */
static int wait_readable(const struct process *p, int fd, int cancel_fd, uint64_t deadline_ns,
                         struct error *err)
{
	for (;;) {
		struct pollfd fds[2] = { { .fd = fd, .events = POLLIN },
			                 { .fd = cancel_fd, .events = POLLIN } };
		uint64_t now = clock_now_ns();
		int timeout_ms =
		        now >= deadline_ns ? 0 : (int)((deadline_ns - now) / NSEC_PER_MSEC + 1);
		int r = poll(fds, 2, timeout_ms);

		if (r < 0 && errno != EINTR)
			return error_errno(err, -errno, "waiting for %s", p->name);
		if (r > 0 && fds[1].revents)
			return error_set(err, -ECANCELED, "interrupted");
		if (r > 0)
			return 0;
		if (!r && !timeout_ms) {
			char line[200];

			last_log_line(p, line, sizeof line);
			return error_set(err, -ETIMEDOUT, "%s is silent: %s", p->name, line);
		}
	}
}

static int status_closed(struct process *p, uint64_t deadline_ns, int cancel_fd, struct error *err)
{
	siginfo_t info;
	int r = wait_readable(p, p->pidfd, cancel_fd, deadline_ns, err);

	if (r < 0)
		return r;
	return has_ended(p, &info) ? report_end(p, &info, -EPIPE, err)
	                           : error_set(err, -EPIPE, "%s closed its status pipe", p->name);
}

int process_read_line(struct process *p, int timeout_ms, int cancel_fd, char **ret,
                      struct error *err)
{
	uint64_t deadline = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;

	p->len -= p->consumed;
	memmove(p->buf, p->buf + p->consumed, p->len);
	p->consumed = 0;
	for (;;) {
		char *end = memchr(p->buf, '\n', p->len);
		ssize_t n;
		int r;

		if (end) {
			*end = 0;
			p->consumed = (size_t)(end + 1 - p->buf);
			*ret = p->buf;
			return 0;
		}
		if (p->len == sizeof p->buf)
			return error_set(err, -EPROTO, "%s: status line above %zu bytes", p->name,
			                 sizeof p->buf);
		r = wait_readable(p, p->status_fd, cancel_fd, deadline, err);
		if (r < 0)
			return r;
		n = read(p->status_fd, p->buf + p->len, sizeof p->buf - p->len);
		if (n < 0 && errno != EINTR)
			return error_errno(err, -errno, "status of %s", p->name);
		if (!n)
			return status_closed(p, deadline, cancel_fd, err);
		p->len += n > 0 ? (size_t)n : 0;
	}
}

static void reap(struct process *p)
{
	waitpid(p->pid, NULL, 0);
	p->pid = 0;
	close_fd(&p->pidfd);
	close_fd(&p->status_fd);
}

int process_wait(struct process *p, int timeout_ms, int cancel_fd, struct error *err)
{
	uint64_t deadline = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
	int r;

	if (p->pid <= 0)
		return 0;
	r = wait_readable(p, p->pidfd, cancel_fd, deadline, err);
	if (!r)
		r = process_check(p, err);
	if (!r)
		reap(p);
	return r;
}

void process_stop(struct process *p)
{
	uint64_t deadline = clock_now_ns() + STOP_GRACE_MS * NSEC_PER_MSEC;

	if (p->pid <= 0)
		return;
	kill(p->pid, SIGTERM);
	if (p->pidfd < 0 || wait_readable(p, p->pidfd, -1, deadline, NULL) < 0)
		kill(p->pid, SIGKILL);
	reap(p);
}

uint64_t process_peak_rss_bytes(const struct process *p)
{
	_cleanup_fclose_ FILE *f = NULL;
	char path[32], line[128];
	uint64_t kib;

	snprintf(path, sizeof path, "/proc/%d/status", (int)p->pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "VmHWM: %" SCNu64 " kB", &kib) == 1)
			return kib * 1024;
	return 0;
}

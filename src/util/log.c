/* SPDX-License-Identifier: Apache-2.0 */
#include "util/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/log_text.h"

#define JOURNAL_SOCKET "/run/systemd/journal/socket"

static const char *log_name = "postcopy";
static _Atomic enum log_level log_max = LOG_LEVEL_INFO;
static enum log_format log_format = LOG_FORMAT_LOGFMT;
static int log_fd = STDERR_FILENO;
static bool log_fd_is_socket;
static bool log_fd_may_block;

static _Atomic uint64_t suppressed_total;
static _Atomic uint64_t lost_total;

/* Whether stderr is the stream that systemd says is the journal's: "device:inode". */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
	       !fstat(STDERR_FILENO, &st) && st.st_dev == device && st.st_ino == inode;
}

/*
 * libsystemd's sd_journal_sendv() waits where the journal is slow; so the datagrams are ours.
 * Return: a socket connected to the journal, or -1.
 */
static int open_journal(void)
{
	static const struct sockaddr_un addr = { .sun_family = AF_UNIX,
		                                 .sun_path = JOURNAL_SOCKET };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && connect(fd, (const struct sockaddr *)&addr, sizeof addr)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/*
 * Stderr is shared with whoever gave it to us, so it is left as it is; a pipe or a terminal
 * is opened anew to be written without waiting. Where that is not allowed we look before we write.
 */
static void open_stderr(void)
{
	struct stat st;

	log_fd = STDERR_FILENO;
	log_fd_is_socket = log_fd_may_block = false;
	if (fstat(STDERR_FILENO, &st))
		return;
	log_fd_is_socket = S_ISSOCK(st.st_mode);
	if (!S_ISFIFO(st.st_mode) && !S_ISCHR(st.st_mode))
		return;
	log_fd = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (log_fd < 0) {
		log_fd = STDERR_FILENO;
		log_fd_may_block = true;
	}
}

void log_set_level(enum log_level level)
{
	log_max = level;
}

void log_init(const char *name, enum log_level level, enum log_format format)
{
	int fd = -1;

	log_name = name;
	log_max = level;
	if (log_fd != STDERR_FILENO)
		close(log_fd);
	if (format == LOG_FORMAT_JOURNAL || (format == LOG_FORMAT_AUTO && stderr_is_journal()))
		fd = open_journal();
	if (fd >= 0) {
		log_format = LOG_FORMAT_JOURNAL;
		log_fd = fd;
		log_fd_is_socket = true;
		return;
	}
	log_format = format == LOG_FORMAT_JSON ? LOG_FORMAT_JSON : LOG_FORMAT_LOGFMT;
	open_stderr();
}

struct log_counts log_get_counts(void)
{
	return (struct log_counts){
		.suppressed = atomic_load_explicit(&suppressed_total, memory_order_relaxed),
		.lost = atomic_load_explicit(&lost_total, memory_order_relaxed),
	};
}

/* Whether @site may write now; then @ret_suppressed is how often it might not before. */
static bool site_admits(struct log_site *site, uint64_t *ret_suppressed)
{
	uint64_t now = clock_now_ns() / NSEC_PER_SEC;

	*ret_suppressed = 0;
	if (site->unlimited)
		return true;
	/* Two threads at the turn of a second may let some lines more pass; that is as good. */
	if (atomic_exchange(&site->second, now) != now)
		atomic_store(&site->lines, 0);
	if (atomic_fetch_add(&site->lines, 1) < LOG_LINES_PER_S) {
		*ret_suppressed = atomic_exchange(&site->suppressed, 0);
		return true;
	}
	atomic_fetch_add(&site->suppressed, 1);
	atomic_fetch_add(&suppressed_total, 1);
	return false;
}

static void send_line(const struct log_text *t)
{
	struct pollfd writable = { .fd = log_fd, .events = POLLOUT };
	ssize_t n = -1;

	if (log_fd_is_socket)
		n = send(log_fd, t->bytes, t->len, MSG_DONTWAIT | MSG_NOSIGNAL);
	else if (!log_fd_may_block || poll(&writable, 1, 0) == 1)
		n = write(log_fd, t->bytes, t->len);
	if (n != (ssize_t)t->len)
		atomic_fetch_add(&lost_total, 1);
}

void log_write(struct log_site *site, const char *function, enum log_level level, const char *id,
               const struct log_field *fields, const char *fmt, ...)
{
	struct log_record record = {
		.name = log_name,
		.level = level,
		.site = site,
		.function = function,
		.id = id,
		.fields = fields,
	};
	int saved_errno = errno;
	struct log_text text;
	va_list ap;

	if (level > log_max || !site_admits(site, &record.suppressed))
		return;
	va_start(ap, fmt);
	vsnprintf(record.message, sizeof record.message, fmt, ap);
	va_end(ap);
	clock_gettime(CLOCK_REALTIME, &record.at);
	log_text_put(&text, log_format, &record);
	send_line(&text);
	errno = saved_errno;
}

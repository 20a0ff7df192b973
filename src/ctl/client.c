/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "ctl/json.h"
#include "util/clock.h"

#define ANSWER_TIMEOUT_MS 30000
/* A report carries its series; more than this is no report. */
#define ANSWER_MAX (32u << 20)

struct client {
	int fd;
	int cancel_fd;
	char *path;
	char *buf; /* what has been received, from one line's start on */
	size_t len, size;
	size_t consumed; /* the length of the line that was taken last, with its newline */
};

int client_new(const char *path, int cancel_fd, struct client **ret, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = -1;
	struct client *c;

	if (strlen(path) >= sizeof addr.sun_path)
		return error_set(err, -EINVAL, "control socket \"%s\": longer than %zu bytes", path,
		                 sizeof addr.sun_path - 1);
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_errno(err, -errno, "control socket");
	if (connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
		int r = -errno;

		error_errno(err, r, "control socket \"%s\"", path);
		if (r == -ENOENT || r == -ECONNREFUSED)
			error_set(err, r,
			          "no postcopyd listens on \"%s\": start it, or name its socket "
			          "by --control",
			          path);
		return r;
	}
	c = calloc(1, sizeof *c);
	if (!c)
		return error_errno(err, -ENOMEM, "control client");
	c->fd = steal_fd(&fd);
	c->cancel_fd = cancel_fd;
	c->path = strdup(path);
	if (!c->path) {
		client_free(c);
		return error_errno(err, -ENOMEM, "control client");
	}
	*ret = c;
	return 0;
}

struct client *client_free(struct client *c)
{
	if (c) {
		close_fd(&c->fd);
		free(c->path);
		free(c->buf);
		free(c);
	}
	return NULL;
}

static int wait_ready(struct client *c, short events, uint64_t deadline_ns, struct error *err)
{
	for (;;) {
		struct pollfd fds[2] = { { .fd = c->fd, .events = events },
			                 { .fd = c->cancel_fd, .events = POLLIN } };
		uint64_t now = clock_now_ns();
		int timeout_ms =
		        now >= deadline_ns ? 0 : (int)((deadline_ns - now) / NSEC_PER_MSEC + 1);
		int r = poll(fds, 2, timeout_ms);

		if (r < 0 && errno != EINTR)
			return error_errno(err, -errno, "control socket \"%s\"", c->path);
		if (r > 0 && fds[1].revents)
			return error_set(err, -ECANCELED, "interrupted");
		if (r > 0)
			return 0;
		if (!r && !timeout_ms)
			return error_set(err, -ETIMEDOUT,
			                 "postcopyd at \"%s\" has not answered for %d s", c->path,
			                 ANSWER_TIMEOUT_MS / 1000);
	}
}

static uint64_t answer_deadline(void)
{
	return clock_now_ns() + ANSWER_TIMEOUT_MS * NSEC_PER_MSEC;
}

static int send_line(struct client *c, const char *line, struct error *err)
{
	size_t len = strlen(line);
	uint64_t deadline = answer_deadline();

	while (len) {
		ssize_t n = send(c->fd, line, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (n >= 0) {
			line += n;
			len -= (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return error_errno(err, -errno, "control socket \"%s\"", c->path);
		r = wait_ready(c, POLLOUT, deadline, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Reads once. Return: 0 where bytes came. */
static int receive_more(struct client *c, uint64_t deadline, struct error *err)
{
	ssize_t n;
	int r;

	if (c->size - c->len < 4096) {
		size_t size = c->size ? 2 * c->size : 65536;
		char *buf;

		if (size > ANSWER_MAX)
			return error_set(err, -EPROTO, "postcopyd at \"%s\": answer above %u MiB",
			                 c->path, ANSWER_MAX >> 20);
		buf = realloc(c->buf, size);
		if (!buf)
			return error_errno(err, -ENOMEM, "control answer");
		c->buf = buf;
		c->size = size;
	}
	r = wait_ready(c, POLLIN, deadline, err);
	if (r < 0)
		return r;
	n = recv(c->fd, c->buf + c->len, c->size - c->len, MSG_DONTWAIT);
	if (n > 0)
		c->len += (size_t)n;
	else if (!n || errno == ECONNRESET)
		return error_set(err, -EPIPE, "postcopyd at \"%s\" closed the connection", c->path);
	else if (errno != EAGAIN && errno != EINTR)
		return error_errno(err, -errno, "control socket \"%s\"", c->path);
	return 0;
}

/* The next line, without its newline; valid until the next call. */
static int receive_line(struct client *c, char **ret, struct error *err)
{
	uint64_t deadline = answer_deadline();
	size_t searched = 0;

	if (c->consumed) {
		c->len -= c->consumed;
		memmove(c->buf, c->buf + c->consumed, c->len);
		c->consumed = 0;
	}
	for (;;) {
		char *end = c->len > searched ? memchr(c->buf + searched, '\n', c->len - searched)
		                              : NULL;
		int r;

		if (end) {
			*end = 0;
			c->consumed = (size_t)(end + 1 - c->buf);
			*ret = c->buf;
			return 0;
		}
		searched = c->len;
		r = receive_more(c, deadline, err);
		if (r < 0)
			return r;
	}
}

static int code_to_errno(const char *code)
{
	static const struct {
		const char *code;
		int r;
	} map[] = {
		{ "NOT_FOUND", -ENOENT },          { "INVALID_ARGUMENT", -EINVAL },
		{ "FAILED_PRECONDITION", -EBUSY }, { "ALREADY_EXISTS", -EEXIST },
		{ "PERMISSION_DENIED", -EACCES },  { "UNAUTHENTICATED", -EACCES },
		{ "UNIMPLEMENTED", -EOPNOTSUPP },  { "UNAVAILABLE", -EAGAIN },
	};

	for (size_t i = 0; i < sizeof map / sizeof *map; i++)
		if (!strcmp(map[i].code, code))
			return map[i].r;
	return -EIO;
}

/* One answer: its object, which is {"result"}, {"event"} or {"error"} with its errno. */
static int receive_answer(struct client *c, struct json_object **ret, struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	char *line;
	int r = receive_line(c, &line, err);

	if (r < 0)
		return r;
	answer = json_tokener_parse(line);
	if (!json_object_is_type(answer, json_type_object))
		return error_set(err, -EPROTO, "\"%s\" does not speak postcopyd's control protocol",
		                 c->path);
	if (json_find(answer, "error"))
		return error_set(err, code_to_errno(json_string_or(answer, "error.code", "")), "%s",
		                 json_string_or(answer, "error.message", "refused without reason"));
	*ret = steal_ptr(&answer);
	return 0;
}

static int send_request(struct client *c, const char *method, struct json_object *params,
                        struct error *err)
{
	_cleanup_json_ struct json_object *request = json_object_new_object();
	_cleanup_free_ char *line = NULL;

	json_set_string(request, "method", method);
	json_object_object_add(request, "params",
	                       params ? json_object_get(params) : json_object_new_object());
	if (asprintf(&line, "%s\n",
	             json_object_to_json_string_ext(request, JSON_C_TO_STRING_PLAIN)) < 0) {
		line = NULL;
		return error_errno(err, -ENOMEM, "control request");
	}
	return send_line(c, line, err);
}

static int take_result(struct client *c, struct json_object *answer, struct json_object **ret,
                       struct error *err)
{
	struct json_object *result = json_find(answer, "result");

	if (!result)
		return error_set(err, -EPROTO, "postcopyd at \"%s\": answer without a result",
		                 c->path);
	if (ret)
		*ret = json_object_get(result);
	return 0;
}

int client_call(struct client *c, const char *method, struct json_object *params,
                struct json_object **ret, struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	int r = send_request(c, method, params, err);

	if (!r)
		r = receive_answer(c, &answer, err);
	return r < 0 ? r : take_result(c, answer, ret, err);
}

int client_watch(struct client *c, const char *id, unsigned int interval_ms,
                 int (*on_update)(struct json_object *migration, void *userdata, struct error *err),
                 void *userdata, struct json_object **ret, struct error *err)
{
	_cleanup_json_ struct json_object *params = json_object_new_object();
	int r;

	json_set_string(params, "id", id);
	json_set_count(params, "interval_ms", interval_ms);
	r = send_request(c, "Watch", params, err);
	while (!r) {
		_cleanup_json_ struct json_object *answer = NULL;
		struct json_object *event;

		r = receive_answer(c, &answer, err);
		if (r < 0)
			return r;
		event = json_find(answer, "event");
		if (!event)
			return take_result(c, answer, ret, err);
		r = on_update(event, userdata, err);
	}
	return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <json-c/json.h>

#include "rpc/methods.h"
#include "rpc/migration_json.h"
#include "util/log.h"
#include "util/unix_listen.h"

#define LINE_MAX_BYTES 65536u
#define CLIENTS_MAX 256u
/* A client that does not read what it asked for is cut off beyond this. */
#define BACKLOG_MAX_BYTES (4u << 20)
#define WATCH_INTERVAL_MS 200u
#define WATCH_INTERVAL_MIN_MS 50u

struct client {
	struct control *control;
	struct client *next;
	uv_pipe_t pipe;
	uv_timer_t timer;
	unsigned int open_handles;
	bool closing;
	/* The migration it watches, or NULL. */
	struct migration *watched;
	struct migration_watcher watcher;
	size_t have;
	char line[LINE_MAX_BYTES];
};

struct control {
	uv_pipe_t pipe;
	struct migrations *migrations;
	struct client *clients;
	unsigned int n_clients;
};

struct answer {
	uv_write_t write;
	struct json_object *json;
};

static void on_handle_closed(uv_handle_t *handle)
{
	struct client *c = handle->data;

	if (!--c->open_handles)
		free(c);
}

static void stop_watching(struct client *c)
{
	if (c->watched)
		migration_unwatch(c->watched, &c->watcher);
	c->watched = NULL;
	uv_timer_stop(&c->timer);
}

static void close_client(struct client *c)
{
	if (c->closing)
		return;
	c->closing = true;
	stop_watching(c);
	for (struct client **p = &c->control->clients; *p; p = &(*p)->next)
		if (*p == c) {
			*p = c->next;
			break;
		}
	c->control->n_clients--;
	uv_close((uv_handle_t *)&c->pipe, on_handle_closed);
	uv_close((uv_handle_t *)&c->timer, on_handle_closed);
}

static void on_written(uv_write_t *write, int status)
{
	struct answer *a = write->data;

	(void)status;
	json_object_put(a->json);
	free(a);
}

/* Send {key: value} as one line; takes over @value. */
static void send_line(struct client *c, const char *key, struct json_object *value)
{
	struct answer *a = calloc(1, sizeof *a);
	struct json_object *o = json_object_new_object();
	const char *text;
	uv_buf_t bufs[2];
	size_t len;

	json_object_object_add(o, key, value);
	text = json_object_to_json_string_length(o, JSON_C_TO_STRING_PLAIN, &len);
	if (!a || !text || c->pipe.write_queue_size > BACKLOG_MAX_BYTES) {
		json_object_put(o);
		free(a);
		close_client(c);
		return;
	}
	a->json = o;
	a->write.data = a;
	bufs[0] = uv_buf_init((char *)text, (unsigned int)len);
	bufs[1] = uv_buf_init("\n", 1);
	if (uv_write(&a->write, (uv_stream_t *)&c->pipe, bufs, 2, on_written)) {
		on_written(&a->write, 0);
		close_client(c);
	}
}

static void send_error(struct client *c, const struct error *err)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "code", json_object_new_string(methods_code(err->code)));
	json_object_object_add(o, "message", json_object_new_string(err->text));
	send_line(c, "error", o);
}

static bool is_over(struct migration *m)
{
	struct migration_info info;

	migration_get_info(m, &info);
	return migration_state_is_final(info.state);
}

/* Show the watched migration; its last state ends the watch. */
static void show_watched(struct client *c)
{
	struct migration *m = c->watched;
	bool over = is_over(m);

	if (over)
		stop_watching(c);
	send_line(c, over ? "result" : "event", migration_json(m));
}

static void on_watched_changed(struct migration_watcher *w, struct migration *m)
{
	struct client *c = (struct client *)((char *)w - offsetof(struct client, watcher));

	(void)m;
	show_watched(c);
}

static void on_watch_timer(uv_timer_t *timer)
{
	show_watched(timer->data);
}

static void start_watching(struct client *c, struct migration *m, struct json_object *params)
{
	uint64_t interval_ms = WATCH_INTERVAL_MS;
	struct json_object *v;

	if (json_object_object_get_ex(params, "interval_ms", &v)) {
		int64_t asked = json_object_get_int64(v);

		interval_ms = asked > (int64_t)WATCH_INTERVAL_MIN_MS ? (uint64_t)asked
		                                                     : WATCH_INTERVAL_MIN_MS;
	}
	stop_watching(c);
	c->watched = m;
	c->watcher.changed = on_watched_changed;
	migration_watch(m, &c->watcher);
	uv_timer_start(&c->timer, on_watch_timer, interval_ms, interval_ms);
	show_watched(c);
}

static void handle_request(struct client *c, struct json_object *request, struct error *err)
{
	struct json_object *method = NULL, *params = NULL, *result;
	struct migration *watch;

	if (!json_object_is_type(request, json_type_object) ||
	    !json_object_object_get_ex(request, "method", &method) ||
	    !json_object_is_type(method, json_type_string)) {
		error_set(err, -EINVAL, "a request is an object with a \"method\"");
		return;
	}
	if (json_object_object_get_ex(request, "params", &params) && params &&
	    !json_object_is_type(params, json_type_object)) {
		error_set(err, -EINVAL, "params: must be an object");
		return;
	}
	result = methods_call(c->control->migrations, json_object_get_string(method), params,
	                      &watch, err);
	if (result)
		send_line(c, "result", result);
	else if (watch)
		start_watching(c, watch, params);
}

static void handle_line(struct client *c, const char *line, size_t len)
{
	struct json_tokener *tokener = json_tokener_new();
	struct json_object *request = NULL;
	struct error err = ERROR_INIT;

	if (tokener)
		request = json_tokener_parse_ex(tokener, line, (int)len);
	if (!request)
		error_set(&err, -EINVAL, "not a JSON object: %s",
		          tokener ? json_tokener_error_desc(json_tokener_get_error(tokener))
		                  : "out of memory");
	else
		handle_request(c, request, &err);
	if (err.code)
		send_error(c, &err);
	json_object_put(request);
	if (tokener)
		json_tokener_free(tokener);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
	struct client *c = handle->data;

	(void)suggested;
	*buf = uv_buf_init(c->line + c->have, (unsigned int)(sizeof c->line - c->have));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct client *c = stream->data;
	char *start = c->line, *end;

	(void)buf;
	if (n == 0)
		return;
	if (n < 0) {
		struct error err = ERROR_INIT;

		if (n == UV_ENOBUFS) {
			error_set(&err, -EMSGSIZE, "a request is at most %u bytes", LINE_MAX_BYTES);
			send_error(c, &err);
		}
		close_client(c);
		return;
	}
	c->have += (size_t)n;
	while (!c->closing && (end = memchr(start, '\n', c->have))) {
		handle_line(c, start, (size_t)(end - start));
		c->have -= (size_t)(end + 1 - start);
		start = end + 1;
	}
	memmove(c->line, start, c->have);
}

static void on_connection(uv_stream_t *server, int status)
{
	struct control *control = server->data;
	struct client *c = status < 0 ? NULL : calloc(1, sizeof *c);

	if (!c)
		return;
	c->control = control;
	c->open_handles = 2;
	uv_pipe_init(server->loop, &c->pipe, 0);
	uv_timer_init(server->loop, &c->timer);
	c->pipe.data = c->timer.data = c;
	c->next = control->clients;
	control->clients = c;
	control->n_clients++;
	if (uv_accept(server, (uv_stream_t *)&c->pipe) || control->n_clients > CLIENTS_MAX ||
	    uv_read_start((uv_stream_t *)&c->pipe, on_alloc, on_read))
		close_client(c);
}

int control_new(uv_loop_t *loop, const char *path, struct migrations *migrations,
                struct control **ret, struct error *err)
{
	int fd = unix_listen(path, SOCK_STREAM, "control socket", err);
	struct control *control;
	int rc;

	if (fd < 0)
		return fd;
	control = calloc(1, sizeof *control);
	if (!control) {
		close(fd);
		return error_set(err, -ENOMEM, "control socket: out of memory");
	}
	control->migrations = migrations;
	control->pipe.data = control;
	uv_pipe_init(loop, &control->pipe, 0);
	rc = uv_pipe_open(&control->pipe, fd);
	if (!rc)
		rc = uv_listen((uv_stream_t *)&control->pipe, (int)CLIENTS_MAX, on_connection);
	if (rc) {
		control_close(control);
		return error_errno(err, rc, "control socket \"%s\"", path);
	}
	*ret = control;
	return 0;
}

static void on_control_closed(uv_handle_t *handle)
{
	free(handle->data);
}

void control_close(struct control *control)
{
	if (!control)
		return;
	for (struct client *c = control->clients, *next; c; c = next) {
		next = c->next;
		close_client(c);
	}
	uv_close((uv_handle_t *)&control->pipe, on_control_closed);
}

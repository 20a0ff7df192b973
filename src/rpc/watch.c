/* SPDX-License-Identifier: Apache-2.0 */
/* postcopy.v1.Migrations.Watch. */
#include <errno.h>
#include <stdlib.h>

#include "rpc/methods.h"
#include "rpc/migration_message.h"
#include "util/clock.h"

#define INTERVAL_MS 200u
#define INTERVAL_MIN_MS 50
#define INTERVAL_MAX_S 3600

struct watch {
	struct rpc *rpc;
	struct grpc_call *call; /* NULL: over; only the timer's end is waited for */
	struct migration *migration;
	struct migration_watcher watcher;
	uv_timer_t timer;
	bool due; /* something is new, and what was sent before is not yet taken */
};

static int parse_interval(const Google__Protobuf__Duration *d, uint64_t *ret_ms,
                          struct rpc_error *e)
{
	if (!d)
		return 0;
	if (d->nanos < 0 || d->nanos >= (int32_t)NSEC_PER_SEC || d->seconds < 0 ||
	    d->seconds > INTERVAL_MAX_S || (d->seconds == INTERVAL_MAX_S && d->nanos))
		return rpc_error_field(e, "interval", "must be 50 ms .. 1 h");
	*ret_ms = (uint64_t)d->seconds * 1000 + (uint64_t)d->nanos / NSEC_PER_MSEC;
	if (*ret_ms < INTERVAL_MIN_MS)
		return rpc_error_field(e, "interval", "must be 50 ms .. 1 h");
	return 0;
}

static void on_timer_closed(uv_handle_t *handle)
{
	free(handle->data);
}

/* The call is not ours any more. Memory goes later: a watcher may be looked at meanwhile. */
static void watch_free(struct watch *w)
{
	w->call = NULL;
	w->rpc->n_streams--;
	migration_unwatch(w->migration, &w->watcher);
	uv_close((uv_handle_t *)&w->timer, on_timer_closed);
}

/* The migration as it is now, if the client keeps up; its last state in any case. */
static void watch_show(struct watch *w)
{
	struct grpc_call *call = w->call;
	struct rpc_error e = RPC_ERROR_INIT;
	struct migration_message t;
	struct migration_info info;
	bool over;
	int rc;

	migration_get_info(w->migration, &info);
	over = migration_state_is_final(info.state);
	w->due = !over && grpc_call_queued(call) > 0;
	if (w->due)
		return;
	migration_message_init(&t, w->migration, w->rpc->config.stalls);
	rc = message_send(call, &t.message.base, &e);
	if (!w->call || (!rc && !over))
		return;
	watch_free(w);
	if (rc)
		rpc_fail(call, &e);
	else
		grpc_call_finish(call, NULL);
}

static void on_changed(struct migration_watcher *watcher, struct migration *m)
{
	struct watch *w = (struct watch *)((char *)watcher - offsetof(struct watch, watcher));

	(void)m;
	if (w->call)
		watch_show(w);
}

static void on_timer(uv_timer_t *timer)
{
	watch_show(timer->data);
}

static void on_writable(struct grpc_call *call, void *arg)
{
	struct watch *w = arg;

	(void)call;
	if (w->due)
		watch_show(w);
}

static void on_gone(struct grpc_call *call, void *arg)
{
	(void)call;
	watch_free(arg);
}

static int watch_begin(struct rpc *rpc, struct grpc_call *call,
                       const Postcopy__V1__WatchRequest *request, struct rpc_error *e)
{
	struct migration *m = rpc_find(rpc, request->id, request->role, e);
	uint64_t interval_ms = INTERVAL_MS;
	struct watch *w;
	int rc = m ? parse_interval(request->interval, &interval_ms, e) : e->error.code;

	if (rc)
		return rc;
	w = calloc(1, sizeof *w);
	if (!w)
		return error_set(&e->error, -ENOMEM, "out of memory");
	rc = rpc_stream_begin(rpc, e);
	if (rc) {
		free(w);
		return rc;
	}
	*w = (struct watch){ .rpc = rpc, .call = call, .migration = m };
	w->watcher.changed = on_changed;
	migration_watch(m, &w->watcher);
	uv_timer_init(rpc->loop, &w->timer);
	w->timer.data = w;
	uv_timer_start(&w->timer, on_timer, interval_ms, interval_ms);
	grpc_call_watch(call, on_gone, on_writable, w);
	watch_show(w);
	return 0;
}

void watch_call(struct grpc_call *call, const uint8_t *bytes, size_t len, void *rpc)
{
	_cleanup_message_ ProtobufCMessage *request = NULL;
	struct rpc_error e = RPC_ERROR_INIT;

	if (message_unpack(&postcopy__v1__watch_request__descriptor, bytes, len, &request, &e) ||
	    watch_begin(rpc, call, (const void *)request, &e))
		rpc_fail(call, &e);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* postcopy.v1.Host. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "migrate/migrate.h"
#include "rpc/methods.h"
#include "rpc/migration_message.h"
#include "telemetry/stalls.h"
#include "util/clock.h"
#include "util/utf8.h"

/* What was found is told to whoever asks within so long. */
#define CHECK_CACHED_NS (5 * NSEC_PER_SEC)
/* What probe_row_at() names at most, and one of ours. */
#define ROWS_MAX (PROBE_FACTS + 2 * PROBE_BACKENDS + 1)

struct check_wait {
	struct check_wait *next;
	struct rpc *rpc;
	struct grpc_call *call;
};

struct check_message {
	Postcopy__V1__CheckResponse message;
	Postcopy__V1__Capability rows[ROWS_MAX], *row_pointers[ROWS_MAX];
	Postcopy__V1__BackendCapability backends[PROBE_BACKENDS];
	Postcopy__V1__BackendCapability *backend_pointers[PROBE_BACKENDS];
	char stalls_detail[PROBE_DETAIL_MAX];
};

static void add_row(struct check_message *t, const char *name, bool available, const char *detail)
{
	Postcopy__V1__Capability *row = &t->rows[t->message.n_capabilities];

	*row = (Postcopy__V1__Capability)POSTCOPY__V1__CAPABILITY__INIT;
	row->name = (char *)name;
	row->available = available;
	row->detail = (char *)detail;
	t->row_pointers[t->message.n_capabilities++] = row;
	t->message.capabilities = t->row_pointers;
}

static void add_stalls_row(struct check_message *t, const struct stalls *stalls)
{
	const char *source = stalls_source(stalls), *why = stalls_why(stalls);

	snprintf(t->stalls_detail, sizeof t->stalls_detail, "%s%s%s", source,
	         *why ? "; not better because " : "", why);
	utf8_clean(t->stalls_detail);
	add_row(t, "guest stalls by eBPF", strcmp(source, "daemon") != 0, t->stalls_detail);
}

static void set_backends(struct check_message *t, const struct probe *probe)
{
	for (size_t i = 0; i < PROBE_BACKENDS; i++) {
		const struct probe_backend *from = &probe->backends[i];
		Postcopy__V1__BackendCapability *to = &t->backends[i];

		*to = (Postcopy__V1__BackendCapability)POSTCOPY__V1__BACKEND_CAPABILITY__INIT;
		to->name = (char *)probe_backend_name(from->id);
		to->source = from->source.ok;
		to->destination = from->destination.ok;
		to->page_bytes = from->page_bytes;
		to->mode = (char *)probe_mode_name(from->mode);
		to->write = (char *)probe_write_name(from->write);
		to->resolve = (char *)probe_resolve_name(from->resolve);
		t->backend_pointers[i] = to;
		t->message.can_migrate |= from->destination.ok;
	}
	t->message.n_backends = PROBE_BACKENDS;
	t->message.backends = t->backend_pointers;
}

static int check_send(struct rpc *rpc, struct grpc_call *call, struct rpc_error *e)
{
	const struct check *check = &rpc->check;
	const struct probe_row *row;
	struct check_message t = { .message = POSTCOPY__V1__CHECK_RESPONSE__INIT };
	struct utsname uts = { 0 };

	if (check->rc) {
		e->error = check->error;
		return check->rc;
	}
	uname(&uts);
	t.message.kernel = uts.release;
	for (size_t i = 0; i < ROWS_MAX - 1 && (row = probe_row_at(&check->probe, i)); i++)
		add_row(&t, row->name, row->ok, row->detail);
	if (rpc->config.stalls)
		add_stalls_row(&t, rpc->config.stalls);
	set_backends(&t, &check->probe);
	return message_send(call, &t.message.base, e);
}

static void check_answer(struct rpc *rpc, struct grpc_call *call)
{
	struct rpc_error e = RPC_ERROR_INIT;

	if (check_send(rpc, call, &e))
		rpc_fail(call, &e);
	else
		grpc_call_finish(call, NULL);
}

static void run_probe(uv_work_t *work)
{
	struct check *check = work->data;

	check->error = ERROR_INIT;
	check->rc = probe_run(&check->probe, &check->error);
}

static void wait_free(struct check_wait *w)
{
	for (struct check_wait **p = &w->rpc->check.waiting; *p; p = &(*p)->next)
		if (*p == w) {
			*p = w->next;
			break;
		}
	w->rpc->n_streams--;
	free(w);
}

static void on_probed(uv_work_t *work, int status)
{
	struct check *check = work->data;

	check->running = false;
	if (status)
		check->rc = error_errno(&check->error, status, "the kernel's probe");
	check->done_ns = clock_now_ns();
	/* Whoever is answered may take others with it, where their connection breaks. */
	while (check->waiting) {
		struct grpc_call *call = check->waiting->call;
		struct rpc *rpc = check->waiting->rpc;

		wait_free(check->waiting);
		check_answer(rpc, call);
	}
}

static void on_gone(struct grpc_call *call, void *arg)
{
	(void)call;
	wait_free(arg);
}

static int check_wait(struct rpc *rpc, struct grpc_call *call, struct rpc_error *e)
{
	struct check *check = &rpc->check;
	struct check_wait *w;
	int rc = rpc_stream_begin(rpc, e);

	if (rc)
		return rc;
	w = malloc(sizeof *w);
	if (!check->running && w) {
		check->work.data = check;
		rc = uv_queue_work(rpc->loop, &check->work, run_probe, on_probed);
	}
	if (!w || rc) {
		rpc->n_streams--;
		free(w);
		return error_set(&e->error, -ENOMEM, "out of memory");
	}
	check->running = true;
	*w = (struct check_wait){ .next = check->waiting, .rpc = rpc, .call = call };
	check->waiting = w;
	grpc_call_watch(call, on_gone, NULL, w);
	return 0;
}

static void check_call(struct grpc_call *call, const uint8_t *bytes, size_t len, void *arg)
{
	_cleanup_message_ ProtobufCMessage *request = NULL;
	struct rpc_error e = RPC_ERROR_INIT;
	struct rpc *rpc = arg;
	struct check *check = &rpc->check;

	if (message_unpack(&postcopy__v1__check_request__descriptor, bytes, len, &request, &e)) {
		rpc_fail(call, &e);
	} else if (!check->running && check->done_ns &&
	           clock_now_ns() - check->done_ns < CHECK_CACHED_NS) {
		check_answer(rpc, call);
	} else if (check_wait(rpc, call, &e)) {
		rpc_fail(call, &e);
	}
}

static uint32_t count_active(struct migrations *ms)
{
	struct migration_info info;
	uint32_t n = 0;

	for (struct migration *m = migrations_next(ms, NULL); m; m = migrations_next(ms, m)) {
		migration_get_info(m, &info);
		n += !migration_state_is_final(info.state);
	}
	return n;
}

struct reload_message {
	Postcopy__V1__Reload message;
	Google__Protobuf__Timestamp time;
};

static void set_reload(Postcopy__V1__HostInfo *info, const struct rpc_reload *reload,
                       struct reload_message *t)
{
	if (!reload || !reload->at_real_ns)
		return;
	t->time = timestamp_message(reload->at_real_ns);
	t->message = (Postcopy__V1__Reload)POSTCOPY__V1__RELOAD__INIT;
	t->message.time = &t->time;
	t->message.error = (char *)reload->error;
	info->last_reload = &t->message;
	info->n_needs_restart = reload->n_needs_restart;
	info->needs_restart = (char **)reload->needs_restart;
}

struct budget_message {
	Postcopy__V1__Budget message;
	Postcopy__V1__HugePages pools[BUDGET_POOLS_MAX], *pointers[BUDGET_POOLS_MAX];
	Postcopy__V1__HostBandwidth in, out;
};

static Postcopy__V1__HostBandwidth bandwidth_message(const struct migrations_bandwidth *b)
{
	Postcopy__V1__HostBandwidth m = POSTCOPY__V1__HOST_BANDWIDTH__INIT;

	m.limit_bytes_per_s = b->limit_bytes_per_s;
	m.bulk_bytes_per_s = b->bulk_bytes_per_s;
	m.fault_bytes_per_s = b->fault_bytes_per_s;
	return m;
}

static void set_bandwidth(struct budget_message *t, const struct migrations_bandwidth b[2])
{
	t->in = bandwidth_message(&b[MIGRATION_DESTINATION - 1]);
	t->out = bandwidth_message(&b[MIGRATION_SOURCE - 1]);
	t->message.bandwidth_in = &t->in;
	t->message.bandwidth_out = &t->out;
}

static void budget_message_init(struct budget_message *t, struct migrations *ms)
{
	struct migrations_budget b;

	migrations_get_budget(ms, &b);
	t->message = (Postcopy__V1__Budget)POSTCOPY__V1__BUDGET__INIT;
	t->message.memory_check = b.memory_check;
	t->message.memory_available_bytes = b.available_bytes;
	t->message.memory_promised_bytes = b.promised_bytes;
	t->message.incoming = b.incoming;
	t->message.max_incoming = b.max_incoming;
	t->message.queued = b.queued;
	t->message.held = b.held;
	t->message.outgoing = b.outgoing;
	t->message.max_outgoing = b.max_outgoing;
	t->message.descriptors = b.descriptors;
	t->message.max_descriptors = b.max_descriptors;
	for (size_t i = 0; i < b.n_pools; i++) {
		t->pools[i] = (Postcopy__V1__HugePages)POSTCOPY__V1__HUGE_PAGES__INIT;
		t->pools[i].page_bytes = b.pools[i].page_bytes;
		t->pools[i].free_bytes = b.pools[i].free_bytes;
		t->pools[i].promised_bytes = b.pools[i].promised_bytes;
		t->pointers[i] = &t->pools[i];
	}
	t->message.n_huge_pages = b.n_pools;
	t->message.huge_pages = t->pointers;
	set_bandwidth(t, b.bandwidth);
}

struct addresses {
	char texts[TCP_LISTEN_MAX][TCP_ADDRESS_MAX];
	char *pointers[TCP_LISTEN_MAX];
};

struct listening_message {
	struct addresses pages, control;
};

static char **print_addresses(const struct tcp_listening *l, struct addresses *a)
{
	for (unsigned int i = 0; i < l->n; i++) {
		tcp_address_print(l->fds[i], a->texts[i]);
		a->pointers[i] = a->texts[i];
	}
	return a->pointers;
}

static void set_listening(Postcopy__V1__HostInfo *info, struct listening_message *m,
                          const struct rpc *rpc)
{
	struct tcp_listening control;

	grpc_server_get_listening(rpc->server, &control);
	info->n_control_addresses = control.n;
	info->control_addresses = print_addresses(&control, &m->control);
	if (!rpc->config.pages)
		return;
	info->n_pages_addresses = rpc->config.pages->n;
	info->pages_addresses = print_addresses(rpc->config.pages, &m->pages);
}

static int get_info(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                    struct rpc_error *e)
{
	Postcopy__V1__HostInfo info = POSTCOPY__V1__HOST_INFO__INIT;
	Google__Protobuf__Timestamp start = timestamp_message(rpc->started_real_ns);
	Google__Protobuf__Timestamp expiry = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
	const struct rpc_config *config = &rpc->config;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct utsname uts = { 0 };
	Postcopy__V1__Protocols protocols = POSTCOPY__V1__PROTOCOLS__INIT;
	struct reload_message reload;
	struct listening_message listening;
	struct budget_message budget;

	(void)request;
	uname(&uts);
	budget_message_init(&budget, config->migrations);
	info.budget = &budget.message;
	set_reload(&info, config->reload, &reload);
	protocols.page_stream = migrations_protocols.page_stream;
	protocols.record = migrations_protocols.record;
	protocols.vmm = migrations_protocols.vmm;
	info.protocols = &protocols;
	info.version = (char *)config->version;
	info.kernel = uts.release;
	info.hostname = uts.nodename;
	info.cpus = cpus > 0 ? (uint32_t)cpus : 0;
	info.pages_address = (char *)config->pages_address;
	info.start_time = &start;
	info.draining = rpc->draining;
	info.config_error = (char *)(config->config_error ? config->config_error : "");
	info.migrations_active = count_active(config->migrations);
	info.records_left = migrations_records_left(config->migrations);
	set_listening(&info, &listening, rpc);
	if (config->certificate_expiry_s)
		expiry.seconds = config->certificate_expiry_s(config->arg);
	if (expiry.seconds)
		info.certificate_expiry = &expiry;
	return message_pack(&info.base, ret, e);
}

static int check_bandwidth(uint64_t bytes_per_s, const char *field, struct rpc_error *e)
{
	if (!bytes_per_s || bytes_per_s >= SHARE_HOST_MIN_BYTES_PER_S)
		return 0;
	return rpc_error_field(e, field, "%llu, must be 0 or at least %u",
	                       (unsigned long long)bytes_per_s, SHARE_HOST_MIN_BYTES_PER_S);
}

static int set_host_limits(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                           struct rpc_error *e)
{
	const Postcopy__V1__SetHostLimitsRequest *r = request;
	const uint64_t *in = r->optional_in_case ? &r->bandwidth_in_bytes_per_s : NULL;
	const uint64_t *out = r->optional_out_case ? &r->bandwidth_out_bytes_per_s : NULL;
	struct budget_message budget;
	int rc = 0;

	if (!in && !out)
		return rpc_error_field(e, "bandwidth_in_bytes_per_s",
		                       "nothing is said: neither in nor out");
	if (in)
		rc = check_bandwidth(*in, "bandwidth_in_bytes_per_s", e);
	if (!rc && out)
		rc = check_bandwidth(*out, "bandwidth_out_bytes_per_s", e);
	if (rc)
		return rc;
	migrations_set_bandwidth(rpc->config.migrations, in, out);
	budget_message_init(&budget, rpc->config.migrations);
	return message_pack(&budget.message.base, ret, e);
}

RPC_UNARY(get_info, postcopy__v1__get_info_request__descriptor);
RPC_UNARY(set_host_limits, postcopy__v1__set_host_limits_request__descriptor);

const struct grpc_method host_methods[] = {
	{ .path = "/postcopy.v1.Host/Check", .role = GRPC_READER, .call = check_call },
	{ .path = "/postcopy.v1.Host/GetInfo", .role = GRPC_READER, .call = get_info_call },
	{ .path = "/postcopy.v1.Host/SetHostLimits",
	  .role = GRPC_OPERATOR,
	  .call = set_host_limits_call },
	{ .path = NULL },
};

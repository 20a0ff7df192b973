/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postcopyd: the composition root. One constructor in order, one destructor in reverse.
 */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <uv.h>

#include "migrate/migrate.h"
#include "postcopyd/certificates.h"
#include "postcopyd/config_check.h"
#include "postcopyd/control.h"
#include "postcopyd/groups.h"
#include "postcopyd/last_config.h"
#include "postcopyd/listeners.h"
#include "postcopyd/options.h"
#include "postcopyd/reload.h"
#include "postcopyd/service.h"
#include "rpc/service.h"
#include "stream/conn.h"
#include "telemetry/metrics.h"
#include "telemetry/stalls.h"
#include "util/clock.h"
#include "util/guard.h"
#include "util/log.h"
#include "util/refused.h"
#include "util/thread.h"

/* How often a daemon that is to end looks whether its migrations have. */
#define DRAIN_LOOK_MS 100u
/* And whether there is more to say of who was turned away. */
#define REFUSED_LOOK_MS 5000u
/* What is as large is given back to the kernel as soon as it is freed. */
#define MAPPED_FROM_BYTES (48 * 1024)

enum exit_status {
	EXIT_OK = 0,
	EXIT_FAILED = 1, /* what is configured can't be had */
	EXIT_CONFIG = 2, /* wrong options, or a wrong file */
};

struct daemon {
	int argc;
	char **argv;
	struct options options;
	bool has_guests; /* the process before has left migrations under way */
	struct error
	        config_error; /* why it does not run with what is configured; code 0: it does */
	uv_loop_t loop;
	uv_signal_t sigterm;
	uv_signal_t sigint;
	uv_signal_t sighup;
	uv_timer_t drain;
	uv_timer_t refused;
	uint64_t drain_until_ms; /* of the loop's clock; 0: nobody asked for the end */
	struct fd_store *store;
	struct tls_context *tls;
	struct page_server *page_server;
	char pages_address[sizeof(struct conn_target) + 4]; /* empty where there is none */
	struct migrations *migrations;
	struct control *control;
	struct metrics *metrics;
	struct stalls *stalls;
	struct groups vmm_groups;
	struct service service;
	struct certificates certificates;
	struct reload reload;
};

static void daemon_close(struct daemon *d)
{
	if (uv_is_closing((uv_handle_t *)&d->sigterm))
		return;
	uv_close((uv_handle_t *)&d->sigterm, NULL);
	uv_close((uv_handle_t *)&d->sigint, NULL);
	uv_close((uv_handle_t *)&d->sighup, NULL);
	uv_close((uv_handle_t *)&d->drain, NULL);
	uv_close((uv_handle_t *)&d->refused, NULL);
	service_stopping();
	service_close(&d->service);
	certificates_close(&d->certificates);
	control_close(d->control);
	metrics_close(d->metrics);
	d->metrics = NULL;
	stalls_close(d->stalls);
	d->stalls = NULL;
	if (d->migrations)
		migrations_stop(d->migrations);
	/* Its connections' threads post news until they end. */
	d->page_server = page_server_free(d->page_server);
	if (d->migrations)
		migrations_close(d->migrations);
}

static void on_drain(uv_timer_t *timer)
{
	struct daemon *d = timer->data;

	if (!migrations_drain(d->migrations) || uv_now(&d->loop) >= d->drain_until_ms)
		daemon_close(d);
}

static void on_signal(uv_signal_t *handle, int signum)
{
	struct daemon *d = handle->data;
	unsigned int n = d->migrations ? migrations_drain(d->migrations) : 0;

	if (!n || !d->options.drain_timeout_s || d->drain_until_ms) {
		log_info("%s: ending", strsignal(signum));
		daemon_close(d);
		return;
	}
	log_info("%s: ending when %u migrations have, in %llu s at most; another signal ends at "
	         "once",
	         strsignal(signum), n, (unsigned long long)d->options.drain_timeout_s);
	service_stopping();
	rpc_drain(control_rpc(d->control));
	d->drain_until_ms = uv_now(&d->loop) + d->options.drain_timeout_s * 1000;
	uv_timer_start(&d->drain, on_drain, DRAIN_LOOK_MS, DRAIN_LOOK_MS);
}

static void on_refused(uv_timer_t *timer)
{
	(void)timer;
	refused_tell_rest();
}

static int watch_signals(struct daemon *d, struct error *err)
{
	int rc;

	signal(SIGPIPE, SIG_IGN);
	uv_signal_init(&d->loop, &d->sigterm);
	uv_signal_init(&d->loop, &d->sigint);
	uv_signal_init(&d->loop, &d->sighup);
	uv_timer_init(&d->loop, &d->drain);
	uv_timer_init(&d->loop, &d->refused);
	uv_timer_start(&d->refused, on_refused, REFUSED_LOOK_MS, REFUSED_LOOK_MS);
	d->drain.data = d;
	d->sigterm.data = d->sigint.data = d->sighup.data = d;
	rc = uv_signal_start(&d->sigterm, on_signal, SIGTERM);
	if (!rc)
		rc = uv_signal_start(&d->sigint, on_signal, SIGINT);
	if (!rc)
		rc = guard_init();
	return rc ? error_errno(err, rc, "signals") : 0;
}

static void count_call(void *arg, const struct grpc_peer *peer, const char *path,
                       enum grpc_code code, uint64_t duration_ns)
{
	const struct daemon *d = arg;

	(void)duration_ns;
	metrics_count_call(d->metrics, path, grpc_role_name(peer->role), grpc_code_name(code));
}

static int64_t certificate_expiry(void *arg)
{
	const struct daemon *d = arg;

	return tls_context_expiry(d->tls);
}

static int open_control(struct daemon *d, struct error *err)
{
	struct control_config config = {
		.options = &d->options,
		.unix_fd = listener_unix(d->store, "control", d->options.control_path, SOCK_STREAM,
		                         err),
		.migrations = d->migrations,
		.stalls = d->stalls,
		.pages_address = d->pages_address,
		.pages = d->page_server ? page_server_listening(d->page_server) : NULL,
		.certificate_expiry_s = certificate_expiry,
		.config_error = d->config_error.text,
		.reload = &d->reload.last,
		.may_lack_tcp = d->has_guests,
		.finished = count_call,
		.arg = d,
	};
	int rc;

	if (config.unix_fd < 0)
		return config.unix_fd;
	rc = listener_tcp(d->store, &config.tcp, err);
	if (rc) {
		close(config.unix_fd);
		return rc;
	}
	return control_new(&d->loop, &config, &d->control, err);
}

static void read_stall(void *arg, struct metrics_stall *ret)
{
	const struct daemon *d = arg;
	struct fault_tracer_counters counters;

	ret->source = stalls_source(d->stalls);
	stalls_get_total(d->stalls, &ret->stall_ns, &counters);
	ret->unpaired = counters.unpaired;
	ret->lost = counters.lost_faults + counters.lost_events;
}

static int open_metrics(struct daemon *d, struct error *err)
{
	struct metrics_config config = {
		.version = POSTCOPY_VERSION,
		.tls = d->options.metrics_tls,
		.cert_path = d->options.tls.cert_path,
		.key_path = d->options.tls.key_path,
		.ca_path = d->options.tls.ca_path,
		.migrations = d->migrations,
		.read_stall = read_stall,
		.certificate_expiry = certificate_expiry,
		.config_is_older = d->config_error.code,
		.arg = d,
	};
	struct conn_target address;
	int rc;

	if (!d->options.metrics_listen)
		return 0;
	rc = conn_target_parse(d->options.metrics_listen, &address, err);
	if (rc)
		return error_prefix(err, "--metrics-listen");
	config.host = address.host;
	config.port = address.port;
	rc = metrics_new(&d->loop, &config, &d->metrics, err);
	if (!rc)
		log_info("metrics on port %u", metrics_port(d->metrics));
	return rc;
}

static int open_page_server(struct daemon *d, struct error *err)
{
	struct tcp_listening listening;
	int rc = listener_pages(d->store, d->options.listen, &listening, err);

	if (rc || !listening.n)
		return rc;
	listener_address(&listening, d->options.listen, d->pages_address, sizeof d->pages_address);
	return page_server_new(&listening, d->tls, &d->page_server, err);
}

/* What may change while it runs. */
static void set_limits(struct migrations_config *config, const struct daemon *d)
{
	const struct options *o = &d->options;

	config->vmm_groups = d->vmm_groups.gids;
	config->n_vmm_groups = d->vmm_groups.n;
	config->vmm_limits = (struct vmm_limits){
		.conns = (unsigned int)o->max_vmms,
		.waiting = (unsigned int)o->max_waiting_vmms,
		.attach_timeout_ms = (unsigned int)o->attach_timeout_s * 1000,
	};
	config->max_ended = (unsigned int)o->max_ended;
	config->ended_timeout_ms = o->ended_timeout_s * 1000;
	config->prepare_timeout_ms = o->prepare_timeout_s * 1000;
	config->max_client_migrations = (unsigned int)o->max_client_migrations;
	config->max_migrations = (unsigned int)o->max_migrations;
	config->max_incoming = (unsigned int)o->max_incoming;
	config->max_outgoing = (unsigned int)o->max_outgoing;
	config->hold_timeout_ms = o->hold_timeout_s * 1000;
	config->bandwidth_in = o->bandwidth_in;
	config->bandwidth_out = o->bandwidth_out;
	config->memory_check = o->memory_check;
	config->fault_threads = (unsigned int)o->fault_threads;
	config->max_channels = (unsigned int)o->max_channels;
	config->user_store_percent = (unsigned int)o->user_store_percent;
	config->max_vmstate_bytes = o->max_vmstate_bytes;
	/* 0: all are. */
	config->slow_fault_ns = o->trace_slow_us ? o->trace_slow_us * NSEC_PER_USEC : 1;
}

static int open_migrations(struct daemon *d, struct error *err)
{
	const struct options *o = &d->options;
	struct migrations_config config = {
		.tls = d->tls,
		.page_server = d->page_server,
		.store = d->store,
	};
	int rc = groups_find(&o->vmm_groups, "vmm-group", &d->vmm_groups, err);

	if (rc)
		return rc;
	set_limits(&config, d);
	config.vmm_fd = listener_unix(d->store, "vmm", o->vmm_path, SOCK_SEQPACKET, err);
	if (config.vmm_fd < 0)
		return config.vmm_fd;
	if (o->vmm_groups.n)
		listener_open_up(o->vmm_path, "vmm-group");
	rc = migrations_new(&d->loop, &config, &d->migrations, err);
	return rc ? rc : migrations_take_over(d->migrations, err);
}

static int daemon_open(struct daemon *d, struct error *err)
{
	int rc = watch_signals(d, err);

	fd_store_set_max(d->store, (unsigned int)d->options.fd_store_max);
	if (!rc)
		rc = tls_context_new(&d->options.tls, &d->tls, err);
	if (!rc)
		rc = open_page_server(d, err);
	if (rc)
		return rc;
	if (!d->options.tls.n_allowed_names)
		log_warning("no allow-peer: every peer of the CA may connect");
	rc = open_migrations(d, err);
	/* Only now: who asks for a migration that is not there yet would give it up. */
	if (!rc && d->page_server)
		rc = page_server_start(d->page_server, err);
	if (!rc)
		rc = stalls_new(&d->loop, d->migrations, d->options.trace, d->has_guests,
		                &d->stalls, err);
	if (!rc)
		rc = open_control(d, err);
	if (!rc)
		rc = open_metrics(d, err);
	/* Guests can do without. */
	if (rc && d->control && d->has_guests) {
		log_error("%s: not served", err->text);
		d->config_error = *err;
		rc = 0;
	}
	return rc;
}

/* For the next process, should it be given a worse one. */
static void keep_config(struct daemon *d)
{
	struct error err = ERROR_INIT;

	if (!d->config_error.code && last_config_keep(d->store, &d->options, &err))
		log_warning("a restart with a wrong file would end badly: %s", err.text);
}

/* Certificates and names of @o, or those of before, all of them. */
static int load_certificates(struct daemon *d, struct options *o, struct error *err)
{
	int rc = certificates_reload(
	        &d->certificates,
	        (const struct tls_config *const[]){ &o->tls, control_tls_config(d->control, o) },
	        err);

	if (!rc || o == &d->options)
		return rc;
	/* One context may have them, and the next did not. */
	(void)load_certificates(d, &d->options, &(struct error){ 0 });
	return rc;
}

static void adopt(struct daemon *d, struct reload_config *fresh)
{
	struct migrations_config limits = { 0 };

	options_adopt(&d->options, &fresh->options, reload_needs_restart, &d->reload);
	log_set_level(d->options.log_level);
	fd_store_set_max(d->store, (unsigned int)d->options.fd_store_max);
	d->vmm_groups = fresh->vmm;
	set_limits(&limits, d);
	if (d->options.vmm_groups.n)
		listener_open_up(d->options.vmm_path, "vmm-group");
	migrations_set_limits(d->migrations, &limits);
	control_set(d->control, &d->options, &fresh->control, &fresh->control_read);
}

/* Return: 0 where what was read is in effect, as far as it can be. */
static int take_config(struct daemon *d, struct reload_config *fresh,
                       const struct config_errors *errors, struct error *err)
{
	struct error why = ERROR_INIT;
	int rc;

	for (size_t i = 0; i < errors->n; i++)
		log_error("%s", errors->list[i].text);
	if (errors->n) {
		*err = errors->list[0];
		log_error("the configuration is wrong, the one of before stays");
		/* Its files may be new all the same. */
		(void)load_certificates(d, &d->options, &why);
		return -EINVAL;
	}
	rc = load_certificates(d, &fresh->options, err);
	if (rc)
		return rc;
	/* Its keys are counted anew. */
	reload_note(&d->reload, NULL);
	adopt(d, fresh);
	return 0;
}

static void on_reloaded(void *arg, struct reload_config *fresh, const struct config_errors *errors)
{
	struct error err = ERROR_INIT;
	struct daemon *d = arg;
	int rc;

	if (uv_is_closing((uv_handle_t *)&d->sighup))
		return;
	rc = take_config(d, fresh, errors, &err);
	if (rc)
		reload_note(&d->reload, &err);
	metrics_note_reload(d->metrics, !rc, d->reload.last.at_real_ns);
	keep_config(d);
	service_reloaded();
}

/* What runs is not what is configured, and what is configured is not looked at again. */
static void reload_certificates_alone(struct daemon *d)
{
	struct error err = ERROR_INIT;

	log_error("the configuration is not read anew: what runs is another; restart");
	if (!load_certificates(d, &d->options, &err))
		error_set(&err, -EBUSY, "it runs with an older configuration: restart");
	reload_note(&d->reload, &err);
	metrics_note_reload(d->metrics, false, d->reload.last.at_real_ns);
	service_reloaded();
}

static void on_sighup(uv_signal_t *handle, int signum)
{
	struct daemon *d = handle->data;

	(void)signum;
	service_reloading();
	if (d->config_error.code) {
		reload_certificates_alone(d);
	} else if (reload_start(&d->reload)) {
		log_error("the configuration can't be read anew: out of memory");
		service_reloaded();
	}
}

static void say_ready(const struct daemon *d)
{
	unsigned int port = d->page_server ? page_server_port(d->page_server) : 0;
	char line[64], pages[TCP_LISTEN_MAX * TCP_ADDRESS_MAX] = "no port: it can be no source";
	int len = snprintf(line, sizeof line, "READY port=%u control-port=%u\n", port,
	                   control_port(d->control));

	if (d->page_server)
		tcp_listening_print(page_server_listening(d->page_server), pages, sizeof pages);
	log_info("ready; page streams at %s, control %s, VMMs %s", pages, d->options.control_path,
	         d->options.vmm_path);
	if (d->options.ready_fd < 0)
		return;
	if (write(d->options.ready_fd, line, (size_t)len) != len)
		log_warning("--ready-fd %d: %s", d->options.ready_fd, strerror(errno));
	close(d->options.ready_fd);
}

static enum exit_status daemon_run(struct daemon *d)
{
	struct error err = ERROR_INIT;
	int rc;

	uv_loop_init(&d->loop);
	reload_init(&d->reload, &d->loop, d->argc, d->argv, on_reloaded, d);
	rc = daemon_open(d, &err);
	if (rc) {
		log_error("%s", err.text);
		daemon_close(d);
	} else {
		thread_prefer_control();
		certificates_init(&d->certificates, &d->loop,
		                  (struct tls_context *[]){ d->tls, control_tls(d->control) }, 2,
		                  d->metrics);
		keep_config(d);
		uv_signal_start(&d->sighup, on_sighup, SIGHUP);
		service_init(&d->service, &d->loop, d->migrations, d->config_error.text);
		say_ready(d);
	}
	uv_run(&d->loop, UV_RUN_DEFAULT);
	control_free(d->control);
	migrations_free(d->migrations);
	tls_context_free(d->tls);
	uv_loop_close(&d->loop);
	return rc ? EXIT_FAILED : EXIT_OK;
}

/* To a person who asked, or to the log. */
static void tell_error(const struct options *o, const char *text)
{
	if (o->check_config)
		fprintf(stderr, "postcopyd: %s\n", text);
	else
		log_error("%s", text);
}

static void tell_errors(const struct options *o, const struct config_errors *errors)
{
	for (size_t i = 0; i < errors->n; i++)
		tell_error(o, errors->list[i].text);
	if (errors->n_more)
		tell_error(o, "and more errors");
}

/* The configuration of the process before, where that is better than @parsed or not. */
static bool take_last_config(struct daemon *d, bool parsed)
{
	struct config_errors errors = { .n = 0 };
	struct options last;
	int rc = last_config_read(d->store, &last);

	if (!rc)
		config_check(&last, &errors);
	if (rc || (parsed && errors.n)) {
		options_deinit(&last);
		return false;
	}
	last.ready_fd = d->options.ready_fd;
	options_deinit(&d->options);
	d->options = last;
	return true;
}

/*
 * What is configured is wrong, and guests hang on what the service manager keeps: it would throw
 * that away if we ended for that reason. Return: whether there is something to run with.
 */
static bool make_do(struct daemon *d, bool parsed, const struct config_errors *errors)
{
	const struct options *o = &d->options;
	bool is_last = take_last_config(d, parsed);

	d->config_error = errors->list[0];
	if (!is_last && (!o->tls.cert_path || !o->tls.key_path || !o->tls.ca_path)) {
		log_error("the configuration is wrong, and there is none of before: the migrations "
		          "that are under way stand still until it is mended");
		return false;
	}
	log_error("the configuration is wrong, and migrations are under way: going on %s; mend it "
	          "and restart",
	          is_last  ? "with the one of before"
	          : parsed ? "as far as it can be had"
	                   : "without what is wrong in it");
	return true;
}

static void open_log(const struct options *o, bool parsed)
{
	if (parsed)
		log_init("postcopyd", o->log_level, o->log_format);
	else
		log_init("postcopyd", LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
}

/* Takes the options and, where that is asked for, looks at what they name. Return: as main(). */
static enum exit_status read_options(int argc, char **argv, struct daemon *d, bool *ret_go_on)
{
	struct config_errors errors = { .n = 0 };
	struct options *o = &d->options;
	int rc = options_parse(argc, argv, o, &errors);
	bool asked = rc > 0 || o->check_config;

	*ret_go_on = !rc && !asked;
	if (rc > 0)
		return EXIT_OK;
	d->has_guests = !asked && migrations_are_left(d->store);
	if (!rc && (asked || d->has_guests))
		config_check(o, &errors);
	open_log(o, !rc);
	tell_errors(o, &errors);
	if (asked && !errors.n)
		puts("OK");
	if (!errors.n || !d->has_guests)
		return errors.n ? EXIT_CONFIG : EXIT_OK;
	*ret_go_on = make_do(d, !rc, &errors);
	/* Not the status that systemd gives up for. */
	return EXIT_FAILED;
}

/*
 * Large buffers are a connection's, and there may be hundreds. By default the allocator takes the
 * first that is freed for a sign to have them in its arenas from now on, where they stay.
 */
static void give_memory_back(void)
{
	(void)mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
}

int main(int argc, char **argv)
{
	struct daemon d = { .argc = argc, .argv = argv };
	struct error err = ERROR_INIT;
	enum exit_status status;
	bool go_on;

	give_memory_back();
	if (fd_store_new(&d.store, &err)) {
		log_init("postcopyd", LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
		log_error("%s", err.text);
		return EXIT_FAILED;
	}
	status = read_options(argc, argv, &d, &go_on);
	if (go_on)
		status = daemon_run(&d);
	fd_store_free(d.store);
	options_deinit(&d.options);
	return status;
}

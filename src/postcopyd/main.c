/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postcopyd: the composition root. One constructor in order, one destructor in reverse.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <uv.h>

#include "migrate/migrate.h"
#include "postcopyd/options.h"
#include "rpc/control.h"
#include "util/guard.h"
#include "util/log.h"
#include "util/thread.h"

struct daemon {
	struct options options;
	uv_loop_t loop;
	uv_signal_t sigterm;
	uv_signal_t sigint;
	struct tls_context *tls;
	struct page_server *page_server;
	struct migrations *migrations;
	struct control *control;
};

static void daemon_close(struct daemon *d)
{
	if (uv_is_closing((uv_handle_t *)&d->sigterm))
		return;
	uv_close((uv_handle_t *)&d->sigterm, NULL);
	uv_close((uv_handle_t *)&d->sigint, NULL);
	control_close(d->control);
	if (d->migrations)
		migrations_stop(d->migrations);
	/* Its connections' threads post news until they end. */
	d->page_server = page_server_free(d->page_server);
	if (d->migrations)
		migrations_close(d->migrations);
}

static void on_signal(uv_signal_t *handle, int signum)
{
	log_info("%s: ending", strsignal(signum));
	daemon_close(handle->data);
}

static int watch_signals(struct daemon *d, struct error *err)
{
	int rc;

	signal(SIGPIPE, SIG_IGN);
	uv_signal_init(&d->loop, &d->sigterm);
	uv_signal_init(&d->loop, &d->sigint);
	d->sigterm.data = d->sigint.data = d;
	rc = uv_signal_start(&d->sigterm, on_signal, SIGTERM);
	if (!rc)
		rc = uv_signal_start(&d->sigint, on_signal, SIGINT);
	if (!rc)
		rc = guard_init();
	return rc ? error_errno(err, rc, "signals") : 0;
}

static int daemon_open(struct daemon *d, struct error *err)
{
	struct migrations_config config;
	int rc = watch_signals(d, err);

	d->options.tls.alpn = STREAM_ALPN;
	if (!rc)
		rc = tls_context_new(&d->options.tls, &d->tls, err);
	if (!rc && d->options.listen)
		rc = page_server_new(d->options.listen, d->tls, &d->page_server, err);
	if (rc)
		return rc;
	if (!d->options.tls.n_allowed_names)
		log_warning("no --allow-peer: every peer of the CA may connect");
	config = (struct migrations_config){
		.tls = d->tls,
		.page_server = d->page_server,
		.vmm_socket = d->options.vmm_path,
		.max_vmstate_bytes = d->options.max_vmstate_bytes,
	};
	rc = migrations_new(&d->loop, &config, &d->migrations, err);
	if (!rc)
		rc = control_new(&d->loop, d->options.control_path, d->migrations, &d->control,
		                 err);
	return rc;
}

static void say_ready(const struct daemon *d)
{
	unsigned int port = d->page_server ? page_server_port(d->page_server) : 0;
	char line[64];
	int len = snprintf(line, sizeof line, "READY port=%u\n", port);

	log_info("ready; page streams on port %u, control %s, VMMs %s", port,
	         d->options.control_path, d->options.vmm_path);
	if (d->options.ready_fd < 0)
		return;
	if (write(d->options.ready_fd, line, (size_t)len) != len)
		log_warning("--ready-fd %d: %s", d->options.ready_fd, strerror(errno));
	close(d->options.ready_fd);
}

int main(int argc, char **argv)
{
	struct daemon d = { 0 };
	struct error err = ERROR_INIT;
	int rc = options_parse(argc, argv, &d.options, &err);

	if (rc > 0)
		return 0;
	log_init("postcopyd", d.options.log_level, LOG_FORMAT_AUTO);
	if (rc < 0) {
		log_error("%s", err.text);
		return 2;
	}
	uv_loop_init(&d.loop);
	rc = daemon_open(&d, &err);
	if (rc) {
		log_error("%s", err.text);
		daemon_close(&d);
	} else {
		thread_prefer_promptness();
		say_ready(&d);
	}
	uv_run(&d.loop, UV_RUN_DEFAULT);
	migrations_free(d.migrations);
	tls_context_free(d.tls);
	uv_loop_close(&d.loop);
	return rc ? 1 : 0;
}

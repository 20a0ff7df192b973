/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>

#include <systemd/sd-daemon.h>

#include "adapter/command_line.h"
#include "cloud_hypervisor/adapter.h"
#include "util/cleanup.h"
#include "util/log.h"

struct arguments {
	const char *listen, *connect;
	bool source, without_store;
	struct adapter adapter;
};

static const char *const commands[] = { "source", "destination" };

#define ARGUMENT(field) offsetof(struct arguments, field)

static const struct command_line_option rows[] = {
	{ "id", "ID", "the migration, as postcopyd was told of it", ARGUMENT(adapter.id) },
	{ "listen", "PATH",
	  "where Cloud Hypervisor is told to send its migration to:\n"
	  "send-migration destination_url=unix:PATH,local=on",
	  ARGUMENT(listen) },
	{ "connect", "PATH",
	  "where it is told to receive one:\n"
	  "receive-migration receiver_url=unix:PATH,memory_mode=postcopy",
	  ARGUMENT(connect) },
	{ "socket", "PATH", "postcopyd's VMM socket (" POSTCOPY_DEFAULT_SOCKET ")",
	  ARGUMENT(adapter.daemon_path) },
	{ "without-store", NULL,
	  "start although no service manager keeps the sockets: where this\n"
	  "process dies then, the guest is lost, or runs twice",
	  ARGUMENT(without_store) },
};

static const struct command_line line = {
	.program = "postcopy-cloud-hypervisor",
	.usage = "Usage: postcopy-cloud-hypervisor source --id ID --listen PATH [--socket PATH]\n"
	         "       postcopy-cloud-hypervisor destination --id ID --connect PATH [--socket "
	         "PATH]\n",
	.about = "Moves the guest of a Cloud Hypervisor (54 or newer) by postcopyd.",
	.exit_status = "0; 1 the guest has not moved; 2 wrong arguments, or no store; 3 where it "
	               "is worth another try.",
	.commands = commands,
	.n_commands = sizeof commands / sizeof *commands,
	.options = rows,
	.n_options = sizeof rows / sizeof *rows,
};

/* Return: as command_line_parse(). */
static int read_options(struct arguments *args, int argc, char **argv, struct error *err)
{
	struct adapter *a = &args->adapter;
	int command, rc = command_line_parse(&line, argc, argv, args, &command, err);

	if (rc)
		return rc;
	args->source = command == 0;
	a->path = args->source ? args->listen : args->connect;
	if (!a->id || strlen(a->id) > POSTCOPY_ID_MAX)
		return error_set(err, -EINVAL, "give --id, the migration's id as it was prepared");
	if (!a->path || (args->listen && args->connect))
		return error_set(err, -EINVAL,
		                 "give --%s, the path of a socket, and not the other side's",
		                 args->source ? "listen" : "connect");
	return 0;
}

static int block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int prepare(struct arguments *args, struct error *err)
{
	struct adapter *a = &args->adapter;
	int rc = fd_store_new(&a->store, err);

	if (!rc && !fd_store_exists(a->store) && !args->without_store)
		rc = error_set(
		        err, -EINVAL,
		        "no service manager keeps this process's sockets: where it died, the "
		        "guest would be lost, or run twice. Start it as "
		        "postcopy-cloud-hypervisor-%s@ID.service",
		        args->source ? "source" : "destination");
	if (!rc)
		rc = ch_record_open(a->store, args->source, a->id, &a->record, err);
	return rc;
}

int main(int argc, char **argv)
{
	struct arguments args = { .adapter = { .sock = -1, .pidfd = -1 } };
	struct adapter *a = &args.adapter;
	struct error err = ERROR_INIT;
	int status, rc = read_options(&args, argc, argv, &err);

	if (rc > 0)
		return 0;
	if (rc) {
		fprintf(stderr, "postcopy-cloud-hypervisor: %s\n", err.text);
		return ADAPTER_USAGE;
	}
	log_init("postcopy-cloud-hypervisor", LOG_LEVEL_INFO, LOG_FORMAT_AUTO);
	for (size_t i = 0; i < CH_SLOTS_MAX; i++)
		a->files[i] = -1;
	a->signal_fd = block_signals();
	if (prepare(&args, &err)) {
		log_error("%s", err.text);
		return ADAPTER_USAGE;
	}
	(void)sd_notify(false, "READY=1");
	/* Killed when it was done already. */
	if (ch_record_phase(a->record) == CH_PHASE_OVER)
		status = a->record->moved ? 0 : ADAPTER_FAILED;
	else
		status = args.source ? source_run(a) : destination_run(a);
	a->attachment = postcopy_detach(a->attachment);
	a->store = fd_store_free(a->store);
	return status;
}

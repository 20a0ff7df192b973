/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>

#include <systemd/sd-daemon.h>

#include "cloud_hypervisor/adapter.h"
#include "util/cleanup.h"
#include "util/log.h"

static const char usage[] =
        "Usage: postcopy-cloud-hypervisor source --id ID --listen PATH [--socket PATH]\n"
        "       postcopy-cloud-hypervisor destination --id ID --connect PATH [--socket PATH]\n"
        "\n"
        "Moves the guest of a Cloud Hypervisor (54 or newer) by postcopyd. See "
        "postcopy-cloud-hypervisor(1).\n"
        "\n"
        "  --id ID         the migration, as postcopyd was told of it\n"
        "  --listen PATH   where Cloud Hypervisor is told to send its migration to:\n"
        "                  send-migration destination_url=unix:PATH,local=on\n"
        "  --connect PATH  where it is told to receive one:\n"
        "                  receive-migration receiver_url=unix:PATH,memory_mode=postcopy\n"
        "  --socket PATH   postcopyd's VMM socket (" POSTCOPY_DEFAULT_SOCKET ")\n"
        "  --without-store\n"
        "                  start although no service manager keeps the sockets: where this\n"
        "                  process dies then, the guest is lost, or runs twice\n"
        "  --help          show this\n"
        "  --version       show the version\n";

struct arguments {
	bool source, without_store;
	struct adapter adapter;
};

/* Return: -1 where all is well, else the exit status. */
static int read_options(struct arguments *args, int argc, char **argv)
{
	static const struct option options[] = {
		{ "id", required_argument, NULL, 'i' },
		{ "listen", required_argument, NULL, 'l' },
		{ "connect", required_argument, NULL, 'c' },
		{ "socket", required_argument, NULL, 's' },
		{ "without-store", no_argument, NULL, 'w' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	const char *listen = NULL, *connect = NULL;

	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
		switch (c) {
		case 'i':
			args->adapter.id = optarg;
			break;
		case 'l':
			listen = optarg;
			break;
		case 'c':
			connect = optarg;
			break;
		case 's':
			args->adapter.daemon_path = optarg;
			break;
		case 'w':
			args->without_store = true;
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		case 'v':
			puts("postcopy-cloud-hypervisor " POSTCOPY_VERSION);
			return 0;
		default:
			return ADAPTER_USAGE;
		}
	args->source = optind < argc && !strcmp(argv[optind], "source");
	args->adapter.path = args->source ? listen : connect;
	if (optind + 1 != argc || (!args->source && strcmp(argv[optind], "destination") != 0) ||
	    !args->adapter.id || strlen(args->adapter.id) > POSTCOPY_ID_MAX ||
	    !args->adapter.path || (listen && connect)) {
		fputs(usage, stderr);
		return ADAPTER_USAGE;
	}
	return -1;
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
	int status = read_options(&args, argc, argv);

	if (status >= 0)
		return status;
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

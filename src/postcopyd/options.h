/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon is told: by its command line, and by a file.
 *
 * One table (options.c) drives both: each row is an option, and where it has a section it is
 * a key of the file as well. The command line wins over the file, the file over the defaults;
 * a list that the command line gives replaces the file's. option.h has the kinds of values,
 * config_file.h the file's syntax, config_check.h what --check-config looks at besides.
 */
#ifndef POSTCOPYD_OPTIONS_H
#define POSTCOPYD_OPTIONS_H

#include <stdint.h>
#include <stdio.h>

#include "postcopyd/config_errors.h"
#include "telemetry/fault_tracer.h"
#include "tls/tls.h"
#include "util/log.h"

#define OPTIONS_DEFAULT_CONFIG "/etc/postcopyd/postcopyd.conf"
/* Of the file. */
#define OPTIONS_MAX 64
#define OPTIONS_GROUPS_MAX 64
#define OPTIONS_SANS_MAX 4096
#define OPTIONS_STREAMS_MAX 16

struct options_names {
	const char **names;
	size_t n;
};

/* Strings are the options' own, see options_deinit(). */
struct options {
	/* [control] */
	const char *control_path;
	struct options_names control_groups; /* besides root and the daemon's own user */
	struct options_names control_read_groups;
	const char *control_listen;         /* NULL: no gRPC over TCP */
	struct options_names control_allow; /* SANs; not both are empty ... */
	struct options_names control_read;  /* ... where control_listen is set */
	/* [vmm] */
	const char *vmm_path;
	struct options_names vmm_groups;
	uint64_t max_vmstate_bytes;
	uint64_t max_vmms, max_waiting_vmms; /* connected; of one user before they attach */
	uint64_t attach_timeout_s;
	uint64_t prepare_timeout_s; /* 0: none */
	uint64_t max_migrations, max_client_migrations;
	uint64_t max_ended, ended_timeout_s; /* 0: none */
	uint64_t max_channels;               /* of a VMM */
	uint64_t user_store_percent;         /* of the service manager's store, of one user */
	/* [host] */
	uint64_t max_incoming, max_outgoing;  /* migrations under way; 0: no limit */
	uint64_t hold_timeout_s;              /* before a switchover that is to be told; 0: none */
	uint64_t bandwidth_in, bandwidth_out; /* of all page streams; 0: none */
	bool memory_check;
	uint64_t fault_threads; /* of a guest that comes; 0: by the CPUs */
	/* [stream] */
	const char *listen; /* NULL: no source here */
	uint64_t max_streams;
	uint64_t bandwidth_bytes_per_s; /* 0: none */
	/* [tls], and the stream's allow-peer */
	struct tls_config tls;
	/* [metrics] */
	const char *metrics_listen; /* NULL: none */
	bool metrics_tls;
	/* [trace] */
	enum fault_tracer_mode trace;
	uint64_t trace_slow_us;
	/* [log] */
	enum log_level log_level;
	enum log_format log_format;
	/* [daemon] */
	uint64_t drain_timeout_s; /* 0: park at once */
	uint64_t fd_store_max;
	/* The command line's alone. */
	const char *config_path; /* NULL: the default file, where there is one */
	int ready_fd;            /* -1: nobody waits */
	bool check_config;       /* look at everything, serve nothing */

	struct options_text *texts; /* what the strings above are made of */
};

/*
 * options_parse() - read the command line and the file
 * @ret: also after a failure to be given to options_deinit()
 * @errors: gets the first error of the command line, or all those of the file
 *
 * Return: 0; 1 where --help, --version or --print-config was asked for and printed; -EINVAL
 * with @errors set.
 */
int options_parse(int argc, char **argv, struct options *ret, struct config_errors *errors);

/*
 * options_parse_file() - the defaults and a file, without a command line
 * @name: of the file, for messages
 *
 * Return: 0, or -EINVAL with @errors set.
 */
int options_parse_file(FILE *file, const char *name, struct options *ret,
                       struct config_errors *errors);

/*
 * options_adopt() - what may change while the daemon runs
 * @fresh: gives what it has; then only to be given to options_deinit()
 * @needs_restart: called for each key that differs and is not taken
 */
void options_adopt(struct options *o, struct options *fresh,
                   void (*needs_restart)(void *arg, const char *key), void *arg);

void options_deinit(struct options *o);

/* As a file that says the same. */
void options_print(const struct options *o, FILE *to);

#endif

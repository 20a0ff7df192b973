/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/options.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "fault/fetch.h"
#include "migrate/share.h"
#include "postcopyd/config_file.h"
#include "postcopyd/option.h"
#include "stream/frame.h"
#include "util/cleanup.h"
#include "util/shards.h"

#define HELP_COLUMN 30

#define AT(field) .offset = offsetof(struct options, field)
#define NAMES_AT(field)                                                                            \
	.offset = offsetof(struct options, field.names),                                           \
	.n_offset = offsetof(struct options, field.n)

/* In the file's order: rows of one section stand together. */
static const struct option_row table[] = {
	{ "control", "control", OPTION_TEXT, AT(control_path), .arg = "PATH",
	  .help = "control socket", .fallback = "/run/postcopyd/control.sock" },
	{ "control", "control-group", OPTION_NAMES, .is_live = true, NAMES_AT(control_groups),
	  .arg = "NAME", .max = OPTIONS_GROUPS_MAX,
	  .help = "group whose members may drive it; repeat; root and its own user always may" },
	{ "control", "control-read-group", OPTION_NAMES, .is_live = true,
	  NAMES_AT(control_read_groups), .arg = "NAME", .max = OPTIONS_GROUPS_MAX,
	  .help = "group whose members may look, and change nothing; repeat" },
	{ "control", "control-listen", OPTION_ADDRESS, AT(control_listen), .arg = "HOST:PORT",
	  .help = "serve gRPC here as well, over mutual TLS", .fallback = "none" },
	{ "control", "control-allow", OPTION_SANS, .is_live = true, NAMES_AT(control_allow),
	  .arg = "SAN", .max = OPTIONS_SANS_MAX,
	  .help = "name (URI or DNS) whose certificate may drive the daemon there; repeat" },
	{ "control", "control-read", OPTION_SANS, .is_live = true, NAMES_AT(control_read),
	  .arg = "SAN", .max = OPTIONS_SANS_MAX,
	  .help = "name whose certificate may look there, and change nothing; repeat" },

	{ "vmm", "vmm", OPTION_TEXT, AT(vmm_path), .arg = "PATH", .help = "VMM socket",
	  .fallback = "/run/postcopyd/vmm.sock" },
	{ "vmm", "vmm-group", OPTION_NAMES, .is_live = true, NAMES_AT(vmm_groups), .arg = "NAME",
	  .max = OPTIONS_GROUPS_MAX,
	  .help = "group whose members may connect; repeat; root and its own user always may" },
	{ "vmm", "max-vmstate", OPTION_SIZE, .is_live = true, AT(max_vmstate_bytes), .arg = "BYTES",
	  .help = "largest device state", .fallback = "64M", .min = 1, .max = 1ull << 40 },
	{ "vmm", "max-vmms", OPTION_NUMBER, .is_live = true, AT(max_vmms), .arg = "N",
	  .help = "most VMMs that are connected at a time; root's get a few more",
	  .fallback = "256", .min = 1, .max = 16384 },
	{ "vmm", "max-waiting-vmms", OPTION_NUMBER, .is_live = true, AT(max_waiting_vmms),
	  .arg = "N", .help = "most of one user, but root, that have not attached yet",
	  .fallback = "32", .min = 1, .max = 16384 },
	{ "vmm", "attach-timeout", OPTION_NUMBER, .is_live = true, AT(attach_timeout_s),
	  .arg = "SECONDS", .help = "how long a VMM may be connected without attaching",
	  .fallback = "10", .min = 1, .max = 3600 },
	{ "vmm", "prepare-timeout", OPTION_NUMBER, .is_live = true, AT(prepare_timeout_s),
	  .arg = "SECONDS", .help = "how long a migration waits for its VMM; 0: for ever",
	  .fallback = "3600", .max = 31536000 },
	{ "vmm", "max-migrations", OPTION_NUMBER, .is_live = true, AT(max_migrations), .arg = "N",
	  .help = "most migrations that are not over", .fallback = "1024", .min = 1,
	  .max = 1000000 },
	{ "vmm", "max-client-migrations", OPTION_NUMBER, .is_live = true, AT(max_client_migrations),
	  .arg = "N", .help = "most of them that one client, but root, has prepared",
	  .fallback = "512", .min = 1, .max = 1000000 },
	{ "vmm", "max-ended", OPTION_NUMBER, .is_live = true, AT(max_ended), .arg = "N",
	  .help = "most migrations that are over and are remembered", .fallback = "32",
	  .max = 100000 },
	{ "vmm", "ended-timeout", OPTION_NUMBER, .is_live = true, AT(ended_timeout_s),
	  .arg = "SECONDS", .help = "how long they are remembered at most; 0: no limit",
	  .fallback = "86400", .max = 31536000 },
	{ "vmm", "max-channels", OPTION_NUMBER, .is_live = true, AT(max_channels), .arg = "N",
	  .help = "most fetch channels of a VMM", .fallback = "64", .min = 1,
	  .max = FETCH_CHANNELS_MAX },

	{ "vmm", "max-user-store", OPTION_NUMBER, .is_live = true, AT(user_store_percent),
	  .arg = "PERCENT",
	  .help = "most of the manager's descriptors that VMMs of one user, but root, take up",
	  .fallback = "75", .min = 1, .max = 100 },

	{ "host", "max-incoming", OPTION_NUMBER, .is_live = true, AT(max_incoming), .arg = "N",
	  .help = "most migrations that come in at a time; 0: no limit", .fallback = "0",
	  .max = 1000000 },
	{ "host", "max-outgoing", OPTION_NUMBER, .is_live = true, AT(max_outgoing), .arg = "N",
	  .help = "most migrations that leave at a time; 0: no limit", .fallback = "0",
	  .max = 1000000 },
	{ "host", "hold-timeout", OPTION_NUMBER, .is_live = true, AT(hold_timeout_s),
	  .arg = "SECONDS",
	  .help = "how long a migration is held for a switchover that is to be told; 0: for ever",
	  .fallback = "86400", .max = 31536000 },
	{ "host", "bandwidth-in", OPTION_SIZE, .is_live = true, AT(bandwidth_in), .arg = "BYTES",
	  .help = "cap on all page streams that come in, each second; 0: none", .fallback = "0",
	  .or_zero = true, .min = SHARE_HOST_MIN_BYTES_PER_S, .max = 1ull << 50 },
	{ "host", "bandwidth-out", OPTION_SIZE, .is_live = true, AT(bandwidth_out), .arg = "BYTES",
	  .help = "cap on all page streams that leave, each second; 0: none", .fallback = "0",
	  .or_zero = true, .min = SHARE_HOST_MIN_BYTES_PER_S, .max = 1ull << 50 },
	{ "host", "memory-check", OPTION_SWITCH, .is_live = true, AT(memory_check), .arg = "yes|no",
	  .help = "take a guest only where there is memory for all of it", .fallback = "yes" },
	{ "host", "fault-threads", OPTION_NUMBER, .is_live = true, AT(fault_threads), .arg = "N",
	  .help = "threads that serve the faults of a guest that comes; 0: one for four CPUs",
	  .fallback = "0", .max = SHARDS_MAX },

	{ "stream", "listen", OPTION_ADDRESS, AT(listen), .arg = "HOST:PORT",
	  .help = "serve page streams here; port 0: any; none: be no source", .fallback = "none" },
	{ "stream", "allow-peer", OPTION_SANS, .is_live = true, .max = OPTIONS_SANS_MAX,
	  .offset = offsetof(struct options, tls.allowed_names),
	  .n_offset = offsetof(struct options, tls.n_allowed_names), .arg = "SAN",
	  .help = "name (URI or DNS) that may connect; repeat; none: any of the CA" },
	{ "stream", "max-streams", OPTION_NUMBER, .is_live = true, AT(max_streams), .arg = "N",
	  .help = "most bulk connections of a migration", .fallback = "16", .min = 1,
	  .max = OPTIONS_STREAMS_MAX },
	{ "stream", "bandwidth", OPTION_SIZE, .is_live = true, AT(bandwidth_bytes_per_s),
	  .arg = "BYTES", .help = "cap on a migration's bulk, each second; 0: none",
	  .fallback = "0", .max = 1ull << 50 },

	{ "tls", "cert", OPTION_CREDENTIAL, .is_live = true, AT(tls.cert_path), .arg = "FILE",
	  .help = "this host's certificate, PEM" },
	{ "tls", "key", OPTION_CREDENTIAL, .is_live = true, AT(tls.key_path), .arg = "FILE",
	  .help = "its private key, PEM" },
	{ "tls", "ca", OPTION_CREDENTIAL, .is_live = true, AT(tls.ca_path), .arg = "FILE",
	  .help = "authorities that peers' certificates come from, PEM" },
	{ "tls", "crl", OPTION_CREDENTIAL, .is_live = true, AT(tls.crl_path), .arg = "FILE",
	  .help = "their lists of what they have revoked, PEM" },

	{ "metrics", "metrics-listen", OPTION_ADDRESS, AT(metrics_listen), .arg = "HOST:PORT",
	  .help = "serve /metrics here; none: nowhere", .fallback = "none" },
	{ "metrics", "metrics-tls", OPTION_SWITCH, AT(metrics_tls), .arg = "yes|no",
	  .help = "over mutual TLS", .fallback = "no" },

	{ "trace", "trace", OPTION_CHOICE, AT(trace), .arg = "MODE",
	  .help = "measure guests' stalls by eBPF: auto, fentry, kprobe, tracepoint or off",
	  .fallback = "auto",
	  .choices = { { "auto", FAULT_TRACER_AUTO },
	               { "fentry", FAULT_TRACER_FENTRY },
	               { "kprobe", FAULT_TRACER_KPROBE },
	               { "tracepoint", FAULT_TRACER_TRACEPOINT },
	               { "off", FAULT_TRACER_OFF } } },
	{ "trace", "trace-slow-us", OPTION_NUMBER, .is_live = true, AT(trace_slow_us), .arg = "US",
	  .help = "a fault that takes longer is a slow one, microseconds", .fallback = "1000",
	  .max = 60000000 },

	{ "log", "log-level", OPTION_CHOICE, .is_live = true, AT(log_level), .arg = "LEVEL",
	  .help = "error, warning, info or debug", .fallback = "info",
	  .choices = { { "error", LOG_LEVEL_ERROR },
	               { "warning", LOG_LEVEL_WARNING },
	               { "info", LOG_LEVEL_INFO },
	               { "debug", LOG_LEVEL_DEBUG } } },
	{ "log", "log-format", OPTION_CHOICE, AT(log_format), .arg = "FORMAT",
	  .help = "auto, logfmt, json or journal", .fallback = "auto",
	  .choices = { { "auto", LOG_FORMAT_AUTO },
	               { "logfmt", LOG_FORMAT_LOGFMT },
	               { "json", LOG_FORMAT_JSON },
	               { "journal", LOG_FORMAT_JOURNAL } } },

	{ "daemon", "drain-timeout", OPTION_NUMBER, .is_live = true, AT(drain_timeout_s),
	  .arg = "SECONDS", .help = "how long SIGTERM lets migrations run on; 0: park them at once",
	  .fallback = "0", .max = 86400 },
	{ "daemon", "fd-store-max", OPTION_NUMBER, .is_live = true, AT(fd_store_max), .arg = "N",
	  .help = "FileDescriptorStoreMax= of the unit, where systemd does not say it (before 254)",
	  .fallback = "4096", .min = 16, .max = 1000000 },

	{ NULL, "config", OPTION_TEXT, AT(config_path), .arg = "FILE",
	  .help = "the file to read instead of " OPTIONS_DEFAULT_CONFIG },
	{ NULL, "ready-fd", OPTION_FD, AT(ready_fd), .arg = "N", .max = INT32_MAX,
	  .help = "write \"READY port=N\" to this descriptor when serving" },
	{ NULL, "check-config", OPTION_FLAG, AT(check_config),
	  .help = "say OK or all that is wrong, and end with status 0 or 2" },
	{ NULL, "print-config", OPTION_ACTION,
	  .help = "print the file and the options together as one file" },
	{ NULL, "help", OPTION_ACTION, .help = "this text" },
	{ NULL, "version", OPTION_ACTION, .help = "the daemon's version" },
};

#define N_OPTIONS (sizeof table / sizeof *table)

/* Who has said what, while it is put together. */
struct sources {
	struct options *o;
	bool by_command_line[N_OPTIONS];
	unsigned int by_line[N_OPTIONS]; /* of the file; 0: not */
	struct options overruled;        /* where the file's values go that are only checked */
};

static int set_defaults(struct options *o, struct config_errors *errors)
{
	struct error err = ERROR_INIT;

	*o = (struct options){ .ready_fd = -1, .tls.alpn = STREAM_ALPN };
	for (size_t i = 0; i < N_OPTIONS; i++)
		if (table[i].fallback && option_set(&table[i], o, table[i].fallback, &err)) {
			error_prefix(&err, "%s", table[i].name);
			config_errors_add(errors, &err);
			return err.code;
		}
	return 0;
}

static bool same_section(const struct option_row *a, const struct option_row *b)
{
	return a->section == b->section ||
	       (a->section && b->section && !strcmp(a->section, b->section));
}

/* Whether row @i is the first of its section. */
static bool opens_section(size_t i)
{
	return !i || !same_section(&table[i], &table[i - 1]);
}

static void print_help(void)
{
	printf("Usage: postcopyd [--config FILE] [OPTION...]\n\n"
	       "Postcopy live migration of virtual machines: source and destination.\n"
	       "Each option below a [section] is a key of the file as well.\n");
	for (size_t i = 0; i < N_OPTIONS; i++) {
		const struct option_row *row = &table[i];
		int n;

		if (opens_section(i))
			printf(row->section ? "\n[%s]\n" : "\nThe command line's alone\n",
			       row->section);
		n = printf("  --%s%s%s", row->name, row->arg ? " " : "", row->arg ? row->arg : "");
		printf("%*s%s", n < HELP_COLUMN ? HELP_COLUMN - n : 1, "", row->help);
		printf(row->fallback ? " (%s)\n" : "\n", row->fallback);
	}
}

void options_print(const struct options *o, FILE *to)
{
	for (size_t i = 0; i < N_OPTIONS && table[i].section; i++) {
		if (opens_section(i))
			fprintf(to, "%s[%s]\n", i ? "\n" : "", table[i].section);
		option_print(&table[i], o, to);
	}
}

static const struct option_row *find_row(const char *name)
{
	for (size_t i = 0; i < N_OPTIONS; i++)
		if (!strcmp(table[i].name, name))
			return &table[i];
	return NULL;
}

static int on_section(void *arg, const char *name, struct error *err)
{
	char list[128] = "";
	size_t len = 0;

	(void)arg;
	for (size_t i = 0; i < N_OPTIONS && table[i].section; i++) {
		if (!opens_section(i))
			continue;
		if (!strcmp(table[i].section, name))
			return 0;
		len += (size_t)snprintf(list + len, sizeof list - len, "%s[%s]", i ? ", " : "",
		                        table[i].section);
	}
	return error_set(err, -EINVAL, "[%s]: no such section; there are %s", name, list);
}

/* Names the section's keys, of a file that has a wrong one. */
static int unknown_key(const char *section, struct error *err)
{
	char list[ERROR_TEXT_MAX] = "";
	size_t len = 0;

	for (size_t i = 0; i < N_OPTIONS && table[i].section; i++)
		if (!strcmp(table[i].section, section) && len < sizeof list)
			len += (size_t)snprintf(list + len, sizeof list - len, "%s%s",
			                        len ? ", " : "", table[i].name);
	return error_set(err, -EINVAL, "no such key%s%s", len ? "; here are " : "", list);
}

static int on_key(void *arg, const struct config_key *key, struct error *err)
{
	const struct option_row *row = find_row(key->name);
	struct sources *s = arg;
	size_t i = (size_t)(row - table);

	if (!row)
		return unknown_key(key->section, err);
	if (!row->section)
		return error_set(err, -EINVAL, "is for the command line alone");
	if (strcmp(row->section, key->section))
		return error_set(err, -EINVAL, "belongs in [%s]", row->section);
	if (!option_is_list(row) && s->by_line[i])
		return error_set(err, -EINVAL, "is there already, in line %u", s->by_line[i]);
	s->by_line[i] = key->line;
	return option_set(row, s->by_command_line[i] ? &s->overruled : s->o, key->value, err);
}

static void read_file(struct sources *s, FILE *file, const char *name, struct config_errors *errors)
{
	static const struct config_file_ops ops = { .section = on_section, .key = on_key };

	config_file_read(file, name, &ops, s, errors);
	options_deinit(&s->overruled);
}

/* The file that is named, or the default one where there is one. */
static void find_file(struct sources *s, struct config_errors *errors)
{
	const char *path = s->o->config_path ? s->o->config_path : OPTIONS_DEFAULT_CONFIG;
	_cleanup_fclose_ FILE *file = fopen(path, "re");
	struct error err = ERROR_INIT;

	if (file) {
		read_file(s, file, path, errors);
	} else if (s->o->config_path || errno != ENOENT) {
		error_errno(&err, -errno, "%s", path);
		config_errors_add(errors, &err);
	}
}

/* What must be there, whoever says it. */
static void check_whole(const struct options *o, struct config_errors *errors)
{
	struct error err = ERROR_INIT;

	if (!o->tls.cert_path || !o->tls.key_path || !o->tls.ca_path) {
		error_set(&err, -EINVAL,
		          "cert, key and ca are needed: in [tls] of the file, or --cert, --key "
		          "and --ca");
		config_errors_add(errors, &err);
	}
	if (o->control_listen && !o->control_allow.n && !o->control_read.n) {
		error_set(&err, -EINVAL,
		          "control-listen needs control-allow, the names that may drive the "
		          "daemon, or control-read");
		config_errors_add(errors, &err);
	}
}

/* Return: 0; 1 where an action was asked for that is done; -EINVAL with @err set. */
static int take_option(struct sources *s, size_t i, bool *print_config, struct error *err)
{
	const struct option_row *row = &table[i];

	if (!strcmp(row->name, "help")) {
		print_help();
		return 1;
	}
	if (!strcmp(row->name, "version")) {
		printf("postcopyd %s\n", POSTCOPY_VERSION);
		return 1;
	}
	if (!strcmp(row->name, "print-config"))
		*print_config = true;
	s->by_command_line[i] = true;
	if (option_set(row, s->o, optarg, err))
		return error_prefix(err, "--%s", row->name);
	return 0;
}

static int parse_command_line(int argc, char **argv, struct sources *s, bool *print_config,
                              struct error *err)
{
	struct option longs[N_OPTIONS + 1] = { 0 };
	int c, rc = 0;

	for (size_t i = 0; i < N_OPTIONS; i++)
		longs[i] = (struct option){
			.name = table[i].name,
			.has_arg = option_takes_value(&table[i]) ? required_argument : no_argument,
			.val = (int)i,
		};
	optind = 0; /* start over */
	opterr = 0;
	while (!rc && (c = getopt_long(argc, argv, "+:", longs, NULL)) != -1) {
		if (c == '?' || c == ':')
			return error_set(err, -EINVAL, "%s: %s (see --help)", argv[optind - 1],
			                 c == ':' ? "needs a value" : "unknown option");
		rc = take_option(s, (size_t)c, print_config, err);
	}
	if (!rc && optind < argc)
		rc = error_set(err, -EINVAL, "\"%s\": no arguments are expected (see --help)",
		               argv[optind]);
	return rc;
}

int options_parse(int argc, char **argv, struct options *ret, struct config_errors *errors)
{
	struct sources s = { .o = ret };
	struct error err = ERROR_INIT;
	bool print_config = false;
	int rc = set_defaults(ret, errors);

	if (rc)
		return rc;
	rc = parse_command_line(argc, argv, &s, &print_config, &err);
	if (rc < 0)
		config_errors_add(errors, &err);
	if (rc)
		return rc;
	find_file(&s, errors);
	if (!errors->n && print_config) {
		options_print(ret, stdout);
		return 1;
	}
	/* Else it may be for an error that something is not there. */
	if (!errors->n)
		check_whole(ret, errors);
	return errors->n ? -EINVAL : 0;
}

int options_parse_file(FILE *file, const char *name, struct options *ret,
                       struct config_errors *errors)
{
	struct sources s = { .o = ret };

	if (!set_defaults(ret, errors))
		read_file(&s, file, name, errors);
	return errors->n ? -EINVAL : 0;
}

static char *print_row(const struct option_row *row, const struct options *o)
{
	char *text = NULL;
	size_t len;
	FILE *to = open_memstream(&text, &len);

	if (!to)
		return NULL;
	option_print(row, o, to);
	fclose(to);
	return text;
}

void options_adopt(struct options *o, struct options *fresh,
                   void (*needs_restart)(void *arg, const char *key), void *arg)
{
	for (size_t i = 0; i < N_OPTIONS && table[i].section; i++) {
		_cleanup_free_ char *now = print_row(&table[i], o);
		_cleanup_free_ char *then = print_row(&table[i], fresh);

		if (table[i].is_live)
			option_copy(&table[i], o, fresh);
		else if (!now || !then || strcmp(now, then))
			needs_restart(arg, table[i].name);
	}
	/* Those of before may be in use still. */
	option_texts_move(o, fresh);
}

void options_deinit(struct options *o)
{
	for (size_t i = 0; i < N_OPTIONS; i++)
		if (option_is_list(&table[i]))
			option_list_free(&table[i], o);
	option_texts_free(o);
}

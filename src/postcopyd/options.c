/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CONTROL "/run/postcopyd/control.sock"
#define DEFAULT_VMM "/run/postcopyd/vmm.sock"
#define DEFAULT_MAX_VMSTATE (64ull << 20)

static int set_string(const char **to, const char *value)
{
	*to = value;
	return 0;
}

static int set_control(struct options *o, const char *v, struct error *err)
{
	(void)err;
	return set_string(&o->control_path, v);
}

static int set_vmm(struct options *o, const char *v, struct error *err)
{
	(void)err;
	return set_string(&o->vmm_path, v);
}

static int set_listen(struct options *o, const char *v, struct error *err)
{
	(void)err;
	return set_string(&o->listen, v);
}

static int set_cert(struct options *o, const char *v, struct error *err)
{
	(void)err;
	return set_string(&o->tls.cert_path, v);
}

static int set_key(struct options *o, const char *v, struct error *err)
{
	(void)err;
	return set_string(&o->tls.key_path, v);
}

static int set_ca(struct options *o, const char *v, struct error *err)
{
	(void)err;
	return set_string(&o->tls.ca_path, v);
}

static int add_peer(struct options *o, const char *v, struct error *err)
{
	if (o->tls.n_allowed_names == TLS_NAMES_MAX)
		return error_set(err, -EINVAL, "at most %d names", TLS_NAMES_MAX);
	o->tls.allowed_names[o->tls.n_allowed_names++] = v;
	return 0;
}

static int parse_number(const char *v, uint64_t max, uint64_t *ret, struct error *err)
{
	char *end;

	errno = 0;
	*ret = strtoull(v, &end, 10);
	if (errno || end == v || *end || *v == '-' || *ret > max)
		return error_set(err, -EINVAL, "\"%s\" is not a number of 0..%llu", v,
		                 (unsigned long long)max);
	return 0;
}

static int set_max_vmstate(struct options *o, const char *v, struct error *err)
{
	return parse_number(v, 1ull << 40, &o->max_vmstate_bytes, err);
}

static int set_ready_fd(struct options *o, const char *v, struct error *err)
{
	uint64_t fd;
	int rc = parse_number(v, INT32_MAX, &fd, err);

	if (!rc)
		o->ready_fd = (int)fd;
	return rc;
}

static int set_log_level(struct options *o, const char *v, struct error *err)
{
	static const struct {
		const char *name;
		enum log_level level;
	} levels[] = {
		{ "error", LOG_LEVEL_ERROR },
		{ "warning", LOG_LEVEL_WARNING },
		{ "info", LOG_LEVEL_INFO },
		{ "debug", LOG_LEVEL_DEBUG },
	};

	for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
		if (!strcmp(v, levels[i].name)) {
			o->log_level = levels[i].level;
			return 0;
		}
	return error_set(err, -EINVAL, "\"%s\" is not error, warning, info or debug", v);
}

static const struct daemon_option {
	const char *name;
	const char *value;
	const char *help;
	int (*set)(struct options *o, const char *value, struct error *err);
} table[] = {
	{ "control", "PATH", "control socket (" DEFAULT_CONTROL ")", set_control },
	{ "vmm", "PATH", "VMM socket (" DEFAULT_VMM ")", set_vmm },
	{ "listen", "HOST:PORT", "serve page streams here; port 0: any (none: no source)",
	  set_listen },
	{ "cert", "FILE", "this host's certificate, PEM", set_cert },
	{ "key", "FILE", "its private key, PEM", set_key },
	{ "ca", "FILE", "authorities that peers' certificates come from, PEM", set_ca },
	{ "allow-peer", "SAN", "name (URI or DNS) that may connect; repeat (none: any of the CA)",
	  add_peer },
	{ "max-vmstate", "BYTES", "largest device state (67108864)", set_max_vmstate },
	{ "log-level", "LEVEL", "error, warning, info (default) or debug", set_log_level },
	{ "ready-fd", "N", "write \"READY port=N\" to this descriptor when serving", set_ready_fd },
};

#define N_OPTIONS (sizeof table / sizeof *table)

static void print_help(void)
{
	printf("Usage: postcopyd --cert FILE --key FILE --ca FILE [OPTION...]\n\n"
	       "Postcopy live migration of virtual machines: source and destination.\n\n");
	for (size_t i = 0; i < N_OPTIONS; i++)
		printf("  --%s %-*s  %s\n", table[i].name, 18 - (int)strlen(table[i].name),
		       table[i].value, table[i].help);
	printf("  --help, --version\n");
}

static int check(const struct options *o, struct error *err)
{
	if (!o->tls.cert_path || !o->tls.key_path || !o->tls.ca_path)
		return error_set(err, -EINVAL, "--cert, --key and --ca are needed (see --help)");
	if (!o->max_vmstate_bytes)
		return error_set(err, -EINVAL, "--max-vmstate: must be above 0");
	return 0;
}

int options_parse(int argc, char **argv, struct options *ret, struct error *err)
{
	struct option longs[N_OPTIONS + 3] = { 0 };
	int c, rc = 0;

	for (size_t i = 0; i < N_OPTIONS; i++)
		longs[i] = (struct option){ table[i].name, required_argument, NULL, (int)i };
	longs[N_OPTIONS] = (struct option){ "help", no_argument, NULL, 'h' + 256 };
	longs[N_OPTIONS + 1] = (struct option){ "version", no_argument, NULL, 'V' + 256 };
	*ret = (struct options){
		.control_path = DEFAULT_CONTROL,
		.vmm_path = DEFAULT_VMM,
		.max_vmstate_bytes = DEFAULT_MAX_VMSTATE,
		.log_level = LOG_LEVEL_INFO,
		.ready_fd = -1,
	};
	opterr = 0;
	while (!rc && (c = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
		if (c == 'h' + 256) {
			print_help();
			return 1;
		}
		if (c == 'V' + 256) {
			printf("postcopyd %s\n", POSTCOPY_VERSION);
			return 1;
		}
		if (c == '?' || c == ':')
			return error_set(err, -EINVAL, "%s: %s (see --help)", argv[optind - 1],
			                 c == ':' ? "needs a value" : "unknown option");
		rc = table[c].set(ret, optarg, err);
		if (rc)
			error_prefix(err, "--%s", table[c].name);
	}
	if (!rc && optind < argc)
		rc = error_set(err, -EINVAL, "\"%s\": no arguments are expected (see --help)",
		               argv[optind]);
	return rc ? rc : check(ret, err);
}

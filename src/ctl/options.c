/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/options.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "ctl/units.h"

#define OPTIONS_MAX 64 /* of one command, with the common ones */
#define HELP_COLUMN 26

#define COMMON(field) offsetof(struct ctl_common, field)

/* Of every command that talks to a daemon; --json, the last, of any that has it. */
static const struct option_spec common_specs[] = {
	{ "control", OPTION_STRING, COMMON(control), "ADDRESS",
	  "the daemon's control service: PATH, unix:PATH or HOST:PORT\n(" CTL_DEFAULT_CONTROL ")" },
	{ "cert", OPTION_STRING, COMMON(cert), "FILE",
	  "HOST:PORT only: our certificate, PEM; and its key,\nand the CA of the daemon's" },
	{ "key", OPTION_STRING, COMMON(key), "FILE", "" },
	{ "ca", OPTION_STRING, COMMON(ca), "FILE", "" },
	{ "server-name", OPTION_STRING, COMMON(server_name), "SAN",
	  "HOST:PORT only: the name that the daemon's certificate must\nhave (any that the CA "
	  "signed)" },
	{ "timeout", OPTION_UINT, COMMON(timeout_s), "SECONDS",
	  "how long the daemon may be silent (30)", 1, 86400 },
	{ "json", OPTION_FLAG, COMMON(json), NULL, "answer in JSON" },
};

#define N_COMMON (sizeof common_specs / sizeof *common_specs)
static const struct option_spec help_spec = { "help", OPTION_FLAG, 0, NULL, "this text" };

static bool takes_value(const struct option_spec *spec)
{
	return spec->kind != OPTION_FLAG && spec->kind != OPTION_NO;
}

static void print_option(const struct option_spec *spec)
{
	int n = printf("  --%s%s%s", spec->name, spec->arg ? " " : "", spec->arg ? spec->arg : "");
	const char *line = spec->help;

	if (n >= HELP_COLUMN)
		n = (putchar('\n'), 0);
	for (;;) {
		int len = (int)(strchrnul(line, '\n') - line);

		printf("%*s%.*s\n", HELP_COLUMN - n, "", len, line);
		if (!line[len])
			return;
		line += len + 1;
		n = 0;
	}
}

/* Whether @cmd takes the common option number @i. */
static bool has_common(const struct command *cmd, size_t i)
{
	return i == N_COMMON - 1 ? cmd->json : !cmd->local;
}

static bool is_common(const struct option_spec *spec)
{
	return spec >= common_specs && spec < common_specs + N_COMMON;
}

static void print_help(const struct command *cmd)
{
	printf("usage: postcopyctl %s%s%s [options]\n\n%s\n\noptions:\n", cmd->name,
	       cmd->operand ? " " : "", cmd->operand ? cmd->operand : "", cmd->summary);
	for (size_t i = 0; i < cmd->n_options; i++)
		print_option(&cmd->options[i]);
	for (size_t i = 0; i < N_COMMON; i++)
		if (has_common(cmd, i))
			print_option(&common_specs[i]);
	print_option(&help_spec);
	if (cmd->details)
		printf("\n%s\n", cmd->details);
}

static int set_choice(const struct option_spec *spec, const char *value, const char **target,
                      struct error *err)
{
	char list[128] = "";
	size_t len = 0;

	for (size_t i = 0; i < OPTION_CHOICES_MAX && spec->choices[i]; i++) {
		if (!strcmp(value, spec->choices[i])) {
			*target = spec->choices[i];
			return 0;
		}
		len += (size_t)snprintf(list + len, sizeof list - len, "%s%s", i ? ", " : "",
		                        spec->choices[i]);
	}
	return error_set(err, -EINVAL, "\"%s\" is none of %s", value, list);
}

static int set_switch(const char *value, enum option_switch *target, struct error *err)
{
	if (!strcmp(value, "on"))
		*target = SWITCH_ON;
	else if (!strcmp(value, "off"))
		*target = SWITCH_OFF;
	else
		return error_set(err, -EINVAL, "\"%s\" is neither on nor off", value);
	return 0;
}

static int set_size(const struct option_spec *spec, const char *value, uint64_t *target,
                    struct error *err)
{
	uint64_t bytes;
	int r = parse_size(value, &bytes, err);

	if (r < 0)
		return r;
	if (bytes < spec->min || bytes > spec->max)
		return error_set(err, -ERANGE, "%s is not within %s..%s", value,
		                 text_bytes((double)spec->min).s, text_bytes((double)spec->max).s);
	*target = bytes;
	return 0;
}

static int set_value(const struct option_spec *spec, const char *value, void *args,
                     struct error *err)
{
	void *target = (char *)args + spec->offset;

	switch (spec->kind) {
	case OPTION_FLAG:
		*(bool *)target = true;
		return 0;
	case OPTION_NO:
		*(bool *)target = false;
		return 0;
	case OPTION_STRING:
		*(const char **)target = value;
		return 0;
	case OPTION_CHOICE:
		return set_choice(spec, value, target, err);
	case OPTION_UINT:
		return parse_uint(value, spec->min, spec->max, target, err);
	case OPTION_SIZE:
		return set_size(spec, value, target, err);
	case OPTION_ON_OFF:
		return set_switch(value, target, err);
	}
	return -EINVAL;
}

static int complain(const struct command *cmd, const char *what)
{
	fprintf(stderr, "postcopyctl %s: %s (see postcopyctl %s --help)\n", cmd->name, what,
	        cmd->name);
	return -EINVAL;
}

/* The words of .operand one by one against those of the command line. */
static int take_operand(const struct command *cmd, int argc, char **argv, const char **ret)
{
	const char *wanted = cmd->operand ? cmd->operand : "", *operand = NULL;
	char text[128];

	for (; *wanted; optind++) {
		int len = (int)strcspn(wanted, " ");
		bool is_value = isupper((unsigned char)*wanted);

		if (optind >= argc || (!is_value && (strncmp(argv[optind], wanted, (size_t)len) ||
		                                     argv[optind][len]))) {
			snprintf(text, sizeof text, "%.*s is missing", len, wanted);
			return complain(cmd, text);
		}
		if (is_value)
			operand = argv[optind];
		wanted += len + (wanted[len] == ' ');
	}
	if (optind < argc) {
		snprintf(text, sizeof text, "what is \"%.60s\" for?", argv[optind]);
		return complain(cmd, text);
	}
	*ret = operand;
	return 0;
}

/* The rows of all options, as getopt_long() wants them: val is the row's index. */
static size_t collect(const struct command *cmd, const struct option_spec **specs,
                      struct option *options)
{
	size_t n = 0;

	/* One that was left out would be told in --help and not be known. */
	assert(cmd->n_options + N_COMMON + 1 <= OPTIONS_MAX);
	for (size_t i = 0; i < cmd->n_options; i++)
		specs[n++] = &cmd->options[i];
	for (size_t i = 0; i < N_COMMON; i++)
		if (has_common(cmd, i))
			specs[n++] = &common_specs[i];
	specs[n++] = &help_spec;
	for (size_t i = 0; i < n; i++)
		options[i] = (struct option){
			.name = specs[i]->name,
			.has_arg = takes_value(specs[i]) ? required_argument : no_argument,
			.val = (int)i,
		};
	options[n] = (struct option){ .name = NULL };
	return n;
}

int options_parse(const struct command *cmd, int argc, char **argv, struct ctl_common *common,
                  const char **ret_operand, void *args)
{
	const struct option_spec *specs[OPTIONS_MAX];
	struct option options[OPTIONS_MAX + 1];
	char text[ERROR_TEXT_MAX + 64];
	int i;

	*common = (struct ctl_common){ .control = CTL_DEFAULT_CONTROL, .timeout_s = 30 };
	if (cmd->args_size)
		memcpy(args, cmd->defaults, cmd->args_size);
	collect(cmd, specs, options);
	optind = 0; /* start over: main() may have used getopt before */
	opterr = 0;
	while ((i = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		struct error err = ERROR_INIT;
		void *target;

		if (i == '?' || i == ':') {
			snprintf(text, sizeof text, "%s \"%.60s\"",
			         i == ':' ? "no value after" : "unknown option", argv[optind - 1]);
			return complain(cmd, text);
		}
		if (specs[i] == &help_spec) {
			print_help(cmd);
			return 1;
		}
		target = is_common(specs[i]) ? common : args;
		if (set_value(specs[i], optarg, target, &err) < 0) {
			snprintf(text, sizeof text, "--%s: %s", specs[i]->name, err.text);
			return complain(cmd, text);
		}
	}
	return take_operand(cmd, argc, argv, ret_operand);
}

int options_common_words(int argc, char **argv)
{
	size_t len = argc > 0 ? strcspn(argv[0], "=") : 0;

	for (size_t i = 0; len > 2 && i < N_COMMON; i++) {
		const struct option_spec *spec = &common_specs[i];

		if (strncmp(argv[0], "--", 2) || strlen(spec->name) != len - 2 ||
		    strncmp(argv[0] + 2, spec->name, len - 2))
			continue;
		if (argv[0][len] || !takes_value(spec))
			return 1;
		return argc > 1 ? 2 : 0;
	}
	return 0;
}

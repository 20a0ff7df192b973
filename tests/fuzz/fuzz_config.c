/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration file: whoever writes it is root, but editors, templates and disks err. */
#include "fuzz.h"

#include <string.h>

#include "postcopyd/options.h"

const unsigned int fuzz_rounds = 100000;

static char *print(const struct options *o)
{
	char *text = NULL;
	size_t len;
	FILE *to = open_memstream(&text, &len);

	options_print(o, to);
	fclose(to);
	return text;
}

static int parse(const void *data, size_t size, struct options *o, struct config_errors *errors)
{
	FILE *file = fmemopen((void *)(uintptr_t)data, size, "r");
	int rc = options_parse_file(file, "fuzz", o, errors);

	fclose(file);
	return rc;
}

/* What was accepted can be printed, and says the same again. It takes as long as three parsers. */
static void check_options(struct options *o)
{
	static struct config_errors errors;
	struct options back;
	char *first = print(o), *second;

	FUZZ_CHECK(o->tls.n_allowed_names <= OPTIONS_SANS_MAX);
	FUZZ_CHECK(o->control_groups.n <= OPTIONS_GROUPS_MAX);
	FUZZ_CHECK(o->max_streams >= 1 && o->max_streams <= OPTIONS_STREAMS_MAX);
	FUZZ_CHECK(o->max_vmstate_bytes >= 1);
	errors.n = errors.n_more = 0;
	FUZZ_CHECK(!parse(first, strlen(first), &back, &errors));
	second = print(&back);
	FUZZ_CHECK(!strcmp(first, second));
	options_deinit(&back);
	free(first);
	free(second);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	static struct config_errors errors;
	struct options o;

	if (!size)
		return 0;
	errors.n = errors.n_more = 0;
	if (parse(data, size, &o, &errors))
		FUZZ_CHECK(errors.n && !strncmp(errors.list[0].text, "fuzz:", 5));
	else if (size % 4 == 0)
		check_options(&o);
	for (size_t i = 0; i < errors.n; i++)
		FUZZ_CHECK(errors.list[i].code < 0 && *errors.list[i].text);
	options_deinit(&o);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const files[] = {
		("[control]\ncontrol = /c\ncontrol-group = a\ncontrol-group = b\n"
		 "control-listen = [::1]:1\ncontrol-allow = URI:x\n"),
		"[vmm]\nvmm=/v;x\nvmm-group : kvm ; y\nmax-vmstate = 64M\n[log]\nlog-level=debug\n",
		"# x\n\n  [stream]\n  listen = none\n\tallow-peer = \"a b\"\nbandwidth = 15K\r\n",
		"[tls]\ncert = c\nkey = k\nca = a\n[trace]\ntrace = off\ntrace-slow-us = 7\n",
		"\xef\xbb\xbf[metrics] ; m\nmetrics-listen = h:9464\nmetrics-tls = yes\n[daemon]",
	};

	if (i >= sizeof files / sizeof *files)
		return 0;
	memcpy(buf, files[i], strlen(files[i]));
	return strlen(files[i]);
}

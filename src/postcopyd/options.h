/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's command line. */
#ifndef POSTCOPYD_OPTIONS_H
#define POSTCOPYD_OPTIONS_H

#include <stdint.h>

#include "tls/tls.h"
#include "util/log.h"

struct options {
	const char *control_path;
	const char *vmm_path;
	const char *listen; /* NULL: no source here */
	struct tls_config tls;
	uint64_t max_vmstate_bytes;
	enum log_level log_level;
	int ready_fd; /* -1: nobody waits */
};

/*
 * options_parse() - read the command line; strings are borrowed from it
 *
 * Return: 0; 1 where --help or --version was asked for and printed; -EINVAL with @err set.
 */
int options_parse(int argc, char **argv, struct options *ret, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A throw-away certificate authority for the benchmark's two daemons: valid for
 * a day, made anew each time, gone with its directory.
 */
#ifndef CTL_PKI_H
#define CTL_PKI_H

#include "util/error.h"

#define PKI_CA "ca.pem"
#define PKI_SOURCE_CERT "source.pem"
#define PKI_SOURCE_KEY "source.key"
#define PKI_DESTINATION_CERT "destination.pem"
#define PKI_DESTINATION_KEY "destination.key"

/* The names (SAN URI) by which the two know each other. */
#define PKI_SOURCE_NAME "postcopy:source"
#define PKI_DESTINATION_NAME "postcopy:destination"

/*
 * pki_make() - the five files above, keys readable by their owner only
 * @dir: an existing directory
 *
 * Return: 0, or a negative errno; files that were written stay.
 */
int pki_make(const char *dir, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a Firecracker that loads a snapshot sends to the socket of mem_backend: one JSON array of
 * its regions, that nothing ends, and one descriptor, the userfaultfd.
 */
#ifndef FIRECRACKER_HANDSHAKE_H
#define FIRECRACKER_HANDSHAKE_H

#include <postcopy/postcopy.h>

#include "util/error.h"

#define HANDSHAKE_BYTES_MAX 65536

struct handshake {
	struct postcopy_region
	        regions[POSTCOPY_REGIONS_MAX]; /* by their place in the memory file */
	size_t n_regions;
};

/*
 * handshake_parse() - check and read the array
 *
 * A region's guest_phys_addr is its place in the memory file, for its real one is not told: both
 * sides go by that.
 *
 * Return: 0; -EAGAIN where the array is not whole yet; -EPROTO, -EOPNOTSUPP with @err set.
 */
int handshake_parse(const char *text, size_t len, struct handshake *ret, struct error *err);

/*
 * handshake_receive() - from a connection, blocking for 10 s at most
 * @text: HANDSHAKE_BYTES_MAX bytes, which get it as it came
 * @ret_uffd: the caller's
 */
int handshake_receive(int sock, char *text, size_t *ret_len, struct handshake *ret, int *ret_uffd,
                      struct error *err);

#endif

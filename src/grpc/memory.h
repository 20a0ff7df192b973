/* SPDX-License-Identifier: Apache-2.0 */
/* nghttp2's memory: what it has copied of a request is wiped when it gives it back. */
#ifndef GRPC_MEMORY_H
#define GRPC_MEMORY_H

#include <nghttp2/nghttp2.h>

/* Copied by nghttp2. */
extern nghttp2_mem grpc_memory;

#endif

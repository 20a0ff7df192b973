/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc/memory.h"

#include <stdlib.h>

#include "util/secret.h"

static void *on_malloc(size_t size, void *arg)
{
	(void)arg;
	return malloc(size);
}

static void *on_calloc(size_t n, size_t size, void *arg)
{
	(void)arg;
	return calloc(n, size);
}

static void *on_realloc(void *p, size_t size, void *arg)
{
	(void)arg;
	return secret_realloc(p, size);
}

static void on_free(void *p, void *arg)
{
	(void)arg;
	secret_free(p);
}

nghttp2_mem grpc_memory = {
	.malloc = on_malloc,
	.free = on_free,
	.calloc = on_calloc,
	.realloc = on_realloc,
};

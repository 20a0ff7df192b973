/* SPDX-License-Identifier: Apache-2.0 */
#include "util/secret.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

void secret_free(void *p)
{
	if (p)
		explicit_bzero(p, malloc_usable_size(p));
	free(p);
}

void *secret_realloc(void *p, size_t size)
{
	size_t have = malloc_usable_size(p);
	void *moved;

	if (p && have >= size)
		return p;
	moved = malloc(size ? size : 1);
	if (!moved)
		return NULL;
	if (p)
		memcpy(moved, p, have);
	secret_free(p);
	return moved;
}

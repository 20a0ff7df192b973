/* SPDX-License-Identifier: Apache-2.0 */
#include "mutate.h"

#include <string.h>

#include "fuzz.h"

#include "../unit/support.h"

/* Numbers at which checks end. */
static uint64_t interesting(uint64_t *random)
{
	static const uint64_t numbers[] = {
		0,         1,          63,       64,         65,         4095,       4096,
		4097,      1u << 21,   1u << 31, UINT32_MAX, 1ull << 52, 1ull << 63, INT64_MAX,
		INT32_MAX, UINT16_MAX, 127,      128,        255,        UINT64_MAX,
	};

	return numbers[random_below(random, sizeof numbers / sizeof *numbers)];
}

size_t fuzz_mutate(uint8_t *buf, size_t size, uint64_t *random)
{
	size_t at = size ? random_below(random, size) : 0;
	size_t n = 1 + random_below(random, 8);
	uint64_t number = interesting(random);

	switch (random_below(random, 6)) {
	case 0:
		if (size)
			buf[at] ^= (uint8_t)(1u << random_below(random, 8));
		return size;
	case 1:
		if (size)
			buf[at] = (uint8_t)random_next(random);
		return size;
	case 2:
		/* A number of 1, 2, 4 or 8 bytes. */
		n = 1ull << random_below(random, 4);
		if (at + n <= size)
			memcpy(buf + at, &number, n);
		return size;
	case 3:
		/* Cut the end off. */
		return at;
	case 4:
		/* Take bytes out. */
		if (at + n > size)
			return size;
		memmove(buf + at, buf + at + n, size - at - n);
		return size - n;
	default:
		/* Put bytes in: random ones, or some of its own again. */
		if (size + n > FUZZ_INPUT_MAX)
			return size;
		memmove(buf + at + n, buf + at, size - at);
		for (size_t i = 0; i < n && random_below(random, 2); i++)
			buf[at + i] = (uint8_t)random_next(random);
		return size + n;
	}
}

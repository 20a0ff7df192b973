/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a harness without libFuzzer: on files that are named, or on its fixed set of inputs. */
#include <string.h>

#include "fuzz.h"

#include "../unit/support.h"

static uint8_t input[FUZZ_INPUT_MAX];

/* On the heap with its very length, so that ASan sees a read beyond it. */
static void try_input(const uint8_t *data, size_t size)
{
	uint8_t *exact = malloc(size ? size : 1);

	if (!exact)
		abort();
	memcpy(exact, data, size);
	LLVMFuzzerTestOneInput(exact, size);
	free(exact);
}

static int try_file(const char *path)
{
	FILE *f = fopen(path, "rb");
	size_t size;

	if (!f) {
		perror(path);
		return 1;
	}
	size = fread(input, 1, sizeof input, f);
	fclose(f);
	try_input(input, size);
	return 0;
}

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

/* One small change. Return: the new length. */
static size_t mutate(uint8_t *buf, size_t size, uint64_t *random)
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

static size_t make_input(unsigned int round, unsigned int n_seeds, uint64_t *random)
{
	size_t size;

	if (round < n_seeds)
		return fuzz_seed(round, input);
	if (!n_seeds || !random_below(random, 4)) {
		size = random_below(random, 256);
		for (size_t i = 0; i < size; i++)
			input[i] = (uint8_t)random_next(random);
		return size;
	}
	size = fuzz_seed((unsigned int)random_below(random, n_seeds), input);
	for (uint64_t n = 1 + random_below(random, 6); n; n--)
		size = mutate(input, size, random);
	return size;
}

int main(int argc, char **argv)
{
	unsigned int n_seeds = 0;
	uint64_t random = 1;
	int failed = 0;

	for (int i = 1; i < argc; i++)
		failed |= try_file(argv[i]);
	if (argc > 1)
		return failed;
	while (fuzz_seed(n_seeds, input))
		n_seeds++;
	try_input(input, 0);
	for (unsigned int round = 0; round < fuzz_rounds; round++)
		try_input(input, make_input(round, n_seeds, &random));
	printf("%u inputs, %u of them whole seeds\n", fuzz_rounds, n_seeds);
	return 0;
}

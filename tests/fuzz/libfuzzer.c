/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a harness under libFuzzer. Most parsers here take less than a microsecond, and libFuzzer
 * some five to come up with an input and to look at what it has covered. So each of its inputs is
 * run with FUZZ_VARIANTS (of the environment; 31) small changes of it as well. Which ones, the
 * input alone decides: what is found, is found again. FUZZ_SAVE names a file for the one that is
 * being tried: run what libFuzzer has kept of a failure with it, and it has the very bytes
 * afterwards.
 */
#include <sanitizer/asan_interface.h>
#include <string.h>

#include "fuzz.h"

#include "../unit/support.h"
#include "mutate.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a harness may read: an input lies at its very end, and nothing before it may be touched. */
static uint8_t room[FUZZ_INPUT_MAX];

static unsigned int variants = 31;
static const char *save;
static uint64_t executions;

static void print_executions(void)
{
	printf("executions: %llu\n", (unsigned long long)executions);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *n = getenv("FUZZ_VARIANTS");

	(void)argc;
	(void)argv;
	if (n)
		variants = (unsigned int)strtoul(n, NULL, 10);
	save = getenv("FUZZ_SAVE");
	ASAN_POISON_MEMORY_REGION(room, sizeof room);
	atexit(print_executions);
	return 0;
}

static void save_input(const uint8_t *data, size_t size)
{
	FILE *f = fopen(save, "wb");

	if (f) {
		fwrite(data, 1, size, f);
		fclose(f);
	}
}

static void try_input(const uint8_t *data, size_t size)
{
	uint8_t *exact = room + sizeof room - size;

	if (save)
		save_input(data, size);
	ASAN_UNPOISON_MEMORY_REGION(exact, size);
	memcpy(exact, data, size);
	fuzz_one(exact, size);
	ASAN_POISON_MEMORY_REGION(exact, size);
	executions++;
}

static uint64_t hash(const uint8_t *data, size_t size)
{
	uint64_t state = size;

	for (size_t i = 0; i < size; i++)
		state = (state ^ data[i]) * 0x100000001b3ull;
	return state;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t changed[FUZZ_INPUT_MAX];
	uint64_t random = hash(data, size);

	if (size > FUZZ_INPUT_MAX)
		return 0;
	try_input(data, size);
	for (unsigned int i = 0; i < variants; i++) {
		size_t len = size;

		memcpy(changed, data, size);
		for (uint64_t n = 1 + random_below(&random, 3); n; n--)
			len = fuzz_mutate(changed, len, &random);
		try_input(changed, len);
	}
	return 0;
}

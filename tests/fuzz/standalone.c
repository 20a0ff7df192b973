/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a harness without libFuzzer: on files that are named, or on its corpus and a fixed set of
 * inputs. */
#include <dirent.h>
#include <string.h>

#include "fuzz.h"

#include "../unit/support.h"
#include "mutate.h"

static uint8_t input[FUZZ_INPUT_MAX];

/* On the heap with its very length, so that ASan sees a read beyond it. */
static void try_input(const uint8_t *data, size_t size)
{
	uint8_t *exact = malloc(size ? size : 1);

	if (!exact)
		abort();
	memcpy(exact, data, size);
	fuzz_one(exact, size);
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
		size = fuzz_mutate(input, size, random);
	return size;
}

/* For libFuzzer to begin with. */
static int write_seeds(const char *dir)
{
	char path[4096];
	size_t size;

	for (unsigned int i = 0; (size = fuzz_seed(i, input)); i++) {
		FILE *f;

		snprintf(path, sizeof path, "%s/seed-%u", dir, i);
		f = fopen(path, "wb");
		if (!f || fwrite(input, 1, size, f) != size || fclose(f)) {
			perror(path);
			return 1;
		}
	}
	return 0;
}

/* The files, in the order of their names. Return: 0, also where there is no such directory. */
static int try_corpus(const char *dir, unsigned int *ret_n)
{
	char path[4096];
	struct dirent **files;
	int n = scandir(dir, &files, NULL, alphasort), failed = 0;

	*ret_n = 0;
	for (int i = 0; i < n; i++) {
		if (*files[i]->d_name != '.') {
			snprintf(path, sizeof path, "%s/%s", dir, files[i]->d_name);
			failed |= try_file(path);
			++*ret_n;
		}
		free(files[i]);
	}
	if (n >= 0)
		free(files);
	return failed;
}

static int try_made(void)
{
	unsigned int n_seeds = 0;
	uint64_t random = 1;

	while (fuzz_seed(n_seeds, input))
		n_seeds++;
	try_input(input, 0);
	for (unsigned int round = 0; round < fuzz_rounds; round++)
		try_input(input, make_input(round, n_seeds, &random));
	printf("%u inputs, %u of them whole seeds\n", fuzz_rounds, n_seeds);
	return 0;
}

/* "--seeds DIR" writes them there; "--corpus DIR" is tried before what is made; else files. */
int main(int argc, char **argv)
{
	unsigned int n;
	int failed = 0;

	if (argc == 3 && !strcmp(argv[1], "--seeds"))
		return write_seeds(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "--corpus")) {
		failed = try_corpus(argv[2], &n);
		printf("%u inputs of the corpus\n", n);
		return failed | try_made();
	}
	for (int i = 1; i < argc; i++)
		failed |= try_file(argv[i]);
	return argc > 1 ? failed : try_made();
}

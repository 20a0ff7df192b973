/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzing what comes from outside.
 *
 * Each fuzz_*.c is one parser, or a few that belong together. Built twice: by clang with libFuzzer
 * (libfuzzer.c; meson option "fuzz"), to run for as long as one likes; and always with
 * standalone.c, which feeds it the corpus (corpus/NAME) and a fixed set of inputs: random ones,
 * and good ones that were changed a little. So each run of the tests fuzzes some, and the same each
 * time.
 *
 * A harness does not only wait for the sanitizers: what a decoder has accepted must keep its
 * promises, which it checks with FUZZ_CHECK().
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define FUZZ_INPUT_MAX 32768u

/* Inputs that standalone.c tries; defined by each harness. */
extern const unsigned int fuzz_rounds;

/* Where a promise is broken. */
#define FUZZ_CHECK(condition)                                                                      \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* One input. Return: 0. */
int fuzz_one(const uint8_t *data, size_t size);

/*
 * fuzz_seed() - a good input to begin mutations with
 * @buf: FUZZ_INPUT_MAX bytes
 *
 * Return: its length; 0 where there is no seed @i.
 */
size_t fuzz_seed(unsigned int i, uint8_t *buf);

#endif

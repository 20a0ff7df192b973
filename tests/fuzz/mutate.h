/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_FUZZ_MUTATE_H
#define TESTS_FUZZ_MUTATE_H

#include <stddef.h>
#include <stdint.h>

/*
 * fuzz_mutate() - one small change
 * @buf: FUZZ_INPUT_MAX bytes
 * @random: of tests/unit/support.h
 *
 * Return: the new length.
 */
size_t fuzz_mutate(uint8_t *buf, size_t size, uint64_t *random);

#endif

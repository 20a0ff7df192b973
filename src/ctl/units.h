/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers as people write and read them.
 *
 * The text_*() functions return their buffer by value, so that one printf() may
 * take several: printf("%s of %s", text_count(a).s, text_bytes(b).s).
 */
#ifndef CTL_UNITS_H
#define CTL_UNITS_H

#include <stdint.h>

#include "util/error.h"

struct text {
	char s[48];
};

/* 262144 -> "262,144" */
struct text text_count(uint64_t n);

/* Bytes in the largest binary unit that leaves at least 1: "1.0 GiB". */
struct text text_bytes(double bytes);

/* A duration in the unit in which it reads best: "83 µs", "1.23 ms", "4.5 s". */
struct text text_duration(double us);

/* From one to the other, as people say it: "30-55 s", "about 40 s" where both are the same. */
struct text text_duration_range(double low_us, double high_us);

/* As text_count() for large values, with one digit after the point for small ones. */
struct text text_number(double v);

/* With blanks after it up to @columns; printf() counts bytes, of which "µ" has two. */
struct text text_pad(struct text t, unsigned int columns);

/* How many columns of a terminal a line of text takes: no byte of ours takes two. */
unsigned int text_columns(const char *text);

/* Cut a line, in place, so that it takes @columns at most. */
void text_cut(char *text, unsigned int columns);

/*
 * parse_size() - "4096", "512M", "1G", "2GiB": bytes, with binary suffixes K, M, G, T
 *
 * Return: 0, or -EINVAL where it isn't a size or doesn't fit in 64 bits.
 */
int parse_size(const char *text, uint64_t *ret, struct error *err);

/* A plain decimal number within [min, max]. Return: 0, -EINVAL or -ERANGE. */
int parse_uint(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct error *err);

#endif

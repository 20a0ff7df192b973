/* SPDX-License-Identifier: Apache-2.0 */
#include "util/utf8.h"

#include <stdint.h>
#include <string.h>

/* The bytes of the character at @p, 0 where there is none. No overlong forms, no surrogates. */
static size_t character_len(const uint8_t *p, size_t len)
{
	static const struct {
		uint8_t first_min, first_max, second_min, second_max;
		size_t len;
	} forms[] = {
		{ 0x00, 0x7f, 0x00, 0xff, 1 }, { 0xc2, 0xdf, 0x80, 0xbf, 2 },
		{ 0xe0, 0xe0, 0xa0, 0xbf, 3 }, { 0xe1, 0xec, 0x80, 0xbf, 3 },
		{ 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
		{ 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 },
		{ 0xf4, 0xf4, 0x80, 0x8f, 4 },
	};

	for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
		if (*p < forms[i].first_min || *p > forms[i].first_max)
			continue;
		if (forms[i].len > len)
			return 0;
		if (forms[i].len > 1 && (p[1] < forms[i].second_min || p[1] > forms[i].second_max))
			return 0;
		for (size_t j = 2; j < forms[i].len; j++)
			if ((p[j] & 0xc0) != 0x80)
				return 0;
		return forms[i].len;
	}
	return 0;
}

size_t utf8_valid_len(const char *text, size_t len)
{
	size_t pos = 0, step;

	while (pos < len && (step = character_len((const uint8_t *)text + pos, len - pos)))
		pos += step;
	return pos;
}

void utf8_clean(char *text)
{
	size_t len = strlen(text), pos = 0;

	while ((pos += utf8_valid_len(text + pos, len - pos)) < len)
		text[pos++] = '?';
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into a program: when it ends, is a secret still in its memory? SCAN_SECRET is the
 * secret in hex digits, each byte's bits inverted, so that the environment is no place where it is
 * found. SCAN_REPORT is a file that gets a line for each place.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECRET_BYTES 32
#define PART_BYTES 16

static unsigned char inverted[SECRET_BYTES];

static int is_here(const unsigned char *at, size_t from)
{
	for (size_t i = 0; i < PART_BYTES; i++)
		if (at[i] != (unsigned char)~inverted[from + i])
			return 0;
	return 1;
}

static void scan(const char *line, const unsigned char *from, const unsigned char *to, FILE *report)
{
	for (const unsigned char *at = from; at + PART_BYTES <= to; at++)
		if (is_here(at, 0) || is_here(at, SECRET_BYTES - PART_BYTES))
			fprintf(report, "%p in %s", (const void *)at, line);
}

__attribute__((destructor)) static void at_end(void)
{
	const char *hex = getenv("SCAN_SECRET"), *path = getenv("SCAN_REPORT");
	FILE *maps = fopen("/proc/self/maps", "r"), *report = fopen(path ? path : "/dev/null", "w");
	unsigned long from, to;
	char line[512], mode[5];

	if (!hex || !maps || !report)
		abort();
	for (size_t i = 0; i < SECRET_BYTES; i++)
		sscanf(hex + 2 * i, "%2hhx", &inverted[i]);
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx %4s", &from, &to, mode) == 3 && !strncmp(mode, "rw", 2))
			scan(line, (const unsigned char *)from, (const unsigned char *)to, report);
	fputs("done\n", report);
	fclose(report);
	fclose(maps);
}

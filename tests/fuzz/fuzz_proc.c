/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What /proc says: of a VMM's mappings, in which the names of files are of its choice, and of
 * descriptors. The first byte chooses which.
 */
#include "fuzz.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "mem/descriptor.h"
#include "util/fdinfo.h"
#include "util/maps.h"

#define START 0x7f0000000000ull
#define END 0x7f0000200000ull
#define INO 1234u

const unsigned int fuzz_rounds = 100000;

static void check_maps(const uint8_t *data, size_t size)
{
	FILE *f = fmemopen((void *)(uintptr_t)data, size, "r");
	uint64_t addr = 0;
	int rc = maps_search(f, START, END, makedev(0, 1), INO, &addr);

	FUZZ_CHECK(rc == 0 || rc == -ENOENT);
	if (!rc) {
		/* In the range, and of a mapping that is said to be private. */
		FUZZ_CHECK(addr >= START && addr < END && memchr(data, 'p', size));
	} else {
		FUZZ_CHECK(!addr);
	}
	fclose(f);
}

static void check_text(const uint8_t *data, size_t size)
{
	char text[1024];
	uint64_t features = 0;

	if (size >= sizeof text)
		return;
	memcpy(text, data, size);
	text[size] = 0;
	if (fdinfo_parse_features(text, &features))
		FUZZ_CHECK(strstr(text, "\nAPI:\taa:"));
	if (descriptor_names_mem(text)) {
		size_t len = strlen(text);

		FUZZ_CHECK(len >= 6 && !strcmp(text + len - 4, "/mem"));
		FUZZ_CHECK(isdigit((unsigned char)text[len - 5]) && memchr(text, '/', len - 5));
	}
}

int fuzz_one(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	if (data[0] & 1)
		check_maps(data + 1, size - 1);
	else
		check_text(data + 1, size - 1);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const seeds[] = {
		("\1"
		 "7f0000000000-7f0000200000 rw-p 00000000 00:01 1234    /memfd:guest (deleted)\n"
		 "7f0000300000-7f0000400000 rw-s 00001000 00:01 1234    /memfd:guest (deleted)\n"),
		("\1"
		 "7efff0000000-7f0000100000 r--s 00000000 00:01 1234    /memfd:p\\0127f00 "
		 "(deleted)\n"
		 "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]\n"),
		("\2"
		 "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1057\npending:\t0\ntotal:\t0\n"
		 "API:\taa:4ff:1ff\n"),
		"\2/proc/4711/mem",
		"\2/mnt/proc/1/task/1/mem",
	};

	if (i >= sizeof seeds / sizeof *seeds)
		return 0;
	memcpy(buf, seeds[i], strlen(seeds[i]));
	return strlen(seeds[i]);
}

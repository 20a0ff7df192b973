/* SPDX-License-Identifier: Apache-2.0 */
/* The handshake by which a Firecracker says what its memory is. */
#include "fuzz.h"

#include <errno.h>
#include <string.h>

#include "firecracker/handshake.h"

const unsigned int fuzz_rounds = 50000;

int fuzz_one(const uint8_t *data, size_t size)
{
	struct error err = ERROR_INIT;
	struct handshake h;
	uint64_t end = 0;
	int rc = handshake_parse((const char *)data, size, &h, &err);

	FUZZ_CHECK(rc <= 0 && (!rc || rc == -EAGAIN || *err.text));
	if (rc)
		return 0;
	FUZZ_CHECK(h.n_regions && h.n_regions <= POSTCOPY_REGIONS_MAX);
	for (size_t i = 0; i < h.n_regions; i++) {
		const struct postcopy_region *r = &h.regions[i];

		FUZZ_CHECK(r->guest_phys_addr == end && r->size && !(r->size % r->page_size));
		FUZZ_CHECK(!((uintptr_t)r->host_addr % r->page_size) && r->host_addr);
		end += r->size;
		FUZZ_CHECK(end <= INT64_MAX);
	}
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const seeds[] = {
		"[{\"base_host_virt_addr\":140658903875584,\"size\":134217728,\"offset\":0,"
		"\"page_size\":4096,\"page_size_kib\":4096}]",
		"[{\"base_host_virt_addr\":140658903875584,\"size\":2097152,\"offset\":4194304,"
		"\"page_size\":2097152},{\"base_host_virt_addr\":140659977617408,\"size\":4194304,"
		"\"offset\":0,\"page_size\":2097152}]",
		"[{\"size\":",
	};

	if (i >= sizeof seeds / sizeof *seeds)
		return 0;
	memcpy(buf, seeds[i], strlen(seeds[i]));
	return strlen(seeds[i]);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* minivmm's vmstate: its own format, which comes over the stream like any VMM's. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "minivmm/vmstate.h"

const unsigned int fuzz_rounds = 100000;

int fuzz_one(const uint8_t *data, size_t size)
{
	struct postcopy_error err = { .code = 0 };
	static struct vmstate s;
	uint64_t len;
	void *back;

	if (vmstate_decode(data, size, &s, &err)) {
		FUZZ_CHECK(err.code < 0 && *err.text);
		return 0;
	}
	FUZZ_CHECK(s.boot.vcpus && s.boot.vcpus <= GUEST_VCPUS_MAX);
	FUZZ_CHECK(s.boot.memory_bytes <= GUEST_MEMORY_MAX);
	FUZZ_CHECK(s.boot.data_start + s.boot.data_pages * GUEST_PAGE_BYTES <= s.boot.memory_bytes);
	for (size_t i = 0; i < sizeof s.spare; i++)
		FUZZ_CHECK(s.spare[i] < SPARE_STATES);
	FUZZ_CHECK(s.boot.workload < GUEST_WORKLOADS && s.pad_bytes < size);
	FUZZ_CHECK(!vmstate_encode(&s, &back, &len, &err));
	FUZZ_CHECK(len == size && !memcmp(back, data, size));
	free(back);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static struct vmstate s;
	struct postcopy_error err;
	uint64_t len;
	void *data;

	if (i >= 3)
		return 0;
	s.boot.memory_bytes = 256ull << 20;
	s.boot.data_start = 16ull << 20;
	s.boot.data_pages = (s.boot.memory_bytes - s.boot.data_start) / GUEST_PAGE_BYTES;
	s.boot.vcpus = 1 + i;
	s.boot.seed = i;
	s.pad_bytes = 7 * i;
	s.vcpus[0].regs.rip = s.vcpus[0].sregs.cr3 = 0x123456789abcdefull;
	FUZZ_CHECK(!vmstate_encode(&s, &data, &len, &err) && len <= FUZZ_INPUT_MAX);
	memcpy(buf, data, len);
	free(data);
	return len;
}

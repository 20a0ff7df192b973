/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small records between a VMM and the daemon: requests and answers of fetch channels, and the
 * list of poisoned ranges that a source VMM hands over in a sealed memfd. The first byte chooses.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libpostcopy/fetch_wire.h"
#include "libpostcopy/poison_wire.h"
#include "stream/poison_list.h"

const unsigned int fuzz_rounds = 50000;

static void check_channel(const uint8_t *data, size_t size)
{
	uint8_t back[FETCH_REQUEST_BYTES_MAX];
	struct fetch_request request;
	struct fetch_answer answer;

	if (fetch_request_decode(data, size, &request)) {
		FUZZ_CHECK(request.tag < FETCH_TAG_AGAIN);
		FUZZ_CHECK(fetch_request_encode(&request, back) == size &&
		           !memcmp(back, data, size));
	}
	if (fetch_answer_decode(data, size, &answer)) {
		fetch_answer_encode(&answer, back);
		FUZZ_CHECK(size == FETCH_ANSWER_BYTES && !memcmp(back, data, size));
	}
}

static const struct region_table *table(void)
{
	static struct region_table made;

	for (uint64_t i = made.n; i < 2; i++) {
		struct region r = { .memory = POSTCOPY_MEMORY_MEMFD,
			            .guest_phys_addr = i << 30,
			            .size = 200 * UNIT_BYTES,
			            .page_size = UNIT_BYTES };

		FUZZ_CHECK(!region_table_add(&made, &r, NULL));
	}
	return &made;
}

/* Each unit is poisoned once, and in guest memory. */
static void check_units(const struct poison_list *list)
{
	uint64_t units = 0;

	for (uint32_t region = 0; region < table()->n; region++)
		for (uint64_t word = 0; word < table()->regions[region].words; word++) {
			uint64_t mask = poison_list_mask(list, region, word);

			FUZZ_CHECK(!(mask & ~region_word_mask(&table()->regions[region], word)));
			units += (uint64_t)__builtin_popcountll(mask);
		}
	FUZZ_CHECK(units == poison_list_units(list) && units);
}

static void check_list(int rc, const struct poison_list *list, const struct error *err)
{
	if (!rc)
		check_units(list);
	else
		FUZZ_CHECK(err->code == rc && *err->text && !list);
}

static void check_records(const uint8_t *data, size_t size)
{
	struct poison_list *list = NULL;
	struct error err = ERROR_INIT;
	size_t n = size / POISON_RECORD_BYTES;
	int rc;

	if (!n)
		return;
	/* Its end is the end of the input. */
	data += size % POISON_RECORD_BYTES;
	rc = poison_list_parse(table(), data, n, &list, &err);
	check_list(rc, list, &err);
	poison_list_free(list);
}

static void check_memfd(const uint8_t *data, size_t size, int seals)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;
	struct poison_list *list = NULL;
	struct error err = ERROR_INIT;

	FUZZ_CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	FUZZ_CHECK(!fcntl(fd, F_ADD_SEALS, seals));
	rc = poison_list_read(table(), fd, &list, &err);
	FUZZ_CHECK(rc || seals == (F_SEAL_WRITE | F_SEAL_SHRINK));
	check_list(rc, list, &err);
	poison_list_free(list);
	close(fd);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	/* A memfd costs more than a hundred lists: some go the whole way. */
	if (data[0] == 'm')
		check_memfd(data + 1, size - 1, F_SEAL_WRITE | F_SEAL_SHRINK);
	else if (data[0] == 's')
		check_memfd(data + 1, size - 1, F_SEAL_SHRINK);
	else if (data[0] & 1)
		check_records(data + 1, size - 1);
	else
		check_channel(data + 1, size - 1);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	struct fetch_request request = { .tag = 7, .guest_phys_addr = 1 << 30, .len = 4096 };
	struct fetch_answer answer = { .tag = 7, .code = EIO };
	struct poison_record record = { .len = 8 * UNIT_BYTES };

	*buf++ = i < 3 || i == 7 ? 0 : i < 5 ? 1 : i == 5 ? 'm' : 's';
	switch (i) {
	case 0:
	case 1:
		request.discard = i;
		return 1 + fetch_request_encode(&request, buf);
	case 2:
		fetch_answer_encode(&answer, buf);
		return 1 + FETCH_ANSWER_BYTES;
	case 3:
	case 4:
	case 5:
	case 6:
		for (uint32_t n = 0; n < i; n++, buf += POISON_RECORD_BYTES) {
			record.region = n / 3;
			record.offset = 64 * (uint64_t)(n % 3) * UNIT_BYTES;
			poison_record_encode(&record, buf);
		}
		return 1 + i * POISON_RECORD_BYTES;
	case 7:
		request.hot = true;
		return 1 + fetch_request_encode(&request, buf);
	default:
		return 0;
	}
}

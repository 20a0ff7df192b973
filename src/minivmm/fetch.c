/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/fetch.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "minivmm/fail.h"
#include "minivmm/image.h"
#include "minivmm/kvm_abi.h"
#include "minivmm/userfault.h"

#define ANSWER_TIMEOUT_MS 30000
#define PAGES_MAX (POSTCOPY_FETCH_MAX / GUEST_PAGE_BYTES)

/* Without touching the pages, which would fetch them by a fault. */
static int check_in_place(const struct session *s, uint64_t addr, uint64_t len,
                          struct postcopy_error *err)
{
	unsigned char resident[PAGES_MAX];

	if (mincore((char *)s->vm.memory.addr + addr, len, resident))
		return fail_errno(err, -errno, "mincore of fetched pages at %#llx",
		                  (unsigned long long)addr);
	for (uint64_t i = 0; i < len / GUEST_PAGE_BYTES; i++)
		if (!(resident[i] & 1))
			return fail(err, -EIO,
			            "the page at %#llx was answered for, but is not there",
			            (unsigned long long)(addr + i * GUEST_PAGE_BYTES));
	return 0;
}

/* Only after the answer: KVM would make an absent page of guest_memfd a zero one. */
static int prefault(struct session *s, uint64_t addr, uint64_t len, struct postcopy_error *err)
{
	struct kvm_pre_fault_memory range = { .gpa = addr, .size = len };

	if (ioctl(s->vm.vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		return 0;
	while (range.size) {
		uint64_t before = range.size;
		int rc = ioctl(s->vm.vcpus[0].fd, KVM_PRE_FAULT_MEMORY, &range) ? -errno : 0;

		s->prefaulted += (before - range.size) / GUEST_PAGE_BYTES;
		if (rc == -EOPNOTSUPP) /* known, but not with this processor's page tables */
			return 0;
		if (rc && rc != -EINTR && rc != -EAGAIN)
			return fail_errno(err, rc, "KVM_PRE_FAULT_MEMORY at %#llx",
			                  (unsigned long long)range.gpa);
	}
	return 0;
}

static int take(struct session *s, uint64_t addr, uint64_t len, struct postcopy_error *err)
{
	int rc = check_in_place(s, addr, len, err);

	s->fetched += len / GUEST_PAGE_BYTES;
	if (!rc)
		userfault_present(&s->vm, addr, len);
	return rc ? rc : prefault(s, addr, len, err);
}

static int fetch_range(struct session *s, struct postcopy_channel *ch, struct image_range r,
                       struct postcopy_error *err)
{
	int rc = 0;

	while (!rc && r.len) {
		uint64_t len = r.len < POSTCOPY_FETCH_MAX ? r.len : POSTCOPY_FETCH_MAX;

		rc = postcopy_channel_fetch(ch, r.start, len, ANSWER_TIMEOUT_MS, err);
		if (!rc)
			rc = take(s, r.start, len, err);
		r.start += len;
		r.len -= len;
	}
	return rc;
}

/* The tag is the page's address. */
static int take_answer(struct session *s, struct postcopy_channel *ch, struct postcopy_error *err)
{
	uint64_t addr;
	int result;
	int rc = postcopy_channel_next(ch, ANSWER_TIMEOUT_MS, &addr, &result, err);

	if (!rc && result)
		rc = fail_errno(err, result, "the page at %#llx can't be fetched",
		                (unsigned long long)addr);
	return rc ? rc : take(s, addr, GUEST_PAGE_BYTES, err);
}

static int fetch_random(struct session *s, struct postcopy_channel *ch, struct postcopy_error *err)
{
	uint64_t asked = 0, answered = 0, n = s->options.fetch_pages;
	int rc = 0;

	while (!rc && answered < n) {
		uint64_t page = guest_mix(s->boot.seed + asked) % s->boot.data_pages;
		uint64_t addr = s->boot.data_start + page * GUEST_PAGE_BYTES;

		if (asked < n && asked - answered < POSTCOPY_ASKS_MAX) {
			rc = postcopy_channel_ask(ch, addr, GUEST_PAGE_BYTES, addr, err);
			asked++;
		} else {
			rc = take_answer(s, ch, err);
			answered++;
		}
	}
	return rc;
}

int fetch_ahead(struct session *s, struct postcopy_channel *ch, struct postcopy_error *err)
{
	struct image_range needed[IMAGE_NEEDED_MAX];
	unsigned int n = image_needed(&s->boot, needed);
	int rc = 0;

	for (unsigned int i = 0; !rc && i < n; i++)
		rc = fetch_range(s, ch, needed[i], err);
	return rc ? rc : fetch_random(s, ch, err);
}

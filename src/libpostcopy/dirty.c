/* SPDX-License-Identifier: Apache-2.0 */
/* The source's dirty log: how the daemon learns what a guest writes that still runs here. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libpostcopy/attachment.h"
#include "libpostcopy/internal.h"
#include "libpostcopy/uffd.h"
#include "util/cleanup.h"
#include "util/pidfd.h"

#define UNIT_BYTES 4096u
#define WORD_BITS 64u

static uint64_t words_of(const struct postcopy_region *r)
{
	return (r->size / UNIT_BYTES + WORD_BITS - 1) / WORD_BITS;
}

/* Not too late: what a guest that was stopped has written is written. */
static int check_can_offer(const struct postcopy *p, const char *call, struct error *err)
{
	if (p->role != VMM_WIRE_SOURCE)
		return error_set(err, -EINVAL, "%s() is for a source", call);
	if (p->state != STATE_RUNNING)
		return error_set(err, -EINVAL, "%s() comes too late: the guest is stopped", call);
	if (!p->n_regions)
		return error_set(err, -EINVAL,
		                 "%s(): who has attached again does not know the regions; what "
		                 "was offered before to write-protect them holds",
		                 call);
	return 0;
}

/* One bit a page, and a word more, which is the daemon's. */
static int make_bitmap(struct postcopy *p, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = memfd_create("postcopy-dirty", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint64_t words = 1;
	void *at;

	for (size_t i = 0; i < p->n_regions; i++)
		words += words_of(&p->regions[i]);
	p->dirty.bytes = words * sizeof(uint64_t);
	if (fd < 0 || ftruncate(fd, (off_t)p->dirty.bytes) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		return error_errno(err, -errno, "can't make a dirty bitmap of %zu bytes",
		                   p->dirty.bytes);
	at = mmap(NULL, p->dirty.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return error_errno(err, -errno, "can't map a dirty bitmap of %zu bytes",
		                   p->dirty.bytes);
	p->dirty.bitmap = at;
	*ret_fd = steal_fd(&fd);
	return 0;
}

void dirty_release(struct postcopy *p)
{
	if (p->dirty.bitmap)
		munmap(p->dirty.bitmap, p->dirty.bytes);
	p->dirty.bitmap = NULL;
}

/* What is poisoned must not be read for zeroes while the guest runs. It is said again at the pause.
 */
static int say_poisoned_early(struct postcopy *p, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_POISONED };

	return p->poison_fd < 0 ? 0 : send_message(p, &msg, &p->poison_fd, 1, err);
}

static int offer_dirty_log(struct postcopy *p, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_DIRTY_LOG, .how = VMM_WIRE_LOG_BY_VMM };
	_cleanup_close_ int fd = -1;
	int rc = check_can_offer(p, "postcopy_source_offer_dirty_log", err);

	if (!rc && p->dirty.bitmap)
		rc = error_set(err, -EINVAL, "the dirty log was offered already");
	if (!rc)
		rc = make_bitmap(p, &fd, err);
	if (!rc)
		rc = say_poisoned_early(p, err);
	if (!rc)
		rc = send_message(p, &msg, &fd, 1, err);
	if (rc && fd >= 0)
		dirty_release(p);
	return rc;
}

int postcopy_source_offer_dirty_log(struct postcopy *p, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, offer_dirty_log(p, &e), &e);
}

uint64_t *postcopy_source_dirty_bitmap(struct postcopy *p, size_t region, size_t *ret_words)
{
	uint64_t *at = p->dirty.bitmap;

	for (size_t i = 0; at && i < p->n_regions; i++) {
		if (p->place[i] == region) {
			*ret_words = words_of(&p->regions[i]);
			return at;
		}
		at += words_of(&p->regions[i]);
	}
	return NULL;
}

static int refuse_dirty_log(struct postcopy *p, const char *reason, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_DIRTY_LOG, .how = VMM_WIRE_LOG_NONE };
	int rc = check_can_offer(p, "postcopy_source_refuse_dirty_log", err);

	snprintf(msg.text, sizeof msg.text, "%s", reason ? reason : "no reason given");
	return rc ? rc : send_message(p, &msg, NULL, 0, err);
}

int postcopy_source_refuse_dirty_log(struct postcopy *p, const char *reason,
                                     struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, refuse_dirty_log(p, reason, &e), &e);
}

/* Who writes where a write-protected mapping does not show it. Return: 0, or -EOPNOTSUPP. */
static int check_writers(uint32_t writers, struct error *err)
{
	static const struct {
		uint32_t flag;
		const char *what;
	} known[] = {
		{ POSTCOPY_WRITER_DESCRIPTOR, "the VMM writes by the memory's descriptor" },
		{ POSTCOPY_WRITER_PROCESS, "another process (vhost-user) maps guest memory" },
		{ POSTCOPY_WRITER_DEVICE, "a device (VFIO, vDPA) writes to guest memory" },
		{ POSTCOPY_WRITER_PINNED,
		  "the kernel writes to pinned pages of guest memory (O_DIRECT, io_uring, RDMA)" },
		{ POSTCOPY_WRITER_DISCARD, "pages of shared memory are discarded (balloon)" },
	};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (writers & known[i].flag)
			return error_set(err, -EOPNOTSUPP,
			                 "%s, which write protection of the VMM's mapping does not "
			                 "see",
			                 known[i].what);
	return 0;
}

/* Its vCPUs write past it. */
static int check_not_bound(const struct postcopy *p, struct error *err)
{
	for (size_t i = 0; i < p->n_regions; i++)
		if (p->regions[i].flags & POSTCOPY_REGION_BOUND)
			return error_set(err, -EOPNOTSUPP,
			                 "region %u: its memslot is bound to guest_memfd, whose "
			                 "vCPUs write past the mapping that would be "
			                 "write-protected",
			                 p->place[i]);
	return 0;
}

static int open_pagemap(const struct postcopy *p, int *ret_fd, struct error *err)
{
	char path[64];

	if (p->vmm)
		snprintf(path, sizeof path, "/proc/%d/pagemap", (int)p->vmm);
	else
		snprintf(path, sizeof path, "/proc/self/pagemap");
	*ret_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (*ret_fd < 0)
		return error_errno(err, -errno, "can't open %s", path);
	/* While it has not ended the number is its own. */
	return p->vmm && pidfd_has_ended(p->pidfd) ? error_set(err, -ESRCH, "the VMM has ended")
	                                           : 0;
}

/* @uffd: borrowed; -1: it is made here. */
static int offer_write_protection(struct postcopy *p, int uffd, uint32_t writers, struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_DIRTY_LOG, .how = VMM_WIRE_LOG_BY_KERNEL };
	_cleanup_close_ int own = -1, pagemap = -1;
	int rc = check_can_offer(p, "postcopy_source_offer_write_protection", err);

	if (rc)
		return rc;
	if (p->vmm && uffd < 0)
		return error_set(err, -EINVAL,
		                 "no userfaultfd: only the VMM's own process can make one for its "
		                 "memory");
	rc = check_writers(writers, err);
	if (!rc)
		rc = check_not_bound(p, err);
	if (!rc)
		rc = uffd < 0 ? uffd_open_to_log(&own, err) : uffd_adopt_to_log(uffd, err);
	if (!rc)
		rc = open_pagemap(p, &pagemap, err);
	if (!rc)
		rc = say_poisoned_early(p, err);
	if (!rc)
		return send_message(p, &msg, (int[]){ uffd < 0 ? own : uffd, pagemap }, 2, err);
	/* Whoever wants the guest warm reads why it can't be. */
	(void)refuse_dirty_log(p, err->text, NULL);
	return rc;
}

int postcopy_source_offer_write_protection(struct postcopy *p, int uffd, uint32_t writers,
                                           struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, offer_write_protection(p, uffd, writers, &e), &e);
}

void dirty_note(struct postcopy *p, const struct vmm_wire_msg *msg)
{
	if (msg->type == VMM_WIRE_LOG_STOP) {
		p->dirty.logging = p->dirty.asked = false;
	} else if (msg->type == VMM_WIRE_LOG_START || msg->type == VMM_WIRE_LOG_HARVEST) {
		p->dirty.logging = true;
		p->dirty.asked = true;
		p->dirty.number = msg->number;
	} else if (msg->type == VMM_WIRE_PAUSE) {
		p->dirty.last_is_in = false;
	}
}

static int say_harvested(struct postcopy *p, uint64_t number, int code, const char *text,
                         struct error *err)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_HARVESTED,
		                    .number = number,
		                    .code = (uint32_t)code };

	snprintf(msg.text, sizeof msg.text, "%s", text);
	return send_message(p, &msg, NULL, 0, err);
}

int dirty_say_none(struct postcopy *p, const struct vmm_wire_msg *msg, struct error *err)
{
	return say_harvested(p, msg->number, ENODATA,
	                     "the VMM's adapter has attached again, and its dirty log is lost",
	                     err);
}

static int dirty_answer(struct postcopy *p, int code, const char *text, struct error *err)
{
	int rc;

	if (p->state == STATE_STOPPING && p->dirty.logging) {
		p->dirty.last_is_in = !code;
		return 0;
	}
	/* It was told to stop since, or the guest was stopped. */
	if (!p->dirty.asked)
		return 0;
	rc = say_harvested(p, p->dirty.number, code, text, err);
	if (!rc)
		p->dirty.asked = false;
	return rc;
}

int postcopy_source_dirty_reported(struct postcopy *p, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, dirty_answer(p, 0, "", &e), &e);
}

int postcopy_source_dirty_failed(struct postcopy *p, const char *reason, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(
	        err, dirty_answer(p, ECANCELED, reason ? reason : "no reason given", &e), &e);
}

int dirty_check_last(const struct postcopy *p, struct error *err)
{
	if (!p->dirty.logging || p->dirty.last_is_in)
		return 0;
	return error_set(err, -EINVAL,
	                 "what the guest wrote before it was stopped is to be reported first: "
	                 "postcopy_source_dirty_reported()");
}

void dirty_end(struct postcopy *p)
{
	p->dirty.logging = p->dirty.asked = false;
}

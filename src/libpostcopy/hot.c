/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a destination's VMM knows its guest to need soon: a hint, over a channel of its own.
 *
 * Of its own, for a daemon that knows no such hint closes the channel by which it comes. Whatever
 * becomes of a hint the guest gets all of its pages: so nothing that the daemon does about it is an
 * error here.
 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libpostcopy/attachment.h"
#include "libpostcopy/fetch_wire.h"
#include "libpostcopy/internal.h"
#include "util/cleanup.h"

#define HOT_ALIGN 4096u

/* Who has attached again does not know its regions: the daemon does, and leaves out what is none.
 */
static int check_range(const struct postcopy *p, uint64_t addr, uint64_t len, struct error *err)
{
	bool found = !p->n_regions;

	for (size_t i = 0; i < p->n_regions && !found; i++) {
		const struct postcopy_region *r = &p->regions[i];

		found = addr >= r->guest_phys_addr && addr - r->guest_phys_addr < r->size &&
		        len <= r->size - (addr - r->guest_phys_addr);
	}
	if (len && found && !((addr | len) % HOT_ALIGN))
		return 0;
	return error_set(err, -EINVAL,
	                 "%#llx bytes at %#llx can't be hot: give multiples of %u, within one "
	                 "region",
	                 (unsigned long long)len, (unsigned long long)addr, HOT_ALIGN);
}

/* Return: 0; 1 where every page is here already; or -errno with @err set. */
static int open_once(struct postcopy *p, struct error *err)
{
	_cleanup_close_ int ours = -1, theirs = -1;
	int pair[2], rc;

	if (p->hot_sock >= 0)
		return 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return error_errno(err, -errno, "can't create a channel for hints");
	ours = pair[0];
	theirs = pair[1];
	rc = give_channel(p, theirs, err);
	if (!rc)
		p->hot_sock = steal_fd(&ours);
	return rc;
}

static int say_hot(struct postcopy *p, uint64_t addr, uint64_t len, struct error *err)
{
	struct fetch_request q = { .guest_phys_addr = addr, .len = len, .hot = true };
	uint8_t buf[FETCH_REQUEST_BYTES_MAX];
	size_t n = fetch_request_encode(&q, buf);
	int rc = check_range(p, addr, len, err);

	if (!rc)
		rc = open_once(p, err);
	if (rc)
		return rc < 0 ? rc : 0;
	/* Nobody takes it, or has room for it: then it is not known, and that is all. */
	(void)!send(p->hot_sock, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	return 0;
}

int postcopy_destination_hot(struct postcopy *p, uint64_t guest_phys_addr, uint64_t len,
                             struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, say_hot(p, guest_phys_addr, len, &e), &e);
}

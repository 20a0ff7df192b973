/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The userfaultfd's ioctls, with their errors sorted in one place.
 *
 * The descriptor was made by the VMM, in whose address space the addresses are; we
 * hold a copy.
 */
#ifndef FAULT_UFFD_H
#define FAULT_UFFD_H

#include <stdbool.h>
#include <stdint.h>

#include "util/error.h"

/*
 * uffd_check() - is that a userfaultfd, and fit for a guest?
 * @claimed: features that its sender says it has
 * @foreign: of a VMM that knows nothing of postcopyd: REMOVE alone will do, for it neither unmaps
 *           nor moves guest memory; what it unmaps all the same never comes
 *
 * By what the kernel alone can say of a descriptor. Events are needed, or what the VMM unmaps,
 * moves and discards would not be known. From here on it does not block.
 *
 * Return: 0; -EINVAL with @err set.
 */
int uffd_check(int fd, uint64_t claimed, bool foreign, struct error *err);

/* Only whether it is one: of a guest that runs already nothing else matters. */
int uffd_check_kind(int fd, struct error *err);

/* Whoever shares the description may have changed that: poll() says POLLERR then. */
void uffd_set_nonblocking(int fd);

/* What became of a range. Negative values are unexpected errnos. */
enum uffd_result {
	UFFD_DONE = 0,     /* all of it */
	UFFD_AGAIN = 1,    /* the VMM is changing its mappings: its event must be read first */
	UFFD_EXISTS = 2,   /* a page at the front is mapped (or there) already */
	UFFD_ABSENT = 3,   /* CONTINUE: no page at the front to map */
	UFFD_UNMAPPED = 4, /* nothing registered at the front any more */
	UFFD_VMM_GONE = 5, /* the process has exited */
};

/*
 * Each works from the front; *@ret_done says how many bytes were done before it stopped.
 * Waiting threads of what was done are woken.
 *
 * Return: an enum uffd_result, or a negative errno.
 */
int uffd_continue(int uffd, uint64_t addr, uint64_t len, uint64_t *ret_done);
int uffd_copy(int uffd, uint64_t addr, const void *from, uint64_t len, uint64_t *ret_done);
int uffd_zeropage(int uffd, uint64_t addr, uint64_t len, uint64_t *ret_done);

/* As uffd_zeropage(), but who touches a page gets SIGBUS. Linux 6.6: else -EINVAL, -ENOTTY. */
int uffd_poison(int uffd, uint64_t addr, uint64_t len, uint64_t *ret_done);

/* Have all threads that wait in a range look again. Return: as above. */
int uffd_wake(int uffd, uint64_t addr, uint64_t len);

/*
 * Watch no longer; who waits is woken. Return: UFFD_DONE; UFFD_UNMAPPED where nothing was changed,
 * because nothing is mapped there, or memory of another kind over any part of it; UFFD_VMM_GONE.
 */
int uffd_unregister(int uffd, uint64_t addr, uint64_t len);

/*
 * uffd_is_quiet() - no thread of the VMM is changing mappings of registered memory
 *
 * One that is has raised its event, or will, and waits until it is read. Asked after
 * uffd_unregister() of all ranges the answer "quiet" is final: who comes later meets nothing that
 * is registered, and who came before is still counted.
 */
bool uffd_is_quiet(int uffd);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The userfaultfd of a QEMU that waits for a guest. One is made by a system call in QEMU's name
 * (qemu/inject.h): /dev/userfaultfd is opened here and passed by "getfd", so QEMU itself needs no
 * access to it, and its sandbox lets ioctl() by. One that QEMU has already is taken: by the process
 * before this one, or by the shim that it was started with.
 */
#ifndef QEMU_USERFAULT_H
#define QEMU_USERFAULT_H

#include "qemu/session.h"

/*
 * userfault_get() - the one of QEMU's address space, made where there is none
 * @ret_fd: a copy in this process, the caller's
 *
 * Return: 0; -EPERM and others with @err saying who forbids what.
 */
int userfault_get(struct session *s, int *ret_fd, struct error *err);

/* Whether the above would be: all that is asked for it is tried, but for the system call. */
int userfault_check(struct session *s, struct error *err);

#endif

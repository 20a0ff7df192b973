/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>

#include "qemu/inject.h"
#include "qemu/mapping.h"
#include "qemu/qemu.h"
#include "util/cleanup.h"
#include "util/kernel_abi.h"

#define DEVICE "/dev/userfaultfd"
#define DEVICE_NAME "postcopy-userfaultfd"
#define LINK "anon_inode:[userfaultfd]"

/* Into QEMU. @ret_number: as which of its descriptors. */
static int give_device(struct session *s, int *ret_number, struct error *err)
{
	_cleanup_close_ int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	int rc;

	if (fd < 0)
		return error_errno(err, -errno,
		                   "can't open " DEVICE "; it needs Linux 6.1, and access to it "
		                   "(root, or a udev rule)");
	rc = qemu_give_fd(s->qmp, DEVICE_NAME, fd, err);
	if (rc)
		return rc;
	rc = descriptor_number(s->pid, DEVICE, false);
	if (rc < 0) {
		qemu_take_back_fd(s->qmp, DEVICE_NAME);
		return error_errno(err, rc,
		                   "QEMU was given " DEVICE ", but has not got it: its AppArmor or "
		                   "SELinux profile must allow that");
	}
	*ret_number = rc;
	return 0;
}

static int make(struct session *s, struct error *err)
{
	uint64_t args[6] = { 0, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK };
	int number, rc = give_device(s, &number, err);
	long result = 0;

	if (rc)
		return rc;
	args[0] = (uint64_t)number;
	rc = inject_syscall(s->pid, SYS_ioctl, args, &result, err);
	qemu_take_back_fd(s->qmp, DEVICE_NAME);
	if (!rc && result < 0)
		rc = error_errno(err, (int)result, "QEMU can't make a userfaultfd");
	return rc;
}

int userfault_get(struct session *s, int *ret_fd, struct error *err)
{
	int number = descriptor_number(s->pid, LINK, false), rc = 0, fd;

	if (number == -ENOENT)
		rc = make(s, err);
	if (rc)
		return rc;
	if (number == -ENOENT)
		number = descriptor_number(s->pid, LINK, false);
	if (number < 0)
		return error_errno(err, number, "QEMU's userfaultfd");
	fd = descriptor_copy(s->pidfd, number);
	if (fd < 0)
		return error_errno(err, fd, "QEMU's userfaultfd can't be copied (pidfd_getfd)");
	*ret_fd = fd;
	return 0;
}

int userfault_check(struct session *s, struct error *err)
{
	int number = descriptor_number(s->pid, LINK, false), rc;
	_cleanup_close_ int fd = -1;

	if (number == -ENOENT) {
		rc = give_device(s, &number, err);
		if (rc)
			return rc;
		qemu_take_back_fd(s->qmp, DEVICE_NAME);
		return inject_check(s->pid, err);
	}
	fd = number < 0 ? number : descriptor_copy(s->pidfd, number);
	return fd < 0 ? error_errno(err, fd, "QEMU's userfaultfd can't be copied (pidfd_getfd)")
	              : 0;
}

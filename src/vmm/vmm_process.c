/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/vmm_process.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/pidfd.h"

struct vmm_process {
	uv_poll_t poll;
	int fd;
	pid_t pid;
	void (*ended)(void *arg);
	void *arg;
};

static int check_user(int fd, pid_t pid, uid_t namer, struct error *err)
{
	uid_t uids[3];
	int rc = pidfd_uids(fd, uids);

	if (rc == -ESRCH)
		return error_set(err, rc, "the VMM (pid %d) has ended", (int)pid);
	if (rc)
		return error_set(
		        err, -EPERM,
		        "whose process %d is can't be told: %s. Linux before 6.13 says so in "
		        "/proc only, which this daemon may not see (ProtectProc= of its "
		        "unit): attach as root",
		        (int)pid, strerror(-rc));
	for (unsigned int i = 0; i < 3; i++)
		if (uids[i] != namer)
			return error_set(
			        err, -EPERM,
			        "process %d runs as user %u, and user %u may not name it as "
			        "its VMM: attach as that user or as root",
			        (int)pid, uids[i], namer);
	return 0;
}

int vmm_process_open(int theirs, uid_t namer, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = -1;
	int pid = pidfd_pid(theirs), rc;

	if (pid == -ESRCH)
		return error_set(
		        err, pid,
		        "the VMM that the pidfd names has ended, or is in no pid namespace "
		        "that this daemon sees");
	if (pid < 0)
		return error_set(err, -EINVAL, "the last descriptor is no pidfd of a process");
	fd = pidfd_of(pid);
	if (fd < 0)
		return error_errno(err, fd, "the VMM (pid %d)", pid);
	/* While theirs has not ended the number is its own: ours is the same process. */
	rc = namer ? check_user(fd, pid, namer, err) : 0;
	if (!rc && pidfd_has_ended(theirs))
		rc = error_set(err, -ESRCH, "the VMM (pid %d) has ended", pid);
	if (rc)
		return rc;
	*ret_fd = steal_fd(&fd);
	return pid;
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
	struct vmm_process *p = poll->data;

	(void)status;
	(void)events;
	uv_poll_stop(poll);
	p->ended(p->arg);
}

int vmm_process_watch(uv_loop_t *loop, int fd, void (*ended)(void *arg), void *arg,
                      struct vmm_process **ret, struct error *err)
{
	struct vmm_process *p = calloc(1, sizeof *p);
	int pid = pidfd_pid(fd), rc;

	if (!p)
		return error_set(err, -ENOMEM, "out of memory");
	rc = uv_poll_init(loop, &p->poll, fd);
	if (rc) {
		free(p);
		return error_errno(err, rc, "watching the VMM");
	}
	p->fd = fd;
	/* One that has ended since has no number any more; its end is told all the same. */
	p->pid = pid > 0 ? pid : 0;
	p->ended = ended;
	p->arg = arg;
	p->poll.data = p;
	uv_poll_start(&p->poll, UV_READABLE, on_readable);
	*ret = p;
	return 0;
}

static void on_closed(uv_handle_t *handle)
{
	struct vmm_process *p = handle->data;

	close_fd(&p->fd);
	free(p);
}

struct vmm_process *vmm_process_close(struct vmm_process *p)
{
	if (!p)
		return NULL;
	uv_poll_stop(&p->poll);
	uv_close((uv_handle_t *)&p->poll, on_closed);
	return NULL;
}

pid_t vmm_process_pid(const struct vmm_process *p)
{
	return p->pid;
}

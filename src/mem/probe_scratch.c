/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/probe_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <linux/memfd.h>

#include "util/clock.h"
#include "util/kernel_abi.h"

const char *probe_errno_name(int code)
{
	const char *name = strerrorname_np(-code);

	return name ? name : "unknown error";
}

int probe_copy(const struct probe_env *env, void *to, const void *from)
{
	ssize_t n = pwrite(env->copy_fd, from, PROBE_COPY_BYTES, 0);

	if (n != PROBE_COPY_BYTES)
		return n < 0 ? -errno : -EFAULT;
	n = pread(env->copy_fd, to, PROBE_COPY_BYTES, 0);
	if (n != PROBE_COPY_BYTES)
		return n < 0 ? -errno : -EFAULT;
	return 0;
}

static int uffd_from_device(void)
{
	_cleanup_close_ int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd;

	if (dev < 0)
		return -errno;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int probe_uffd_open(const char **ret_way, struct error *err)
{
	return probe_uffd_open_with(0, ret_way, err);
}

int probe_uffd_open_with(uint64_t features, const char **ret_way, struct error *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	_cleanup_close_ int fd = -1;
	const char *way = "system call userfaultfd()";
	int from_syscall, from_device;

	/* never UFFD_USER_MODE_ONLY: KVM_RUN would fail with EFAULT */
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) {
		from_syscall = -errno;
		way = "/dev/userfaultfd";
		from_device = fd = uffd_from_device();
		if (from_device < 0)
			return error_set(
			        err, from_syscall,
			        "userfaultfd refused: userfaultfd(): %s (needs CAP_SYS_PTRACE or "
			        "sysctl vm.unprivileged_userfaultfd=1); /dev/userfaultfd: %s "
			        "(needs "
			        "read and write access)",
			        probe_errno_name(from_syscall), probe_errno_name(from_device));
	}
	if (ioctl(fd, UFFDIO_API, &api))
		return error_set(err, -errno, "UFFDIO_API: %s", probe_errno_name(-errno));
	*ret_way = way;
	return steal_fd(&fd);
}

static int scratch_memfd(enum probe_backend_id id, struct error *err)
{
	static const struct {
		unsigned int flags;
		const char *hint;
	} kinds[PROBE_BACKENDS] = {
		[PROBE_MEMFD] = { 0, "" },
		[PROBE_HUGETLB_2M] = { MFD_HUGETLB | MFD_HUGE_2MB,
		                       ": this kernel has no 2 MiB pages" },
		[PROBE_HUGETLB_1G] = { MFD_HUGETLB | MFD_HUGE_1GB,
		                       ": this kernel or processor has no 1 GiB pages" },
	};
	int fd = memfd_create("probe", MFD_CLOEXEC | kinds[id].flags);

	if (fd < 0)
		return error_set(err, -errno, "memfd_create: %s%s", probe_errno_name(-errno),
		                 kinds[id].hint);
	return fd;
}

static int scratch_guest_memfd(const struct probe_env *env, size_t len, uint64_t flags,
                               struct error *err)
{
	struct kvm_create_guest_memfd create = { .size = len, .flags = flags };
	int fd;

	if (env->vm < 0)
		return error_set(err, env->kvm_err.code, "%s", env->kvm_err.text);
	fd = ioctl(env->vm, KVM_CREATE_GUEST_MEMFD, &create);
	if (fd >= 0)
		return fd;
	if (errno == ENOTTY)
		return error_set(err, -errno,
		                 "KVM_CREATE_GUEST_MEMFD: ENOTTY: this kernel has no guest_memfd "
		                 "(needs Linux 6.8 with CONFIG_KVM_GUEST_MEMFD)");
	if (errno == EINVAL)
		return error_set(err, -errno,
		                 "KVM_CREATE_GUEST_MEMFD with MMAP|INIT_SHARED: EINVAL: this "
		                 "kernel's guest_memfd can't be mapped (needs Linux 6.18)");
	return error_set(err, -errno, "KVM_CREATE_GUEST_MEMFD: %s", probe_errno_name(-errno));
}

char *scratch_map(const struct scratch *s, struct error *err)
{
	int flags = s->fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	char *p = mmap(NULL, s->len, PROT_READ | PROT_WRITE, flags, s->fd, 0);
	unsigned long kib = s->len / 1024;

	if (p == MAP_FAILED) {
		if (errno == ENOMEM && s->fd >= 0 && s->len > PROBE_COPY_BYTES)
			error_set(err, -ENOMEM,
			          "no %s huge page free: echo N > "
			          "/sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages",
			          kib < 1ul << 20 ? "2 MiB" : "1 GiB", kib);
		else
			error_set(err, -errno, "mmap: %s", probe_errno_name(-errno));
		return NULL;
	}
	return p;
}

int scratch_init(struct scratch *s, const struct probe_env *env, enum probe_backend_id id,
                 uint64_t guest_memfd_flags, struct error *err)
{
	static const size_t lens[PROBE_BACKENDS] = {
		[PROBE_MEMFD] = 4096,           [PROBE_HUGETLB_2M] = 2ul << 20,
		[PROBE_HUGETLB_1G] = 1ul << 30, [PROBE_GUEST_MEMFD] = 4096,
		[PROBE_ANONYMOUS] = 4096,
	};

	*s = SCRATCH_INIT;
	s->len = lens[id];
	if (id == PROBE_ANONYMOUS)
		return 0;
	if (id == PROBE_GUEST_MEMFD) {
		s->fd = scratch_guest_memfd(env, s->len, guest_memfd_flags, err);
		if (s->fd < 0)
			return s->fd;
	} else {
		s->fd = scratch_memfd(id, err);
		if (s->fd < 0)
			return s->fd;
		if (ftruncate(s->fd, (off_t)s->len))
			return error_set(err, -errno, "ftruncate: %s", probe_errno_name(-errno));
	}
	s->alias = scratch_map(s, err);
	return s->alias ? 0 : -ENOMEM;
}

void scratch_deinit(struct scratch *s)
{
	if (s->alias)
		munmap(s->alias, s->len);
	s->alias = NULL;
	close_fd(&s->fd);
}

int trap_init(struct trap *t, const struct scratch *s, struct error *err)
{
	const char *way;

	*t = TRAP_INIT;
	t->len = s->len;
	t->uffd = probe_uffd_open(&way, err);
	if (t->uffd < 0)
		return t->uffd;
	t->map = scratch_map(s, err);
	return t->map ? 0 : -ENOMEM;
}

int trap_register(const struct trap *t, uint64_t mode)
{
	struct uffdio_register r = { .range = { (uintptr_t)t->map, t->len }, .mode = mode };

	return ioctl(t->uffd, UFFDIO_REGISTER, &r) ? -errno : 0;
}

void trap_release(struct trap *t)
{
	struct uffdio_range range = { (uintptr_t)t->map, t->len };

	/* not by closing alone: a child forked at this moment would keep it open, and the
	 * thread in its fault */
	if (t->uffd >= 0 && t->map)
		ioctl(t->uffd, UFFDIO_UNREGISTER, &range);
	close_fd(&t->uffd);
}

void trap_deinit(struct trap *t)
{
	trap_release(t);
	if (t->map)
		munmap(t->map, t->len);
	t->map = NULL;
}

int trap_continue(const struct trap *t)
{
	struct uffdio_continue c = { .range = { (uintptr_t)t->map, t->len } };

	return ioctl(t->uffd, UFFDIO_CONTINUE, &c) ? -errno : 0;
}

int trap_copy(const struct trap *t, const void *from)
{
	struct uffdio_copy c = { .dst = (uintptr_t)t->map, .src = (uintptr_t)from, .len = t->len };

	return ioctl(t->uffd, UFFDIO_COPY, &c) ? -errno : 0;
}

int trap_zeropage(const struct trap *t)
{
	struct uffdio_zeropage z = { .range = { (uintptr_t)t->map, t->len } };

	return ioctl(t->uffd, UFFDIO_ZEROPAGE, &z) ? -errno : 0;
}

/* The kernel reads the memory for us: a page that can't be had is EFAULT, not SIGBUS. */
static void *touch_main(void *arg)
{
	struct touch *touch = arg;
	ssize_t n = write(touch->write_fd, touch->addr, PROBE_COPY_BYTES);

	/* a failed write leaves the pipe empty: the reader finds its end */
	(void)n;
	close(touch->write_fd);
	return NULL;
}

int touch_start(struct touch *touch, const char *addr, struct error *err)
{
	sigset_t all, old;
	int fds[2], r;

	*touch = TOUCH_INIT;
	if (pipe2(fds, O_CLOEXEC))
		return error_set(err, -errno, "pipe: %s", probe_errno_name(-errno));
	touch->read_fd = fds[0];
	touch->write_fd = fds[1];
	touch->addr = addr;
	/* signals are the owner's: none may interrupt this thread or be handled by it */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&touch->thread, NULL, touch_main, touch);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r) {
		close_fd(&touch->write_fd);
		return error_set(err, -r, "thread: %s", probe_errno_name(-r));
	}
	touch->started = true;
	return 0;
}

/* poll() that goes on after a signal. Return: as poll(), -ETIMEDOUT, or a negative errno. */
static int poll_for(struct pollfd *fds, nfds_t n_fds, unsigned int limit_ms)
{
	uint64_t end = clock_now_ns() + limit_ms * NSEC_PER_MSEC;
	uint64_t now;
	int r;

	for (;;) {
		now = clock_now_ns();
		r = poll(fds, n_fds, now < end ? (int)((end - now) / NSEC_PER_MSEC + 1) : 0);
		if (r > 0)
			return r;
		if (r == 0)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

int touch_or_event(const struct touch *touch, const struct trap *t, struct uffd_msg *ret_msg)
{
	struct pollfd fds[] = { { t->uffd, POLLIN, 0 }, { touch->read_fd, POLLIN, 0 } };
	int r = poll_for(fds, 2, PROBE_FAULT_LIMIT_MS);
	struct uffd_msg msg;

	if (r < 0)
		return r;
	if (!fds[0].revents)
		return 0;
	if (read(t->uffd, &msg, sizeof msg) != sizeof msg || msg.event != UFFD_EVENT_PAGEFAULT)
		return -EPROTO;
	*ret_msg = msg;
	return 1;
}

int touch_result(const struct touch *touch, char ret_content[PROBE_COPY_BYTES])
{
	struct pollfd fds[] = { { touch->read_fd, POLLIN, 0 } };
	int r = poll_for(fds, 1, PROBE_FAULT_LIMIT_MS);

	if (r < 0)
		return r;
	return read(touch->read_fd, ret_content, PROBE_COPY_BYTES) == PROBE_COPY_BYTES ? 0
	                                                                               : -EFAULT;
}

void touch_deinit(struct touch *touch)
{
	/* joined before the pipe's end closes, or its write() would raise SIGPIPE */
	if (touch->started)
		pthread_join(touch->thread, NULL);
	touch->started = false;
	close_fd(&touch->read_fd);
}

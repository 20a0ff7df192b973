/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD: makes the test kernel look like others, for the words in $GMEM_SHIM:
 *
 *   no-write     guest_memfd has no write(): pwrite() says ESPIPE
 *   minor-alone  userfaultfd takes guest_memfd in MINOR mode only (the first proposal's
 *                ABI): registering MISSING with it says EINVAL
 *
 * Nothing but these answers changes.
 */
#include <dlfcn.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <unistd.h>

static bool on(const char *word)
{
	const char *words = getenv("GMEM_SHIM");

	return words && strstr(words, word);
}

static bool is_guest_memfd(int fd)
{
	char link[64], name[64] = { 0 };

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	return readlink(link, name, sizeof name - 1) > 0 && strstr(name, "kvm-gmem");
}

/* Both names that the C library has for it: which one is called depends on how it was compiled. */
static ssize_t do_pwrite(const char *name, int fd, const void *buf, size_t len, off_t offset)
{
	ssize_t (*next)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, name);

	if (on("no-write") && is_guest_memfd(fd)) {
		errno = ESPIPE;
		return -1;
	}
	return next(fd, buf, len, offset);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	return do_pwrite("pwrite", fd, buf, len, offset);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off_t offset)
{
	return do_pwrite("pwrite64", fd, buf, len, offset);
}

/* Whether a mapping of guest_memfd begins at @addr. */
static bool maps_guest_memfd(uint64_t addr)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	bool found = false;

	while (maps && !found && fgets(line, sizeof line, maps))
		found = strtoull(line, NULL, 16) == addr && strstr(line, "kvm-gmem");
	if (maps)
		fclose(maps);
	return found;
}

int ioctl(int fd, unsigned long request, ...)
{
	int (*next)(int, unsigned long, void *) = dlsym(RTLD_NEXT, "ioctl");
	const struct uffdio_register *reg;
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	reg = arg;
	if (request == UFFDIO_REGISTER && on("minor-alone") &&
	    reg->mode & UFFDIO_REGISTER_MODE_MISSING && maps_guest_memfd(reg->range.start)) {
		errno = EINVAL;
		return -1;
	}
	return next(fd, request, arg);
}

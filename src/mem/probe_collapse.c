/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a memfd's absent pages stay absent where the kernel makes huge pages of small ones. */
#include "mem/probe_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util/kernel_abi.h"

#define HUGE_BYTES (2ul << 20)

/* A mapping at a multiple of its size, within @room, which is of three. */
static char *map_aligned(int fd, char *room, unsigned int index)
{
	char *at = (char *)(((uintptr_t)room + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1)) +
	           index * HUGE_BYTES;
	char *p = mmap(at, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

static bool has_hole(int fd)
{
	return lseek(fd, PROBE_COPY_BYTES, SEEK_DATA) < 0 && errno == ENXIO;
}

/* @map is the VMM's, registered; @other is any other mapping, of any process. */
static void try_collapse(int fd, const struct trap *map, char *other, struct probe_row *row)
{
	const uint64_t mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
	int e = trap_register(map, mode);

	if (e) {
		probe_row_no(row, "UFFDIO_REGISTER MISSING|MINOR: %s", probe_errno_name(e));
		return;
	}
	if (pwrite(fd, "", 1, 0) != 1) {
		probe_row_no(row, "pwrite: %s", probe_errno_name(-errno));
		return;
	}
	if (!has_hole(fd)) {
		probe_row_no(row, "a write of one page makes 2 MiB present (shmem_enabled): pages "
		                  "are put in place by UFFDIO_COPY, and none is mapped lazily");
		return;
	}
	e = madvise(other, HUGE_BYTES, MADV_COLLAPSE) ? -errno : 0;
	if (!has_hole(fd))
		probe_row_no(row, "MADV_COLLAPSE fills them with zeroes: nobody may ask for it by "
		                  "a mapping that libpostcopy has not set MADV_NOHUGEPAGE");
	else
		probe_row_yes(row, "MADV_COLLAPSE leaves them absent (%s)",
		              e ? probe_errno_name(e) : "0");
}

void probe_collapse_fill(const struct probe_env *env, struct probe_row *row)
{
	_cleanup_close_ int fd = memfd_create("probe-collapse", MFD_CLOEXEC);
	struct trap map = TRAP_INIT;
	struct error err = ERROR_INIT;
	const char *way;
	char *room, *other;

	(void)env;
	if (fd < 0 || ftruncate(fd, HUGE_BYTES)) {
		probe_row_no(row, "memfd: %s", probe_errno_name(-errno));
		return;
	}
	map.uffd = probe_uffd_open(&way, &err);
	if (map.uffd < 0) {
		probe_row_no(row, "%s", err.text);
		return;
	}
	room = mmap(NULL, 3 * HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (room != MAP_FAILED) {
		map.map = map_aligned(fd, room, 0);
		map.len = HUGE_BYTES;
		other = map_aligned(fd, room, 1);
		if (map.map && other)
			try_collapse(fd, &map, other, row);
		trap_release(&map);
		munmap(room, 3 * HUGE_BYTES);
	}
	close_fd(&map.uffd);
	if (!row->ok && !*row->detail)
		probe_row_no(row, "mmap: out of memory");
}

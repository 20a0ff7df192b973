/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/blocks.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <string.h>
#include <sys/vfs.h>

#include "qemu/qemu.h"
#include "util/cleanup.h"

/* What the vmstate may hold; the daemon takes no larger one, unless configured. */
#define PRIVATE_MAX (64ull << 20)
#define MIB(bytes) ((unsigned long long)(bytes) >> 20)

/* What has been asked of QEMU once for all blocks. */
struct asked {
	struct qmp *qmp;
	pid_t pid;
	int pidfd;
	struct qemu_backend backends[BLOCKS_MAX];
	size_t n_backends;
	char *flat_view; /* NULL: not asked yet */
};

static void refuse(struct block *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void refuse(struct block *b, const char *fmt, ...)
{
	va_list ap;

	b->way = BLOCK_REFUSED;
	va_start(ap, fmt);
	vsnprintf(b->why, sizeof b->why, fmt, ap);
	va_end(ap);
}

/* The backend whose memory the block is: some machine types have its path for a name. */
static const struct qemu_backend *backend_of(const struct asked *a, const char *block)
{
	static const char prefix[] = "/objects/";
	const char *id = block;

	if (!strncmp(block, prefix, strlen(prefix)))
		id += strlen(prefix);
	for (size_t i = 0; i < a->n_backends; i++)
		if (!strcmp(a->backends[i].id, id))
			return &a->backends[i];
	return NULL;
}

/* QEMU before 8.2 does not say where a block is, but where a guest address is. */
static int find_address(struct asked *a, struct block *b, struct error *err)
{
	_cleanup_free_ char *answer = NULL;
	uint64_t gpa, offset, addr;
	char line[64];
	int rc = 0;

	if (b->ram.host_addr)
		return 0;
	if (!a->flat_view)
		rc = qemu_human(a->qmp, "info mtree -f", &a->flat_view, err);
	if (rc)
		return rc;
	if (flatview_find(a->flat_view, b->ram.name, &gpa, &offset)) {
		refuse(b, "QEMU does not say where it is: no guest address leads to it");
		return 0;
	}
	snprintf(line, sizeof line, "gpa2hva %#llx", (unsigned long long)gpa);
	rc = qemu_human(a->qmp, line, &answer, err);
	if (rc)
		return rc;
	if (gpa2hva_parse(answer, b->ram.name, &addr))
		refuse(b, "QEMU does not say where it is (%s)", line);
	else
		b->ram.host_addr = addr - offset;
	return 0;
}

static void check_file(struct block *b)
{
	struct statfs fs;

	if (fstatfs(b->fd, &fs)) {
		refuse(b, "%s: %s", b->mapping.path, strerror(errno));
	} else if (fs.f_type == TMPFS_MAGIC) {
		b->memory = POSTCOPY_MEMORY_MEMFD;
	} else if (fs.f_type == HUGETLBFS_MAGIC) {
		b->memory = POSTCOPY_MEMORY_HUGETLB;
	} else {
		refuse(b,
		       "%s is not on a tmpfs or hugetlbfs, where alone absent pages can be "
		       "trapped: give it mem-path=/dev/shm",
		       b->mapping.path);
	}
	if (b->way == BLOCK_MOVED && b->ram.total % b->ram.page_size)
		refuse(b, "its size is not a multiple of its pages");
}

static int check_mapping(struct asked *a, struct block *b, struct error *err)
{
	struct error why = ERROR_INIT;
	int rc = find_address(a, b, err);

	if (rc || b->way == BLOCK_REFUSED)
		return rc;
	if (mapping_find(a->pid, b->ram.host_addr, b->ram.total, &b->mapping, &why)) {
		refuse(b, "%s", why.text);
		return 0;
	}
	if (!b->mapping.is_shared) {
		refuse(b, "QEMU says share=on, but %s is mapped privately", b->mapping.path);
		return 0;
	}
	b->fd = mapping_open(a->pid, a->pidfd, &b->mapping, &why);
	if (b->fd < 0)
		refuse(b, "%s", why.text);
	else
		check_file(b);
	return 0;
}

static int judge_backend(struct asked *a, const struct qemu_backend *backend, struct block *b,
                         struct error *err)
{
	char path[160], type[64];
	int rc;

	b->way = BLOCK_MOVED;
	if (!backend->is_shared) {
		refuse(b, "its memory is private (share=off): give it memory-backend-file,"
		          "share=on,mem-path=/dev/shm (or of a hugetlbfs)");
		return 0;
	}
	snprintf(path, sizeof path, "/objects/%s", backend->id);
	rc = qemu_object_type(a->qmp, path, type, sizeof type, err);
	if (rc)
		return rc;
	if (strcmp(type, "memory-backend-file") && qmp_is_at_least(a->qmp, 8, 1)) {
		refuse(b,
		       "it is a %s, which QEMU since 8.1 puts into the vmstate: give it "
		       "memory-backend-file,share=on,mem-path=/dev/shm, or "
		       "mem-path=/proc/self/fd/N of a memfd",
		       type);
		return 0;
	}
	return check_mapping(a, b, err);
}

static int judge(struct asked *a, struct block *b, struct error *err)
{
	const struct qemu_backend *backend = backend_of(a, b->ram.name);

	if (backend)
		return judge_backend(a, backend, b, err);
	b->way = BLOCK_IN_VMSTATE;
	if (b->ram.used > PRIVATE_MAX)
		refuse(b, "its memory is private: all of it would travel while the guest stands "
		          "still; give it a memory-backend-file with share=on "
		          "(-machine memory-backend=ID)");
	return 0;
}

int blocks_read(struct qmp *q, pid_t pid, int pidfd, struct blocks *ret, struct error *err)
{
	_cleanup_free_ char *text = NULL;
	struct ramblock list[BLOCKS_MAX];
	struct asked a = { .qmp = q, .pid = pid, .pidfd = pidfd };
	size_t n = 0, moved = 0;
	int rc = qemu_human(q, "info ramblock", &text, err);

	ret->n = 0;
	if (!rc)
		rc = ramblock_parse(text, list, BLOCKS_MAX, &n, err);
	if (!rc)
		rc = qemu_backends(q, a.backends, BLOCKS_MAX, &a.n_backends, err);
	for (size_t i = 0; !rc && i < n; i++) {
		struct block *b = &ret->list[ret->n++];

		*b = (struct block){ .ram = list[i], .fd = -1 };
		rc = judge(&a, b, err);
		if (b->way == BLOCK_MOVED && ++moved > POSTCOPY_REGIONS_MAX)
			refuse(b, "only %d blocks can be moved", POSTCOPY_REGIONS_MAX);
	}
	free(a.flat_view);
	if (rc)
		blocks_close(ret);
	return rc;
}

void blocks_close(struct blocks *b)
{
	for (size_t i = 0; i < b->n; i++)
		close_fd(&b->list[i].fd);
	b->n = 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct postcopy_region *)a)->name,
	              ((const struct postcopy_region *)b)->name);
}

size_t blocks_regions(const struct blocks *blocks, struct postcopy_region ret[POSTCOPY_REGIONS_MAX])
{
	uint64_t at = 0;
	size_t n = 0;

	for (size_t i = 0; i < blocks->n; i++) {
		const struct block *b = &blocks->list[i];

		if (b->way != BLOCK_MOVED)
			continue;
		ret[n++] = (struct postcopy_region){
			.memory = b->memory,
			.size = b->ram.total,
			.page_size = b->ram.page_size,
			.host_addr = (void *)(uintptr_t)b->ram.host_addr,
			.fd = b->fd,
			.fd_offset = b->mapping.offset,
			.name = b->ram.name,
		};
	}
	qsort(ret, n, sizeof *ret, by_name);
	for (size_t i = 0; i < n; i++) {
		at = (at + ret[i].page_size - 1) & ~(ret[i].page_size - 1);
		ret[i].guest_phys_addr = at;
		at += ret[i].size;
	}
	return n;
}

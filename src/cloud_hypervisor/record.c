/* SPDX-License-Identifier: Apache-2.0 */
#include "cloud_hypervisor/record.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "util/cleanup.h"

#define MAGIC 0x52484350u /* "PCHR" */
#define VERSION 1u

static int check(const struct ch_record *r, bool source, const char *id, struct error *err)
{
	if (r->magic != MAGIC || r->version != VERSION)
		return error_set(err, -EPROTONOSUPPORT,
		                 "the process before was of another release, whose record this "
		                 "one does not know: start that one again");
	if (r->source != source || strncmp(r->id, id, sizeof r->id))
		return error_set(err, -EINVAL,
		                 "the process before was the adapter of \"%.*s\" as a %s",
		                 (int)sizeof r->id, r->id, r->source ? "source" : "destination");
	return 0;
}

static int make(struct fd_store *store, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = memfd_create("postcopy-adapter", MFD_CLOEXEC);
	int rc;

	if (fd < 0 || ftruncate(fd, sizeof(struct ch_record)))
		return error_errno(err, -errno, "the adapter's record");
	rc = fd_store_add(store, "record", fd);
	if (rc)
		return error_errno(err, rc, "keeping the adapter's record");
	*ret_fd = steal_fd(&fd);
	return 0;
}

int ch_record_open(struct fd_store *store, bool source, const char *id, struct ch_record **ret,
                   struct error *err)
{
	_cleanup_close_ int fd = fd_store_get(store, "record");
	bool found = fd >= 0;
	struct ch_record *r;
	struct stat st;
	int rc = found ? 0 : make(store, &fd, err);

	if (rc)
		return rc;
	if (fstat(fd, &st) || st.st_size != sizeof *r)
		return error_set(err, -EPROTONOSUPPORT,
		                 "the adapter's record is of another release");
	r = mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (r == MAP_FAILED)
		return error_errno(err, -errno, "mapping the adapter's record");
	/* One whose maker ended before it was done is like none. */
	if (!found || !r->magic) {
		*r = (struct ch_record){ .version = VERSION, .source = source };
		strncpy(r->id, id, sizeof r->id - 1);
		atomic_thread_fence(memory_order_release);
		r->magic = MAGIC;
	}
	rc = check(r, source, id, err);
	if (rc)
		munmap(r, sizeof *r);
	else
		*ret = r;
	return rc;
}

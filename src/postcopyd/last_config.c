/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/last_config.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "util/cleanup.h"

/* Two names, in turn: the new one is there before the old one goes. */
static const char *const names[] = { "config0", "config1" };

static int write_file(const struct options *o, struct error *err)
{
	_cleanup_close_ int fd = memfd_create("postcopy-config", MFD_CLOEXEC);
	_cleanup_close_ int copy = fd < 0 ? -1 : dup(fd);
	FILE *file = copy < 0 ? NULL : fdopen(copy, "w");

	if (!file)
		return error_errno(err, -errno, "the configuration's copy");
	steal_fd(&copy);
	options_print(o, file);
	if (fclose(file))
		return error_errno(err, -errno, "the configuration's copy");
	return steal_fd(&fd);
}

int last_config_keep(struct fd_store *store, const struct options *o, struct error *err)
{
	bool second = fd_store_entry(store, names[0]);
	_cleanup_close_ int fd = -1;
	int rc;

	if (!fd_store_exists(store))
		return 0;
	fd = write_file(o, err);
	if (fd < 0)
		return fd;
	/* One that was killed between the two steps below has left both. */
	fd_store_remove(store, names[second]);
	rc = fd_store_add(store, names[second], fd);
	if (rc)
		return error_errno(err, rc, "the configuration's copy");
	fd_store_remove(store, names[!second]);
	return 0;
}

int last_config_read(struct fd_store *store, struct options *ret)
{
	struct config_errors errors = { .n = 0 };
	_cleanup_fclose_ FILE *file = NULL;
	int fd = fd_store_get(store, names[0]);

	*ret = (struct options){ .ready_fd = -1 };
	if (fd < 0)
		fd = fd_store_get(store, names[1]);
	if (fd < 0)
		return -ENOENT;
	file = fdopen(fd, "r");
	if (!file) {
		close(fd);
		return -errno;
	}
	/* The one who wrote it shares the place. */
	rewind(file);
	return options_parse_file(file, "the configuration of before", ret, &errors);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "util/fd_store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <systemd/sd-daemon.h>

#include "util/cleanup.h"

/* FDSTORE=1, FDPOLL=0, and a name of up to 255 bytes. */
#define MESSAGE_MAX 320

struct given {
	char *name;
	int fd; /* -1: taken */
};

struct fd_store {
	bool exists;
	unsigned int n;
	struct given given[];
};

/* How many the manager allows; where it does not say (before systemd 254), there is a store. */
static bool manager_keeps(void)
{
	const char *max = getenv("FDSTORE");

	return getenv("NOTIFY_SOCKET") && (!max || strtoul(max, NULL, 10));
}

int fd_store_new(struct fd_store **ret, struct error *err)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(true, &names);
	struct fd_store *store;

	if (n < 0)
		return error_errno(err, n, "descriptors from the service manager");
	store = calloc(1, sizeof *store + (size_t)n * sizeof *store->given);
	if (!store)
		return error_set(err, -ENOMEM, "descriptors: out of memory");
	store->exists = manager_keeps();
	store->n = (unsigned int)n;
	for (int i = 0; i < n; i++)
		store->given[i] = (struct given){ .name = names[i], .fd = SD_LISTEN_FDS_START + i };
	free(names);
	*ret = store;
	return 0;
}

struct fd_store *fd_store_free(struct fd_store *store)
{
	if (!store)
		return NULL;
	for (unsigned int i = 0; i < store->n; i++) {
		close_fd(&store->given[i].fd);
		free(store->given[i].name);
	}
	free(store);
	return NULL;
}

bool fd_store_exists(const struct fd_store *store)
{
	return store && store->exists;
}

int fd_store_take(struct fd_store *store, const char *name)
{
	for (unsigned int i = 0; store && i < store->n; i++)
		if (store->given[i].fd >= 0 && !strcmp(store->given[i].name, name))
			return steal_fd(&store->given[i].fd);
	return -1;
}

const char *fd_store_name(const struct fd_store *store, const char *prefix, unsigned int n)
{
	for (unsigned int i = 0; store && i < store->n; i++)
		if (store->given[i].fd >= 0 &&
		    !strncmp(store->given[i].name, prefix, strlen(prefix)) && !n--)
			return store->given[i].name;
	return NULL;
}

int fd_store_add(struct fd_store *store, const char *name, int fd)
{
	char message[MESSAGE_MAX];
	int rc;

	if (!fd_store_exists(store))
		return 0;
	/* Not polled: a peer that hangs up is our news, not the manager's to clear away. */
	snprintf(message, sizeof message, "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	rc = sd_pid_notify_with_fds(0, false, message, &fd, 1);
	return rc < 0 ? rc : 0;
}

void fd_store_remove(struct fd_store *store, const char *name)
{
	char message[MESSAGE_MAX];
	int fd;

	while ((fd = fd_store_take(store, name)) >= 0)
		close_fd(&fd);
	if (!fd_store_exists(store))
		return;
	snprintf(message, sizeof message, "FDSTOREREMOVE=1\nFDNAME=%s", name);
	(void)sd_notify(false, message);
}

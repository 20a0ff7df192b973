/* SPDX-License-Identifier: Apache-2.0 */
#include "util/fd_store.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include <systemd/sd-daemon.h>

#include "util/cleanup.h"

/* FDSTORE=1, FDPOLL=0, and a name. */
#define MESSAGE_BYTES (FD_STORE_NAME_BYTES + 64)

/* As FileDescriptorStoreMax= of systemd/postcopyd.service. */
#define MAX_DEFAULT 4096u

/* An open file that the manager keeps. */
struct file {
	int fd;
	unsigned int n_names;
	char entry[FD_STORE_NAME_BYTES];
};

struct name {
	struct file *file; /* NULL: room for one */
	bool used;
	char text[FD_STORE_NAME_BYTES];
};

struct fd_store {
	bool exists;
	bool max_is_said; /* by the manager */
	unsigned int max;
	struct file **files; /* in the order of kcmp(2) */
	unsigned int n_files;
	struct name **names; /* as they came */
	unsigned int n_names;
	unsigned int n_held;
};

/* How many the manager allows; where it does not say (before systemd 254), there is a store. */
static void ask_manager(struct fd_store *store)
{
	const char *max = getenv("FDSTORE");

	store->max_is_said = max;
	store->max = max ? (unsigned int)strtoul(max, NULL, 10) : MAX_DEFAULT;
	store->exists = getenv("NOTIFY_SOCKET") && store->max;
}

/* Room for one more pointer, by powers of two. Return: false where there is no memory. */
#define GROW(array, n)                                                                             \
	({                                                                                         \
		__typeof__(array) grown_ = (array);                                                \
		if (!((n) & ((n)-1)))                                                              \
			grown_ = realloc(grown_, ((n) ? 2 * (size_t)(n) : 1) * sizeof *grown_);    \
		if (grown_)                                                                        \
			(array) = grown_;                                                          \
		grown_ != NULL;                                                                    \
	})

/*
 * Where two descriptors' open files stand to each other. A kernel without kcmp(2) has none that
 * are the same, and any order will do.
 */
static int compare(int a, int b)
{
	long rc = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b);

	return rc == 0 ? 0 : rc == 1 ? -1 : 1;
}

/* Return: whether it is there; else @ret_at is where it belongs. */
static bool search(const struct fd_store *store, int fd, unsigned int *ret_at)
{
	unsigned int low = 0, high = store->n_files;

	while (low < high) {
		unsigned int middle = low + (high - low) / 2;
		int order = compare(fd, store->files[middle]->fd);

		if (!order) {
			*ret_at = middle;
			return true;
		}
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	*ret_at = low;
	return false;
}

static struct name *find_name(const struct fd_store *store, const char *text)
{
	for (unsigned int i = 0; store && i < store->n_names; i++)
		if (!strcmp(store->names[i]->text, text))
			return store->names[i];
	return NULL;
}

static struct file *find_entry(const struct fd_store *store, const char *entry)
{
	for (unsigned int i = 0; store && i < store->n_files; i++)
		if (!strcmp(store->files[i]->entry, entry))
			return store->files[i];
	return NULL;
}

static struct name *add_name(struct fd_store *store, const char *text, struct file *file)
{
	struct name *name;

	if (strlen(text) >= sizeof name->text || !GROW(store->names, store->n_names))
		return NULL;
	name = calloc(1, sizeof *name);
	if (!name)
		return NULL;
	strcpy(name->text, text);
	name->file = file;
	if (file)
		file->n_names++;
	else
		store->n_held++;
	store->names[store->n_names++] = name;
	return name;
}

/* Takes over @fd in any case. Return: NULL where there is no memory. */
static struct file *add_file(struct fd_store *store, const char *entry, int fd)
{
	_cleanup_close_ int copy = fd;
	struct file *file;
	unsigned int at;

	if (search(store, fd, &at))
		return store->files[at];
	if (!GROW(store->files, store->n_files))
		return NULL;
	file = calloc(1, sizeof *file);
	if (!file)
		return NULL;
	file->fd = steal_fd(&copy);
	snprintf(file->entry, sizeof file->entry, "%s", entry);
	memmove(&store->files[at + 1], &store->files[at],
	        (store->n_files - at) * sizeof *store->files);
	store->files[at] = file;
	store->n_files++;
	return file;
}

/* "@text", or with a number that makes it unlike all others. */
static void make_unlike(const struct fd_store *store, const char *text,
                        bool (*is_taken)(const struct fd_store *store, const char *text),
                        char ret[FD_STORE_NAME_BYTES])
{
	snprintf(ret, FD_STORE_NAME_BYTES, "%s", text);
	for (unsigned int i = 1; is_taken(store, ret); i++)
		snprintf(ret, FD_STORE_NAME_BYTES, "%.*s+%u", FD_STORE_NAME_BYTES - 16, text, i);
}

static bool is_name(const struct fd_store *store, const char *text)
{
	return find_name(store, text);
}

static bool is_entry(const struct fd_store *store, const char *text)
{
	return find_entry(store, text);
}

static int take_given(struct fd_store *store, char **names, int n)
{
	int rc = 0;

	for (int i = 0; i < n; i++) {
		struct file *file = add_file(store, names[i], SD_LISTEN_FDS_START + i);
		char text[FD_STORE_NAME_BYTES];

		make_unlike(store, names[i], is_name, text);
		if (!file || !add_name(store, text, file))
			rc = -ENOMEM;
		free(names[i]);
	}
	free(names);
	return rc;
}

int fd_store_new(struct fd_store **ret, struct error *err)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(true, &names);
	struct fd_store *store;

	if (n < 0)
		return error_errno(err, n, "descriptors from the service manager");
	store = calloc(1, sizeof *store);
	if (!store)
		return error_set(err, -ENOMEM, "descriptors: out of memory");
	ask_manager(store);
	if (take_given(store, names, n)) {
		fd_store_free(store);
		return error_set(err, -ENOMEM, "descriptors: out of memory");
	}
	*ret = store;
	return 0;
}

struct fd_store *fd_store_free(struct fd_store *store)
{
	if (!store)
		return NULL;
	for (unsigned int i = 0; i < store->n_files; i++) {
		close_fd(&store->files[i]->fd);
		free(store->files[i]);
	}
	for (unsigned int i = 0; i < store->n_names; i++)
		free(store->names[i]);
	free(store->files);
	free(store->names);
	free(store);
	return NULL;
}

bool fd_store_exists(const struct fd_store *store)
{
	return store && store->exists;
}

void fd_store_set_max(struct fd_store *store, unsigned int max)
{
	if (!store->max_is_said)
		store->max = max;
}

unsigned int fd_store_count(const struct fd_store *store)
{
	return fd_store_exists(store) ? store->n_files + store->n_held : 0;
}

unsigned int fd_store_max(const struct fd_store *store)
{
	return fd_store_exists(store) ? store->max : 0;
}

int fd_store_check_room(const struct fd_store *store, unsigned int n, unsigned int spare,
                        struct error *err)
{
	unsigned int count = fd_store_count(store);

	if (!fd_store_exists(store) || (uint64_t)count + n + spare <= store->max)
		return 0;
	return error_set(err, -EUSERS,
	                 "the service manager keeps %u descriptors at most for this daemon and %u "
	                 "are taken: %u more%s would be lost at a restart (FileDescriptorStoreMax= "
	                 "of the unit%s)",
	                 store->max, count, n, spare ? ", and a reserve," : "",
	                 store->max_is_said ? "" : ", and fd-store-max in [daemon]");
}

int fd_store_get(struct fd_store *store, const char *name)
{
	struct name *at = find_name(store, name);
	int fd;

	if (!at || !at->file)
		return -ENOENT;
	at->used = true;
	fd = fcntl(at->file->fd, F_DUPFD_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

int fd_store_look(const struct fd_store *store, const char *name)
{
	const struct name *at = find_name(store, name);

	return at && at->file ? at->file->fd : -1;
}

static const char *nth(const struct fd_store *store, const char *prefix, bool unused,
                       unsigned int n)
{
	for (unsigned int i = 0; store && i < store->n_names; i++) {
		const struct name *name = store->names[i];

		if ((!unused || !name->used) && !strncmp(name->text, prefix, strlen(prefix)) &&
		    !n--)
			return name->text;
	}
	return NULL;
}

const char *fd_store_name(const struct fd_store *store, const char *prefix, unsigned int n)
{
	return nth(store, prefix, false, n);
}

const char *fd_store_unused(const struct fd_store *store, const char *prefix, unsigned int n)
{
	return nth(store, prefix, true, n);
}

const char *fd_store_next_unused(const struct fd_store *store, const char *prefix, unsigned int *at)
{
	while (store && *at < store->n_names) {
		const struct name *name = store->names[(*at)++];

		if (!name->used && !strncmp(name->text, prefix, strlen(prefix)))
			return name->text;
	}
	return NULL;
}

static int tell_manager(const char *what, const char *entry, int fd)
{
	char message[MESSAGE_BYTES];
	int rc;

	snprintf(message, sizeof message, "%s\nFDNAME=%s", what, entry);
	rc = fd < 0 ? sd_notify(false, message) : sd_pid_notify_with_fds(0, false, message, &fd, 1);
	return rc < 0 ? rc : 0;
}

/* The file of @fd, which the manager has or gets. Return: NULL with *@ret_rc set. */
static struct file *keep_file(struct fd_store *store, const char *name, int fd, int *ret_rc)
{
	char entry[FD_STORE_NAME_BYTES];
	struct file *file;
	unsigned int at;
	int copy;

	*ret_rc = 0;
	if (search(store, fd, &at))
		return store->files[at];
	make_unlike(store, name, is_entry, entry);
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	file = copy < 0 ? NULL : add_file(store, entry, copy);
	if (!file) {
		*ret_rc = copy < 0 ? -errno : -ENOMEM;
		return NULL;
	}
	/* Not polled: a peer that hangs up is our news, not the manager's to clear away. */
	*ret_rc = tell_manager("FDSTORE=1\nFDPOLL=0", entry, fd);
	return file;
}

int fd_store_add(struct fd_store *store, const char *name, int fd)
{
	struct name *at = find_name(store, name);
	struct file *file;
	int rc;

	if (!fd_store_exists(store))
		return 0;
	if (at && at->file)
		return compare(at->file->fd, fd) ? -EEXIST : 0;
	if (!at)
		at = add_name(store, name, NULL);
	if (!at)
		return -ENOMEM;
	at->used = true;
	file = keep_file(store, name, fd, &rc);
	if (file) {
		at->file = file;
		file->n_names++;
		store->n_held--;
	}
	return rc;
}

const char *fd_store_find(const struct fd_store *store, int fd)
{
	unsigned int at;

	return store && search(store, fd, &at) ? store->files[at]->entry : NULL;
}

const char *fd_store_entry(const struct fd_store *store, const char *name)
{
	const struct name *at = find_name(store, name);

	return at && at->file ? at->file->entry : NULL;
}

int fd_store_link(struct fd_store *store, const char *name, const char *entry)
{
	struct file *file = find_entry(store, entry);
	struct name *at = find_name(store, name);

	if (!file)
		return -ENOENT;
	if (!at)
		at = add_name(store, name, file);
	if (!at)
		return -ENOMEM;
	at->used = true;
	return 0;
}

int fd_store_hold(struct fd_store *store, const char *name)
{
	struct name *at;

	if (!fd_store_exists(store) || find_name(store, name))
		return 0;
	at = add_name(store, name, NULL);
	if (!at)
		return -ENOMEM;
	at->used = true;
	return 0;
}

static void drop_file(struct fd_store *store, struct file *file)
{
	for (unsigned int i = 0; i < store->n_files; i++)
		if (store->files[i] == file) {
			memmove(&store->files[i], &store->files[i + 1],
			        (--store->n_files - i) * sizeof *store->files);
			break;
		}
	close_fd(&file->fd);
	if (store->exists)
		(void)tell_manager("FDSTOREREMOVE=1", file->entry, -1);
	free(file);
}

void fd_store_remove(struct fd_store *store, const char *name)
{
	struct name *at = find_name(store, name);

	if (!at)
		return;
	for (unsigned int i = 0; i < store->n_names; i++)
		if (store->names[i] == at) {
			memmove(&store->names[i], &store->names[i + 1],
			        (--store->n_names - i) * sizeof *store->names);
			break;
		}
	if (!at->file)
		store->n_held--;
	else if (!--at->file->n_names)
		drop_file(store, at->file);
	free(at);
}

bool fd_store_hung_up(const struct fd_store *store, const char *name)
{
	const struct name *at = find_name(store, name);
	struct pollfd p = { .fd = at && at->file ? at->file->fd : -1 };

	return poll(&p, 1, 0) > 0 && (p.revents & POLLHUP);
}

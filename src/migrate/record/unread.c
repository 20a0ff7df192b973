/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/record/unread.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/record/keep.h"
#include "util/peer.h"
#include "util/pidfd.h"

/* A key that is not given again. */
struct unread_key {
	struct unread_key *next;
	char text[MIGRATION_KEY_BYTES];
};

bool unread_has_key(const struct migrations *ms, const char *key)
{
	for (const struct unread_key *k = ms->unread.keys; k; k = k->next)
		if (!strcmp(k->text, key))
			return true;
	return false;
}

static int add_key(struct migrations *ms, const char *name, struct error *err)
{
	char key[MIGRATION_KEY_BYTES];
	struct unread_key *k;

	if (!keep_key(name, key) || unread_has_key(ms, key))
		return 0;
	k = malloc(sizeof *k);
	if (!k)
		return error_set(err, -ENOMEM, "out of memory");
	memcpy(k->text, key, sizeof k->text);
	k->next = ms->unread.keys;
	ms->unread.keys = k;
	return 0;
}

int unread_note(struct migrations *ms, const char *name, struct error *err)
{
	char key[MIGRATION_KEY_BYTES];

	ms->unread.n++;
	/* It may be a source: whoever asks for it asks again until it is there. */
	if (ms->config.page_server && keep_key(name, key)) {
		key[strcspn(key, "@")] = '\0';
		if (page_server_await(ms->config.page_server, key))
			return error_set(err, -ENOMEM, "out of memory");
	}
	return add_key(ms, name, err);
}

/*
 * Memory that nobody writes any more may be that of several who are under way. Where the one whose
 * name it has ends, it stays all the same: it has a name besides.
 */
static int hold_frozen(struct fd_store *store, const char *name, struct error *err)
{
	char second[FD_STORE_NAME_BYTES];
	struct descriptor_file file;
	int rc;

	if (strncmp(name, "mem", strlen("mem")) ||
	    descriptor_file(fd_store_look(store, name), &file) || !file.frozen)
		return 0;
	snprintf(second, sizeof second, "held-%.*s", FD_STORE_NAME_BYTES - 8, name);
	rc = fd_store_link(store, second, fd_store_entry(store, name));
	return rc ? error_errno(err, rc, "\"%s\"", name) : 0;
}

int unread_hold(struct migrations *ms, struct error *err)
{
	struct fd_store *store = ms->config.store;
	const char *name;
	int rc = 0;

	if (!ms->unread.n)
		return 0;
	/* Those that are held anew come after all that were there. */
	for (unsigned int n = 0; !rc && (name = fd_store_name(store, "", n)); n++) {
		if (!strncmp(name, "held-", strlen("held-")))
			break;
		rc = add_key(ms, name, err);
		if (!rc)
			rc = hold_frozen(store, name, err);
	}
	return rc;
}

static int refuse(const char *name, uint32_t region, struct error *err)
{
	return error_set(err, -EBUSY,
	                 "region %u: its memory is that of a migration which this postcopyd has "
	                 "not taken over (\"%s\" in the store; its log says why)",
	                 region, name);
}

/* What is kept by that name, if anything is. */
static int check_file(const struct fd_store *store, const char *name,
                      const struct region_table *table, const struct descriptor_file *files,
                      struct error *err)
{
	struct descriptor_file file;
	int fd = fd_store_look(store, name);

	if (fd < 0 || descriptor_file(fd, &file) || file.frozen)
		return 0;
	for (uint32_t i = 0; i < table->n; i++)
		if (descriptor_same_file(&files[i], &file))
			return refuse(name, i, err);
	return 0;
}

static int check_files(const struct migrations *ms, const struct region_table *table,
                       const struct descriptor_file *files, struct error *err)
{
	const struct fd_store *store = ms->config.store;
	char text[FD_STORE_NAME_BYTES];
	const char *name;
	unsigned int at = 0;
	int rc = 0;

	while (!rc && (name = fd_store_next_unused(store, "mem", &at)))
		rc = check_file(store, name, table, files, err);
	/* A try that failed has used some of the names of its own. */
	for (const struct migration *m = ms->list; m && !rc; m = m->next)
		for (size_t i = 0; m->left && !rc && i < VMM_WIRE_FDS_MAX; i++) {
			snprintf(text, sizeof text, "mem%zu.%s", i, m->key);
			rc = check_file(store, text, table, files, err);
		}
	return rc;
}

/* Whose socket, or which process. */
static pid_t pid_of_socket(int fd)
{
	struct ucred cred;

	return peer_credentials(fd, &cred) ? 0 : cred.pid;
}

static const char *find_process(const struct fd_store *store, pid_t vmm)
{
	const char *name;
	unsigned int at = 0;

	while ((name = fd_store_next_unused(store, "vmm.", &at)))
		if (pid_of_socket(fd_store_look(store, name)) == vmm)
			return name;
	at = 0;
	while ((name = fd_store_next_unused(store, "process.", &at)))
		if (pidfd_pid(fd_store_look(store, name)) == vmm)
			return name;
	return NULL;
}

int unread_check_attach(const struct migrations *ms, pid_t vmm, const struct region_table *table,
                        const struct descriptor_file *files, struct error *err)
{
	const struct fd_store *store = ms->config.store;
	const char *process;
	uint32_t i = 0;

	while (i < table->n && table->regions[i].memory != POSTCOPY_MEMORY_ANONYMOUS)
		i++;
	process = vmm && i < table->n ? find_process(store, vmm) : NULL;
	if (process)
		return refuse(process, i, err);
	return check_files(ms, table, files, err);
}

unsigned int migrations_records_left(const struct migrations *ms)
{
	return ms->unread.n;
}

void unread_free(struct migrations *ms)
{
	for (struct unread_key *k = ms->unread.keys, *next; k; k = next) {
		next = k->next;
		free(k);
	}
	ms->unread.keys = NULL;
}

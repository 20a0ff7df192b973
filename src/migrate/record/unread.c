/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/record/unread.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mem/descriptor.h"
#include "migrate/record/keep.h"

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
	ms->unread.n++;
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

void unread_free(struct migrations *ms)
{
	for (struct unread_key *k = ms->unread.keys, *next; k; k = next) {
		next = k->next;
		free(k);
	}
	ms->unread.keys = NULL;
}

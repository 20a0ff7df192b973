/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose a migration is: what Prepare may say of the VMM that attaches, and of the daemon at the
 * other end.
 *
 * A host's VMMs are many people's, and whoever attaches as a destination is given the guest: its id
 * alone, which is no secret, must not be enough. What is not named does not matter; all that is
 * named must be so.
 */
#ifndef MIGRATE_PARTIES_H
#define MIGRATE_PARTIES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "tls/names.h"
#include "util/error.h"

#define PARTIES_UIDS_MAX 16u
#define PARTIES_CGROUP_BYTES 1024

struct parties {
	/* The VMM. */
	size_t n_uids; /* 0: of any user */
	uid_t uids[PARTIES_UIDS_MAX];
	pid_t pid;                         /* 0: any process */
	char cgroup[PARTIES_CGROUP_BYTES]; /* this or one below, from the unified root on */
	/* The other daemon's certificate has a name that matches, as allow-peer; empty: any. */
	char peer[TLS_NAME_PATTERN_BYTES];
};

/* "/machine.slice/vm7.scope": could a process be there? Return: 0 or -EINVAL with @err set. */
int parties_check_cgroup(const char *path, struct error *err);

bool parties_equal(const struct parties *a, const struct parties *b);

/* Whether any are named. */
bool parties_are_named(const struct parties *p);

/*
 * parties_check_vmm() - may the VMM attach?
 * @fd: its socket, or its adapter's
 * @spoken_for: the process that a pidfd of an adapter's names; 0: it speaks for itself
 * @id: of the migration, for the error's text, which tells nothing of who may
 *
 * User and cgroup are those of the process that has connected, whoever has the socket by now; the
 * process is the VMM's, so an adapter may come again as another one.
 *
 * Return: 0; -EACCES; -errno where the kernel does not tell; with @err set.
 */
int parties_check_vmm(const struct parties *p, int fd, pid_t spoken_for, const char *id,
                      struct error *err);

/*
 * parties_find_cgroup() - the path in the unified hierarchy
 * @text: of /proc/PID/cgroup; changed
 *
 * Return: in @text; NULL: there is none.
 */
const char *parties_find_cgroup(char *text);

/* Whether @path is @prefix or below it. */
bool parties_cgroup_is_in(const char *path, const char *prefix);

#endif

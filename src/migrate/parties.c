/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/parties.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/peer.h"

/* All hierarchies of a process: a path each, and there are few. */
#define CGROUP_FILE_BYTES (16 * PATH_MAX)

int parties_check_cgroup(const char *path, struct error *err)
{
	size_t len = strlen(path);

	if (len >= PARTIES_CGROUP_BYTES)
		return error_set(err, -EINVAL, "a path of %zu bytes, at most %d", len,
		                 PARTIES_CGROUP_BYTES - 1);
	if (*path != '/' || (len > 1 && path[len - 1] == '/') || strstr(path, "//") ||
	    strchr(path, '\n'))
		return error_set(err, -EINVAL,
		                 "\"%s\" is no cgroup: a path from the unified root on, as "
		                 "/proc/PID/cgroup has it behind \"0::\"",
		                 path);
	return 0;
}

bool parties_equal(const struct parties *a, const struct parties *b)
{
	return a->n_uids == b->n_uids && !memcmp(a->uids, b->uids, a->n_uids * sizeof *a->uids) &&
	       a->pid == b->pid && !strcmp(a->cgroup, b->cgroup) && !strcmp(a->peer, b->peer);
}

bool parties_are_named(const struct parties *p)
{
	return p->n_uids || p->pid || *p->cgroup || *p->peer;
}

const char *parties_find_cgroup(char *text)
{
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, "0::/", 4))
			continue;
		line += 3;
		line[strcspn(line, "\n")] = 0;
		return line;
	}
	return NULL;
}

bool parties_cgroup_is_in(const char *path, const char *prefix)
{
	size_t len = strlen(prefix);

	if (len == 1)
		return true;
	return !strncmp(path, prefix, len) && (!path[len] || path[len] == '/');
}

static int check_uid(const struct parties *p, uid_t uid, const char *id, struct error *err)
{
	bool found = !p->n_uids;

	for (size_t i = 0; i < p->n_uids; i++)
		found |= p->uids[i] == uid;
	return found ? 0
	             : error_set(err, -EACCES, "uid %u may not attach to migration \"%s\"", uid,
	                         id);
}

static int read_cgroups(pid_t pid, char buf[CGROUP_FILE_BYTES])
{
	char path[64];
	_cleanup_fclose_ FILE *f = NULL;
	size_t n;

	snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	n = fread(buf, 1, CGROUP_FILE_BYTES - 1, f);
	if (ferror(f))
		return -EIO;
	buf[n] = 0;
	return 0;
}

/* Its number is its own for as long as it lives: what was read before that is known was its. */
static int check_cgroup(const struct parties *p, int fd, const struct ucred *cred, const char *id,
                        struct error *err)
{
	_cleanup_free_ char *text = malloc(CGROUP_FILE_BYTES);
	_cleanup_close_ int pidfd = peer_pidfd(fd, cred);
	const char *path;
	int rc;

	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	rc = pidfd < 0 ? pidfd : read_cgroups(cred->pid, text);
	if (!rc && peer_has_ended(pidfd))
		rc = -ESRCH;
	if (rc)
		return error_errno(err, rc, "migration \"%s\": the cgroup of pid %d", id,
		                   (int)cred->pid);
	path = parties_find_cgroup(text);
	if (!path || !parties_cgroup_is_in(path, p->cgroup))
		return error_set(err, -EACCES,
		                 "pid %d, in cgroup \"%s\", may not attach to migration \"%s\"",
		                 (int)cred->pid, path ? path : "(none of the unified hierarchy)",
		                 id);
	return 0;
}

/* The number alone may be another process's by now. */
static int check_pid(const struct parties *p, int fd, const struct ucred *cred, pid_t spoken_for,
                     const char *id, struct error *err)
{
	pid_t vmm = spoken_for ? spoken_for : cred->pid;
	_cleanup_close_ int pidfd = -1;

	if (vmm != p->pid)
		return error_set(err, -EACCES, "pid %d may not attach to migration \"%s\"",
		                 (int)vmm, id);
	if (spoken_for)
		return 0;
	pidfd = peer_pidfd(fd, cred);
	if (pidfd < 0 || peer_has_ended(pidfd))
		return error_set(err, -EACCES,
		                 "pid %d has ended, and may not attach to migration \"%s\"",
		                 (int)cred->pid, id);
	return 0;
}

int parties_check_vmm(const struct parties *p, int fd, pid_t spoken_for, const char *id,
                      struct error *err)
{
	struct ucred cred;
	int rc = peer_credentials(fd, &cred);

	if (rc)
		return error_errno(err, rc, "credentials");
	rc = check_uid(p, cred.uid, id, err);
	if (!rc && p->pid)
		rc = check_pid(p, fd, &cred, spoken_for, id, err);
	if (!rc && *p->cgroup)
		rc = check_cgroup(p, fd, &cred, id, err);
	return rc;
}

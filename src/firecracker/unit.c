/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <postcopy/postcopy.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "firecracker/destination.h"
#include "firecracker/source.h"
#include "util/cleanup.h"

/* For a Firecracker that is being started. */
#define START_MS 10000
#define TEXT_MAX 16384

#define LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
/* What systemd's files and a shell read as it is. */
#define PLAIN LETTERS "/+,=@:"

static int check_word(const char *option, const char *value, const char *accept, struct error *err)
{
	if (*value && !value[strspn(value, accept)])
		return 0;
	return error_set(err, -EINVAL, "--%s \"%s\": a unit takes letters, digits and %s only",
	                 option, value, accept + 62);
}

int unit_text(const struct options *o, char *ret, size_t size, struct error *err)
{
	const char *socket = o->socket ? o->socket : POSTCOPY_DEFAULT_SOCKET;
	int rc = check_word("id", o->id, LETTERS, err);

	if (!rc)
		rc = check_word("api", o->api, PLAIN, err);
	if (!rc)
		rc = check_word("dir", o->dir, PLAIN, err);
	if (!rc)
		rc = check_word("socket", socket, PLAIN, err);
	if (rc)
		return rc;
	if (strlen(o->id) > POSTCOPY_ID_MAX ||
	    snprintf(ret, size, "ROLE=%s\nID=%s\nAPI=%s\nDIR=%s\nOPTIONS=\"--socket %s\"\n",
	             options_command_name(o->command), o->id, o->api, o->dir, socket) >= (int)size)
		return error_set(err, -ENAMETOOLONG, "the options are too long for a unit");
	return 0;
}

/* All of it or nothing: whoever does the same at this moment writes the same. */
static int write_text(const char *path, const char *text)
{
	_cleanup_close_ int fd = -1;
	char temporary[PATH_MAX];

	snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
	fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !rename(temporary, path))
		return 0;
	(void)unlink(temporary);
	return -EIO;
}

static int start_unit(const char *unit, struct error *err)
{
	char *argv[] = { (char *)"systemctl", (char *)"start", (char *)unit, NULL };
	int status = 0, rc;
	pid_t pid;

	rc = -posix_spawnp(&pid, "systemctl", NULL, NULL, argv, environ);
	if (rc)
		return error_errno(err, rc, "systemctl");
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status ? error_set(err, -EIO, "systemctl start %s has failed: see there", unit) : 0;
}

/* Nobody is ended: one that runs may have to give a guest back. */
static int start(const struct options *o, const char *text, struct error *err)
{
	const char *role = options_command_name(o->command);
	char path[256], unit[128];
	int rc;

	snprintf(path, sizeof path, UNIT_DIR "/%s-%s.conf", o->id, role);
	snprintf(unit, sizeof unit, "postcopy-firecracker@%s-%s.service", o->id, role);
	if (mkdir(UNIT_DIR, 0700) && errno != EEXIST)
		return error_errno(err, -errno, UNIT_DIR);
	rc = write_text(path, text);
	return rc ? error_errno(err, rc, "writing %s", path) : start_unit(unit, err);
}

static int check(const struct session *s, struct error *err)
{
	uint64_t bytes;

	return s->options->command == COMMAND_SOURCE ? source_check(s, &bytes, err)
	                                             : destination_check(s, err);
}

int unit_run(const struct options *o, struct error *err)
{
	struct session session;
	char text[TEXT_MAX];
	int rc = unit_text(o, text, sizeof text, err);

	if (rc)
		return rc;
	rc = session_await_firecracker(&session, o, START_MS, err);
	if (!rc)
		rc = check(&session, err);
	session_close(&session);
	return rc ? rc : start(o, text, err);
}

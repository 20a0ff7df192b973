/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/qemu.h"

#include <errno.h>
#include <string.h>

#include "qemu/json.h"
#include "util/cleanup.h"

/* As good as none; and QEMU's default since 5.2. Bytes per second. */
#define BANDWIDTH_MAX (1ll << 40)
#define BANDWIDTH_DEFAULT (128ll << 20)
#define PIPE_NAME "postcopy-vmstate"
#define PIPE_URI "fd:" PIPE_NAME
#define LOOK_MS 20

static struct json_object *with_text(const char *name, const char *value)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, name, json_object_new_string(value));
	return o;
}

int qemu_state(struct qmp *q, struct qemu_state *ret, struct error *err)
{
	static const struct {
		const char *name;
		enum qemu_status status;
	} names[] = {
		{ "running", QEMU_RUNNING },
		{ "paused", QEMU_PAUSED },
		{ "inmigrate", QEMU_INCOMING },
		{ "postmigrate", QEMU_POSTMIGRATE },
		{ "finish-migrate", QEMU_POSTMIGRATE },
	};
	_cleanup_json_ struct json_object *answer = NULL;
	int rc = qmp_ask(q, "query-status", NULL, -1, &answer, err);

	if (rc)
		return rc;
	ret->status = QEMU_OTHER;
	snprintf(ret->name, sizeof ret->name, "%s", json_text(answer, "status"));
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (!strcmp(names[i].name, ret->name))
			ret->status = names[i].status;
	return 0;
}

int qemu_migration(struct qmp *q, enum qemu_migration *ret, char why[QEMU_WHY_BYTES],
                   struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	int rc = qmp_ask(q, "query-migrate", NULL, -1, &answer, err);
	const char *status;

	if (rc)
		return rc;
	status = json_text(answer, "status");
	*ret = !*status || !strcmp(status, "none") ? QEMU_MIGRATION_NONE
	       : !strcmp(status, "completed")      ? QEMU_MIGRATION_COMPLETED
	       : !strcmp(status, "failed") || !strcmp(status, "cancelled") ? QEMU_MIGRATION_FAILED
	                                                                   : QEMU_MIGRATION_ACTIVE;
	*why = 0;
	if (*ret == QEMU_MIGRATION_FAILED)
		snprintf(why, QEMU_WHY_BYTES, "its migration has %s%s%.150s", status,
		         json_member(answer, "error-desc") ? ": " : "",
		         json_text(answer, "error-desc"));
	return 0;
}

int qemu_await_migration(struct qmp *q, enum qemu_migration *ret, char why[QEMU_WHY_BYTES],
                         struct error *err)
{
	const char *told = qmp_news(q)->migration;
	/* It was begun by the process before this one: nothing is told of what was before. */
	bool ask = !*told;

	for (;;) {
		char before[QMP_NAME_BYTES];
		int rc = 0;

		if (!strcmp(told, "completed")) {
			*ret = QEMU_MIGRATION_COMPLETED;
			*why = 0;
			return 0;
		}
		if (ask)
			rc = qemu_migration(q, ret, why, err);
		if (rc || (ask && *ret != QEMU_MIGRATION_ACTIVE))
			return rc;
		memcpy(before, told, sizeof before);
		rc = qmp_wait(q, LOOK_MS, err);
		if (rc)
			return rc;
		ask = !strcmp(before, told) || !strcmp(told, "failed") ||
		      !strcmp(told, "cancelled");
	}
}

int qemu_blockers(struct qmp *q, char text[QEMU_WHY_BYTES], struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	int rc = qmp_ask(q, "query-migrate", NULL, -1, &answer, err);
	struct json_object *reasons = rc ? NULL : json_member(answer, "blocked-reasons");
	size_t n = json_length(reasons);

	if (n)
		snprintf(text, QEMU_WHY_BYTES, "%s",
		         json_object_get_string(json_object_array_get_idx(reasons, 0)));
	return rc ? rc : (int)n;
}

int qemu_capability(struct qmp *q, const char *name, struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	int rc = qmp_ask(q, "query-migrate-capabilities", NULL, -1, &answer, err);

	if (rc)
		return rc;
	for (size_t i = 0; i < json_length(answer); i++) {
		struct json_object *c = json_object_array_get_idx(answer, i);

		if (!strcmp(json_text(c, "capability"), name))
			return json_object_get_boolean(json_member(c, "state")) ? 1 : 0;
	}
	return -ENOENT;
}

static void add_capability(struct json_object *list, const char *name, bool on)
{
	struct json_object *c = with_text("capability", name);

	json_object_object_add(c, "state", json_object_new_boolean(on));
	json_object_array_add(list, c);
}

static struct qmp_command set_bandwidth(int64_t bytes_per_s)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "max-bandwidth", json_object_new_int64(bytes_per_s));
	return (struct qmp_command){ "migrate-set-parameters", o, -1 };
}

static struct qmp_command set_ignore_shared(bool on)
{
	struct json_object *o = json_object_new_object(), *list = json_object_new_array();

	add_capability(list, "x-ignore-shared", on);
	/* Never off again: libvirt counts on it. */
	if (on)
		add_capability(list, "events", true);
	json_object_object_add(o, "capabilities", list);
	return (struct qmp_command){ "migrate-set-capabilities", o, -1 };
}

int qemu_bandwidth(struct qmp *q, int64_t *ret, struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	int rc = qmp_ask(q, "query-migrate-parameters", NULL, -1, &answer, err);

	if (rc)
		return rc;
	*ret = json_object_get_int64(json_member(answer, "max-bandwidth"));
	/* Ours, of a process that was killed. */
	if (*ret == BANDWIDTH_MAX)
		*ret = BANDWIDTH_DEFAULT;
	return 0;
}

void qemu_restore(struct qmp *q, int64_t bandwidth)
{
	const struct qmp_command commands[] = { set_ignore_shared(false),
		                                set_bandwidth(bandwidth) };

	(void)qmp_tell_all(q, commands, sizeof commands / sizeof *commands, NULL);
}

int qemu_give_fd(struct qmp *q, const char *name, int fd, struct error *err)
{
	return qmp_ask(q, "getfd", with_text("fdname", name), fd, NULL, err);
}

void qemu_take_back_fd(struct qmp *q, const char *name)
{
	(void)qmp_ask(q, "closefd", with_text("fdname", name), -1, NULL, NULL);
}

/* A pipe goes with it, by a name that @command then uses. */
static struct qmp_command give_pipe(int fd)
{
	return (struct qmp_command){ "getfd", with_text("fdname", PIPE_NAME), fd };
}

int qemu_stop_and_save(struct qmp *q, int fd, struct error *err)
{
	const struct qmp_command commands[] = {
		set_ignore_shared(true),
		set_bandwidth(BANDWIDTH_MAX),
		{ "stop", NULL, -1 },
		give_pipe(fd),
		{ "migrate", with_text("uri", PIPE_URI), -1 },
	};
	int rc;

	*qmp_news(q)->migration = 0;
	rc = qmp_tell_all(q, commands, sizeof commands / sizeof *commands, err);
	if (rc == -EREMOTEIO)
		qemu_take_back_fd(q, PIPE_NAME);
	return rc;
}

int qemu_load(struct qmp *q, int fd, struct error *err)
{
	struct json_object *arguments = with_text("uri", PIPE_URI);
	const struct qmp_command commands[] = {
		set_ignore_shared(true),
		give_pipe(fd),
		{ "migrate-incoming", arguments, -1 },
	};

	/* It says why then; before, it can only exit. */
	if (qmp_is_at_least(q, 9, 1))
		json_object_object_add(arguments, "exit-on-error", json_object_new_boolean(false));
	*qmp_news(q)->migration = 0;
	return qmp_tell_all(q, commands, sizeof commands / sizeof *commands, err);
}

int qemu_human(struct qmp *q, const char *line, char **ret, struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	int rc = qmp_ask(q, "human-monitor-command", with_text("command-line", line), -1, &answer,
	                 err);
	char *text;

	if (rc)
		return rc;
	text = strdup(json_object_get_string(answer) ? json_object_get_string(answer) : "");
	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	*ret = text;
	return 0;
}

int qemu_object_type(struct qmp *q, const char *path, char *buf, size_t size, struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	struct json_object *arguments = with_text("path", path);
	int rc;

	json_object_object_add(arguments, "property", json_object_new_string("type"));
	rc = qmp_ask(q, "qom-get", arguments, -1, &answer, err);
	*buf = 0;
	if (rc == -EREMOTEIO)
		return 0;
	if (!rc)
		snprintf(buf, size, "%s", json_object_get_string(answer));
	return rc;
}

int qemu_backends(struct qmp *q, struct qemu_backend *list, size_t max, size_t *ret_n,
                  struct error *err)
{
	_cleanup_json_ struct json_object *answer = NULL;
	int rc = qmp_ask(q, "query-memdev", NULL, -1, &answer, err);
	size_t n = rc ? 0 : json_length(answer);

	if (rc)
		return rc;
	if (n > max)
		return error_set(err, -E2BIG, "QEMU has %zu memory backends; %zu can be moved", n,
		                 max);
	for (size_t i = 0; i < n; i++) {
		struct json_object *o = json_object_array_get_idx(answer, i);

		snprintf(list[i].id, sizeof list[i].id, "%s", json_text(o, "id"));
		list[i].is_shared = json_object_get_boolean(json_member(o, "share"));
	}
	*ret_n = n;
	return 0;
}

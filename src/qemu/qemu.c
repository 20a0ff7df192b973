/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/qemu.h"

#include <errno.h>
#include <string.h>

#include "qemu/json.h"
#include "util/cleanup.h"
#include "util/log.h"

/* As good as none; and QEMU's default since 5.2. Bytes per second. */
#define BANDWIDTH_MAX (1ll << 40)
#define BANDWIDTH_DEFAULT (128ll << 20)
#define PIPE_NAME "postcopy-vmstate"
#define PIPE_URI "fd:" PIPE_NAME
/* Its other end, at a destination. */
#define PIPE_INPUT_NAME "postcopy-vmstate-input"
#define UNDESCRIBED "suppress-vmdesc"
#define IGNORE_SHARED "x-ignore-shared"
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

	add_capability(list, IGNORE_SHARED, on);
	/* Never off again: libvirt counts on it. */
	if (on)
		add_capability(list, "events", true);
	json_object_object_add(o, "capabilities", list);
	return (struct qmp_command){ "migrate-set-capabilities", o, -1 };
}

static struct json_object *of_machine(const char *property)
{
	struct json_object *o = with_text("path", "/machine");

	json_object_object_add(o, "property", json_object_new_string(property));
	return o;
}

/*
 * Behind its devices' state QEMU writes what that means, for who debugs it, and composes that while
 * the guest stands still.
 */
static struct qmp_command set_undescribed(bool on)
{
	struct json_object *o = of_machine(UNDESCRIBED);

	json_object_object_add(o, "value", json_object_new_boolean(on));
	return (struct qmp_command){ "qom-set", o, -1 };
}

int qemu_settings(struct qmp *q, struct qemu_settings *ret, struct error *err)
{
	_cleanup_json_ struct json_object *parameters = NULL;
	_cleanup_json_ struct json_object *undescribed = NULL;
	struct error unknown = ERROR_INIT;
	int rc = qmp_ask(q, "query-migrate-parameters", NULL, -1, &parameters, err);

	if (!rc)
		rc = qmp_ask(q, "qom-get", of_machine(UNDESCRIBED), -1, &undescribed, err);
	if (rc)
		return rc;
	ret->undescribed = json_object_get_boolean(undescribed);
	ret->bandwidth = json_object_get_int64(json_member(parameters, "max-bandwidth"));
	/* Of a process of ours that was killed: it is on before all else, and off after it. */
	if (qemu_capability(q, IGNORE_SHARED, &unknown) > 0)
		ret->undescribed = false;
	if (ret->bandwidth == BANDWIDTH_MAX)
		ret->bandwidth = BANDWIDTH_DEFAULT;
	return 0;
}

void qemu_restore(struct qmp *q, const struct qemu_settings *before)
{
	const struct qmp_command commands[] = { set_undescribed(before->undescribed),
		                                set_bandwidth(before->bandwidth),
		                                set_ignore_shared(false) };
	struct error err = ERROR_INIT;

	if (qmp_tell_all(q, commands, sizeof commands / sizeof *commands, &err))
		log_warning(
		        "QEMU's settings are not as before, and a save of its own would leave RAM "
		        "out (capability %s): %s",
		        IGNORE_SHARED, err.text);
}

int qemu_give_fd(struct qmp *q, const char *name, int fd, struct error *err)
{
	return qmp_ask(q, "getfd", with_text("fdname", name), fd, NULL, err);
}

void qemu_take_back_fd(struct qmp *q, const char *name)
{
	(void)qmp_ask(q, "closefd", with_text("fdname", name), -1, NULL, NULL);
}

/* One end of a pipe goes with it. */
static struct qmp_command give_pipe(const char *name, int fd)
{
	return (struct qmp_command){ "getfd", with_text("fdname", name), fd };
}

int qemu_begin_save(struct qmp *q, int fd, struct error *err)
{
	const struct qmp_command commands[] = {
		set_ignore_shared(true),
		set_undescribed(true),
		set_bandwidth(BANDWIDTH_MAX),
		give_pipe(PIPE_NAME, fd),
		{ "migrate", with_text("uri", PIPE_URI), -1 },
	};
	int rc;

	*qmp_news(q)->migration = 0;
	rc = qmp_tell_all(q, commands, sizeof commands / sizeof *commands, err);
	if (rc == -EREMOTEIO)
		qemu_take_back_fd(q, PIPE_NAME);
	return rc;
}

int qemu_expect(struct qmp *q, int from, int to, struct error *err)
{
	const struct qmp_command commands[] = {
		set_ignore_shared(true),
		/* So it expects no description either. */
		set_undescribed(true),
		/* As -S: what has come stands still until "cont". */
		{ "stop", NULL, -1 },
		give_pipe(PIPE_NAME, from),
		give_pipe(PIPE_INPUT_NAME, to),
	};

	return qmp_tell_all(q, commands, sizeof commands / sizeof *commands, err);
}

int qemu_begin_load(struct qmp *q, struct error *err)
{
	struct json_object *arguments = with_text("uri", PIPE_URI);
	const struct qmp_command commands[] = {
		/* Again: somebody may have said "cont" to a guest that had not come. */
		{ "stop", NULL, -1 },
		{ "migrate-incoming", arguments, -1 },
	};

	/* It says why then; before, it can only exit. */
	if (qmp_is_at_least(q, 9, 1))
		json_object_object_add(arguments, "exit-on-error", json_object_new_boolean(false));
	*qmp_news(q)->migration = 0;
	return qmp_tell_all(q, commands, sizeof commands / sizeof *commands, err);
}

void qemu_end_input(struct qmp *q)
{
	qemu_take_back_fd(q, PIPE_INPUT_NAME);
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

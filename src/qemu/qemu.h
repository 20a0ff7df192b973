/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked of QEMU, and what its answers mean. Errors are as those of qmp_ask(). */
#ifndef QEMU_QEMU_H
#define QEMU_QEMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qemu/qmp.h"

/* Of all run states those that matter here. */
enum qemu_status {
	QEMU_RUNNING,
	QEMU_PAUSED,      /* stopped, by us or by somebody else */
	QEMU_INCOMING,    /* waits for a guest, or is loading one */
	QEMU_POSTMIGRATE, /* its guest has been saved; "cont" runs it on */
	QEMU_OTHER,
};

struct qemu_state {
	enum qemu_status status;
	char name[QMP_NAME_BYTES]; /* as QEMU calls it */
};

int qemu_state(struct qmp *q, struct qemu_state *ret, struct error *err);

enum qemu_migration {
	QEMU_MIGRATION_NONE,
	QEMU_MIGRATION_ACTIVE,
	QEMU_MIGRATION_COMPLETED,
	QEMU_MIGRATION_FAILED, /* or cancelled */
};

#define QEMU_WHY_BYTES 200

/* @why: QEMU's word where it has failed, else empty. */
int qemu_migration(struct qmp *q, enum qemu_migration *ret, char why[QEMU_WHY_BYTES],
                   struct error *err);

/* The same when it is not under way any more: QEMU tells, and is asked now and then. */
int qemu_await_migration(struct qmp *q, enum qemu_migration *ret, char why[QEMU_WHY_BYTES],
                         struct error *err);

/* Why QEMU would not migrate, one after the other. Return: how many; @text has the first. */
int qemu_blockers(struct qmp *q, char text[QEMU_WHY_BYTES], struct error *err);

/* Return: 1 it is on, 0 it is off, -ENOENT QEMU has no such capability, which is no error: @err is
 * as it was; other negatives with @err. */
int qemu_capability(struct qmp *q, const char *name, struct error *err);

/* What a migration of ours changes, as others have set it. */
struct qemu_settings {
	int64_t bandwidth; /* of its migrations */
	bool undescribed;  /* its vmstates tell no debugger what they hold */
};

int qemu_settings(struct qmp *q, struct qemu_settings *ret, struct error *err);

/* Give it a copy of @fd, to be named "fd:NAME". An older one of that name goes. */
int qemu_give_fd(struct qmp *q, const char *name, int fd, struct error *err);
void qemu_take_back_fd(struct qmp *q, const char *name);

/*
 * qemu_begin_save() - begin to save its guest into @fd, a pipe
 * qemu_expect() - a guest will be loaded from @from, a pipe, whose other end is @to: QEMU has both
 * qemu_begin_load() - what was expected is in the pipe, or comes
 * qemu_end_input() - nothing more is put into it
 *
 * Without the RAM that is shared (x-ignore-shared), and as fast as can be. What need not be done
 * while the guest stands still is done before. QEMU gets ready and saves other RAM while its guest
 * runs; then it stops the guest, and runs it on by itself where saving fails. The stream says that
 * the guest ran: a QEMU that expects it would run it on once it has it, but for what qemu_expect()
 * says to it.
 */
int qemu_begin_save(struct qmp *q, int fd, struct error *err);
int qemu_expect(struct qmp *q, int from, int to, struct error *err);
int qemu_begin_load(struct qmp *q, struct error *err);
void qemu_end_input(struct qmp *q);

/* Afterwards: as others expect it. A migration of QEMU's own would leave its RAM behind. */
void qemu_restore(struct qmp *q, const struct qemu_settings *before);

/* A command of the monitor for people. @ret: the caller's. */
int qemu_human(struct qmp *q, const char *line, char **ret, struct error *err);

/* The QOM type of the object @path, empty where there is none. */
int qemu_object_type(struct qmp *q, const char *path, char *buf, size_t size, struct error *err);

/* A memory backend, as query-memdev has it. */
struct qemu_backend {
	char id[128];
	bool is_shared;
};

int qemu_backends(struct qmp *q, struct qemu_backend *list, size_t max, size_t *ret_n,
                  struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a QEMU's guest can be moved, found out before anything is begun. */
#ifndef QEMU_CHECK_H
#define QEMU_CHECK_H

#include <stdio.h>

#include "qemu/blocks.h"
#include "qemu/devices.h"
#include "qemu/session.h"

#define CHECK_REASONS_MAX 32

/* All that speaks against it, so that it can be mended at once. */
struct check {
	bool is_source;   /* or a destination */
	char machine[64]; /* its type, with its version */
	struct blocks blocks;
	char reasons[CHECK_REASONS_MAX][ERROR_TEXT_MAX];
	size_t n_reasons; /* those beyond the maximum are not kept */
	bool has[DEVICE_KINDS];
};

/*
 * check_run() - look at everything
 * @ret: with open descriptors; give them back with blocks_close()
 *
 * Reasons against are no failure. Nothing is changed, in QEMU or elsewhere; as a destination its
 * main thread is stopped for a moment, and it is given a descriptor which it closes again.
 *
 * Return: 0; -errno with @err where QEMU does not answer.
 */
int check_run(struct session *s, bool is_source, struct check *ret, struct error *err);

/* For people: what it is, each block, and each reason. */
void check_print(const struct session *s, const struct check *c, FILE *to);

/* All reasons in one line. Return: -EOPNOTSUPP, or 0 where there is none. */
int check_refuse(const struct check *c, struct error *err);

#endif

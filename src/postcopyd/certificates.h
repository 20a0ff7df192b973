/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Certificates while the daemon runs: they are loaded anew for the connections to come, and no
 * connection is dropped; one that is about to expire is told of each day.
 */
#ifndef POSTCOPYD_CERTIFICATES_H
#define POSTCOPYD_CERTIFICATES_H

#include <uv.h>

#include "tls/tls.h"

#define CERTIFICATES_CONTEXTS_MAX 2

struct metrics;

struct certificates {
	uv_timer_t daily;
	size_t n;
	struct tls_context *contexts[CERTIFICATES_CONTEXTS_MAX];
	struct metrics *metrics;
};

/*
 * @contexts: those that are NULL are passed over; must outlive certificates_close()
 * @metrics: have their own; NULL: none
 */
void certificates_init(struct certificates *c, uv_loop_t *loop, struct tls_context *const *contexts,
                       size_t n, struct metrics *metrics);

/*
 * The files and the names of @configs, which are in the contexts' order. Return: 0, or -errno with
 * @err set: what was before is in use, at least with the one that failed and those behind it.
 */
int certificates_reload(struct certificates *c, const struct tls_config *const *configs,
                        struct error *err);

/* Its handles close. */
void certificates_close(struct certificates *c);

#endif

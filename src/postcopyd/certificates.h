/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Certificates while the daemon runs: SIGHUP loads the files anew, for the connections to come,
 * and drops none; a certificate that is about to expire is told of each day.
 */
#ifndef POSTCOPYD_CERTIFICATES_H
#define POSTCOPYD_CERTIFICATES_H

#include <uv.h>

#include "tls/tls.h"

#define CERTIFICATES_CONTEXTS_MAX 2

struct metrics;

struct certificates {
	uv_signal_t sighup;
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

/* Its handles close. */
void certificates_close(struct certificates *c);

#endif

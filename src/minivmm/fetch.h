/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asking for pages before the guest runs: those that its vCPUs are about to touch, so that
 * they need not fault one after the other, and some others, to try the asynchronous calls.
 */
#ifndef MINIVMM_FETCH_H
#define MINIVMM_FETCH_H

#include "minivmm/session.h"

/*
 * fetch_ahead() - have the pages that are needed first, and as many as the options say
 *
 * Each page that was answered for is looked for, then mapped ahead for KVM where the kernel
 * does that. Return: 0, -ETIMEDOUT, -EPIPE; -EIO where a page is not there after its answer.
 */
int fetch_ahead(struct session *s, struct postcopy_channel *ch, struct postcopy_error *err);

#endif

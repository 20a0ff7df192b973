/* SPDX-License-Identifier: Apache-2.0 */
/* The source's half, on the loop's thread (source.c). */
#ifndef MIGRATE_SOURCE_SOURCE_H
#define MIGRATE_SOURCE_SOURCE_H

#include "migrate/migration.h"

/* An attached VMM, its messages, its end; news; commands. */
int source_attach(struct migration *m, struct vmm_attach *attach, struct error *err);
/* Taking over: guest memory first, or nothing at all; then go on, with the VMM's socket or without.
 */
int source_take_over(struct migration *m, struct vmm_attach *attach, const struct saved *saved,
                     struct error *err);
void source_go_on(struct migration *m);
int source_message(struct migration *m, const struct vmm_wire_msg *msg, int fds[VMM_MESSAGE_FDS],
                   struct error *err);
/* One whose descriptor is lost. */
void source_cut_message(struct migration *m, enum vmm_wire_type type, const struct error *why);
void source_vmm_closed(struct migration *m);
void source_news(struct migration *m, unsigned int news);
int source_cancel(struct migration *m, struct error *err);
int source_set_token(struct migration *m, const uint8_t token[TOKEN_BYTES], struct error *err);
int source_run_on(struct migration *m, struct error *err);
int source_release(struct migration *m, struct error *err);

/* Since when who holds its guest was not heard; and whether that is for long enough to be gone. */
uint64_t source_silent_since_ns(const struct migration *m);
bool source_holder_is_silent(const struct migration *m);

/*
 * Its adapter is here again: say what waits for it. It is late: go back, it was waited for long
 * enough.
 */
void source_attached_again(struct migration *m);
void source_adapter_late(struct migration *m, const char *why);

/* Take what it holds away from the page server, and release it. */
void source_stop(struct migration *m);

/* And what answers for one that has ended. */
void source_forget(struct migration *m);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What a source guest writes while it runs: the loop's part of stream/source_log.h. */
#ifndef MIGRATE_SOURCE_SOURCE_LOG_H
#define MIGRATE_SOURCE_SOURCE_LOG_H

#include "migrate/migration.h"

/*
 * The VMM says how it can be told; the VMM has done what it was asked for; what is wanted of it has
 * changed; it ends, before the VMM hears any other end.
 */
int source_on_dirty_log(struct migration *m, const struct vmm_wire_msg *msg,
                        int fds[VMM_MESSAGE_FDS], struct error *err);
void source_on_harvested(struct migration *m, const struct vmm_wire_msg *msg);
void source_log_news(struct migration *m);
void source_end_log(struct migration *m);
/* Its descriptors, of the process before, to a source that nobody finds yet. */
void source_take_over_log(struct migration *m, struct page_source *source,
                          const struct saved *saved);
void source_begin_log_anew(struct migration *m);
void source_lose_log(struct migration *m);

#endif

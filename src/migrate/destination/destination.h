/* SPDX-License-Identifier: Apache-2.0 */
/* The destination's half, on the loop's thread (destination.c, late.c). */
#ifndef MIGRATE_DESTINATION_DESTINATION_H
#define MIGRATE_DESTINATION_DESTINATION_H

#include "migrate/migration.h"

/*
 * @pieces: where its regions are mapped, if not each at its host_addr; NULL
 * @state_fd: a page state to go on from, borrowed; -1: all is missing. It knows of pieces.
 */
int destination_attach(struct migration *m, struct vmm_attach *attach, const struct addrmap *pieces,
                       int state_fd, struct error *err);
/* As if no VMM had ever attached. */
void destination_detach(struct migration *m);
/*
 * Taking over: guest memory first, or nothing at all; then go on, with the VMM's socket or without.
 * There may be no thread for that: then it has done nothing, and is called again.
 */
int destination_take_over(struct migration *m, struct vmm_attach *attach, struct error *err);
int destination_go_on(struct migration *m);
/* @fd: VMM_MESSAGE_FDS of them */
int destination_message(struct migration *m, const struct vmm_wire_msg *msg, int *fd,
                        struct error *err);
/* MEMORY: what was late (late.c). */
int destination_memory(struct migration *m, struct vmm_attach *attach, struct error *err);
void destination_take_table(struct migration *m);
/* The guest is the source's still, and is to be so: it is told to run it on, and the VMM why. */
void destination_give_up(struct migration *m, const struct error *why);
void destination_vmm_closed(struct migration *m);
void destination_news(struct migration *m, unsigned int news);
int destination_start(struct migration *m, bool switchover, const struct migration_warm *warm,
                      const struct migration_turn_wanted *turn, struct error *err);
/* Before it was started: its guest runs on at its source, which knows nothing of it. */
void destination_fail_attached(struct migration *m, const struct error *why);
int destination_set_warm(struct migration *m, const struct migration_warm *warm, struct error *err);
int destination_switchover(struct migration *m, struct error *err);
int destination_recover(struct migration *m, const struct conn_target *target, struct error *err);
int destination_cancel(struct migration *m, struct error *err);

/*
 * Its adapter is here again: say what waits for it. It is late: go back, it was waited for long
 * enough.
 */
void destination_attached_again(struct migration *m);
void destination_adapter_late(struct migration *m, const char *why);

/* Have the conductor end and wait for it; release what the destination holds. */
void destination_stop(struct migration *m);

#endif

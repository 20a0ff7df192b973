/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RPC_REPORT_MESSAGE_H
#define RPC_REPORT_MESSAGE_H

#include "rpc/message.h"

struct migration;
struct stalls;

/* A migration with its series, what a report draws. @stalls may be NULL. Return: 0 or -ENOMEM with
 * @e set. */
int report_pack(struct migration *m, const struct stalls *stalls, struct rpc_answer *ret,
                struct rpc_error *e);

#endif

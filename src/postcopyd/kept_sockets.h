/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether the sockets that were taken over from the service manager are those that the
 * configuration stands for by now. They win whatever it says: who connects waits in their queues.
 * But the configuration may have changed since, a name may have another address, and a release that
 * listened at a name's first address alone has left one socket where there would be two. Nobody who
 * dials would find that out.
 */
#ifndef POSTCOPYD_KEPT_SOCKETS_H
#define POSTCOPYD_KEPT_SOCKETS_H

#include "util/tcp_listen.h"

/*
 * kept_sockets_compare() - tell in the log, soon, where they are others
 * @key: of the configuration
 * @configured: "host:port"
 *
 * A thread does it: guests may wait for the caller, and name servers may take their time.
 */
void kept_sockets_compare(const struct tcp_listening *l, const char *key, const char *configured);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What --check-config looks at beyond the words: does what they name exist on this host? */
#ifndef POSTCOPYD_CONFIG_CHECK_H
#define POSTCOPYD_CONFIG_CHECK_H

#include "postcopyd/options.h"

/*
 * config_check() - certificates load and will be accepted by peers, sockets have a directory,
 * groups exist, hosts have an address, and nothing is used twice
 *
 * Nothing is opened for good, bound or changed. Errors are added to @errors.
 */
void config_check(const struct options *o, struct config_errors *errors);

#endif

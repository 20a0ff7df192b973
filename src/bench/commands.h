/* SPDX-License-Identifier: Apache-2.0 */
/* What postcopyctl's main has of this directory. */
#ifndef BENCH_COMMANDS_H
#define BENCH_COMMANDS_H

#include "ctl/options.h"

extern const struct command bench_command;
extern const struct command report_command;

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CTL_INTERRUPT_H
#define CTL_INTERRUPT_H

#include "util/error.h"

/*
 * interrupt_fd() - have SIGINT, SIGTERM and SIGHUP read from a descriptor instead
 *
 * So that every way out passes the clean-up. Return: the descriptor, or a negative errno.
 */
int interrupt_fd(struct error *err);

#endif

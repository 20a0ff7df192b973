/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors as libpostcopy has them: a negative errno and one line of text.
 * -EOPNOTSUPP means throughout that this host can't do what was asked.
 */
#ifndef MINIVMM_FAIL_H
#define MINIVMM_FAIL_H

#include <postcopy/postcopy.h>

/* Notes a failure in @err. Return: @code. */
int fail(struct postcopy_error *err, int code, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

/* As fail(), with the name of errno value -@code at the end. */
int fail_errno(struct postcopy_error *err, int code, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

#endif

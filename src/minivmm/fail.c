/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/fail.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int fail(struct postcopy_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err->text, sizeof err->text, fmt, ap);
	va_end(ap);
	err->code = code;
	return code;
}

int fail_errno(struct postcopy_error *err, int code, const char *fmt, ...)
{
	va_list ap;
	size_t len;

	va_start(ap, fmt);
	vsnprintf(err->text, sizeof err->text, fmt, ap);
	va_end(ap);
	len = strlen(err->text);
	snprintf(err->text + len, sizeof err->text - len, ": %s", strerror(-code));
	err->code = code;
	return code;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors as values with text.
 *
 * A function that can fail returns 0 or a negative errno. Where a person will
 * read why, it also takes a `struct error *err` (last, may be NULL) and puts one
 * line there: what failed, on what, and what to do. Low layers return, the owner
 * logs; nobody does both.
 */
#ifndef UTIL_ERROR_H
#define UTIL_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

#define ERROR_TEXT_MAX 320

struct error {
	int code;                  /* negative errno, 0 while nothing failed */
	bool from_peer;            /* the other side's answer, and no failure of ours */
	char text[ERROR_TEXT_MAX]; /* one line, no newline, always terminated */
};

#define ERROR_INIT ((struct error){ .code = 0 })

/*
 * error_set() - note a failure
 * @err:  where to, or NULL
 * @code: negative errno
 * @fmt:  the line; control characters in the result are replaced by '?', so that
 *        text from a peer can't forge log lines
 *
 * Return: @code, so that `return error_set(err, -EINVAL, ...)` reads as one step.
 */
int error_set(struct error *err, int code, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));
int error_setv(struct error *err, int code, const char *fmt, va_list ap)
        __attribute__((format(printf, 3, 0)));

/* As error_set(), with ": " and the name of errno value -@code appended. */
int error_errno(struct error *err, int code, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

/* Puts "<prefix>: " in front of the text that is already there. Return: err's code. */
int error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "util/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024

static const char *log_name = "postcopy";
static enum log_level log_max = LOG_LEVEL_INFO;
static bool log_to_journal;

void log_init(const char *name, enum log_level level)
{
	log_name = name;
	log_max = level;
	log_to_journal = getenv("JOURNAL_STREAM") != NULL;
}

static const char *level_word(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERROR:
		return "error: ";
	case LOG_LEVEL_WARNING:
		return "warning: ";
	case LOG_LEVEL_DEBUG:
		return "debug: ";
	case LOG_LEVEL_INFO:
		break;
	}
	return "";
}

void log_write(enum log_level level, const char *fmt, ...)
{
	char line[LINE_MAX_BYTES];
	va_list ap;
	int len;

	if (level > log_max)
		return;
	if (log_to_journal)
		len = snprintf(line, sizeof line, "<%d>", (int)level);
	else
		len = snprintf(line, sizeof line, "%s: %s", log_name, level_word(level));
	va_start(ap, fmt);
	len += vsnprintf(line + len, sizeof line - (size_t)len, fmt, ap);
	va_end(ap);
	if (len > (int)sizeof line - 2)
		len = sizeof line - 2;
	line[len++] = '\n';
	/* A log that can't be written (disk full, closed pipe) must not stop a migration. */
	if (write(STDERR_FILENO, line, (size_t)len) < 0)
		return;
}

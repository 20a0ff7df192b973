/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/config_file.h"

#include <errno.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"

#define BLANKS " \t\r\n\v\f"
#define BYTE_ORDER_MARK "\xef\xbb\xbf"

struct config_reader {
	FILE *file;
	const char *name;
	const struct config_file_ops *ops;
	void *arg;
	struct config_errors *errors;
	char *line; /* getline()'s */
	size_t line_size;
	unsigned int number;
	bool in_section;  /* a heading was seen */
	bool passed_over; /* the last heading was wrong: its keys can't be judged */
	bool key_due;     /* inih was given a line that must be a key, and has not called back */
};

static void complain(struct config_reader *r, struct error *err)
{
	error_prefix(err, "%s:%u", r->name, r->number);
	config_errors_add(r->errors, err);
}

static void complain_of(struct config_reader *r, const char *what)
{
	struct error err = ERROR_INIT;

	error_set(&err, -EINVAL, "%s", what);
	complain(r, &err);
}

/* A heading that starts with "[". Return: whether inih may have it. */
static bool take_heading(struct config_reader *r, char *text)
{
	char *end = strchr(text, ']');
	struct error err = ERROR_INIT;
	const char *rest;
	int rc;

	r->in_section = true;
	r->passed_over = true;
	if (!end) {
		complain_of(r, "a [section] without its \"]\"");
		return false;
	}
	rest = end + 1 + strspn(end + 1, BLANKS);
	if (*rest && *rest != ';' && *rest != '#') {
		complain_of(r, "a [section] stands on a line of its own");
		return false;
	}
	*end = 0;
	rc = r->ops->section(r->arg, text + 1, &err);
	strcpy(end, "]");
	if (rc) {
		complain(r, &err);
		return false;
	}
	r->passed_over = false;
	return true;
}

/* What inih is to see of the line that was read: @text, or nothing. */
static const char *judge_line(struct config_reader *r, char *text, size_t len, size_t max)
{
	bool has_nul = strlen(text) != len;

	if (r->number == 1 && !strncmp(text, BYTE_ORDER_MARK, strlen(BYTE_ORDER_MARK)))
		text += strlen(BYTE_ORDER_MARK);
	/* Indented keys would be read as the value of the line before. */
	text += strspn(text, BLANKS);
	if (has_nul) {
		complain_of(r, "a NUL byte: this is no text");
		return "";
	}
	if (!*text || *text == '#' || *text == ';')
		return "";
	/* With a newline, also where there is none: it is printed with one. */
	if (strcspn(text, "\n") >= max) {
		struct error err = ERROR_INIT;

		error_set(&err, -EINVAL, "longer than %zu bytes", max);
		complain(r, &err);
		return "";
	}
	if (*text == '[')
		return take_heading(r, text) ? text : "";
	r->key_due = !r->passed_over;
	return r->passed_over ? "" : text;
}

static void miss_key(struct config_reader *r)
{
	if (r->key_due)
		complain_of(r, "neither a [section], nor \"key = value\", nor a comment");
	r->key_due = false;
}

/* As fgets(), for inih. */
static char *next_line(char *buf, int size, void *arg)
{
	struct config_reader *r = arg;
	ssize_t len;

	miss_key(r);
	len = getline(&r->line, &r->line_size, r->file);
	if (len < 0)
		return NULL;
	r->number++;
	/* Room for a newline and the end. */
	strcpy(buf, judge_line(r, r->line, (size_t)len, (size_t)size - 2));
	return buf;
}

static int on_key(void *arg, const char *section, const char *name, const char *value)
{
	struct config_reader *r = arg;
	struct config_key key = {
		.section = r->in_section ? section : "",
		.name = name,
		.value = value,
		.line = r->number,
	};
	struct error err = ERROR_INIT;

	r->key_due = false;
	if (r->ops->key(r->arg, &key, &err)) {
		error_prefix(&err, "[%s] %s", key.section, name);
		complain(r, &err);
	}
	return 1;
}

void config_file_read(FILE *file, const char *name, const struct config_file_ops *ops, void *arg,
                      struct config_errors *errors)
{
	struct config_reader r = {
		.file = file,
		.name = name,
		.ops = ops,
		.arg = arg,
		.errors = errors,
	};

	/* Its result is the first line that is bad: we know them all. */
	ini_parse_stream(next_line, &r, on_key, &r);
	miss_key(&r);
	if (ferror(file)) {
		struct error err = ERROR_INIT;

		error_set(&err, -EIO, "%s: can't be read", name);
		config_errors_add(errors, &err);
	}
	free(r.line);
}

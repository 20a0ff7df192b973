/* SPDX-License-Identifier: Apache-2.0 */
/* One option of the daemon: what kind of value it takes, and how that is read and printed. */
#ifndef POSTCOPYD_OPTION_H
#define POSTCOPYD_OPTION_H

#include <stddef.h>

#include "postcopyd/options.h"

#define OPTION_CHOICES_MAX 5

enum option_kind {
	OPTION_TEXT,       /* const char * */
	OPTION_CREDENTIAL, /* const char *, a file; "%d/" is $CREDENTIALS_DIRECTORY */
	OPTION_ADDRESS,    /* const char *, HOST:PORT, or NULL for "none" */
	OPTION_NAMES,      /* const char **, and a size_t: one more name, up to max */
	OPTION_SANS,       /* the same, of names in certificates */
	OPTION_NUMBER,     /* uint64_t within min..max */
	OPTION_SIZE,       /* the same, with suffix K, M, G or T */
	OPTION_FD,         /* int */
	OPTION_SWITCH,     /* bool: yes or no */
	OPTION_CHOICE,     /* int, of one of the choices */
	OPTION_FLAG,       /* bool: set by being there; takes no value */
	OPTION_ACTION,     /* nothing to keep; options_parse() does it */
};

struct option_choice {
	const char *name;
	int value;
};

struct option_row {
	const char *section; /* NULL: the command line's alone */
	const char *name;
	enum option_kind kind;
	size_t offset;   /* of the value in struct options */
	size_t n_offset; /* NAMES, SANS: of their number */
	const char *arg;
	const char *help;
	const char *fallback; /* the default, as one would write it; NULL: none */
	uint64_t min, max;
	bool or_zero; /* below min, and meaning something else */
	bool is_live; /* SIGHUP changes it */
	struct option_choice choices[OPTION_CHOICES_MAX];
};

/*
 * option_set() - take a value
 * @value: copied
 *
 * Return: 0; -EINVAL with @err saying what is wrong and what is allowed; -ENOMEM.
 */
int option_set(const struct option_row *row, struct options *o, const char *value,
               struct error *err);

/* As lines of a file, none longer than one it may have come from; a comment for no value. */
void option_print(const struct option_row *row, const struct options *o, FILE *to);

/* Have @to what @from has: its values stay @from's. */
void option_copy(const struct option_row *row, struct options *to, struct options *from);

/* Frees what option_set() has copied for all rows; and the list of one row. */
void option_texts_free(struct options *o);
void option_texts_move(struct options *to, struct options *from);
void option_list_free(const struct option_row *row, struct options *o);

static inline bool option_is_list(const struct option_row *row)
{
	return row->kind == OPTION_NAMES || row->kind == OPTION_SANS;
}

static inline bool option_takes_value(const struct option_row *row)
{
	return row->kind != OPTION_FLAG && row->kind != OPTION_ACTION;
}

#endif

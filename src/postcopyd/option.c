/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/option.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "stream/conn.h"

#define CREDENTIAL_PREFIX "%d/"
#define NONE "none"

static const char suffixes[] = "KMGT";

struct options_text {
	struct options_text *next;
	char text[];
};

/* A copy of "<a><b>" that lives as long as @o. */
static const char *keep(struct options *o, const char *a, const char *b)
{
	size_t a_len = strlen(a), b_len = strlen(b);
	struct options_text *t = malloc(sizeof *t + a_len + b_len + 1);

	if (!t)
		return NULL;
	memcpy(t->text, a, a_len);
	memcpy(t->text + a_len, b, b_len + 1);
	t->next = o->texts;
	o->texts = t;
	return t->text;
}

void option_texts_free(struct options *o)
{
	while (o->texts) {
		struct options_text *t = o->texts;

		o->texts = t->next;
		free(t);
	}
}

static int set_joined(struct options *o, const char *a, const char *b, const char **to,
                      struct error *err)
{
	const char *kept = keep(o, a, b);

	if (!kept)
		return error_errno(err, -ENOMEM, "its value");
	*to = kept;
	return 0;
}

static int set_credential(struct options *o, const char *value, const char **to, struct error *err)
{
	const char *directory = getenv("CREDENTIALS_DIRECTORY");
	size_t len = strlen(CREDENTIAL_PREFIX);

	if (strncmp(value, CREDENTIAL_PREFIX, len))
		return set_joined(o, value, "", to, err);
	if (!directory)
		return error_set(err, -EINVAL,
		                 "\"%s\" is a credential, and $CREDENTIALS_DIRECTORY is not set: "
		                 "systemd's LoadCredential= does it, or name a file",
		                 value);
	/* Its slash comes along. */
	return set_joined(o, directory, value + len - 1, to, err);
}

static int set_address(struct options *o, const char *value, const char **to, struct error *err)
{
	struct conn_target target;
	int rc;

	if (!strcmp(value, NONE)) {
		*to = NULL;
		return 0;
	}
	rc = conn_target_parse(value, &target, err);
	return rc ? rc : set_joined(o, value, "", to, err);
}

static int add_name(const struct option_row *row, struct options *o, const char *value,
                    struct error *err)
{
	const char ***names = (const char ***)((char *)o + row->offset), **more;
	size_t *n = (size_t *)((char *)o + row->n_offset);
	int rc;

	for (size_t i = 0; i < *n; i++)
		if (!strcmp((*names)[i], value))
			return 0;
	if (*n == row->max)
		return error_set(err, -EINVAL, "at most %" PRIu64 " of them", row->max);
	more = reallocarray(*names, *n + 1, sizeof *more);
	if (!more)
		return error_errno(err, -ENOMEM, "its value");
	*names = more;
	rc = set_joined(o, value, "", &more[*n], err);
	if (!rc)
		++*n;
	return rc;
}

/* Lists change places; of the rest what can be changed at all is a number or a text. */
void option_copy(const struct option_row *row, struct options *to, struct options *from)
{
	void *a = (char *)to + row->offset, *b = (char *)from + row->offset;
	size_t *a_n = (size_t *)((char *)to + row->n_offset);
	size_t *b_n = (size_t *)((char *)from + row->n_offset);
	const char **list;
	size_t n;

	if (option_is_list(row)) {
		list = *(const char ***)a;
		*(const char ***)a = *(const char ***)b;
		*(const char ***)b = list;
		n = *a_n;
		*a_n = *b_n;
		*b_n = n;
	} else if (row->kind == OPTION_CHOICE) {
		*(int *)a = *(const int *)b;
	} else if (row->kind == OPTION_NUMBER || row->kind == OPTION_SIZE) {
		*(uint64_t *)a = *(const uint64_t *)b;
	} else {
		*(const char **)a = *(const char *const *)b;
	}
}

void option_texts_move(struct options *to, struct options *from)
{
	struct options_text **end = &to->texts;

	while (*end)
		end = &(*end)->next;
	*end = from->texts;
	from->texts = NULL;
}

void option_list_free(const struct option_row *row, struct options *o)
{
	const char ***names = (const char ***)((char *)o + row->offset);

	free(*names);
	*names = NULL;
}

/* Return: by how many bits the suffix shifts; -1 where it is none. */
static int suffix_shift(const char *text)
{
	const char *at = *text && !text[1] ? strchr(suffixes, *text) : NULL;

	if (!*text)
		return 0;
	return at ? 10 * (int)(at - suffixes + 1) : -1;
}

static int set_number(const struct option_row *row, const char *value, uint64_t *to,
                      struct error *err)
{
	bool digits = *value >= '0' && *value <= '9', size = row->kind == OPTION_SIZE;
	unsigned long long n;
	char *end;
	int shift;

	errno = 0;
	n = strtoull(value, &end, 10);
	shift = size ? suffix_shift(end) : *end ? -1 : 0;
	if (!digits || shift < 0)
		return error_set(err, -EINVAL, "\"%s\" is not a %s", value,
		                 size ? "size: bytes, or with K, M, G or T behind, like 64M"
		                      : "whole number");
	if (errno || n > UINT64_MAX >> shift || n << shift > row->max ||
	    (n << shift < row->min && (n || !row->or_zero)))
		return error_set(err, -EINVAL, "%s is not within %" PRIu64 "..%" PRIu64 "%s", value,
		                 row->min, row->max, row->or_zero ? ", nor 0" : "");
	*to = (uint64_t)n << shift;
	return 0;
}

static int set_fd(const struct option_row *row, const char *value, int *to, struct error *err)
{
	uint64_t n;
	int rc = set_number(row, value, &n, err);

	if (!rc)
		*to = (int)n;
	return rc;
}

static int set_switch(const char *value, bool *to, struct error *err)
{
	bool yes = !strcmp(value, "yes");

	if (!yes && strcmp(value, "no"))
		return error_set(err, -EINVAL, "\"%s\" is neither yes nor no", value);
	*to = yes;
	return 0;
}

static int set_choice(const struct option_row *row, const char *value, int *to, struct error *err)
{
	const struct option_choice *c = row->choices;
	char list[96] = "";
	size_t len = 0;

	for (size_t i = 0; i < OPTION_CHOICES_MAX && c[i].name; i++) {
		if (!strcmp(value, c[i].name)) {
			*to = c[i].value;
			return 0;
		}
		len += (size_t)snprintf(list + len, sizeof list - len, "%s%s", i ? ", " : "",
		                        c[i].name);
	}
	return error_set(err, -EINVAL, "\"%s\" is none of %s", value, list);
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* Refuses text that would not come back from a file. */
static int check_text(const char *value, struct error *err)
{
	size_t len = strlen(value);

	if (!len)
		return error_set(err, -EINVAL, "its value is empty");
	if (is_blank(value[0]) || is_blank(value[len - 1]))
		return error_set(err, -EINVAL, "\"%s\": a blank at its end", value);
	for (size_t i = 0; i < len; i++) {
		if (((unsigned char)value[i] < ' ' && value[i] != '\t') || value[i] == 0x7f)
			return error_set(err, -EINVAL, "a control character in its value");
		if (value[i] == ';' && (!i || is_blank(value[i - 1])))
			return error_set(err, -EINVAL, "\"%s\": here \";\" begins a comment",
			                 value);
	}
	return 0;
}

int option_set(const struct option_row *row, struct options *o, const char *value,
               struct error *err)
{
	void *to = (char *)o + row->offset;
	int rc = option_takes_value(row) ? check_text(value, err) : 0;

	if (rc)
		return rc;
	switch (row->kind) {
	case OPTION_TEXT:
		return set_joined(o, value, "", to, err);
	case OPTION_CREDENTIAL:
		return set_credential(o, value, to, err);
	case OPTION_ADDRESS:
		return set_address(o, value, to, err);
	case OPTION_NAMES:
		return add_name(row, o, value, err);
	case OPTION_SANS:
		rc = tls_name_check(value, err);
		return rc ? rc : add_name(row, o, value, err);
	case OPTION_NUMBER:
	case OPTION_SIZE:
		return set_number(row, value, to, err);
	case OPTION_FD:
		return set_fd(row, value, to, err);
	case OPTION_SWITCH:
		return set_switch(value, to, err);
	case OPTION_CHOICE:
		return set_choice(row, value, to, err);
	case OPTION_FLAG:
		*(bool *)to = true;
		return 0;
	case OPTION_ACTION:
		return 0;
	}
	return -EINVAL;
}

static void print_size(const struct option_row *row, uint64_t n, FILE *to)
{
	size_t suffix = 0;

	while (n && suffix < sizeof suffixes - 1 && n % 1024 == 0) {
		n /= 1024;
		suffix++;
	}
	fprintf(to, "%s=%" PRIu64, row->name, n);
	if (suffix)
		fputc(suffixes[suffix - 1], to);
	fputc('\n', to);
}

static void print_text(const struct option_row *row, const char *text, FILE *to)
{
	if (text)
		fprintf(to, "%s=%s\n", row->name, text);
	else
		fprintf(to, "# %s: " NONE "\n", row->name);
}

static void print_names(const struct option_row *row, const char *const *names, size_t n, FILE *to)
{
	if (!n)
		print_text(row, NULL, to);
	for (size_t i = 0; i < n; i++)
		print_text(row, names[i], to);
}

static void print_choice(const struct option_row *row, int value, FILE *to)
{
	for (size_t i = 0; i < OPTION_CHOICES_MAX && row->choices[i].name; i++)
		if (row->choices[i].value == value)
			print_text(row, row->choices[i].name, to);
}

void option_print(const struct option_row *row, const struct options *o, FILE *to)
{
	const void *at = (const char *)o + row->offset;

	switch (row->kind) {
	case OPTION_TEXT:
	case OPTION_CREDENTIAL:
		print_text(row, *(const char *const *)at, to);
		return;
	case OPTION_ADDRESS:
		print_text(row, *(const char *const *)at ? *(const char *const *)at : NONE, to);
		return;
	case OPTION_NAMES:
	case OPTION_SANS:
		print_names(row, *(const char *const *const *)at,
		            *(const size_t *)((const char *)o + row->n_offset), to);
		return;
	case OPTION_NUMBER:
		fprintf(to, "%s=%" PRIu64 "\n", row->name, *(const uint64_t *)at);
		return;
	case OPTION_SIZE:
		print_size(row, *(const uint64_t *)at, to);
		return;
	case OPTION_SWITCH:
		print_text(row, *(const bool *)at ? "yes" : "no", to);
		return;
	case OPTION_CHOICE:
		print_choice(row, *(const int *)at, to);
		return;
	case OPTION_FD:
	case OPTION_FLAG:
	case OPTION_ACTION:
		return;
	}
}

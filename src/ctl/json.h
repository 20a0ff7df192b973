/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading JSON that somebody else made: any member may be absent, null or of
 * another type, and none of that may crash a report.
 */
#ifndef CTL_JSON_H
#define CTL_JSON_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "util/cleanup.h"

DEFINE_CLEANUP(struct json_object *, json_object_put);
#define _cleanup_json_ _cleanup_(json_object_put_p)

/*
 * json_find() - a member by its path
 * @path: names joined by dots: "downtime_us.total"
 *
 * Return: borrowed from @obj; NULL where any step is absent, null or no object.
 */
struct json_object *json_find(struct json_object *obj, const char *path);

/* A number at @path. Return: false, and @ret untouched, where there is none. */
bool json_number(struct json_object *obj, const char *path, double *ret);

/* The same as a count; a negative number is none. */
bool json_count(struct json_object *obj, const char *path, uint64_t *ret);

/* The number or count at @path, or @fallback. */
double json_number_or(struct json_object *obj, const char *path, double fallback);
uint64_t json_count_or(struct json_object *obj, const char *path, uint64_t fallback);

/* The string at @path, or @fallback. Borrowed from @obj. */
const char *json_string_or(struct json_object *obj, const char *path, const char *fallback);

/* Sets @to's member @key to what @from has at @path, or to null. */
void json_copy(struct json_object *to, const char *key, struct json_object *from, const char *path);

void json_set_count(struct json_object *obj, const char *key, uint64_t value);
void json_set_number(struct json_object *obj, const char *key, double value);
void json_set_string(struct json_object *obj, const char *key, const char *value);
void json_set_bool(struct json_object *obj, const char *key, bool value);

/* One object, indented, and a newline, to stdout. */
void json_print(struct json_object *obj);

#endif

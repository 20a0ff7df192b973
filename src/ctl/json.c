/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/json.h"

#include <stdio.h>
#include <string.h>

struct json_object *json_find(struct json_object *obj, const char *path)
{
	while (obj) {
		const char *dot = strchrnul(path, '.');
		char key[64];
		size_t len = (size_t)(dot - path);

		if (len >= sizeof key || !json_object_is_type(obj, json_type_object))
			return NULL;
		memcpy(key, path, len);
		key[len] = 0;
		if (!json_object_object_get_ex(obj, key, &obj))
			return NULL;
		if (!*dot)
			return obj;
		path = dot + 1;
	}
	return NULL;
}

bool json_number(struct json_object *obj, const char *path, double *ret)
{
	struct json_object *v = json_find(obj, path);

	if (!json_object_is_type(v, json_type_int) && !json_object_is_type(v, json_type_double))
		return false;
	*ret = json_object_get_double(v);
	return true;
}

bool json_count(struct json_object *obj, const char *path, uint64_t *ret)
{
	struct json_object *v = json_find(obj, path);
	double d;

	if (json_object_is_type(v, json_type_int)) {
		if (json_object_get_int64(v) < 0)
			return false;
		*ret = json_object_get_uint64(v);
		return true;
	}
	if (!json_number(obj, path, &d) || !(d >= 0 && d < 0x1p63))
		return false;
	*ret = (uint64_t)(d + 0.5);
	return true;
}

double json_number_or(struct json_object *obj, const char *path, double fallback)
{
	json_number(obj, path, &fallback);
	return fallback;
}

uint64_t json_count_or(struct json_object *obj, const char *path, uint64_t fallback)
{
	json_count(obj, path, &fallback);
	return fallback;
}

const char *json_string_or(struct json_object *obj, const char *path, const char *fallback)
{
	struct json_object *v = json_find(obj, path);

	return json_object_is_type(v, json_type_string) ? json_object_get_string(v) : fallback;
}

void json_copy(struct json_object *to, const char *key, struct json_object *from, const char *path)
{
	json_object_object_add(to, key, json_object_get(json_find(from, path)));
}

void json_set_count(struct json_object *obj, const char *key, uint64_t value)
{
	json_object_object_add(obj, key, json_object_new_uint64(value));
}

void json_set_number(struct json_object *obj, const char *key, double value)
{
	char text[32];

	/* json-c's own form has 17 digits; a measurement has three that mean something. */
	snprintf(text, sizeof text, "%.3f", value);
	json_object_object_add(obj, key, json_object_new_double_s(value, text));
}

void json_set_string(struct json_object *obj, const char *key, const char *value)
{
	json_object_object_add(obj, key, json_object_new_string(value));
}

void json_set_bool(struct json_object *obj, const char *key, bool value)
{
	json_object_object_add(obj, key, json_object_new_boolean(value));
}

void json_print(struct json_object *obj)
{
	puts(json_object_to_json_string_ext(obj, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
	                                                 JSON_C_TO_STRING_NOSLASHESCAPE));
}

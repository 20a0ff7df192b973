/* SPDX-License-Identifier: Apache-2.0 */
/* What json-c's objects hold, or do not. */
#ifndef QEMU_JSON_H
#define QEMU_JSON_H

#include <json-c/json.h>

#include "util/cleanup.h"

/* NULL where @o is no object, or has no such member. */
static inline struct json_object *json_member(struct json_object *o, const char *name)
{
	struct json_object *m = NULL;

	json_object_object_get_ex(o, name, &m);
	return m;
}

/* Its text, or "". */
static inline const char *json_text(struct json_object *o, const char *name)
{
	const char *text = json_object_get_string(json_member(o, name));

	return text ? text : "";
}

/* Of what is no array: 0. */
static inline size_t json_length(struct json_object *o)
{
	return json_object_is_type(o, json_type_array) ? json_object_array_length(o) : 0;
}

static inline void json_put_p(struct json_object **o)
{
	json_object_put(*o);
}

#define _cleanup_json_ _cleanup_(json_put_p)

#endif

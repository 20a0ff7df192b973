/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/methods.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "rpc/migration_json.h"

#define DEFAULT_STREAMS_MAX 4

const char *methods_code(int code)
{
	switch (-code) {
	case ENOENT:
		return "NOT_FOUND";
	case EINVAL:
		return "INVALID_ARGUMENT";
	case EEXIST:
		return "ALREADY_EXISTS";
	case EBUSY:
		return "FAILED_PRECONDITION";
	case ENOSYS:
		return "UNIMPLEMENTED";
	case EMSGSIZE:
		return "RESOURCE_EXHAUSTED";
	default:
		return "INTERNAL";
	}
}

/* A string member; NULL where there is none. Return: 0 or -EINVAL. */
static int get_string(struct json_object *params, const char *key, const char **ret,
                      struct error *err)
{
	struct json_object *v;

	*ret = NULL;
	if (!json_object_object_get_ex(params, key, &v) || !v)
		return 0;
	if (!json_object_is_type(v, json_type_string))
		return error_set(err, -EINVAL, "%s: must be a string", key);
	*ret = json_object_get_string(v);
	return 0;
}

/* A boolean member: 0 or 1, or @missing where there is none. */
static int get_bool(struct json_object *params, const char *key, int missing, int *ret,
                    struct error *err)
{
	struct json_object *v;

	*ret = missing;
	if (!json_object_object_get_ex(params, key, &v) || !v)
		return 0;
	if (!json_object_is_type(v, json_type_boolean))
		return error_set(err, -EINVAL, "%s: must be true or false", key);
	*ret = json_object_get_boolean(v);
	return 0;
}

static int get_uint(struct json_object *params, const char *key, unsigned int missing,
                    unsigned int *ret, struct error *err)
{
	struct json_object *v;
	int64_t n;

	*ret = missing;
	if (!json_object_object_get_ex(params, key, &v) || !v)
		return 0;
	n = json_object_is_type(v, json_type_int) ? json_object_get_int64(v) : -1;
	if (n < 0 || n > INT32_MAX)
		return error_set(err, -EINVAL, "%s: must be a number from 0 on", key);
	*ret = (unsigned int)n;
	return 0;
}

static int get_bandwidth(struct json_object *params, uint64_t missing, uint64_t *ret,
                         struct error *err)
{
	struct json_object *v;
	int64_t n;

	*ret = missing;
	if (!json_object_object_get_ex(params, "bandwidth_bytes_per_s", &v) || !v)
		return 0;
	n = json_object_is_type(v, json_type_int) ? json_object_get_int64(v) : -1;
	if (n < 0)
		return error_set(err, -EINVAL,
		                 "bandwidth_bytes_per_s: must be a number from 0 (no cap) on");
	*ret = (uint64_t)n;
	return 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The message never repeats the token: it is a secret. */
static int parse_token(const char *hex, uint8_t token[TOKEN_BYTES], struct error *err)
{
	size_t len = hex ? strlen(hex) : 0;

	for (size_t i = 0; len == 2 * TOKEN_BYTES && i < TOKEN_BYTES; i++) {
		int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);

		if (high < 0 || low < 0)
			len = 0;
		else
			token[i] = (uint8_t)(high << 4 | low);
	}
	if (len != 2 * TOKEN_BYTES)
		return error_set(err, -EINVAL, "token: must be %d hex digits", 2 * TOKEN_BYTES);
	return 0;
}

static int parse_role(struct json_object *params, enum migration_role *ret, struct error *err)
{
	const char *role;
	int rc = get_string(params, "role", &role, err);

	if (rc)
		return rc;
	if (role && !strcmp(role, "source"))
		*ret = MIGRATION_SOURCE;
	else if (role && !strcmp(role, "destination"))
		*ret = MIGRATION_DESTINATION;
	else
		return error_set(err, -EINVAL, "role: must be \"source\" or \"destination\"");
	return 0;
}

static int parse_map(struct json_object *params, struct migration_params *p, struct error *err)
{
	const char *map;
	int rc = get_string(params, "map", &map, err);

	if (rc)
		return rc;
	p->map = RESOLVER_MAP_EAGER;
	if (!map || !strcmp(map, "auto"))
		return 0;
	p->map_given = true;
	if (!strcmp(map, "lazy"))
		p->map = RESOLVER_MAP_LAZY;
	else if (strcmp(map, "eager"))
		return error_set(err, -EINVAL, "map: must be \"auto\", \"eager\" or \"lazy\"");
	return 0;
}

/* More bulk threads than CPUs bring little, and faults wait behind them for a core. */
static unsigned int default_streams(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	return cpus > 0 && cpus < DEFAULT_STREAMS_MAX ? (unsigned int)cpus : DEFAULT_STREAMS_MAX;
}

static int parse_destination(struct json_object *params, struct migration_params *p,
                             struct error *err)
{
	const char *source;
	int bulk, prefetch;
	int rc = get_string(params, "source", &source, err);

	if (!rc && !source)
		rc = error_set(err, -EINVAL, "source: a destination needs the source's host:port");
	if (!rc && conn_target_parse(source, &p->source, err))
		rc = error_prefix(err, "source");
	if (!rc)
		rc = get_uint(params, "streams", default_streams(), &p->streams, err);
	if (!rc)
		rc = get_bandwidth(params, 0, &p->bandwidth_bytes_per_s, err);
	if (!rc)
		rc = parse_map(params, p, err);
	if (!rc)
		rc = get_bool(params, "bulk", 1, &bulk, err);
	if (!rc)
		rc = get_bool(params, "prefetch", 1, &prefetch, err);
	if (rc)
		return rc;
	p->bulk = bulk;
	p->prefetch = prefetch;
	return 0;
}

static struct json_object *prepare(struct migrations *ms, const char *id,
                                   struct json_object *params, struct error *err)
{
	struct migration_params p = { 0 };
	const char *token;
	struct migration *m;
	int rc = get_string(params, "token", &token, err);

	snprintf(p.id, sizeof p.id, "%s", strlen(id) < sizeof p.id ? id : "");
	if (!rc)
		rc = parse_role(params, &p.role, err);
	if (!rc)
		rc = parse_token(token, p.token, err);
	if (!rc && p.role == MIGRATION_DESTINATION)
		rc = parse_destination(params, &p, err);
	if (!rc)
		rc = migrations_prepare(ms, &p, &m, err);
	return rc ? NULL : migration_json(m);
}

static int start(struct migration *m, struct json_object *params, struct error *err)
{
	int switchover;
	int rc = get_bool(params, "switchover", 1, &switchover, err);

	return rc ? rc : migration_start(m, switchover, err);
}

static int switchover(struct migration *m, struct json_object *params, struct error *err)
{
	(void)params;
	return migration_switchover(m, err);
}

static int cancel(struct migration *m, struct json_object *params, struct error *err)
{
	(void)params;
	return migration_cancel(m, err);
}

static int get(struct migration *m, struct json_object *params, struct error *err)
{
	(void)m;
	(void)params;
	(void)err;
	return 0;
}

static bool is_given(struct json_object *params, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(params, key, &v) && v;
}

static int set_limits(struct migration *m, struct json_object *params, struct error *err)
{
	struct migration_limits limits = {
		.bandwidth_given = is_given(params, "bandwidth_bytes_per_s"),
		.streams_given = is_given(params, "streams"),
		.bulk_given = is_given(params, "bulk"),
		.prefetch_given = is_given(params, "prefetch"),
	};
	int bulk, prefetch;
	int rc = get_bool(params, "bulk", 0, &bulk, err);

	if (!rc)
		rc = get_bool(params, "prefetch", 0, &prefetch, err);
	if (!rc)
		rc = get_uint(params, "streams", 0, &limits.streams, err);
	if (!rc)
		rc = get_bandwidth(params, 0, &limits.bandwidth_bytes_per_s, err);
	limits.bulk = bulk;
	limits.prefetch = prefetch;
	return rc ? rc : migration_set_limits(m, &limits, err);
}

/* Methods that act on one migration and answer with it. */
static const struct {
	const char *name;
	int (*call)(struct migration *m, struct json_object *params, struct error *err);
} migration_methods[] = {
	{ "Start", start },   { "Switchover", switchover }, { "Get", get },
	{ "Cancel", cancel }, { "SetLimits", set_limits },
};

static struct json_object *list(struct migrations *ms)
{
	struct json_object *array = json_object_new_array(), *o = json_object_new_object();

	for (struct migration *m = migrations_next(ms, NULL); m; m = migrations_next(ms, m))
		json_object_array_add(array, migration_json(m));
	json_object_object_add(o, "migrations", array);
	return o;
}

enum method_kind {
	METHOD_UNKNOWN,
	METHOD_LIST,
	METHOD_PREPARE,
	METHOD_REPORT,
	METHOD_WATCH,
	METHOD_ON_MIGRATION, /* one of migration_methods */
};

static enum method_kind find_method(const char *method, size_t *ret_index)
{
	static const struct {
		const char *name;
		enum method_kind kind;
	} others[] = {
		{ "List", METHOD_LIST },
		{ "Prepare", METHOD_PREPARE },
		{ "Report", METHOD_REPORT },
		{ "Watch", METHOD_WATCH },
	};

	for (size_t i = 0; i < sizeof others / sizeof *others; i++)
		if (!strcmp(method, others[i].name))
			return others[i].kind;
	for (size_t i = 0; i < sizeof migration_methods / sizeof *migration_methods; i++)
		if (!strcmp(method, migration_methods[i].name)) {
			*ret_index = i;
			return METHOD_ON_MIGRATION;
		}
	return METHOD_UNKNOWN;
}

struct json_object *methods_call(struct migrations *ms, const char *method,
                                 struct json_object *params, struct migration **ret_watch,
                                 struct error *err)
{
	size_t index = 0;
	enum method_kind kind = find_method(method, &index);
	struct migration *m;
	const char *id;

	*ret_watch = NULL;
	if (kind == METHOD_UNKNOWN) {
		error_set(err, -ENOSYS, "no method \"%s\"", method);
		return NULL;
	}
	if (kind == METHOD_LIST)
		return list(ms);
	if (get_string(params, "id", &id, err))
		return NULL;
	if (!id) {
		error_set(err, -EINVAL, "id: \"%s\" needs a migration's id", method);
		return NULL;
	}
	if (kind == METHOD_PREPARE)
		return prepare(ms, id, params, err);
	m = migrations_find(ms, id, err);
	if (!m)
		return NULL;
	if (kind == METHOD_REPORT)
		return migration_report_json(m);
	if (kind == METHOD_WATCH) {
		*ret_watch = m;
		return NULL;
	}
	return migration_methods[index].call(m, params, err) ? NULL : migration_json(m);
}

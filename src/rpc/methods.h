/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket's methods, from parameters to result, without the wire. */
#ifndef RPC_METHODS_H
#define RPC_METHODS_H

#include <json-c/json.h>

#include "migrate/migrate.h"

/*
 * methods_call() - run one method
 * @params: borrowed; NULL is an empty object
 * @ret_watch: for Watch: the migration to watch; else NULL
 *
 * Return: the result, owned by the caller; NULL with @err set. For Watch NULL without an
 * error.
 */
struct json_object *methods_call(struct migrations *ms, const char *method,
                                 struct json_object *params, struct migration **ret_watch,
                                 struct error *err);

/* The gRPC status code's name for a negative errno. */
const char *methods_code(int code);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* A migration as the control socket shows it (control.h). */
#ifndef RPC_MIGRATION_JSON_H
#define RPC_MIGRATION_JSON_H

#include <json-c/json.h>

#include "migrate/migrate.h"

/* The caller owns the object. */
struct json_object *migration_json(struct migration *m);

/* With timeline, fault dots and histogram: what a report draws. */
struct json_object *migration_report_json(struct migration *m);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* A migration as it is followed: a line on the terminal, or JSON, for each update. */
#ifndef CTL_WATCH_H
#define CTL_WATCH_H

#include <json-c/json.h>
#include <stdbool.h>

#include "util/error.h"

#define WATCH_INTERVAL_MS 200

struct watch;

/* NULL where memory is short: updates are not shown then. */
struct watch *watch_new(bool json);

/* Ends the line. NULL is allowed. */
void watch_free(struct watch *w);

/* For client_watch(). @userdata: the watch */
int watch_update(struct json_object *migration, void *userdata, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A migration as a page for people: one HTML file that needs nothing else, with
 * the timeline and the histogram as inline SVG. The data is what the daemon's
 * Report gives, together with what the benchmark adds where it made it; all
 * members are optional, and what isn't there isn't shown.
 */
#ifndef BENCH_REPORT_HTML_H
#define BENCH_REPORT_HTML_H

#include <json-c/json.h>
#include <stdio.h>

#include "util/error.h"

/* Writes the file anew. Return: 0, or the errno of opening or writing it. */
int report_html_save(const char *path, struct json_object *report, struct error *err);

/* The page. Whether all was written, ferror() tells. */
void report_html_write(FILE *f, struct json_object *report);

/* @text with the characters that mean something in HTML replaced. */
void html_text(FILE *f, const char *text);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The report's tables on faults: where their time went, and which were the slowest. */
#ifndef BENCH_REPORT_FAULTS_H
#define BENCH_REPORT_FAULTS_H

#include <json-c/json.h>
#include <stdio.h>

/* Nothing where the report has no phases. */
void report_faults_write_phases(FILE *f, struct json_object *report);

/* Nothing where there was no remote fault. */
void report_faults_write_slowest(FILE *f, struct json_object *report);

#endif

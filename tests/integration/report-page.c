/* SPDX-License-Identifier: Apache-2.0 */
/* A report's JSON on standard input, its page on standard output: what test_report.py looks at. */
#include <stdio.h>
#include <unistd.h>

#include "bench/report_html.h"
#include "ctl/json.h"

int main(void)
{
	_cleanup_json_ struct json_object *report = json_object_from_fd(STDIN_FILENO);

	if (!report) {
		fprintf(stderr, "report-page: no JSON: %s\n", json_util_get_last_err());
		return 2;
	}
	report_html_write(stdout, report);
	return ferror(stdout) || fflush(stdout) ? 1 : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prints what the probe finds out about guest_memfd and the host, one "name: value" a
 * line, for the tests that run inside of the VM to compare.
 */
#include <stdio.h>

#include "mem/probe.h"

static const char *yes(bool ok)
{
	return ok ? "yes" : "no";
}

static void mode_print(const struct probe_backend *b, enum probe_mode mode)
{
	const struct probe_mode_result *m = &b->modes[mode];
	struct error err = ERROR_INIT;

	printf("%s: %s, absent page: %s, resolve: %s\n", probe_mode_name(mode), yes(m->ok),
	       probe_absent_name(m->absent), probe_resolve_name(m->resolve));
	if (probe_mode_check(b, probe_mode_bits(mode), &err))
		printf("%s refused: %s\n", probe_mode_name(mode), err.text);
}

int main(void)
{
	static struct probe probe;
	const struct probe_backend *b = &probe.backends[PROBE_GUEST_MEMFD];
	const struct probe_row *row;
	struct error err = ERROR_INIT;

	if (probe_run(&probe, &err)) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	for (size_t i = 0; (row = probe_row_at(&probe, i)); i++)
		printf("%s: %s, %s\n", row->name, yes(row->ok), row->detail);
	printf("abi: %s\n", probe_gmem_abi_name(b->abi));
	printf("write: %s\n", probe_write_name(b->write));
	printf("mode: %s\n", probe_mode_name(b->mode));
	for (enum probe_mode mode = 0; mode < PROBE_MODES; mode++)
		mode_print(b, mode);
	return 0;
}

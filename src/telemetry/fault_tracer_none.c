/* SPDX-License-Identifier: Apache-2.0 */
/* The fault tracer of a build without BPF: there is one, and it says so. */
#include "telemetry/fault_tracer.h"

#include <errno.h>
#include <string.h>

#define WHY "built without eBPF (-Dbpf=enabled needs clang, llvm-strip, bpftool and libbpf)"

struct fault_tracer {
	char unused;
};

static struct fault_tracer tracer;

int fault_tracer_new(const struct fault_tracer_config *config, struct fault_tracer **ret,
                     struct error *err)
{
	(void)config;
	(void)err;
	*ret = &tracer;
	return 0;
}

struct fault_tracer *fault_tracer_free(struct fault_tracer *t)
{
	(void)t;
	return NULL;
}

const char *fault_tracer_source(const struct fault_tracer *t)
{
	(void)t;
	return "daemon";
}

const char *fault_tracer_why(const struct fault_tracer *t)
{
	(void)t;
	return WHY;
}

int fault_tracer_fd(const struct fault_tracer *t)
{
	(void)t;
	return -1;
}

int fault_tracer_poll(struct fault_tracer *t)
{
	(void)t;
	return 0;
}

int fault_tracer_add(struct fault_tracer *t, pid_t tgid, const struct fault_tracer_range *ranges,
                     size_t n, int *ret_slot, struct error *err)
{
	(void)t;
	(void)tgid;
	(void)ranges;
	(void)n;
	(void)ret_slot;
	return error_set(err, -EOPNOTSUPP, "the kernel can't be asked: " WHY);
}

void fault_tracer_remove(struct fault_tracer *t, int slot)
{
	(void)t;
	(void)slot;
}

int fault_tracer_read(const struct fault_tracer *t, int slot, struct histogram *ret_stall,
                      struct histogram *ret_wakeup_delay,
                      struct fault_tracer_counters *ret_counters)
{
	(void)t;
	(void)slot;
	(void)ret_stall;
	(void)ret_wakeup_delay;
	(void)ret_counters;
	return -ENOENT;
}

void fault_tracer_probe(struct fault_tracer_probe *ret)
{
	*ret = (struct fault_tracer_probe){ .source = "daemon", .why = WHY };
}

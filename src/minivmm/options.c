/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/options.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "minivmm/dirty.h"
#include "minivmm/fail.h"
#include "minivmm/guest/abi.h"
#include "minivmm/spare.h"

struct choice {
	const char *name;
	uint64_t value;
};

static const struct choice roles[] = {
	{ "source", ROLE_SOURCE },
	{ "destination", ROLE_DESTINATION },
	{ NULL, 0 },
};

/* The value holds the kind of memory, and the page size above it. */
#define BACKEND(kind, page_size) ((uint64_t)(page_size) << 8 | (kind))
static const struct choice backends[] = {
	{ "memfd", BACKEND(POSTCOPY_MEMORY_MEMFD, 4096) },
	{ "hugetlb", BACKEND(POSTCOPY_MEMORY_HUGETLB, 2u << 20) },
	{ "hugetlb-1g", BACKEND(POSTCOPY_MEMORY_HUGETLB, 1u << 30) },
	{ "guest_memfd", BACKEND(POSTCOPY_MEMORY_GUEST_MEMFD, 4096) },
	{ "anon", BACKEND(POSTCOPY_MEMORY_ANONYMOUS, 4096) },
	{ NULL, 0 },
};

static const struct choice workloads[] = {
	{ "sequential", GUEST_SEQUENTIAL }, { "random", GUEST_RANDOM },
	{ "hotcold", GUEST_HOTCOLD },       { "stride", GUEST_STRIDE },
	{ "light", GUEST_LIGHT },           { "idle", GUEST_IDLE },
	{ "zeroes", GUEST_ZEROES },         { NULL, 0 },
};

static const struct choice dirty_logs[] = {
	{ "none", DIRTY_LOG_NONE },
	{ "kvm", DIRTY_LOG_KVM },
	{ "ring", DIRTY_LOG_RING },
	{ "wp", DIRTY_LOG_WP },
	{ NULL, 0 },
};

enum kind {
	KIND_TEXT,
	KIND_NUMBER, /* min to max; with a suffix K, M or G where suffix is set */
	KIND_CHOICE,
	KIND_FLAG,
	KIND_ALONE,
	KIND_HELP,
};

static const struct spec {
	const char *name;
	const char *argument; /* for the help; NULL where the option has none */
	const char *help;
	enum kind kind;
	int suffix;
	size_t offset;
	const struct choice *choices;
	uint64_t min, max;
} specs[] = {
#define AT(member) .offset = offsetof(struct options, member)
	{ "role", "ROLE", "source or destination", KIND_CHOICE, AT(role), .choices = roles },
	{ "alone", NULL, "no migration: run the guest, then verify", KIND_ALONE },
	{ "socket", "PATH", "postcopyd's VMM socket (" POSTCOPY_DEFAULT_SOCKET ")", KIND_TEXT,
	  AT(socket) },
	{ "id", "ID", "the migration's id", KIND_TEXT, AT(id) },
	{ "memory", "SIZE", "guest memory, 16M to 64G (256M)", KIND_NUMBER, AT(memory_bytes),
	  .min = GUEST_MEMORY_MIN, .max = GUEST_MEMORY_MAX, .suffix = 1 },
	{ "backend", "KIND", "memfd, hugetlb, hugetlb-1g, guest_memfd or anon (memfd)", KIND_CHOICE,
	  AT(backend), .choices = backends },
	{ "vcpus", "N", "1 to 8 (1)", KIND_NUMBER, AT(vcpus), .min = 1, .max = GUEST_VCPUS_MAX },
	{ "workload", "W", "sequential, random, hotcold, stride, zeroes, light or idle (random)",
	  KIND_CHOICE, AT(workload), .choices = workloads },
	{ "write-percent", "P", "share of accesses that write (30)", KIND_NUMBER, AT(write_percent),
	  .max = 100 },
	{ "think-us", "US", "what each vCPU computes between two accesses (0)", KIND_NUMBER,
	  AT(think_us), .max = 1000000 },
	{ "zero-percent", "P", "share of pages that stay zero (10)", KIND_NUMBER, AT(zero_percent),
	  .max = 100 },
	{ "run-after-complete", "MS", "destination: work on so long, then verify (200)",
	  KIND_NUMBER, AT(run_after_complete_ms), .max = 86400000 },
	{ "duration-ms", "MS", "alone: work so long, then verify (1000)", KIND_NUMBER,
	  AT(duration_ms), .max = 86400000 },
	{ "seed", "N", "of the guest's choices and patterns (1)", KIND_NUMBER, AT(seed),
	  .max = UINT64_MAX },
	{ "vmstate-pad", "BYTES", "source: make the vmstate larger (0)", KIND_NUMBER,
	  AT(vmstate_pad_bytes), .max = 1ull << 30, .suffix = 1 },
	{ "fetch", "N",
	  "destination: before the guest runs, ask for what it needs first and N more pages",
	  KIND_NUMBER, AT(fetch_pages), .max = 1u << 20 },
	{ "hot", NULL, "destination: say that what its vCPUs run in and on is needed first",
	  KIND_FLAG, AT(hot) },
	{ "bound", NULL,
	  "bind the memslot to guest_memfd; at a destination vCPU faults then are KVM exits (needs "
	  "KVM userfault)",
	  KIND_FLAG, AT(bound) },
	{ "no-direct-map", NULL, "guest_memfd that the kernel itself can't reach, with --bound",
	  KIND_FLAG, AT(no_direct_map) },
	{ "pv-clock", NULL, "have KVM write each vCPU's clock to guest memory", KIND_FLAG,
	  AT(pv_clock) },
	{ "private-region", NULL, "say that the guest has private memory, too: it can't migrate",
	  KIND_FLAG, AT(private_region) },
	{ "discard", NULL, "discard pages that the guest does not use, all the time", KIND_FLAG,
	  AT(discard) },
	{ "lose", "N", "source: at the pause N pages that the guest does not use become unreadable",
	  KIND_NUMBER, AT(lose_pages), .max = SPARE_PAGES },
	{ "progress", "FILE", "write to FILE what the guest gets done", KIND_TEXT, AT(progress) },
	{ "progress-ms", "MS", "so often (1)", KIND_NUMBER, AT(progress_ms), .min = 1,
	  .max = 10000 },
	{ "dirty-log", "HOW",
	  "source: who tells what the guest writes: kvm (its log), ring, wp (the kernel, by write "
	  "protection) or none (kvm)",
	  KIND_CHOICE, AT(dirty_log), .choices = dirty_logs },
	{ "status-fd", "N", "where the status lines go (1)", KIND_NUMBER, AT(status_fd),
	  .max = INT_MAX },
	{ "help", NULL, "this", KIND_HELP },
#undef AT
};

#define N_SPECS (sizeof specs / sizeof *specs)

static void print_help(void)
{
	printf("Usage: minivmm --role source|destination --id ID [OPTION...]\n"
	       "       minivmm --alone [OPTION...]\n\n"
	       "A small virtual machine monitor whose guest checks its own memory, to try\n"
	       "postcopyd with. Status lines are JSON objects, one a line.\n\n");
	for (size_t i = 0; i < N_SPECS; i++) {
		char left[40];

		snprintf(left, sizeof left, "--%s%s%s", specs[i].name, specs[i].argument ? " " : "",
		         specs[i].argument ? specs[i].argument : "");
		printf("  %-26s %s\n", left, specs[i].help);
	}
	printf("\nExit status: 0, 1 for an error or a bad page, 2 where this host can't.\n");
}

static int parse_number(const struct spec *s, const char *text, uint64_t *ret,
                        struct postcopy_error *err)
{
	static const char suffixes[] = "KMG";
	const char *suffix;
	uint64_t value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno || end == text || *text < '0' || *text > '9')
		return fail(err, -EINVAL, "--%s \"%s\" is not a number", s->name, text);
	suffix = s->suffix && *end ? strchr(suffixes, *end) : NULL;
	if (suffix) {
		unsigned int shift = 10 * (unsigned int)(suffix - suffixes + 1);

		end++;
		value = value > UINT64_MAX >> shift ? UINT64_MAX : value << shift;
	}
	if (*end)
		return fail(err, -EINVAL, "--%s \"%s\" is not a number%s", s->name, text,
		            s->suffix ? ", alone or with K, M or G" : "");
	if (value < s->min || value > s->max)
		return fail(err, -EINVAL, "--%s %s is out of range: %llu to %llu", s->name, text,
		            (unsigned long long)s->min, (unsigned long long)s->max);
	*ret = value;
	return 0;
}

static int parse_choice(const struct spec *s, const char *text, uint64_t *ret,
                        struct postcopy_error *err)
{
	for (const struct choice *c = s->choices; c->name; c++)
		if (!strcmp(c->name, text)) {
			*ret = c->value;
			return 0;
		}
	return fail(err, -EINVAL, "--%s \"%s\" is unknown; see --help", s->name, text);
}

static int parse_one(const struct spec *s, const char *text, struct options *o,
                     struct postcopy_error *err)
{
	char *field = (char *)o + s->offset;

	switch (s->kind) {
	case KIND_TEXT:
		*(const char **)field = text;
		return 0;
	case KIND_NUMBER:
		return parse_number(s, text, (uint64_t *)field, err);
	case KIND_CHOICE:
		return parse_choice(s, text, (uint64_t *)field, err);
	case KIND_FLAG:
		*(uint64_t *)field = 1;
		return 0;
	case KIND_ALONE:
		o->role = ROLE_ALONE;
		return 0;
	case KIND_HELP:
		print_help();
		return 1;
	}
	return 0;
}

static int check(struct options *o, struct postcopy_error *err)
{
	if (o->role == ROLE_NONE)
		return fail(err, -EINVAL, "give --role source, --role destination or --alone");
	if (o->role != ROLE_ALONE && !o->id)
		return fail(err, -EINVAL, "give --id, the migration's id as it was prepared");
	if (o->memory_bytes % GUEST_PAGE_BYTES)
		return fail(err, -EINVAL, "--memory is not a multiple of 4K");
	o->page_size = o->backend >> 8;
	o->backend &= 0xff;
	if (o->bound && o->backend != POSTCOPY_MEMORY_GUEST_MEMFD)
		return fail(err, -EINVAL, "--bound is for --backend guest_memfd");
	/* By get_user_pages(): KVM's way to an ordinary memslot's pages, and to its clocks. */
	if (o->no_direct_map && (!o->bound || o->pv_clock))
		return fail(err, -EINVAL,
		            "--no-direct-map is with --bound, and not with --pv-clock");
	if ((o->fetch_pages || o->hot) && o->role != ROLE_DESTINATION)
		return fail(err, -EINVAL, "--fetch and --hot are for --role destination");
	if (o->discard && (o->role == ROLE_ALONE || o->page_size != GUEST_PAGE_BYTES ||
	                   o->backend == POSTCOPY_MEMORY_GUEST_MEMFD))
		return fail(err, -EINVAL,
		            "--discard is for --backend memfd or anon, and not for --alone");
	if (o->lose_pages && (o->role != ROLE_SOURCE || o->backend != POSTCOPY_MEMORY_ANONYMOUS))
		return fail(err, -EINVAL, "--lose is for --role source and --backend anon");
	return 0;
}

int options_parse(int argc, char **argv, struct options *ret, struct postcopy_error *err)
{
	struct option longs[N_SPECS + 1] = { 0 };
	struct options o = {
		.memory_bytes = 256u << 20,
		.backend = BACKEND(POSTCOPY_MEMORY_MEMFD, 4096),
		.vcpus = 1,
		.workload = GUEST_RANDOM,
		.write_percent = 30,
		.zero_percent = 10,
		.run_after_complete_ms = 200,
		.duration_ms = 1000,
		.seed = 1,
		.progress_ms = 1,
		.dirty_log = DIRTY_LOG_KVM,
		.status_fd = 1,
	};
	int index, c, rc;

	for (size_t i = 0; i < N_SPECS; i++)
		longs[i] = (struct option){ .name = specs[i].name,
			                    .has_arg = specs[i].argument ? required_argument
			                                                 : no_argument };
	opterr = 0; /* one line about it is enough, and it is ours */
	while ((c = getopt_long(argc, argv, ":", longs, &index)) == 0) {
		rc = parse_one(&specs[index], optarg, &o, err);
		if (rc)
			return rc;
	}
	if (c != -1)
		return fail(err, -EINVAL, "\"%s\" %s; see --help", argv[optind - 1],
		            c == ':' ? "lacks its value" : "is not an option");
	if (optind < argc)
		return fail(err, -EINVAL, "\"%s\" is not an option; see --help", argv[optind]);
	rc = check(&o, err);
	if (rc)
		return rc;
	*ret = o;
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/admission.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/adapter.h"
#include "migrate/bandwidth.h"
#include "migrate/budget.h"
#include "migrate/queue.h"
#include "migrate/wait.h"
#include "util/cleanup.h"

/* Of /proc/PID/cgroup: all hierarchies of a process, a path each. */
#define CGROUP_FILE_BYTES (16 * PATH_MAX)
#define STAT_BYTES 8192
#define NUMBER_BYTES 64
#define FILE_PATH_BYTES (PATH_MAX + 128)
/* A stream: its connection, and what its thread's time is read from. */
#define STREAM_DESCRIPTORS 2u
/* A further shard: its connection, and one that is dialled anew; what wakes its thread. */
#define SHARD_DESCRIPTORS 3u
/* And when it comes: its userfaultfd, and the store's copy. */
#define SHARD_UFFDS 2u
/* Beside its streams: control, urgent and one that is dialled anew, vmstate, and some to spare. */
#define MORE_DESCRIPTORS 8u

#define MIB(bytes) ((unsigned long long)((bytes) >> 20))
/* Of what is needed: not less than it is. */
#define MIB_UP(bytes) MIB((bytes) + (1u << 20) - 1)

/* Where memory is counted, by version. */
struct hierarchy {
	const char *roots[2]; /* one of them */
	const char *max, *high, *current, *inactive_file;
};

static const struct hierarchy unified = {
	.roots = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" },
	.max = "memory.max",
	.high = "memory.high",
	.current = "memory.current",
	.inactive_file = "inactive_file",
};

static const struct hierarchy legacy = {
	.roots = { "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory" },
	.max = "memory.limit_in_bytes",
	.high = "memory.limit_in_bytes",
	.current = "memory.usage_in_bytes",
	.inactive_file = "total_inactive_file",
};

/* Where a process's memory is counted. */
struct place {
	const struct hierarchy *hierarchy; /* NULL: not known */
	char path[PATH_MAX];
};

/* Return: whether it could be read, as a string. */
static bool read_text(const char *path, char *text, size_t size)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	size_t n = f ? fread(text, 1, size - 1, f) : 0;

	text[n] = 0;
	return n;
}

static uint64_t read_bytes(const char *path, uint64_t otherwise)
{
	char text[NUMBER_BYTES];

	return read_text(path, text, sizeof text) ? budget_parse_bytes(text, otherwise) : otherwise;
}

/* @pid: 0: not known. */
static void find_place(pid_t pid, struct place *ret)
{
	char path[64];
	static char text[CGROUP_FILE_BYTES]; /* the loop's alone */
	const char *cgroup;
	bool is_legacy;

	ret->hierarchy = NULL;
	snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
	if (!pid || !read_text(path, text, sizeof text))
		return;
	cgroup = budget_find_cgroup(text, &is_legacy);
	if (!cgroup || strlen(cgroup) >= sizeof ret->path)
		return;
	strcpy(ret->path, cgroup);
	ret->hierarchy = is_legacy ? &legacy : &unified;
}

static bool is_below(const struct place *p, const struct place *above)
{
	return p->hierarchy && p->hierarchy == above->hierarchy &&
	       parties_cgroup_is_in(p->path, above->path);
}

/*
 * Where its VMM is counted, as it was found last: it is read once of each, and not by each that is
 * admitted. What can't be read now is looked for again.
 */
static bool is_counted_in(struct migration *m, const struct place *at)
{
	pid_t pid = migration_vmm_pid(m);

	if (m->counted.pid != pid) {
		struct place vmm;

		find_place(pid, &vmm);
		admission_forget_place(m);
		m->counted.is_legacy = vmm.hierarchy == &legacy;
		m->counted.cgroup = vmm.hierarchy ? strdup(vmm.path) : NULL;
		if (m->counted.cgroup)
			m->counted.pid = pid;
	}
	return m->counted.cgroup && at->hierarchy &&
	       m->counted.is_legacy == (at->hierarchy == &legacy) &&
	       parties_cgroup_is_in(m->counted.cgroup, at->path);
}

void admission_forget_place(struct migration *m)
{
	free(m->counted.cgroup);
	m->counted.cgroup = NULL;
	m->counted.pid = 0;
}

/* The root's path is "/", and nothing in a name. */
static void name_file(const char *root, const struct place *p, const char *file,
                      char ret[FILE_PATH_BYTES])
{
	snprintf(ret, FILE_PATH_BYTES, "%s%s/%s", root, p->path[1] ? p->path : "", file);
}

/* Return: whether it has a limit at all. */
static bool read_cgroup(const struct place *p, struct budget_cgroup *ret)
{
	const struct hierarchy *h = p->hierarchy;
	const char *root = h->roots[access("/sys/fs/cgroup/cgroup.controllers", F_OK) ? 1 : 0];
	char path[FILE_PATH_BYTES], stat[STAT_BYTES];

	name_file(root, p, h->max, path);
	ret->max = read_bytes(path, BUDGET_ANY);
	name_file(root, p, h->high, path);
	ret->high = read_bytes(path, BUDGET_ANY);
	if (budget_cgroup_limit(ret) == BUDGET_ANY)
		return false;
	name_file(root, p, h->current, path);
	ret->current = read_bytes(path, 0);
	name_file(root, p, "memory.stat", path);
	ret->inactive_file =
	        read_text(path, stat, sizeof stat) ? budget_parse_stat(stat, h->inactive_file) : 0;
	return true;
}

void admission_note_missing(struct migration *m)
{
	uint64_t units = pull_missing(m->pull);

	pthread_mutex_lock(&m->lock);
	if (!m->least_missing_known || units < m->least_missing)
		m->least_missing = units;
	m->least_missing_known = true;
	pthread_mutex_unlock(&m->lock);
}

/* A destination that somebody has started, and a source that somebody fetches. */
static bool is_under_way(const struct migration *m)
{
	return !migration_state_is_final(m->state) && m->state != MIGRATION_PREPARED &&
	       m->state != MIGRATION_ATTACHED;
}

/*
 * Whether it is one that memory is promised to: from Start on, which is an operator's word. A VMM
 * that has attached and is never started would keep others out.
 */
static bool is_promised(const struct migration *m)
{
	return m->params.role == MIGRATION_DESTINATION && is_under_way(m) && !m->left;
}

static struct budget_guest guest_of(struct migration *m)
{
	bool here = m->pull && !migration_memory_is_late(m);
	struct budget_guest g = {
		.table = &m->table,
		.missing_bytes = here ? pull_missing(m->pull) << UNIT_SHIFT : m->table.size_bytes,
		.lazy = m->params.map == RESOLVER_MAP_LAZY,
		.warm = m->warming.wanted,
	};

	pthread_mutex_lock(&m->lock);
	if (m->least_missing_known && m->least_missing << UNIT_SHIFT < g.missing_bytes)
		g.missing_bytes = m->least_missing << UNIT_SHIFT;
	pthread_mutex_unlock(&m->lock);
	return g;
}

/* What has been promised of a pool, but to @but (which may be NULL). */
static uint64_t promised(struct migrations *ms, const struct migration *but, uint64_t pool)
{
	uint64_t bytes = 0;

	for (struct migration *m = ms->list; m; m = m->next) {
		struct budget_guest g;

		if (m == but || !is_promised(m))
			continue;
		g = guest_of(m);
		bytes = budget_add(bytes, budget_need(&g, pool));
	}
	return bytes;
}

/* What is charged to a cgroup by a guest; whether its VMM, or the daemon, is counted there. */
static uint64_t charge(const struct budget_guest *g, bool vmm, bool daemon)
{
	return budget_add(vmm ? budget_charge(g, false) : 0, daemon ? budget_charge(g, true) : 0);
}

static uint64_t charged_by_others(struct migrations *ms, const struct migration *but,
                                  const struct place *daemon, const struct place *at)
{
	uint64_t bytes = 0;

	for (struct migration *m = ms->list; m; m = m->next) {
		struct budget_guest g;

		if (m == but || !is_promised(m))
			continue;
		g = guest_of(m);
		bytes = budget_add(bytes, charge(&g, is_counted_in(m, at), is_below(daemon, at)));
	}
	return bytes;
}

/* Refused, and counted. */
static int refuse(struct migration *m, enum admission_refusal why, int code, struct error *err)
{
	m->owner->totals.admissions_refused[why]++;
	err->code = code;
	return code;
}

static uint64_t read_available(void)
{
	char text[STAT_BYTES];

	return read_text("/proc/meminfo", text, sizeof text) ? budget_parse_available(text)
	                                                     : BUDGET_ANY;
}

static int check_ordinary(struct migration *m, const struct budget_guest *g, struct error *err)
{
	uint64_t need = budget_need(g, UNIT_BYTES), available = read_available();
	uint64_t others = promised(m->owner, m, UNIT_BYTES);

	if (need <= budget_left(available, others))
		return 0;
	error_set(
	        err, -ENOMEM,
	        "no room here: the guest has %llu MiB to receive, and %llu MiB are free, of which "
	        "%llu MiB are promised to other guests (memory-check=no admits it all the same)",
	        MIB_UP(need), MIB(available), MIB_UP(others));
	return refuse(m, ADMISSION_REFUSED_MEMORY, -ENOMEM, err);
}

/* Pages of this size that are there and free, or that may be made. BUDGET_ANY: not known. */
static uint64_t read_huge_free(uint64_t page_bytes)
{
	static const char *const names[] = { "free_hugepages", "nr_overcommit_hugepages",
		                             "surplus_hugepages" };
	uint64_t n[3];

	for (size_t i = 0; i < 3; i++) {
		char path[128];

		snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-%llukB/%s",
		         (unsigned long long)page_bytes >> 10, names[i]);
		n[i] = read_bytes(path, BUDGET_ANY);
		if (n[i] == BUDGET_ANY)
			return BUDGET_ANY;
	}
	return (n[0] + budget_left(n[1], n[2])) * page_bytes;
}

static int check_huge(struct migration *m, const struct budget_guest *g, uint64_t page_bytes,
                      struct error *err)
{
	uint64_t need = budget_need(g, page_bytes), free = read_huge_free(page_bytes);
	uint64_t others = promised(m->owner, m, page_bytes);

	if (need <= budget_left(free, others))
		return 0;
	error_set(
	        err, -ENOMEM,
	        "no room here: the guest has %llu huge pages of %llu KiB to receive, and %llu are "
	        "free or can be made, of which %llu are promised to other guests "
	        "(memory-check=no admits it all the same)",
	        (unsigned long long)(need / page_bytes), (unsigned long long)page_bytes >> 10,
	        (unsigned long long)(free / page_bytes), (unsigned long long)(others / page_bytes));
	return refuse(m, ADMISSION_REFUSED_HUGE_PAGES, -ENOMEM, err);
}

/* Each size once. */
static int check_all_huge(struct migration *m, const struct budget_guest *g, struct error *err)
{
	int rc = 0;

	for (uint32_t i = 0; i < g->table->n && !rc; i++) {
		uint64_t pool = budget_pool(&g->table->regions[i]);
		bool seen = pool == UNIT_BYTES;

		for (uint32_t j = 0; j < i && !seen; j++)
			seen = budget_pool(&g->table->regions[j]) == pool;
		if (!seen)
			rc = check_huge(m, g, pool, err);
	}
	return rc;
}

static int check_cgroup(struct migration *m, const struct budget_guest *g, const struct place *vmm,
                        const struct place *daemon, const struct place *at, struct error *err)
{
	uint64_t need = charge(g, is_below(vmm, at), is_below(daemon, at)), others, room;
	struct budget_cgroup c;

	if (!need || !read_cgroup(at, &c))
		return 0;
	others = charged_by_others(m->owner, m, daemon, at);
	room = budget_cgroup_room(&c);
	if (need <= budget_left(room, others))
		return 0;
	error_set(err, -ENOMEM,
	          "no room in cgroup %.256s%s: the guest has %llu MiB to receive that count there, "
	          "and of its limit of %llu MiB (%s) %llu MiB are left, of which %llu MiB are "
	          "promised to other guests",
	          at->path, is_below(daemon, at) ? ", the daemon's" : "", MIB_UP(need),
	          MIB(budget_cgroup_limit(&c)),
	          c.high < c.max ? at->hierarchy->high : at->hierarchy->max, MIB(room),
	          MIB_UP(others));
	return refuse(m, ADMISSION_REFUSED_CGROUP, -ENOMEM, err);
}

/* One after the other, up to the root. @at is cut. */
static int check_cgroups(struct migration *m, const struct budget_guest *g, const struct place *vmm,
                         const struct place *daemon, struct place *at, struct error *err)
{
	int rc = 0;

	while (at->hierarchy && !rc) {
		char *slash = strrchr(at->path, '/');

		rc = check_cgroup(m, g, vmm, daemon, at, err);
		if (!at->path[1])
			break;
		slash[slash == at->path] = 0;
	}
	return rc;
}

static int check_memory(struct migration *m, const struct budget_guest *g, pid_t vmm,
                        struct error *err)
{
	struct place of_vmm, of_daemon, at;
	int rc;

	if (!m->owner->config.memory_check)
		return 0;
	rc = check_ordinary(m, g, err);
	if (!rc)
		rc = check_all_huge(m, g, err);
	if (rc)
		return rc;
	find_place(getpid(), &of_daemon);
	find_place(vmm, &of_vmm);
	at = of_vmm;
	rc = check_cgroups(m, g, &of_vmm, &of_daemon, &at, err);
	at = of_daemon;
	return rc ? rc : check_cgroups(m, g, &of_vmm, &of_daemon, &at, err);
}

int admission_check_memory(struct migration *m, const struct region_table *table, pid_t vmm,
                           struct error *err)
{
	struct budget_guest g = {
		.table = table,
		.missing_bytes = table->size_bytes,
		.lazy = m->params.map == RESOLVER_MAP_LAZY,
	};

	return m->params.role == MIGRATION_DESTINATION ? check_memory(m, &g, vmm, err) : 0;
}

static unsigned int count_under_way(const struct migrations *ms, enum migration_role role)
{
	unsigned int n = 0;

	for (const struct migration *m = ms->list; m; m = m->next)
		n += m->params.role == role && is_under_way(m);
	return n;
}

bool admission_has_place(const struct migration *m)
{
	unsigned int most = m->owner->config.max_incoming;

	return !most || count_under_way(m->owner, MIGRATION_DESTINATION) + queue_ahead(m) < most;
}

static int check_incoming(struct migration *m, bool may_wait, struct error *err)
{
	unsigned int n = count_under_way(m->owner, MIGRATION_DESTINATION), ahead = queue_ahead(m);

	if (admission_has_place(m))
		return 0;
	if (ahead)
		error_set(err, -EUSERS,
		          "%u migrations are coming in (max-incoming), and %u wait for that: try "
		          "again later, or wait as well",
		          n, ahead);
	else
		error_set(err, -EUSERS,
		          "%u migrations are coming in (max-incoming): try again later", n);
	return may_wait ? -EUSERS : refuse(m, ADMISSION_REFUSED_INCOMING, -EUSERS, err);
}

/* The kernel has counted them, since Linux 6.2: of thousands reading each takes milliseconds. */
static unsigned int count_descriptors(void)
{
	unsigned int n = 0;
	struct stat st;
	DIR *d;

	if (!stat("/proc/self/fd", &st) && st.st_size)
		return (unsigned int)st.st_size;
	d = opendir("/proc/self/fd");
	if (!d)
		return 0;
	while (readdir(d))
		n++;
	closedir(d);
	return n > 3 ? n - 3 : 0; /* ".", "..", and its own */
}

static uint64_t most_descriptors(void)
{
	struct rlimit limit;

	return getrlimit(RLIMIT_NOFILE, &limit) ? RLIM_INFINITY : limit.rlim_cur;
}

/* Beside its streams, and one userfaultfd. */
static unsigned int need_descriptors(const struct migration *m)
{
	unsigned int more = m->shards.n > 1 ? m->shards.n - 1 : 0;

	return m->limits.streams * STREAM_DESCRIPTORS + more * SHARD_DESCRIPTORS + MORE_DESCRIPTORS;
}

unsigned int admission_shards(struct migration *m, unsigned int n)
{
	uint64_t have = count_descriptors() + need_descriptors(m), most = most_descriptors();

	if (most == RLIM_INFINITY)
		return n;
	while (n > 1 && have + (n - 1) * (SHARD_DESCRIPTORS + SHARD_UFFDS) + 1 > most)
		n--;
	return n;
}

/* A dial that lacks one is tried for again, but a guest that waits for it stands still. */
static int check_descriptors(struct migration *m, struct error *err)
{
	unsigned int n = count_descriptors();
	unsigned int need = need_descriptors(m);
	uint64_t most = most_descriptors();

	if (most == RLIM_INFINITY || n + need <= most)
		return 0;
	error_set(err, -EMFILE,
	          "the daemon has %u descriptors open, of %llu at most, and this takes %u more "
	          "(LimitNOFILE= of the unit)",
	          n, (unsigned long long)most, need);
	return refuse(m, ADMISSION_REFUSED_DESCRIPTORS, -EMFILE, err);
}

int admission_check_start(struct migration *m, const struct migration_warm *warm, bool may_wait,
                          struct error *err)
{
	struct budget_guest g = guest_of(m);
	int rc = check_descriptors(m, err);

	g.warm = warm->wanted;
	if (!rc)
		rc = check_memory(m, &g, migration_vmm_pid(m), err);
	/* Last: who would wait in vain is told at once. */
	if (!rc)
		rc = check_incoming(m, may_wait, err);
	return rc ? error_prefix(err, "migration \"%s\"", m->params.id) : 0;
}

int admission_check_pause(struct migration *m, struct error *err)
{
	struct budget_guest g = guest_of(m);

	/* Known by the source's kind of memory alone: it is looked at when it comes. */
	if (migration_memory_is_late(m))
		return 0;
	return check_memory(m, &g, migration_vmm_pid(m), err);
}

const char *admission_refusal_name(enum admission_refusal refusal)
{
	static const char *const names[ADMISSION_REFUSALS] = {
		[ADMISSION_REFUSED_MEMORY] = "memory",
		[ADMISSION_REFUSED_HUGE_PAGES] = "huge_pages",
		[ADMISSION_REFUSED_CGROUP] = "cgroup",
		[ADMISSION_REFUSED_DESCRIPTORS] = "descriptors",
		[ADMISSION_REFUSED_INCOMING] = "incoming",
	};

	return names[refusal];
}

/* Of each size of huge pages that any guest is promised. */
static void add_pools(struct migrations *ms, const struct migration *m,
                      struct migrations_budget *ret)
{
	for (uint32_t i = 0; i < m->table.n; i++) {
		uint64_t pool = budget_pool(&m->table.regions[i]);
		bool seen = pool == UNIT_BYTES || ret->n_pools == BUDGET_POOLS_MAX;
		uint64_t free;

		for (size_t j = 0; j < ret->n_pools && !seen; j++)
			seen = ret->pools[j].page_bytes == pool;
		if (seen)
			continue;
		free = read_huge_free(pool);
		ret->pools[ret->n_pools++] = (struct migrations_pool){
			.page_bytes = pool,
			.free_bytes = free == BUDGET_ANY ? 0 : free,
			.promised_bytes = promised(ms, NULL, pool),
		};
	}
}

static unsigned int count_held(const struct migrations *ms)
{
	unsigned int n = 0;

	for (struct migration *m = ms->list; m; m = m->next)
		n += migration_get_wait(m).what == MIGRATION_WAITS_SWITCHOVER;
	return n;
}

void migrations_get_budget(struct migrations *ms, struct migrations_budget *ret)
{
	uint64_t available = read_available(), descriptors = most_descriptors();

	*ret = (struct migrations_budget){
		.memory_check = ms->config.memory_check,
		.available_bytes = available == BUDGET_ANY ? 0 : available,
		.promised_bytes = promised(ms, NULL, UNIT_BYTES),
		.incoming = count_under_way(ms, MIGRATION_DESTINATION),
		.max_incoming = ms->config.max_incoming,
		.queued = queue_length(ms),
		.held = count_held(ms),
		.outgoing = count_under_way(ms, MIGRATION_SOURCE),
		.max_outgoing = ms->config.max_outgoing,
		.descriptors = count_descriptors(),
		.max_descriptors = descriptors == RLIM_INFINITY ? 0 : descriptors,
	};
	migrations_get_bandwidth(ms, ret->bandwidth);
	for (const struct migration *m = ms->list; m; m = m->next)
		if (is_promised(m))
			add_pools(ms, m, ret);
}

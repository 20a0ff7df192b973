/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/check.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "qemu/devices.h"
#include "qemu/inject.h"
#include "qemu/qemu.h"
#include "qemu/userfault.h"
#include "util/cleanup.h"

/* The oldest and the newest that this has been tried with. */
#define OLDEST_MAJOR 7
#define OLDEST_MINOR 2

static void against(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void against(struct check *c, const char *fmt, ...)
{
	va_list ap;

	if (c->n_reasons == CHECK_REASONS_MAX)
		return;
	va_start(ap, fmt);
	vsnprintf(c->reasons[c->n_reasons++], ERROR_TEXT_MAX, fmt, ap);
	va_end(ap);
}

/* What must be the same at the other side only whoever sees both can compare: it is printed. */
static int check_version(struct session *s, struct check *c, struct error *err)
{
	const struct qmp_version *v = qmp_version(s->qmp);
	char *end;
	int rc = qemu_object_type(s->qmp, "/machine", c->machine, sizeof c->machine, err);

	if (rc)
		return rc;
	end = strstr(c->machine, "-machine");
	if (end)
		*end = 0;

	if (!qmp_is_at_least(s->qmp, OLDEST_MAJOR, OLDEST_MINOR))
		against(c, "QEMU %d.%d is older than %d.%d: move its guest to a newer one first",
		        v->major, v->minor, OLDEST_MAJOR, OLDEST_MINOR);
	return 0;
}

static int check_state(struct session *s, struct check *c, struct error *err)
{
	char why[QEMU_WHY_BYTES] = "";
	enum qemu_migration migration;
	struct qemu_state state;
	int rc = qemu_state(s->qmp, &state, err);

	if (!rc)
		rc = qemu_migration(s->qmp, &migration, why, err);
	if (rc)
		return rc;
	if (migration == QEMU_MIGRATION_ACTIVE)
		against(c, "a migration of QEMU's own is under way: wait for its end, or cancel it "
		           "(migrate_cancel)");
	if (c->is_source && state.status != QEMU_RUNNING)
		against(c, "its guest does not run: it is \"%s\"; continue it first", state.name);
	if (!c->is_source && state.status != QEMU_INCOMING)
		against(c,
		        "it does not wait for a guest: it is \"%s\"; start it with -S "
		        "-incoming defer",
		        state.name);
	if (!c->is_source && state.status == QEMU_INCOMING && migration != QEMU_MIGRATION_NONE)
		against(c, "a guest was loaded into it before; start it anew");
	rc = qemu_blockers(s->qmp, why, err);
	if (rc > 0)
		against(c, "QEMU itself would not migrate: %s", why);
	return rc < 0 ? rc : 0;
}

/* Those that a migration through a pipe, or without RAM, does not go with. */
static const char *const off_capabilities[] = {
	"multifd",  "postcopy-ram", "background-snapshot",     "x-colo",       "mapped-ram",
	"compress", "block",        "pause-before-switchover", "rdma-pin-all", "zero-copy-send",
};

static int check_capabilities(struct session *s, struct check *c, struct error *err)
{
	static const char *const needed[] = { "x-ignore-shared", "events" };

	for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
		int rc = qemu_capability(s->qmp, needed[i], err);

		if (rc == -ENOENT)
			against(c, "this QEMU has no migration capability %s: take a newer one",
			        needed[i]);
		else if (rc < 0)
			return rc;
	}
	for (size_t i = 0; i < sizeof off_capabilities / sizeof *off_capabilities; i++) {
		int rc = qemu_capability(s->qmp, off_capabilities[i], err);

		if (rc > 0)
			against(c, "its migration capability %s is on; switch it off",
			        off_capabilities[i]);
		else if (rc < 0 && rc != -ENOENT)
			return rc;
	}
	return 0;
}

static int check_blocks(struct session *s, struct check *c, struct error *err)
{
	int rc = blocks_read(s->qmp, s->pid, s->pidfd, &c->blocks, err);
	size_t told = 0;

	for (size_t i = 0; !rc && i < c->blocks.n; i++) {
		const struct block *b = &c->blocks.list[i];
		char name[32];
		pid_t other;

		told += b->way != BLOCK_IN_VMSTATE;
		if (b->way == BLOCK_REFUSED)
			against(c, "RAM block %s: %s", b->ram.name, b->why);
		if (b->way != BLOCK_MOVED)
			continue;
		other = mapping_find_other(s->pid, &b->mapping, name);
		/* The daemon itself, of an earlier migration that has just ended. */
		if (other && strcmp(name, "postcopyd") && !c->has[DEVICE_VHOST_USER])
			against(c,
			        "RAM block %s is also mapped by process %d (%s): it reads and "
			        "writes it past the userfaultfd, as vhost-user does; end it first",
			        b->ram.name, (int)other, name);
	}
	if (!rc && !told)
		against(c, "no RAM block of it can be moved page by page: give it a "
		           "memory-backend-file with share=on (-machine memory-backend=ID)");
	return rc;
}

static const char *const device_reasons[DEVICE_KINDS] = {
	[DEVICE_VFIO] = "the device has guest memory pinned: unplug it first",
	[DEVICE_VDPA] = "the device has guest memory pinned: unplug it first",
	[DEVICE_VHOST_USER] =
	        "its backend, a process of its own, reads and writes guest memory past "
	        "the userfaultfd: give the guest a device of QEMU's own instead, or of "
	        "vhost in the kernel",
};

/* By name, for whom QEMU has them. Return: 0; -errno with @err where QEMU does not answer. */
static int check_device_names(struct session *s, struct check *c, struct error *err)
{
	_cleanup_free_ char *qtree = NULL, *network = NULL;
	int rc = qemu_human(s->qmp, "info qtree", &qtree, err);

	if (!rc)
		rc = qemu_human(s->qmp, "info network", &network, err);
	for (unsigned int kind = 0; !rc && kind < DEVICE_KINDS; kind++) {
		struct device d;

		if (!devices_find(qtree, network, (enum device_kind)kind, &d))
			continue;
		c->has[kind] = true;
		against(c, "it has a %s device%s%s%s: %s", d.type, *d.id ? " (" : "", d.id,
		        *d.id ? ")" : "", device_reasons[kind]);
	}
	return rc;
}

/* What has guest memory pinned, and so would go on with pages that are emptied. */
static int check_devices(struct session *s, struct check *c)
{
	static const struct {
		const char *link, *what;
		enum device_kind kind;
	} devices[] = {
		{ "/dev/vfio/", "VFIO", DEVICE_VFIO },
		{ "/dev/iommu", "VFIO (iommufd)", DEVICE_VFIO },
		{ "/dev/vhost-vdpa-", "vDPA", DEVICE_VDPA },
	};

	for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
		int fd = descriptor_number(s->pid, devices[i].link, true);

		/* It was named before, mostly. */
		if (fd >= 0 && c->has[devices[i].kind])
			continue;
		if (fd >= 0)
			against(c, "it has a %s device (descriptor %d): %s", devices[i].what, fd,
			        device_reasons[devices[i].kind]);
		else if (fd != -ENOENT)
			against(c,
			        "can't look at the descriptors of process %d: %s; run as its "
			        "user or as root",
			        (int)s->pid, strerror(-fd));
		if (fd < 0 && fd != -ENOENT)
			break;
	}
	return 0;
}

static int check_userfault(struct session *s, struct check *c)
{
	struct error why = ERROR_INIT;

	if (!c->is_source && userfault_check(s, &why))
		against(c, "%s", why.text);
	return 0;
}

int check_run(struct session *s, bool is_source, struct check *ret, struct error *err)
{
	int rc;

	*ret = (struct check){ .is_source = is_source };
	rc = check_version(s, ret, err);
	if (!rc)
		rc = check_state(s, ret, err);
	if (!rc)
		rc = check_capabilities(s, ret, err);
	if (!rc)
		rc = check_device_names(s, ret, err);
	if (!rc)
		rc = check_devices(s, ret);
	if (!rc)
		rc = check_blocks(s, ret, err);
	return rc ? rc : check_userfault(s, ret);
}

static void print_block(const struct block *b, FILE *to)
{
	static const char *const ways[] = {
		[BLOCK_MOVED] = "page by page",
		[BLOCK_IN_VMSTATE] = "in the vmstate",
		[BLOCK_REFUSED] = "not at all",
	};

	fprintf(to, "  RAM block %s: %llu KiB, pages of %llu KiB: %s%s%s\n", b->ram.name,
	        (unsigned long long)b->ram.total >> 10, (unsigned long long)b->ram.page_size >> 10,
	        ways[b->way], b->way == BLOCK_MOVED ? ", from " : "",
	        b->way == BLOCK_MOVED ? b->mapping.path : "");
}

void check_print(const struct session *s, const struct check *c, FILE *to)
{
	const struct qmp_version *v = qmp_version(s->qmp);

	fprintf(to, "QEMU %d.%d.%d (%s), machine type %s, process %d, as a %s\n", v->major,
	        v->minor, v->micro, *v->package ? v->package : "built by hand", c->machine,
	        (int)s->pid, c->is_source ? "source" : "destination");
	for (size_t i = 0; i < c->blocks.n; i++)
		print_block(&c->blocks.list[i], to);
	for (size_t i = 0; i < c->n_reasons; i++)
		fprintf(to, "against: %s\n", c->reasons[i]);
	fprintf(to, c->n_reasons ? "It can't be moved.\n" : "It can be moved.\n");
}

int check_refuse(const struct check *c, struct error *err)
{
	if (!c->n_reasons)
		return 0;
	return error_set(err, -EOPNOTSUPP, "%s%s", c->reasons[0],
	                 c->n_reasons > 1 ? "; and more: see postcopy-qemu check" : "");
}

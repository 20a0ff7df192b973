/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/probe_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "util/kernel_abi.h"
#include "util/kvm_userfault.h"

#define GMEM_FLAGS (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

/* One life of one page. */
struct round {
	const struct probe_env *env;
	enum probe_mode mode;
	struct scratch mem;
	struct trap trap;
	struct touch touch;
	struct uffd_msg msg; /* the event that the touch raised */
	char want[PROBE_COPY_BYTES];
	char got[PROBE_COPY_BYTES];
};

static void round_deinit(struct round *r)
{
	trap_release(&r->trap);
	touch_deinit(&r->touch);
	trap_deinit(&r->trap);
	scratch_deinit(&r->mem);
}

#define _cleanup_round_ _cleanup_(round_deinit)

/* Return: 0 with memory mapped and not registered yet. */
static int round_init(struct round *r, const struct probe_env *env, const struct probe_backend *b,
                      enum probe_mode mode, struct error *err)
{
	int e;

	r->env = env;
	r->mode = mode;
	r->mem = SCRATCH_INIT;
	r->trap = TRAP_INIT;
	r->touch = TOUCH_INIT;
	for (size_t i = 0; i < sizeof r->want; i++)
		r->want[i] = (char)(0xa5 + i * 7 + i / 256);
	e = scratch_init(&r->mem, env, b->id, b->guest_memfd_flags, err);
	return e ? e : trap_init(&r->trap, &r->mem, err);
}

static int round_register(struct round *r, const struct probe_backend *b, struct error *err)
{
	int e = trap_register(&r->trap, probe_mode_bits(r->mode));

	if (!e)
		return 0;
	if (b->id == PROBE_GUEST_MEMFD && e == -EINVAL)
		return error_set(
		        err, e,
		        "UFFDIO_REGISTER %s on a guest_memfd mapping: EINVAL: this kernel "
		        "has no userfaultfd support for guest_memfd in this mode (needs the "
		        "vm_uffd_ops or the guest_memfd MINOR series)",
		        probe_mode_name(r->mode));
	return error_set(err, e, "UFFDIO_REGISTER %s on a mapping of %s memory: %s",
	                 probe_mode_name(r->mode), probe_backend_name(b->id), probe_errno_name(e));
}

/* Fills as the daemon would on a fault, wakes, and looks at what the thread has read. */
static int round_resolve(struct round *r, bool filled, struct error *err)
{
	bool anonymous = r->mem.fd < 0;
	int e;

	if (!anonymous && !filled) {
		e = probe_copy(r->env, r->mem.alias, r->want);
		if (e)
			return error_set(err, e, "memcpy through a second mapping: %s",
			                 probe_errno_name(e));
	}
	e = anonymous ? trap_copy(&r->trap, r->want) : trap_continue(&r->trap);
	if (e)
		return error_set(err, e, "%s of the page that faulted: %s",
		                 anonymous ? "UFFDIO_COPY" : "UFFDIO_CONTINUE",
		                 probe_errno_name(e));
	e = touch_result(&r->touch, r->got);
	if (e == -ETIMEDOUT)
		return error_set(err, e, "the thread did not go on after its fault was resolved");
	if (e)
		return error_set(err, e, "the thread could not read the page after its fault");
	if (memcmp(r->got, r->want, sizeof r->want))
		return error_set(err, -EIO, "the thread read something else than was filled in");
	return 0;
}

/* The first touch of a page that is absent. */
static int round_absent(struct round *r, struct probe_mode_result *m, struct error *err)
{
	int e = touch_start(&r->touch, r->trap.map, err);

	if (e)
		return e;
	e = touch_or_event(&r->touch, &r->trap, &r->msg);
	if (e < 0)
		return error_set(err, e,
		                 "touching an absent page with %s: no event and no content: %s",
		                 probe_mode_name(r->mode), probe_errno_name(e));
	if (e == 0) {
		if (touch_result(&r->touch, r->got))
			return error_set(err, -EFAULT,
			                 "an absent page can't be read: no memory for it?");
		m->absent = PROBE_ABSENT_SILENT;
		return error_set(err, -EOPNOTSUPP,
		                 "dangerous, refused: with %s an absent page raises no event, the "
		                 "guest would read zeroes for a page that has not arrived",
		                 probe_mode_name(r->mode));
	}
	m->absent = r->msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR ? PROBE_ABSENT_MINOR
	                                                                   : PROBE_ABSENT_MISSING;
	e = round_resolve(r, false, err);
	if (!e)
		m->resolve |= r->mem.fd < 0 ? PROBE_RESOLVE_COPY : PROBE_RESOLVE_CONTINUE;
	return e;
}

/* The first touch, through the registered mapping, of a page filled through another. */
static int round_present(struct round *r, struct probe_mode_result *m, struct error *err)
{
	int e = probe_copy(r->env, r->mem.alias, r->want);

	if (e)
		return error_set(err, e, "memcpy through a second mapping: %s",
		                 probe_errno_name(e));
	e = touch_start(&r->touch, r->trap.map, err);
	if (e)
		return e;
	e = touch_or_event(&r->touch, &r->trap, &r->msg);
	if (e < 0)
		return error_set(err, e,
		                 "touching a present page with %s: no event and no content: %s",
		                 probe_mode_name(r->mode), probe_errno_name(e));
	if (e == 0)
		return error_set(
		        err, -EOPNOTSUPP,
		        "with %s a page in the page cache raises no event: the guest would see "
		        "pages while they are being filled",
		        probe_mode_name(r->mode));
	if (!(r->msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR))
		return error_set(err, -EOPNOTSUPP, "with %s a present page raises no MINOR event",
		                 probe_mode_name(r->mode));
	m->present_minor = true;
	return round_resolve(r, true, err);
}

/* UFFDIO_COPY or UFFDIO_ZEROPAGE where nobody waits. Return: true where it works. */
static bool ioctl_fills(const struct probe_env *env, const struct probe_backend *b,
                        enum probe_mode mode, enum probe_resolve how)
{
	_cleanup_round_ struct round r;

	if (round_init(&r, env, b, mode, NULL) || round_register(&r, b, NULL))
		return false;
	if (how == PROBE_RESOLVE_ZEROPAGE)
		memset(r.want, 0, sizeof r.want);
	if (how == PROBE_RESOLVE_ZEROPAGE ? trap_zeropage(&r.trap) : trap_copy(&r.trap, r.want))
		return false;
	/* unregistered first: should the page be absent after all, nobody would answer */
	trap_release(&r.trap);
	return !probe_copy(env, r.got, r.trap.map) && !memcmp(r.got, r.want, sizeof r.want);
}

static int absent_try(const struct probe_env *env, const struct probe_backend *b,
                      enum probe_mode mode, struct probe_mode_result *m, struct error *err)
{
	_cleanup_round_ struct round r;
	int e = round_init(&r, env, b, mode, err);

	if (e)
		return e;
	m->register_code = round_register(&r, b, err);
	return m->register_code ? m->register_code : round_absent(&r, m, err);
}

static int present_try(const struct probe_env *env, const struct probe_backend *b,
                       enum probe_mode mode, struct probe_mode_result *m, struct error *err)
{
	_cleanup_round_ struct round r;
	int e = round_init(&r, env, b, mode, err);

	if (!e)
		e = round_register(&r, b, err);
	return e ? e : round_present(&r, m, err);
}

static void mode_fill(const struct probe_env *env, const struct probe_backend *b,
                      enum probe_mode mode, struct probe_mode_result *m)
{
	struct error err = ERROR_INIT;

	*m = (struct probe_mode_result){ .register_code = -ENODATA };
	/* anonymous memory has one mapping only: nothing is present before it is copied in */
	if (absent_try(env, b, mode, m, &err) ||
	    (b->id != PROBE_ANONYMOUS && present_try(env, b, mode, m, &err))) {
		snprintf(m->reason, sizeof m->reason, "%s", err.text);
		return;
	}
	m->ok = true;
	/* for huge pages these would copy a huge page for nothing: CONTINUE does all there */
	if ((probe_mode_bits(mode) & UFFDIO_REGISTER_MODE_MISSING) &&
	    b->page_bytes == PROBE_COPY_BYTES) {
		if (ioctl_fills(env, b, mode, PROBE_RESOLVE_COPY))
			m->resolve |= PROBE_RESOLVE_COPY;
		if (ioctl_fills(env, b, mode, PROBE_RESOLVE_ZEROPAGE))
			m->resolve |= PROBE_RESOLVE_ZEROPAGE;
	}
}

static void mode_skip(struct probe_mode_result *m, enum probe_mode better)
{
	*m = (struct probe_mode_result){ .register_code = -ENODATA };
	snprintf(m->reason, sizeof m->reason, "not tried: register with %s",
	         probe_mode_name(better));
}

/* pwrite() the same page twice, with different content. */
static enum probe_write write_try(const struct probe_env *env, enum probe_backend_id id,
                                  uint64_t guest_memfd_flags)
{
	_cleanup_(scratch_deinit) struct scratch mem = SCRATCH_INIT;
	char first[PROBE_COPY_BYTES], second[PROBE_COPY_BYTES], got[PROBE_COPY_BYTES];
	ssize_t n;

	if (id == PROBE_ANONYMOUS || scratch_init(&mem, env, id, guest_memfd_flags, NULL))
		return PROBE_WRITE_NONE;
	memset(first, 0x5a, sizeof first);
	memset(second, 0xc3, sizeof second);
	if (pwrite(mem.fd, first, sizeof first, 0) != sizeof first)
		return PROBE_WRITE_NONE;
	if (probe_copy(env, got, mem.alias) || memcmp(got, first, sizeof got))
		return PROBE_WRITE_NONE;
	n = pwrite(mem.fd, second, sizeof second, 0);
	if (n < 0)
		return errno == EEXIST ? PROBE_WRITE_EXCLUSIVE : PROBE_WRITE_NONE;
	if (probe_copy(env, got, mem.alias) || memcmp(got, second, sizeof got))
		return PROBE_WRITE_NONE;
	return PROBE_WRITE_OVERWRITING;
}

/* Finds what a guest_memfd must be created with for pwrite(): the bit is not settled. */
static void write_fill(const struct probe_env *env, struct probe_backend *b)
{
	static const uint64_t flags[] = { 0, GUEST_MEMFD_FLAG_WRITE_V7,
		                          GUEST_MEMFD_FLAG_WRITE_SECRET_FREE };
	size_t n = b->id == PROBE_GUEST_MEMFD ? sizeof flags / sizeof *flags : 1;
	uint64_t base = b->id == PROBE_GUEST_MEMFD ? GMEM_FLAGS : 0;

	b->guest_memfd_flags = base;
	for (size_t i = 0; i < n; i++) {
		b->write = write_try(env, b->id, base | flags[i]);
		if (b->write != PROBE_WRITE_NONE) {
			b->guest_memfd_flags = base | flags[i];
			return;
		}
	}
}

/* Another mapping, or /proc/self/mem, shows what was stored through the first. */
static int source_try(const struct probe_env *env, const struct scratch *mem, char *map,
                      struct error *err)
{
	char want[PROBE_COPY_BYTES], got[PROBE_COPY_BYTES];
	_cleanup_close_ int fd = -1;
	int e;

	memset(want, 0x3c, sizeof want);
	e = probe_copy(env, map, want);
	if (e)
		return error_set(err, e, "storing into a mapping: %s", probe_errno_name(e));
	if (mem->fd >= 0) {
		e = probe_copy(env, got, mem->alias);
		if (e)
			return error_set(err, e, "reading through a second mapping: %s",
			                 probe_errno_name(e));
	} else {
		fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return error_set(err, -errno, "/proc/self/mem: %s",
			                 probe_errno_name(-errno));
		if (pread(fd, got, sizeof got, (off_t)(uintptr_t)map) != sizeof got)
			return error_set(err, -EIO, "/proc/self/mem: the memory can't be read");
	}
	if (memcmp(got, want, sizeof got))
		return error_set(err, -EIO, "what is read is not what was stored");
	return 0;
}

static void source_fill(const struct probe_env *env, struct probe_backend *b)
{
	_cleanup_(scratch_deinit) struct scratch mem = SCRATCH_INIT;
	struct error err = ERROR_INIT;
	char *map = NULL;
	int e;

	e = scratch_init(&mem, env, b->id, b->guest_memfd_flags, &err);
	if (!e) {
		map = scratch_map(&mem, &err);
		e = map ? source_try(env, &mem, map, &err) : -ENOMEM;
	}
	if (map)
		munmap(map, mem.len);
	if (e)
		probe_row_no(&b->source, "%s", err.text);
	else
		probe_row_yes(&b->source, "%s",
		              mem.fd < 0 ? "through /proc/PID/mem" : "through its descriptor");
}

enum probe_gmem_abi probe_gmem_abi_of(const struct probe_mode_result modes[PROBE_MODES])
{
	if (modes[PROBE_MODE_MISSING_MINOR].ok)
		return PROBE_GMEM_MISSING_MINOR;
	if (modes[PROBE_MODE_MINOR].ok)
		return PROBE_GMEM_MINOR;
	if (modes[PROBE_MODE_MINOR].absent == PROBE_ABSENT_SILENT)
		return PROBE_GMEM_MINOR_PRESENT_ONLY;
	return PROBE_GMEM_NONE;
}

/* Of all the modes that don't work, the one that came nearest tells most. */
static const char *reason_best(const struct probe_mode_result modes[PROBE_MODES])
{
	static const enum probe_mode order[] = { PROBE_MODE_MISSING_MINOR, PROBE_MODE_MINOR };

	for (size_t i = 0; i < sizeof order / sizeof *order; i++)
		if (!modes[order[i]].register_code)
			return modes[order[i]].reason;
	return modes[PROBE_MODE_MINOR].reason;
}

static void destination_fill(const struct probe_env *env, struct probe_backend *b)
{
	const char *abi;

	b->mode = PROBE_MODES;
	for (enum probe_mode mode = 0; mode < PROBE_MODES; mode++) {
		if (b->mode != PROBE_MODES && b->page_bytes > PROBE_COPY_BYTES) {
			/* zeroing a 1 GiB page takes most of a second: know what is needed, stop */
			mode_skip(&b->modes[mode], b->mode);
			continue;
		}
		mode_fill(env, b, mode, &b->modes[mode]);
		if (b->modes[mode].ok && b->mode == PROBE_MODES)
			b->mode = mode;
	}
	if (b->id == PROBE_GUEST_MEMFD)
		b->abi = probe_gmem_abi_of(b->modes);
	if (b->mode == PROBE_MODES) {
		probe_row_no(&b->destination, "%s",
		             b->id == PROBE_ANONYMOUS ? b->modes[PROBE_MODE_MISSING].reason
		                                      : reason_best(b->modes));
		return;
	}
	b->resolve = b->modes[b->mode].resolve;
	b->memcpy_fill = b->id != PROBE_ANONYMOUS;
	abi = b->id == PROBE_GUEST_MEMFD ? probe_gmem_abi_name(b->abi) : NULL;
	probe_row_yes(&b->destination, "register %s; pwrite %s; memcpy %s; resolve %s%s%s",
	              probe_mode_name(b->mode), probe_write_name(b->write),
	              b->memcpy_fill ? "yes" : "no", probe_resolve_name(b->resolve),
	              abi ? "; ABI: " : "", abi ? abi : "");
}

void probe_backend_fill(const struct probe_env *env, enum probe_backend_id id,
                        struct probe_backend *ret)
{
	static const struct {
		uint64_t page_bytes;
		const char *source, *destination;
	} kinds[PROBE_BACKENDS] = {
		[PROBE_MEMFD] = { 4096, "memfd source", "memfd destination" },
		[PROBE_HUGETLB_2M] = { 2ull << 20, "hugetlb 2M source", "hugetlb 2M destination" },
		[PROBE_HUGETLB_1G] = { 1ull << 30, "hugetlb 1G source", "hugetlb 1G destination" },
		[PROBE_GUEST_MEMFD] = { 4096, "guest_memfd source", "guest_memfd destination" },
		[PROBE_ANONYMOUS] = { 4096, "anonymous source", "anonymous destination" },
	};

	*ret = (struct probe_backend){ .id = id, .page_bytes = kinds[id].page_bytes };
	ret->source.name = kinds[id].source;
	ret->destination.name = kinds[id].destination;
	write_fill(env, ret);
	source_fill(env, ret);
	destination_fill(env, ret);
}

/* Whether the kernel itself has no way to it: the flag's bit means another thing in other trees. */
static int out_of_reach(const struct probe_env *env, uint64_t flags, struct error *err)
{
	_cleanup_(scratch_deinit) struct scratch mem = SCRATCH_INIT;
	struct error why = ERROR_INIT;
	int e = scratch_init(&mem, env, PROBE_GUEST_MEMFD, flags, &why);

	if (e == -EINVAL)
		return error_set(err, e,
		                 "KVM_CREATE_GUEST_MEMFD with flag 1<<2: EINVAL (needs the direct "
		                 "map removal series, not merged)");
	if (e)
		return error_set(err, e, "%s", why.text);
	/* EFAULT, or what madvise() makes of it */
	if (!madvise(mem.alias, mem.len, MADV_POPULATE_WRITE) ||
	    (errno != EFAULT && errno != EINVAL))
		return error_set(err, -EOPNOTSUPP,
		                 "guest_memfd's flag 1<<2 is something else here: the kernel can "
		                 "reach its pages");
	return 0;
}

void probe_no_direct_map_fill(const struct probe_env *env, struct probe_row *row)
{
	struct probe_backend b = {
		.id = PROBE_GUEST_MEMFD,
		.page_bytes = PROBE_COPY_BYTES,
		.guest_memfd_flags = GMEM_FLAGS | GUEST_MEMFD_FLAG_NO_DIRECT_MAP,
	};
	struct error err = ERROR_INIT;

	if (out_of_reach(env, b.guest_memfd_flags, &err)) {
		probe_row_no(row, "%s", err.text);
		return;
	}
	b.write = write_try(env, b.id, b.guest_memfd_flags);
	destination_fill(env, &b);
	/* KVM has no way to it either, but through the file. */
	if (!b.destination.ok)
		probe_row_no(row, "%s", b.destination.detail);
	else if (kvm_userfault_try(env->kvm, &err))
		probe_row_no(row, "as a source alone, for its memslots must be bound: %s",
		             err.text);
	else
		probe_row_yes(row, "for bound memslots: %s", b.destination.detail);
}

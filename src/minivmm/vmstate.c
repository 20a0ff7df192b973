/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/vmstate.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "minivmm/fail.h"

#define MAGIC 0x54534d564d494e49ull /* "INIMVMST" */
#define VERSION 3
#define FIXED_BYTES_MAX 16384u /* all but the padding */

/*
 * Both directions walk the same description of the layout, so that they can't differ:
 * where @decoding each field is read, else it is written.
 */
struct walk {
	uint8_t *pos;
	uint8_t *end;
	bool decoding;
	bool failed; /* ran over the end */
};

static void walk_bytes(struct walk *w, void *field, size_t len)
{
	if (w->failed || (size_t)(w->end - w->pos) < len) {
		w->failed = true;
		return;
	}
	if (w->decoding)
		memcpy(field, w->pos, len);
	else
		memcpy(w->pos, field, len);
	w->pos += len;
}

static void walk_u64(struct walk *w, uint64_t *field)
{
	uint64_t wire = htole64(*field);

	walk_bytes(w, &wire, sizeof wire);
	*field = le64toh(wire);
}

/* For fields of any width up to 64 bits: on the wire all have 64. */
#define WALK(w, field)                                                                             \
	do {                                                                                       \
		uint64_t value_ = (field);                                                         \
		walk_u64(w, &value_);                                                              \
		(field) = (__typeof__(field))value_;                                               \
		if ((field) != value_)                                                             \
			(w)->failed = true;                                                        \
	} while (0)

static void walk_regs(struct walk *w, struct kvm_regs *r)
{
	WALK(w, r->rax);
	WALK(w, r->rbx);
	WALK(w, r->rcx);
	WALK(w, r->rdx);
	WALK(w, r->rsi);
	WALK(w, r->rdi);
	WALK(w, r->rsp);
	WALK(w, r->rbp);
	WALK(w, r->r8);
	WALK(w, r->r9);
	WALK(w, r->r10);
	WALK(w, r->r11);
	WALK(w, r->r12);
	WALK(w, r->r13);
	WALK(w, r->r14);
	WALK(w, r->r15);
	WALK(w, r->rip);
	WALK(w, r->rflags);
}

static void walk_segment(struct walk *w, struct kvm_segment *s)
{
	WALK(w, s->base);
	WALK(w, s->limit);
	WALK(w, s->selector);
	WALK(w, s->type);
	WALK(w, s->present);
	WALK(w, s->dpl);
	WALK(w, s->db);
	WALK(w, s->s);
	WALK(w, s->l);
	WALK(w, s->g);
	WALK(w, s->avl);
	WALK(w, s->unusable);
}

static void walk_sregs(struct walk *w, struct kvm_sregs *s)
{
	struct kvm_segment *segments[] = { &s->cs, &s->ds, &s->es, &s->fs,
		                           &s->gs, &s->ss, &s->tr, &s->ldt };

	for (size_t i = 0; i < sizeof segments / sizeof *segments; i++)
		walk_segment(w, segments[i]);
	WALK(w, s->gdt.base);
	WALK(w, s->gdt.limit);
	WALK(w, s->idt.base);
	WALK(w, s->idt.limit);
	WALK(w, s->cr0);
	WALK(w, s->cr2);
	WALK(w, s->cr3);
	WALK(w, s->cr4);
	WALK(w, s->cr8);
	WALK(w, s->efer);
	WALK(w, s->apic_base);
	for (size_t i = 0; i < sizeof s->interrupt_bitmap / sizeof *s->interrupt_bitmap; i++)
		WALK(w, s->interrupt_bitmap[i]);
}

static void walk_boot(struct walk *w, struct guest_boot *b)
{
	WALK(w, b->memory_bytes);
	WALK(w, b->data_start);
	WALK(w, b->data_pages);
	WALK(w, b->seed);
	WALK(w, b->think_ticks);
	WALK(w, b->workload);
	WALK(w, b->write_percent);
	WALK(w, b->zero_percent);
	WALK(w, b->vcpus);
}

static void walk_vcpus(struct walk *w, struct vmstate *s)
{
	for (uint32_t i = 0; i < s->boot.vcpus; i++) {
		walk_regs(w, &s->vcpus[i].regs);
		walk_sregs(w, &s->vcpus[i].sregs);
		WALK(w, s->vcpus[i].tsc);
		WALK(w, s->digests[i]);
	}
	walk_bytes(w, s->spare, sizeof s->spare);
	WALK(w, s->pad_bytes);
}

/* The padding is no byte repeated, so that shifted or doubled pieces show. */
static void walk_pad(struct walk *w, const struct vmstate *s, bool *ret_same)
{
	bool same = true;

	for (uint64_t done = 0; !w->failed && done < s->pad_bytes; done += sizeof done) {
		uint64_t left = s->pad_bytes - done;
		uint64_t want = guest_mix(s->boot.seed + done), word = want;

		walk_bytes(w, &word, left < sizeof word ? left : sizeof word);
		same &= word == want;
	}
	*ret_same = same;
}

int vmstate_encode(const struct vmstate *state, void **ret_data, uint64_t *ret_len,
                   struct postcopy_error *err)
{
	struct vmstate s = *state;
	uint64_t magic = MAGIC;
	uint32_t version = VERSION;
	uint8_t *data = malloc(FIXED_BYTES_MAX + s.pad_bytes);
	struct walk w = { .pos = data, .end = data + FIXED_BYTES_MAX };
	bool pad_right;

	if (!data)
		return fail(err, -ENOMEM, "no memory for the vmstate");
	WALK(&w, magic);
	WALK(&w, version);
	walk_boot(&w, &s.boot);
	walk_vcpus(&w, &s);
	if (w.failed) {
		free(data);
		return fail(err, -EOVERFLOW, "the vmstate of %u vCPUs is too large", s.boot.vcpus);
	}
	w.end += s.pad_bytes;
	walk_pad(&w, &s, &pad_right);
	*ret_data = data;
	*ret_len = (uint64_t)(w.pos - data);
	return 0;
}

static int check_boot(const struct guest_boot *b, struct postcopy_error *err)
{
	if (!b->vcpus || b->vcpus > GUEST_VCPUS_MAX)
		return fail(err, -EINVAL, "vmstate: %u vCPUs", b->vcpus);
	if (b->memory_bytes < GUEST_MEMORY_MIN || b->memory_bytes > GUEST_MEMORY_MAX ||
	    b->data_start % GUEST_PAGE_BYTES || b->data_start > b->memory_bytes ||
	    b->data_pages != (b->memory_bytes - b->data_start) / GUEST_PAGE_BYTES)
		return fail(err, -EINVAL, "vmstate: %llu bytes of memory, %llu data pages",
		            (unsigned long long)b->memory_bytes, (unsigned long long)b->data_pages);
	if (b->workload >= GUEST_WORKLOADS || b->write_percent > 100 || b->zero_percent > 100)
		return fail(err, -EINVAL, "vmstate: impossible workload %u", b->workload);
	return 0;
}

int vmstate_decode(const void *data, uint64_t len, struct vmstate *ret, struct postcopy_error *err)
{
	struct vmstate s = { 0 };
	/* Decoding only reads from @data. */
	struct walk w = { .pos = (uint8_t *)data, .end = (uint8_t *)data + len, .decoding = true };
	uint64_t magic = 0;
	uint32_t version = 0;
	bool pad_right;
	int rc;

	WALK(&w, magic);
	WALK(&w, version);
	if (w.failed || magic != MAGIC)
		return fail(err, -EINVAL, "this is not a vmstate of minivmm");
	if (version != VERSION)
		return fail(err, -EINVAL, "vmstate of version %u; this minivmm reads %d", version,
		            VERSION);
	walk_boot(&w, &s.boot);
	rc = check_boot(&s.boot, err);
	if (rc)
		return rc;
	walk_vcpus(&w, &s);
	for (size_t i = 0; i < sizeof s.spare; i++)
		if (s.spare[i] >= SPARE_STATES)
			return fail(err, -EINVAL, "vmstate: spare page %zu is in state %u", i,
			            s.spare[i]);
	if (w.failed || (uint64_t)(w.end - w.pos) != s.pad_bytes)
		return fail(err, -EINVAL, "vmstate: %llu bytes do not fit what it says it holds",
		            (unsigned long long)len);
	walk_pad(&w, &s, &pad_right);
	if (!pad_right)
		return fail(err, -EINVAL, "vmstate: its padding did not come as it was sent");
	*ret = s;
	return 0;
}

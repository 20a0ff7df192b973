/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Static probes (USDT) on a fault's way, for bpftrace, perf and SystemTap: docs/tracing.md.
 *
 * Each is one nop where nobody looks, and nothing at all where this was built without
 * sys/sdt.h (meson option "usdt"). Provider postcopyd; the names and arguments below are an
 * interface: people's scripts hold on to them.
 *
 * A host page is told by its address in the VMM; region and unit (of 4 KiB) say where in guest
 * memory it lies; a word is 64 units. Times are nanoseconds.
 */
#ifndef UTIL_PROBES_H
#define UTIL_PROBES_H

#include <stdint.h>

#ifdef HAVE_SDT
#include <sys/sdt.h>
#else
#define DTRACE_PROBE2(provider, name, a, b) ((void)(a), (void)(b))
#define DTRACE_PROBE3(provider, name, a, b, c) ((void)(a), (void)(b), (void)(c))
#define DTRACE_PROBE4(provider, name, a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))
#endif

/* An event was read. @tid: of the vCPU, 0 where the kernel did not say. */
static inline void probe_fault_read(uint64_t addr, uint32_t tid)
{
	DTRACE_PROBE2(postcopyd, fault_read, addr, tid);
}

/* The request for its page was sent. @addr: 0 where the VMM asked by itself. */
static inline void probe_fault_asked(uint64_t addr, uint32_t region, uint64_t unit)
{
	DTRACE_PROBE3(postcopyd, fault_asked, addr, region, unit);
}

/* Its answer is here. */
static inline void probe_fault_answered(uint64_t addr, uint32_t region, uint64_t unit)
{
	DTRACE_PROBE3(postcopyd, fault_answered, addr, region, unit);
}

/* Units that somebody waits for are in place, by whomever. @wanted: which of the word. */
static inline void probe_fault_filled(uint32_t region, uint64_t word, uint64_t wanted)
{
	DTRACE_PROBE3(postcopyd, fault_filled, region, word, wanted);
}

/*
 * The fault is over. @total_ns: from its event to its vCPU woken. @flags: enum fault_flags
 * (fault/phases.h). Where bulk brought the page this is told later than it happened.
 */
static inline void probe_fault_mapped(uint64_t addr, uint32_t tid, uint64_t total_ns,
                                      uint32_t flags)
{
	DTRACE_PROBE4(postcopyd, fault_mapped, addr, tid, total_ns, flags);
}

/* A bulk answer is in place. @filled: the units of the word that it brought. @bytes: received. */
static inline void probe_bulk_filled(uint32_t region, uint64_t word, uint64_t filled,
                                     uint64_t bytes)
{
	DTRACE_PROBE4(postcopyd, bulk_filled, region, word, filled, bytes);
}

/* A migration's state has changed; all strings. */
static inline void probe_migration_state(const char *id, const char *from, const char *to)
{
	DTRACE_PROBE3(postcopyd, migration_state, id, from, to);
}

#endif

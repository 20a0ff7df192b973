/* SPDX-License-Identifier: Apache-2.0 */
/**
 * libpostcopy: by which a virtual machine monitor (VMM) hands its guest's memory
 * to postcopyd.
 *
 * Theory of operation
 * -------------------
 * In postcopy the guest is paused on the source, its small device state (vmstate)
 * moves, it resumes on the destination at once, and its memory follows while it
 * runs. postcopyd moves the memory; the VMM only
 *
 *   on the source:       attaches with the guest running; on POSTCOPY_EVENT_PAUSE
 *                        stops its vCPUs and calls postcopy_source_paused() with
 *                        its vmstate; on POSTCOPY_EVENT_COMPLETE it may exit. On
 *                        POSTCOPY_EVENT_RESUME the migration was cancelled in
 *                        time: the guest runs on here.
 *   on the destination:  creates empty guest memory of the same shape, attaches
 *                        before any vCPU exists or touches it; on
 *                        POSTCOPY_EVENT_VMSTATE loads the vmstate, calls
 *                        postcopy_destination_loaded(), starts its vCPUs, calls
 *                        postcopy_destination_resumed(); on
 *                        POSTCOPY_EVENT_COMPLETE every page is there.
 *
 * The library creates the userfaultfd(s), registers the regions in the mode their
 * memory needs, and keeps its own copy of it open: closing the last reference
 * would let absent pages read as zeroes. Before that it discards what the regions hold: a page that
 * is there before the guest has come would never be fetched. Absent pages may be touched by any
 * thread of the VMM, from attach on; it sleeps until the page is there (before
 * POSTCOPY_EVENT_VMSTATE nobody delivers pages, so don't wait for such a thread).
 *
 * Where the daemon offers it (its option fault-threads), postcopy_destination_attach() divides
 * large regions among up to 8 userfaultfds, each of which a thread of the daemon's serves: many
 * vCPUs fault at a time, and one would be what they all wait for. The VMM has nothing to do. It
 * takes so many descriptors, and until POSTCOPY_EVENT_COMPLETE a region is as many mappings to the
 * kernel as it has parts: mremap() over more than one of them is EFAULT. A VMM
 * that moves guest memory so attaches by postcopy_destination_register() and
 * postcopy_destination_attach_registered(), which never divide any.
 *
 * While attached on the destination, until POSTCOPY_EVENT_COMPLETE:
 *   - anonymous memory: madvise(MADV_DONTNEED, MADV_FREE) discards, as ever: a page that had
 *     not arrived is zero from then on and is never fetched.
 *   - shared memory (memfd, hugetlb, guest_memfd): no call of the kernel's alone discards a
 *     page that has not arrived. The source's content comes, after MADV_DONTNEED (which on
 *     shared memory never discards), but also after MADV_REMOVE and
 *     fallocate(FALLOC_FL_PUNCH_HOLE), of which nobody can be sure to hear (of a huge page
 *     that had arrived in part, that part may be zero). So what is to be given back and to
 *     read as zeroes (a balloon's pages, memory that is unplugged) is told first, by
 *     postcopy_discard(). Guests that may not count on zeroes need nothing.
 *   - a page that is on its way at that very moment: postcopy_discard() waits for it, and of
 *     anonymous memory MADV_DONTNEED makes it zero like any other.
 *   - munmap() and mremap() of whole or partial regions are followed. Each of these calls
 *     returns when the daemon has heard of it, and waits while no daemon runs.
 *   - the regions are set MADV_DONTFORK: a child does not see guest memory.
 *   - they are set MADV_NOHUGEPAGE: a huge page would fill absent ones with zeroes. After
 *     POSTCOPY_EVENT_COMPLETE, and not before, the VMM may set MADV_HUGEPAGE again; let nobody
 *     MADV_COLLAPSE guest memory by another mapping until then.
 *   - never fallocate() or KVM_PRE_FAULT_MEMORY a page that has not arrived.
 *
 * Faults that are no userfaultfd events
 * -------------------------------------
 * A memslot with an ordinary userspace_addr needs nothing more: its vCPUs' faults go
 * through the registered mapping. A memslot that is bound to guest_memfd
 * (KVM_MEM_GUEST_MEMFD) goes around it: the kernel would give its vCPUs zeroes for absent
 * pages. There the kernel must have KVM userfault, which turns such a fault into
 * KVM_EXIT_MEMORY_FAULT, and the VMM asks for the page itself, over a channel:
 *
 *   - flag its region POSTCOPY_REGION_BOUND: a destination's attach then tries whether this
 *     kernel's KVM userfault works, and refuses by -EOPNOTSUPP where it doesn't, with the guest
 *     still running on the source. Nobody else can know how a memslot was made;
 *   - before the vCPUs exist, set all bits of the memslot's userfault bitmap, and open a
 *     `struct postcopy_channel` for each vCPU thread;
 *   - on KVM_EXIT_MEMORY_FAULT with the userfault flag, postcopy_channel_fetch() the page;
 *     when it returns 0 the page is in guest_memfd: clear its bit with a store-release (an
 *     atomic one, the word is shared with other vCPUs), then enter the guest again;
 *   - on POSTCOPY_EVENT_COMPLETE clear the bits of all pages that are in guest_memfd, as
 *     mincore() tells; the rest goes on by exits;
 *   - no such vCPU sees what is poisoned in the mapping ("Lost pages"). So a fetch that returns
 *     -EHWPOISON is a machine check, and so is one that returns 0 for a page that is not there
 *     by mincore() and can't be read by the mapping: its bit stays, or the guest would read
 *     zeroes. (One that can is a page of zeroes, and is there then.)
 *   - a fetch that returns -EPIPE: nobody answers on this channel any more. While the daemon is
 *     attached open another; where that is no way the vCPU waits, as it would sleep in its fault on
 *     an ordinary memslot. Its bit stays: to enter with it cleared would be to read zeroes.
 *
 * What KVM itself reads and writes there (a PV clock, the instructions that it emulates) goes by
 * userspace_addr, which is the registered mapping: those are userfaultfd events still.
 *
 * A fetch may also run ahead of the guest, on any kind of memory: of the pages that a vmstate
 * says are needed first, say. KVM_PRE_FAULT_MEMORY over pages that were fetched is the VMM's
 * option; before their answer it would make them zero pages. Channels may be opened from
 * attach on; a fetch before POSTCOPY_EVENT_VMSTATE waits for it.
 *
 * Warm: pages that move while the guest still runs
 * ------------------------------------------------
 * Most pages can move before the pause, if the daemon learns which are written after they were
 * copied. A source that says nothing of this migrates by postcopy alone. It may offer one of two,
 * at any time from attach to PAUSE, once:
 *
 *   - postcopy_source_offer_dirty_log(): this VMM notes it, in a bitmap that it shares with the
 *     daemon: a bit a page of 4 KiB (whatever the pages' size), set with an atomic OR, by any
 *     thread, at any time. On POSTCOPY_EVENT_DIRTY_LOG_START it begins (KVM_MEM_LOG_DIRTY_PAGES),
 *     on POSTCOPY_EVENT_DIRTY it sets the bits of all that was written until now (from
 *     KVM_GET_DIRTY_LOG or the ring) and says postcopy_source_dirty_reported() to both. First
 *     KVM's log is cleared and the page protected again, then the bit is set, then that is said:
 *     a write after that is in the next report, for it is then that the daemon reads the page.
 *     What KVM does not see it adds: what its own threads and devices write, vhost's log, pages it
 *     discards. On POSTCOPY_EVENT_PAUSE, with all of them stopped, it reports for the last time
 *     before postcopy_source_paused(); that ends the log, as POSTCOPY_EVENT_DIRTY_LOG_STOP does,
 *     and the end of the migration or of the connection: then it switches KVM's log off. Nothing
 *     is protected again for the last report, and the log is switched off after
 *     postcopy_source_paused(), or when the guest runs on: KVM_SET_USER_MEMORY_REGION waits for a
 *     grace period of the kernel's, some 10 ms, which would all be downtime.
 *   - postcopy_source_offer_write_protection(): the kernel notes it (Linux 6.7), and the VMM does
 *     nothing. What does not write by the VMM's own mapping is not seen: it is refused where
 *     somebody declares such writers. Pages of hugetlb count as a whole. While it is on, a page's
 *     first write after each harvest takes a fault more.
 *
 * A memslot that is bound to guest_memfd has no dirty log in KVM: say so by
 * postcopy_source_refuse_dirty_log(). Its vCPUs go around what is write-protected, so where a
 * region is flagged POSTCOPY_REGION_BOUND that is refused.
 *
 * Private memory
 * --------------
 * Regions that KVM memory attributes make private to the guest are flagged
 * POSTCOPY_REGION_PRIVATE. The source's flags are told to the destination's VMM before
 * anything else (POSTCOPY_EVENT_ATTRIBUTES). No host can read such memory, so a
 * migration of it is then refused, with the guest still running on the source.
 *
 * Lost pages
 * ----------
 * A page that nobody can bring any more is poisoned (UFFDIO_POISON): whoever touches it is told,
 * and nobody reads zeroes. A vCPU that does comes out of KVM_RUN in one of two ways, and to the
 * guest both are a machine check at that address (KVM_X86_SET_MCE):
 *
 *   - Its thread gets SIGBUS with BUS_MCEERR_AR and the address in this process; KVM_RUN returns
 *     EINTR. A handler must be there, or the VMM dies of it. The VMM's own accesses end alike.
 *   - Where KVM emulates the instruction: KVM_EXIT_MMIO at a guest physical address that is memory.
 *     It is no device's: answered as one, the guest would read what nobody has written.
 *
 * A guest that moves on takes them with it: at the source's attach the library finds
 * the poisoned pages of the regions (PAGEMAP_SCAN, Linux 6.7).
 *
 * Adapters
 * --------
 * A process that speaks for a VMM which knows nothing of this library gives the VMM's pidfd (of its
 * user, or as root). Addresses are the VMM's then, descriptors the adapter's own copies. Two things
 * differ:
 *
 *   - The end of the connection is not the VMM's: the adapter has detached, the guest and the
 *     migration go on. It attaches again by id and pidfd (postcopy_*_attach_again()), hears where
 *     it stands, and then, as events, what waits for its answer or how it has ended. So an adapter
 *     may be killed at any point, if it says postcopy_destination_loaded() before it lets any vCPU
 *     run, and asks its VMM what had been done already. What somebody stands still for waits for it
 *     for so long only (attach-timeout of the daemon, 10 s): PAUSE, then the source's migration
 *     fails and its guest runs on; VMSTATE, then the destination's does. Who wants no more of it
 *     cancels the migration. The VMM's end is seen by its pidfd, and told (POSTCOPY_EVENT_FAILED).
 *   - On the destination the userfaultfd is made in the VMM's process, by the VMM or by a system
 * call that was put into it, and stays open there. postcopy_destination_register() asks it for its
 *     features, if nobody has, and registers the regions; then the caller empties them
 *     (files are also emptied by postcopy_destination_attach_registered(), once the daemon has
 *     found all else good); then that hands them over. Nothing may touch them in between.
 *     MADV_DONTFORK and MADV_NOHUGEPAGE are for the VMM to set: on a tmpfs of huge pages, or where
 *     khugepaged makes them, a page that has not come would be read as zeroes.
 *
 * A VMM that traps its memory itself, and gives its userfaultfd to nobody, can have a destination
 * as well: its regions are flagged POSTCOPY_REGION_ASKED, all of them, and are files (memfd,
 * hugetlb). No userfaultfd is made or wanted, and postcopy_destination_attach() registers nothing:
 * the VMM must trap each access of a page that it has not asked for yet, also of one that is in the
 * file already (UFFDIO_REGISTER_MODE_MISSING and _MINOR both), and nobody else may map the file and
 * read it. What it asks for over channels is a fault like any other. Where a fetch returns 0 the
 * content is in the file: a page of zeroes may be a hole there still, which is to be read once by a
 * mapping that nobody traps before UFFDIO_CONTINUE finds a page. Where it returns -EHWPOISON there
 * is no content: asking again asks the source again. Such memory can't be poisoned.
 *
 * Late memory
 * -----------
 * Some VMMs make guest memory when they read the vmstate, and not before. Such a destination
 * attaches without any (postcopy_destination_attach_late()). POSTCOPY_EVENT_VMSTATE comes while the
 * guest is the source's still; the VMM begins to load it, hands over the memory that it has made by
 * postcopy_destination_memory(), and only then says postcopy_destination_loaded(). The memory is
 * empty, and the same that the source has attached: its regions are compared. Threads that touch it
 * before it is handed over wait. Whatever fails up to postcopy_destination_loaded() gives the
 * source's guest back. An adapter that attaches again while its VMM loads hears
 * POSTCOPY_STANDS_WAITING where the memory has still to be handed over, POSTCOPY_STANDS_LOADING
 * where it was taken; VMSTATE comes again in either case.
 *
 * A vmstate ahead
 * ---------------
 * A vmstate that takes a while to be saved, and to be loaded, may be loaded while it is still being
 * saved: the source says postcopy_source_vmstate_ahead() whenever there is more of it, from
 * POSTCOPY_EVENT_PAUSE to postcopy_source_paused_fd(), of the same memfd. The destination hears
 * POSTCOPY_EVENT_VMSTATE_AHEAD. That is a hint, which may not come, or not all of it: no vCPU of it
 * may ever run, and nothing of it counts, before POSTCOPY_EVENT_VMSTATE has come with all of it.
 * Nobody delivers pages before that either: who touches one as it loads sleeps until then, or for
 * good where nothing comes of the migration.
 *
 * Who keeps in its descriptor's offset (lseek()) how far it has read what is ahead finds that there
 * when it was killed and comes again: VMSTATE has the same open file, where it is the same vmstate
 * and not a second try, whose offset is 0. Read it; do not map or splice() it, for a file that is
 * in use can't be sealed, and the migration would fail.
 *
 * Threads: a `struct postcopy` may be used by one thread at a time, and so may a `struct
 * postcopy_channel`; different ones are independent, also a channel of what it was opened
 * on. No call runs callbacks or starts threads.
 *
 * Errors: each call returns 0 or a negative errno; where it takes an `err`, a
 * line of text says what failed, on what, and what to do. @err may be NULL.
 */
#ifndef POSTCOPY_POSTCOPY_H
#define POSTCOPY_POSTCOPY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define POSTCOPY_API __attribute__((visibility("default")))

#define POSTCOPY_REGIONS_MAX 64      /* regions of one guest */
#define POSTCOPY_ID_MAX 64           /* bytes of a migration id, without its NUL */
#define POSTCOPY_REGION_NAME_MAX 255 /* bytes of a region's name, without its NUL */
#define POSTCOPY_DEFAULT_SOCKET "/run/postcopyd/vmm.sock"
#define POSTCOPY_FETCH_MAX (2u << 20) /* bytes that one fetch may ask for */
#define POSTCOPY_ASKS_MAX 64          /* requests of one channel that wait for their answer */

/** A region's flags. */
#define POSTCOPY_REGION_PRIVATE (1u << 0) /* only the guest can read it; not migrated */
#define POSTCOPY_REGION_ASKED (1u << 1)   /* destination: its VMM asks for each page ("Adapters") */
/* its memslot is bound to guest_memfd ("Faults that are no userfaultfd events") */
#define POSTCOPY_REGION_BOUND (1u << 2)
/* all there are */
#define POSTCOPY_REGION_FLAGS                                                                      \
	(POSTCOPY_REGION_PRIVATE | POSTCOPY_REGION_ASKED | POSTCOPY_REGION_BOUND)

struct postcopy;         /* one attachment of one guest to the daemon */
struct postcopy_channel; /* by which one thread of the VMM asks for pages */

struct postcopy_error {
	int code;       /* negative errno, 0 while nothing failed */
	char text[320]; /* one line, without newline */
};

/** What a region's memory is. The two sides may differ. */
enum postcopy_memory {
	/**
	 * memfd_create() without huge pages, or a file of a tmpfs, mapped MAP_SHARED. Sealed
	 * F_SEAL_SHRINK by the daemon, if it can be: where it can't (no MFD_ALLOW_SEALING, a tmpfs)
	 * do not truncate it, for what is cut off is lost. At the destination not sealed against
	 * writing.
	 */
	POSTCOPY_MEMORY_MEMFD = 1,
	/** memfd_create(MFD_HUGETLB), or a file of a hugetlbfs. Page sizes 2 MiB and 1 GiB.
	   Likewise. */
	POSTCOPY_MEMORY_HUGETLB = 2,
	/** KVM_CREATE_GUEST_MEMFD with GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED. */
	POSTCOPY_MEMORY_GUEST_MEMFD = 3,
	/**
	 * Private anonymous memory, of pages of 4 KiB or 2 MiB (MAP_HUGETLB): no descriptor, the
	 * source is read through /proc/self/mem. At the destination huge pages that are on their
	 * way gather in a memfd first: as much memory besides as is being brought at that moment.
	 */
	POSTCOPY_MEMORY_ANONYMOUS = 4,
};

/** One contiguous range of guest memory. */
struct postcopy_region {
	enum postcopy_memory memory;
	uint32_t flags;           /**< POSTCOPY_REGION_*; other bits are reserved */
	uint64_t guest_phys_addr; /**< bytes, multiple of page_size; regions may not overlap */
	uint64_t size;            /**< bytes, multiple of page_size, above 0 */
	uint64_t page_size;       /**< bytes: 4096, 2 MiB or 1 GiB, what the mapping is made of */
	/** where it is mapped in this process, aligned to page_size; with POSTCOPY_REGION_ASKED
	 * NULL */
	void *host_addr;
	int fd;             /**< the memory's descriptor; -1 for anonymous memory. Borrowed. */
	uint64_t fd_offset; /**< bytes into @fd, multiple of page_size; regions may not overlap */
	/**
	 * What the VMM calls it (a RAM block, say): printable ASCII, unique; borrowed for the call.
	 * All regions of a guest have one, or none has (NULL). Where both sides have, regions are
	 * matched by name, in whatever order they are given.
	 */
	const char *name;
};

enum postcopy_event_type {
	POSTCOPY_EVENT_NONE = 0, /**< the timeout passed */
	POSTCOPY_EVENT_PAUSE,    /**< source: stop the vCPUs, then postcopy_source_paused() */
	POSTCOPY_EVENT_RESUME,   /**< source: it has ended, and the guest runs on here */
	POSTCOPY_EVENT_VMSTATE,  /**< destination: load it, then _loaded() and _resumed() */
	POSTCOPY_EVENT_COMPLETE, /**< both: every page is at the destination */
	POSTCOPY_EVENT_FAILED,   /**< the migration failed or was cancelled; see @reason */
	/** destination: what the source's regions are; only where one of them has a flag */
	POSTCOPY_EVENT_ATTRIBUTES,
	/** source: log writes from now on, then postcopy_source_dirty_reported(), or _failed() */
	POSTCOPY_EVENT_DIRTY_LOG_START,
	POSTCOPY_EVENT_DIRTY,          /**< source: note all that was written, and say the same */
	POSTCOPY_EVENT_DIRTY_LOG_STOP, /**< source: no more; may come where nothing is logged */
	/** destination: so much of the vmstate is there already ("A vmstate ahead"); a hint */
	POSTCOPY_EVENT_VMSTATE_AHEAD,
};

struct postcopy_event {
	enum postcopy_event_type type;
	/** VMSTATE: a sealed memfd, owned by the caller; VMSTATE_AHEAD: a memfd that grows, the
	 * library's, until the next call with the attachment; else -1 */
	int vmstate_fd;
	uint64_t vmstate_len; /**< VMSTATE, VMSTATE_AHEAD: bytes */
	char reason[320];     /**< FAILED and RESUME: one line */
	uint32_t n_regions;   /**< ATTRIBUTES: how many the source has */
	/** ATTRIBUTES: POSTCOPY_REGION_* of each, as attached; by name for who has attached again
	 */
	uint32_t region_flags[POSTCOPY_REGIONS_MAX];
};

/**
 * postcopy_source_attach() - hand over a running guest's memory for reading
 * @socket_path: the daemon's VMM socket, NULL for POSTCOPY_DEFAULT_SOCKET
 * @migration_id: as the control plane prepared it; 1..POSTCOPY_ID_MAX of [A-Za-z0-9._-]
 * @regions: the guest's memory; copied, the descriptors are borrowed for the call
 * @n_regions: 1..POSTCOPY_REGIONS_MAX
 * @ret: the attachment, for postcopy_detach(); untouched on failure
 *
 * Blocks until the daemon has accepted or refused, 10 s at most.
 *
 * Return: 0, or a negative errno: -EINVAL for a table the library or the daemon
 * refuses, -ENOENT where no such migration is prepared (or all by that id have ended), -EBUSY where
 * one is attached already, or where another migration is still bringing pages of this memory or has
 * it as its source, -ECONNREFUSED / -ENOENT where no daemon listens, -ETIMEDOUT.
 */
POSTCOPY_API int postcopy_source_attach(const char *socket_path, const char *migration_id,
                                        const struct postcopy_region *regions, size_t n_regions,
                                        struct postcopy **ret, struct postcopy_error *err);

/**
 * postcopy_destination_attach() - register empty guest memory and hand it over
 *
 * Arguments and errors as postcopy_source_attach(). Also -EPERM where this process may
 * not create a userfaultfd (needs CAP_SYS_PTRACE or access to /dev/userfaultfd), and
 * -EOPNOTSUPP where the kernel can't trap this kind of memory, -EBUSY where a page of it is there
 * that could not be discarded. On failure nothing stays registered. What the regions held is
 * discarded in any case.
 */
POSTCOPY_API int postcopy_destination_attach(const char *socket_path, const char *migration_id,
                                             const struct postcopy_region *regions,
                                             size_t n_regions, struct postcopy **ret,
                                             struct postcopy_error *err);

/**
 * postcopy_source_attach_for() - the same by an adapter
 * @pidfd: of the VMM (pidfd_open(2)); borrowed; -1: this process is it
 * @regions: host_addr is in the VMM; fd is this process's copy
 *
 * Of anonymous memory, and where pages may be poisoned, this process must be allowed to read the
 * VMM's /proc/PID/mem.
 *
 * Return: as above. Also -EPERM where the VMM is another user's, -ESRCH where it has ended.
 */
POSTCOPY_API int postcopy_source_attach_for(const char *socket_path, const char *migration_id,
                                            int pidfd, const struct postcopy_region *regions,
                                            size_t n_regions, struct postcopy **ret,
                                            struct postcopy_error *err);

/**
 * postcopy_destination_register() - the first of two phases: trap absent pages
 * @pidfd: of the VMM; borrowed; -1: this process is it
 * @uffd: made in the VMM's process; borrowed; -1, where this process is the VMM: made here; and
 *        where the regions are flagged POSTCOPY_REGION_ASKED: none is wanted
 * @regions: copied; their descriptors must stay open until the second phase
 * @ret: for postcopy_destination_attach_registered(), or postcopy_detach()
 *
 * Return: as postcopy_destination_attach(), but for what the daemon says.
 */
POSTCOPY_API int postcopy_destination_register(int pidfd, int uffd,
                                               const struct postcopy_region *regions,
                                               size_t n_regions, struct postcopy **ret,
                                               struct postcopy_error *err);

/**
 * postcopy_destination_attach_registered() - the second: hand over empty memory
 *
 * Files are emptied here once more, when the daemon has accepted the id, the VMM and the memory: a
 * refused attach leaves them as they were. Where only the daemon's own resources fail it after that
 * they are empty. After a failure it may be called again.
 */
POSTCOPY_API int postcopy_destination_attach_registered(struct postcopy *p, const char *socket_path,
                                                        const char *migration_id,
                                                        struct postcopy_error *err);

/**
 * postcopy_destination_attach_late() - a destination whose memory is to come ("Late memory")
 * @pidfd: of the VMM; borrowed; -1: this process is it
 *
 * Return: as postcopy_destination_attach().
 */
POSTCOPY_API int postcopy_destination_attach_late(const char *socket_path, const char *migration_id,
                                                  int pidfd, struct postcopy **ret,
                                                  struct postcopy_error *err);

/**
 * postcopy_destination_memory() - after POSTCOPY_EVENT_VMSTATE: here it is
 * @uffd, @regions: as for postcopy_destination_register(); their descriptors stay open until this
 *                  returns
 *
 * Blocks until the daemon has taken it, which may be another process of the daemon by then. From
 * its return on pages are delivered.
 *
 * Return: as postcopy_destination_attach(). Where the daemon has refused, the migration has ended,
 * and the source's guest runs on; where it was not asked yet (-EINVAL of the table, say) it may be
 * called again, or postcopy_destination_load_failed().
 */
POSTCOPY_API int postcopy_destination_memory(struct postcopy *p, int uffd,
                                             const struct postcopy_region *regions,
                                             size_t n_regions, struct postcopy_error *err);

/** Where a migration stands when its adapter attaches again. */
enum postcopy_standing {
	POSTCOPY_STANDS_RUNNING = 1, /**< source: no vmstate was taken; PAUSE may come (again) */
	POSTCOPY_STANDS_PAUSED,      /**< source: the vmstate was taken */
	POSTCOPY_STANDS_WAITING, /**< destination: not said to be loaded; VMSTATE comes (again) */
	POSTCOPY_STANDS_LOADED,  /**< destination: the vCPUs may run: see that they do, say so */
	POSTCOPY_STANDS_RESUMED, /**< destination: said to run */
	/** destination: its late memory was taken; not said to be loaded; VMSTATE comes (again) */
	POSTCOPY_STANDS_LOADING,
};

/**
 * postcopy_source_attach_again(), postcopy_destination_attach_again() - an adapter comes back
 * @pidfd: of the same process that was attached
 * @ret_standing: what the daemon has heard; NULL is allowed
 *
 * Also where the migration has ended meanwhile: its last event comes again.
 *
 * Return: as an attach; -ENOENT where that process has not attached by that id; -EBUSY where an
 * adapter is attached; -EAGAIN where the daemon was started just now: try again.
 */
POSTCOPY_API int postcopy_source_attach_again(const char *socket_path, const char *migration_id,
                                              int pidfd, struct postcopy **ret,
                                              enum postcopy_standing *ret_standing,
                                              struct postcopy_error *err);
POSTCOPY_API int postcopy_destination_attach_again(const char *socket_path,
                                                   const char *migration_id, int pidfd,
                                                   struct postcopy **ret,
                                                   enum postcopy_standing *ret_standing,
                                                   struct postcopy_error *err);

/** A descriptor that polls readable when postcopy_next_event() has one. Owned by @p. */
POSTCOPY_API int postcopy_fd(const struct postcopy *p);

/**
 * postcopy_next_event() - what the daemon wants
 * @timeout_ms: 0 to look, -1 to wait for good
 * @ret_event: written on success
 *
 * Return: 0 (type NONE where nothing came in time), -EPIPE where the daemon is gone,
 * -EPROTO where it said something impossible.
 */
POSTCOPY_API int postcopy_next_event(struct postcopy *p, int timeout_ms,
                                     struct postcopy_event *ret_event, struct postcopy_error *err);

/**
 * postcopy_source_paused() - answer to POSTCOPY_EVENT_PAUSE
 * @vmstate: device and vCPU state, opaque to the daemons; copied
 * @len: bytes; the daemon's limit is 64 MiB unless configured
 *
 * From here until POSTCOPY_EVENT_RESUME, guest memory must not change: no vCPU,
 * device or vhost worker may write it.
 */
POSTCOPY_API int postcopy_source_paused(struct postcopy *p, const void *vmstate, size_t len,
                                        struct postcopy_error *err);

/**
 * postcopy_source_paused_fd() - the same with the vmstate from a descriptor
 * @fd: borrowed. A memfd that can be sealed is sealed, and taken whole as it is; anything else (a
 *      pipe, a socket, a file) is read up to its end, which blocks
 */
POSTCOPY_API int postcopy_source_paused_fd(struct postcopy *p, int fd, struct postcopy_error *err);

/**
 * postcopy_source_vmstate_ahead() - after POSTCOPY_EVENT_PAUSE: so much of the vmstate is there
 * @fd: a memfd; borrowed. What is said to be there is not written again.
 * @len: bytes; the next time it is more
 *
 * A hint ("A vmstate ahead"): postcopy_source_paused_fd() follows, with the same memfd, or
 * postcopy_source_pause_failed(). Keep the last byte back, or the other VMM may have loaded all of
 * it before it is known to be whole.
 *
 * Return: 0; -EINVAL where it was not asked to pause; -EPIPE where the daemon is gone.
 */
POSTCOPY_API int postcopy_source_vmstate_ahead(struct postcopy *p, int fd, uint64_t len,
                                               struct postcopy_error *err);

/**
 * postcopy_source_offer_dirty_log() - this VMM tells what its guest writes
 *
 * Return: 0; -EINVAL where it was offered, or the guest is stopped; -ENOMEM and others.
 */
POSTCOPY_API int postcopy_source_offer_dirty_log(struct postcopy *p, struct postcopy_error *err);

/**
 * postcopy_source_dirty_bitmap() - where it tells it
 * @region: as the table given at attach counts them
 * @ret_words: of 64 pages, the lowest bit first
 *
 * Return: the first word, until postcopy_detach(); NULL where no dirty log was offered.
 */
POSTCOPY_API uint64_t *postcopy_source_dirty_bitmap(struct postcopy *p, size_t region,
                                                    size_t *ret_words);

/**
 * postcopy_source_dirty_reported() - all that was written until now is in the bitmap
 *
 * Answers POSTCOPY_EVENT_DIRTY_LOG_START (writes are logged) and POSTCOPY_EVENT_DIRTY; after
 * POSTCOPY_EVENT_PAUSE it is said before postcopy_source_paused(), which sends it.
 */
POSTCOPY_API int postcopy_source_dirty_reported(struct postcopy *p, struct postcopy_error *err);

/** It can't: the guest is then migrated by postcopy alone. */
POSTCOPY_API int postcopy_source_dirty_failed(struct postcopy *p, const char *reason,
                                              struct postcopy_error *err);

/** Who writes to guest memory otherwise than by the VMM's mapping of it. */
#define POSTCOPY_WRITER_DESCRIPTOR (1u << 0) /* pwrite() and the like */
#define POSTCOPY_WRITER_PROCESS (1u << 1)    /* another's mapping: vhost-user */
#define POSTCOPY_WRITER_DEVICE (1u << 2)     /* VFIO, vDPA */
/* Pages of shared memory that are discarded and must read as zeroes: MADV_REMOVE, a hole. */
#define POSTCOPY_WRITER_DISCARD (1u << 3)
/* The kernel, to pages that it has pinned: O_DIRECT reads, io_uring's registered buffers, RDMA. */
#define POSTCOPY_WRITER_PINNED (1u << 4)

/**
 * postcopy_source_offer_write_protection() - the kernel tells what the guest writes
 * @uffd: made in the VMM's process, not asked for its features, or with WP_ASYNC, WP_UNPOPULATED
 *        and WP_HUGETLBFS_SHMEM; borrowed; -1, where this process is the VMM: made here
 * @writers: POSTCOPY_WRITER_*
 *
 * Return: 0; -EOPNOTSUPP where the kernel can't, or @writers are not seen by it; -EPERM and others.
 * After a failure the daemon has been told why, and the guest migrates by postcopy alone.
 */
POSTCOPY_API int postcopy_source_offer_write_protection(struct postcopy *p, int uffd,
                                                        uint32_t writers,
                                                        struct postcopy_error *err);

/** Nobody can tell what this guest writes; who wants it warm reads the reason. */
POSTCOPY_API int postcopy_source_refuse_dirty_log(struct postcopy *p, const char *reason,
                                                  struct postcopy_error *err);

/** The other answer to POSTCOPY_EVENT_PAUSE: it can't. The guest runs on here. */
POSTCOPY_API int postcopy_source_pause_failed(struct postcopy *p, const char *reason,
                                              struct postcopy_error *err);

/** The vmstate is loaded; vCPUs are about to run. */
POSTCOPY_API int postcopy_destination_loaded(struct postcopy *p, struct postcopy_error *err);

/** The guest runs here. Ends the downtime. */
POSTCOPY_API int postcopy_destination_resumed(struct postcopy *p, struct postcopy_error *err);

/** The vmstate can't be loaded: no vCPU has run, so the source may resume the guest. */
POSTCOPY_API int postcopy_destination_load_failed(struct postcopy *p, const char *reason,
                                                  struct postcopy_error *err);

/**
 * postcopy_destination_could_not_run() - after postcopy_destination_loaded(), instead of _resumed()
 *
 * No vCPU has run since the vmstate was loaded, and none will: the source may resume the guest. Not
 * to be said where that is not certain, for then two guests would run.
 */
POSTCOPY_API int postcopy_destination_could_not_run(struct postcopy *p, const char *reason,
                                                    struct postcopy_error *err);

/**
 * postcopy_destination_hot() - what the guest will need soon, before the rest
 * @guest_phys_addr, @len: within one region; bytes, multiples of 4096
 *
 * A hint, and no fetch: it waits for nothing, and has no answer. What the daemon brings ahead of
 * the guest it takes from here first, in the order in which it was named; faults go before all of
 * it. So name little: what the vmstate says the vCPUs run in and on (page tables, stacks, rings),
 * or what this VMM's own statistics say. From attach on, best before postcopy_destination_loaded();
 * the first 64 count. They go by one of the migration's 64 channels. A daemon that was started
 * again has forgotten them, an older one ignores them. Each page comes once, named or not.
 *
 * Return: 0; -EINVAL on a source, or where the range is none; -EPIPE where the daemon is gone.
 */
POSTCOPY_API int postcopy_destination_hot(struct postcopy *p, uint64_t guest_phys_addr,
                                          uint64_t len, struct postcopy_error *err);

/**
 * postcopy_channel_open() - a way to ask for pages
 * @p: a destination's attachment, in any state but failed; not needed after this
 * @ret: for postcopy_channel_close(); untouched on failure
 *
 * Each thread that asks needs its own; a migration has at most 64.
 *
 * Return: 0, -EINVAL on a source, -EPIPE where the daemon is gone.
 */
POSTCOPY_API int postcopy_channel_open(struct postcopy *p, struct postcopy_channel **ret,
                                       struct postcopy_error *err);

/**
 * postcopy_channel_fetch() - have pages in place, and wait until they are
 * @guest_phys_addr: of the first; bytes, multiple of 4096
 * @len: bytes, multiple of 4096, at most POSTCOPY_FETCH_MAX, within one region
 * @timeout_ms: -1 to wait for good
 *
 * Return: 0, at once where the page is there; -EINVAL for a range that is none; -EHWPOISON
 * where some of it is lost: the source can't read it; -ETIMEDOUT,
 * with the pages still asked for: fetching them again goes on waiting; -EAGAIN where
 * POSTCOPY_ASKS_MAX others are waited for; -EPIPE where the daemon is gone, or has refused
 * the channel for one too many.
 */
POSTCOPY_API int postcopy_channel_fetch(struct postcopy_channel *ch, uint64_t guest_phys_addr,
                                        uint64_t len, int timeout_ms, struct postcopy_error *err);

/**
 * postcopy_channel_ask() - the same without waiting
 * @tag: comes back with the answer; the caller's to choose
 *
 * Return: 0, -EINVAL, -EAGAIN (take answers first), -EPIPE.
 */
POSTCOPY_API int postcopy_channel_ask(struct postcopy_channel *ch, uint64_t guest_phys_addr,
                                      uint64_t len, uint64_t tag, struct postcopy_error *err);

/**
 * postcopy_channel_next() - an answer to postcopy_channel_ask(), in any order
 * @timeout_ms: 0 to look, -1 to wait for good
 * @ret_tag: whose answer it is
 * @ret_result: 0 where its pages are in place, -EINVAL where that range is none, or -EHWPOISON
 *              where some of it is lost
 *
 * Return: 0; -ETIMEDOUT; -ENOENT where nothing is asked; -EPIPE where the daemon is gone.
 */
POSTCOPY_API int postcopy_channel_next(struct postcopy_channel *ch, int timeout_ms,
                                       uint64_t *ret_tag, int *ret_result,
                                       struct postcopy_error *err);

/**
 * postcopy_discard() - before a discard: what has not arrived is zero, and never comes
 * @guest_phys_addr: of the first byte, and
 * @len: within one region; bytes, multiples of 4096, of whatever size pages are
 * @timeout_ms: -1 to wait for good
 *
 * When it returns 0 nothing of the range will be filled any more. Then discard as without a
 * migration: fallocate(FALLOC_FL_PUNCH_HOLE), MADV_REMOVE, or MADV_DONTNEED on anonymous
 * memory; pages that had arrived go by that. It waits for pages that are on their way, not
 * for others; it is asked again by itself of a daemon that was started again. After
 * POSTCOPY_EVENT_COMPLETE it returns at once. A vCPU that touches the range meanwhile may see
 * either content.
 *
 * Return: 0; -EINVAL; -ETIMEDOUT, with part of it done: discarding it again goes on; -EAGAIN;
 * -EPIPE.
 */
POSTCOPY_API int postcopy_discard(struct postcopy_channel *ch, uint64_t guest_phys_addr,
                                  uint64_t len, int timeout_ms, struct postcopy_error *err);

/**
 * A descriptor that polls readable when something has come. Owned by @ch. Take all
 * answers there are (timeout 0) before each poll(): some may have come with another.
 */
POSTCOPY_API int postcopy_channel_fd(const struct postcopy_channel *ch);

/** What was asked may come still, or not. NULL is allowed. Return: NULL */
POSTCOPY_API struct postcopy_channel *postcopy_channel_close(struct postcopy_channel *ch);

/**
 * postcopy_detach() - give the attachment back
 *
 * On the destination before POSTCOPY_EVENT_COMPLETE this gives up the guest: its
 * missing pages would read as zeroes. Where an adapter has attached it gives up nothing: the
 * migration goes on, and the adapter may attach again. NULL is allowed.
 *
 * Return: NULL
 */
POSTCOPY_API struct postcopy *postcopy_detach(struct postcopy *p);

#ifdef __cplusplus
}
#endif

#endif

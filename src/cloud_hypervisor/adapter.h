/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postcopy-cloud-hypervisor: speaks for a Cloud Hypervisor that knows nothing of postcopyd.
 *
 * Theory of operation
 * -------------------
 * One process a guest and side. Nothing is put into Cloud Hypervisor, and nothing is asked of its
 * API: it believes that it migrates to, or from, another Cloud Hypervisor of its own host
 * (cloud_hypervisor/wire.h). What makes that a postcopy migration is when it is answered.
 *
 *   source       Config is not answered until the daemon says PAUSE: the guest runs while
 *                connections are made, and Cloud Hypervisor pauses it when it has its answer. The
 * last request (Complete) is not answered before the migration has ended: ok where every page is at
 * the destination, and Cloud Hypervisor ends; an error where the guest is to run on here, and Cloud
 * Hypervisor lets it. destination  its memory is late: when VMSTATE comes, files of the source's
 * shape are made and handed to the daemon as memory that is asked for (POSTCOPY_REGION_ASKED), and
 * to Cloud Hypervisor as its memory. LOADED is said when State is answered and it has asked for a
 * page: who asks for none does not trap its memory (memory_mode=postcopy was left out), and would
 * run on zeroes. Then Complete, upon which its vCPUs run.
 *
 * These sockets are life and death. Where the source's ends while Complete is not answered, Cloud
 * Hypervisor has its guest run on, which may run elsewhere by then. Where the destination's fault
 * connection ends, Cloud Hypervisor exits, and the guest is lost. So they lie in the service
 * manager's store, and without a store the adapter does not start. What it was about to do its
 * record tells to the next process (cloud_hypervisor/record.h): it goes on from where it waits for
 * others, and where it was killed in mid-talk it gives up while nothing is lost by it, before
 * LOADED and before the vmstate is given; the source's guest runs on. A page's answer is neither
 * lost nor given twice: see cloud_hypervisor/faults.h.
 */
#ifndef CLOUD_HYPERVISOR_ADAPTER_H
#define CLOUD_HYPERVISOR_ADAPTER_H

#include "cloud_hypervisor/record.h"

/* Exit statuses, by which the unit knows whether to start it again. */
#define ADAPTER_FAILED 1
#define ADAPTER_USAGE 2
#define ADAPTER_AGAIN 3

/* What both sides have. */
struct adapter {
	const char *id;          /* of the migration */
	const char *daemon_path; /* the daemon's VMM socket */
	const char *path;        /* where Cloud Hypervisor connects to, or listens */
	struct fd_store *store;
	struct ch_record *record;
	int signal_fd; /* SIGTERM, SIGINT */
	int sock;      /* to Cloud Hypervisor */
	int pidfd;     /* of it */
	int files[CH_SLOTS_MAX];
	struct postcopy *attachment;
	struct postcopy_error e; /* of the last call of the library */
};

/*
 * Return: the process's exit status: 0 (moved, or told to end), or ADAPTER_FAILED; after
 * ADAPTER_AGAIN another process can go on.
 */
int source_run(struct adapter *a);
int destination_run(struct adapter *a);

/* The process at the other end, as the kernel names it; kept. Return: 0, or -errno with @err. */
int adapter_take_peer(struct adapter *a, struct error *err);

/* The same, as the process before has kept it. */
int adapter_take_process(struct adapter *a, struct error *err);

/* Keep a descriptor for the next process. Return: 0, or -errno with @err. */
int adapter_keep(struct adapter *a, const char *name, int fd, struct error *err);

/* The same of a slot's file; and all of them from the store. */
int adapter_keep_file(struct adapter *a, size_t i, struct error *err);
int adapter_take_files(struct adapter *a, struct error *err);

/* Its name in the store and the descriptor itself: the other end sees that it is closed. */
void adapter_drop(struct adapter *a, const char *name, int *fd);

/*
 * adapter_attach_again() - by whichever process of the daemon listens, however long that takes
 * @ret_standing: what it has heard
 *
 * Return: 0; -EINTR where this process is to end; -ENOENT where the daemon knows nothing of us.
 * While a guest hangs on our sockets neither ends it: it is tried for as long as it takes.
 */
int adapter_attach_again(struct adapter *a, enum postcopy_standing *ret_standing);

/*
 * adapter_is_to_end() - a signal has come
 *
 * Return: whether this process may end. While a guest hangs on our sockets it may not: that is
 * logged, and it ends with the migration.
 */
bool adapter_is_to_end(struct adapter *a);

#endif

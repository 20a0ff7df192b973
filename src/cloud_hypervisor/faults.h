/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault connection: Cloud Hypervisor asks for a page, and maps it when it is answered.
 *
 * Theory of operation
 * -------------------
 * One request at a time. It becomes a fetch of the daemon's (2 MiB at most each), and is answered
 * when all of it is in the file; a page of zeroes may be a hole there still, so each is read once
 * by a mapping of ours, which makes it a page: Cloud Hypervisor's UFFDIO_CONTINUE ends it where it
 * finds none. When the daemon has said that every page is there, no daemon is asked any more.
 *
 * The process may end at any instruction, and neither a request nor an answer may be lost, or be
 * given twice: an answer too many would be taken for that to the next request, and zeroes be mapped
 * where content is to come. So a request is looked at in the socket (MSG_PEEK), noted in the
 * record, and only then taken; one that is noted and lies in the socket still is the same, for
 * there is one at a time. An answer is put into a pipe that lies in the store as well, the note is
 * cleared, and then it is moved from the pipe to the socket by splice(2): one system call, after
 * which it is in the one or the other.
 *
 * An error for an answer: Cloud Hypervisor exits where a vCPU waits for the page; where it only
 * asked ahead it does no more of that. So a page that is lost at the source costs the guest that
 * touches it, and no other.
 */
#ifndef CLOUD_HYPERVISOR_FAULTS_H
#define CLOUD_HYPERVISOR_FAULTS_H

#include "cloud_hypervisor/adapter.h"

struct ch_faults {
	struct adapter *adapter;
	int sock, pipe[2]; /* -1: not there */
	void *maps[CH_SLOTS_MAX];
	struct postcopy_channel *channel;
	bool waits;         /* for the daemon's answer, */
	uint64_t offset;    /* to this part of the range */
	bool owes;          /* an answer that is in the pipe still */
	bool seen;          /* a request has come */
	bool again;         /* soon, though nothing may happen */
	bool channel_ended; /* the daemon is gone */
};

void ch_faults_init(struct ch_faults *f, struct adapter *a);

/* Connect to Cloud Hypervisor, between Config's answer and State. Return: 0, or -errno with @err.
 */
int ch_faults_connect(struct ch_faults *f, struct error *err);

/* What the process before has left; what it owed is answered. Return: 0, or -errno with @err. */
int ch_faults_take_over(struct ch_faults *f, struct error *err);

/* By the attachment as it is now: what was asked of the one before is asked again. */
int ch_faults_open_channel(struct ch_faults *f, struct error *err);
void ch_faults_close_channel(struct ch_faults *f);

/*
 * ch_faults_serve() - do what can be done now
 *
 * Return: 0; -EPIPE at the connection's end; -EPROTO and others with @err.
 */
int ch_faults_serve(struct ch_faults *f, struct error *err);

/* Closed for good: Cloud Hypervisor exits, if it has not got all of its pages. */
void ch_faults_end(struct ch_faults *f);

#endif

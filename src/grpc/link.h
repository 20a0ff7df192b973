/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's connection, below HTTP/2: a unix socket, or TCP with TLS.
 *
 * The socket does not block; every wait is a poll() with a deadline, which a descriptor of the
 * caller's can end.
 */
#ifndef GRPC_LINK_H
#define GRPC_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tls/tls.h"

#define LINK_NO_DEADLINE UINT64_MAX
#define LINK_AUTHORITY_MAX 280

struct link {
	int fd;
	int cancel_fd;
	struct tls *tls;                    /* NULL: a unix socket */
	char authority[LINK_AUTHORITY_MAX]; /* as HTTP/2 names the peer */
	char name[LINK_AUTHORITY_MAX + 16]; /* for messages */
	bool heard;                         /* something has been received */
};

#define LINK_INIT ((struct link){ .fd = -1, .cancel_fd = -1 })

/* As grpc_client_new(). @l: LINK_INIT before; to be closed also after failure. */
int link_open(struct link *l, const char *target, struct tls_context *tls, int cancel_fd,
              struct error *err);
void link_close(struct link *l);

/* Until poll() says @events. Return: 0; -ETIMEDOUT, -ECANCELED with @err set. */
int link_wait(struct link *l, short events, uint64_t deadline_ns, struct error *err);

/* All of it. Return: 0; -EPIPE where the peer has hung up; -ETIMEDOUT, -ECANCELED. */
int link_send(struct link *l, const uint8_t *data, size_t len, uint64_t deadline_ns,
              struct error *err);

/* What is there. Return: the bytes, 0 where there are none; -EPIPE with @err set at the end. */
ssize_t link_receive(struct link *l, uint8_t *buf, size_t size, struct error *err);

#endif

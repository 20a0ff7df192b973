/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where ciphertext goes out: OpenSSL's socket BIO can't be told how.
 *
 * MSG_EOR ends a packet: without it the kernel puts together what waits in a socket that is paced,
 * and sends it 64 KiB at a time, which a link of 1 Gbit/s takes half a millisecond for.
 */
#include "tls/tls_internal.h"

#include <pthread.h>
#include <sys/socket.h>

static BIO_METHOD *method;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Return: how much went out; as send(). */
static ssize_t send_bursts(const struct tls_sink *s, const char *from, size_t len)
{
	int flags = MSG_NOSIGNAL | (s->burst_bytes ? MSG_EOR : 0);
	size_t sent = 0;

	while (sent < len) {
		size_t left = len - sent;
		ssize_t n = send(s->fd, from + sent,
		                 s->burst_bytes && left > s->burst_bytes ? s->burst_bytes : left,
		                 flags);

		if (n < 0)
			return sent ? (ssize_t)sent : n;
		sent += (size_t)n;
	}
	return (ssize_t)sent;
}

static int on_write(BIO *bio, const char *from, size_t len, size_t *ret_written)
{
	ssize_t n = send_bursts(BIO_get_data(bio), from, len);

	BIO_clear_retry_flags(bio);
	*ret_written = n > 0 ? (size_t)n : 0;
	if (n < 0 && BIO_sock_should_retry((int)n))
		BIO_set_retry_write(bio);
	return n > 0;
}

static long on_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
	(void)bio;
	(void)num;
	(void)ptr;
	return cmd == BIO_CTRL_FLUSH || cmd == BIO_CTRL_DUP;
}

static void make_method(void)
{
	method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "postcopyd socket");
	if (method && (BIO_meth_set_write_ex(method, on_write) != 1 ||
	               BIO_meth_set_ctrl(method, on_ctrl) != 1)) {
		BIO_meth_free(method);
		method = NULL;
	}
}

BIO *tls_sink_new(struct tls_sink *s)
{
	BIO *bio;

	pthread_once(&once, make_method);
	bio = method ? BIO_new(method) : NULL;
	if (!bio)
		return NULL;
	BIO_set_data(bio, s);
	BIO_set_init(bio, 1);
	return bio;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a server says to the gRPC client, from its first byte on. Each input is a connection: it
 * ends well, or with an error that says why, and hands on whole messages only.
 */
#include "fuzz.h"

#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "grpc/client.h"
#include "grpc/wire.h"
#include "util/unix_listen.h"

#include "http2.h"

#define TIMEOUT_MS 2000

const unsigned int fuzz_rounds = 5000;

static char target[64];
static int listener = -1;

static void set_up(void)
{
	char dir[] = "/tmp/fuzz-grpc-XXXXXX";

	FUZZ_CHECK(mkdtemp(dir));
	snprintf(target, sizeof target, "unix:%s/s", dir);
	listener = unix_listen(target + 5, SOCK_STREAM, "server", NULL);
	FUZZ_CHECK(listener >= 0);
}

static void tear_down(void) __attribute__((destructor));
static void tear_down(void)
{
	char *slash = strrchr(target, '/');

	if (!slash)
		return;
	unlink(target + 5);
	*slash = 0;
	rmdir(target + 5);
}

static int on_message(const uint8_t *message, size_t len, void *arg, struct error *err)
{
	size_t *bytes = arg;

	(void)err;
	FUZZ_CHECK(message || !len);
	*bytes += GRPC_PREFIX_BYTES + len;
	return 0;
}

int fuzz_one(const uint8_t *data, size_t size)
{
	struct grpc_status status = { .code = GRPC_OK };
	struct error err = ERROR_INIT;
	struct grpc_client *client;
	size_t bytes = 0;
	int fd, rc;

	if (listener < 0)
		set_up();
	FUZZ_CHECK(!grpc_client_new(target, NULL, -1, &client, &err));
	grpc_client_set_idle_timeout(client, TIMEOUT_MS);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	FUZZ_CHECK(fd >= 0 && send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size);
	shutdown(fd, SHUT_WR);
	rc = grpc_client_call(client, "/a.B/C", "x", 1, 0, on_message, &bytes, &status, &err);
	FUZZ_CHECK(bytes <= size);
	if (rc)
		FUZZ_CHECK(err.code == rc && *err.text && rc != -ETIMEDOUT);
	else
		FUZZ_CHECK(status.code < GRPC_CODES &&
		           memchr(status.message, 0, sizeof status.message));
	grpc_client_free(client);
	close(fd);
	http2_count(data, size);
	return 0;
}

/* Literals without indexing: a header's name and value. */
static uint8_t *put_header(uint8_t *p, const char *name, const char *value)
{
	*p++ = 0;
	*p++ = (uint8_t)strlen(name);
	p = (uint8_t *)stpcpy((char *)p, name);
	*p++ = (uint8_t)strlen(value);
	return (uint8_t *)stpcpy((char *)p, value);
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const uint8_t message[] = { 0, 0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 0, 0 };
	uint8_t block[256], *end = block, *p = buf;

	if (i > 3)
		return 0;
	p = http2_put(p, NGHTTP2_SETTINGS, 0, 0, NULL, 0);
	p = http2_put(p, NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0, NULL, 0);
	*end++ = 0x88; /* :status 200 */
	end = put_header(end, "content-type", "application/grpc");
	if (i == 3)
		end = put_header(put_header(end, "grpc-status", "5"), "grpc-message", "no%20way");
	p = http2_put(p, NGHTTP2_HEADERS, 4 | (i == 3), 1, block, (size_t)(end - block));
	if (i == 3)
		return (size_t)(p - buf);
	p = http2_put(p, NGHTTP2_DATA, 0, 1, message, sizeof message - (i == 2));
	end = put_header(block, "grpc-status", i ? "13" : "0");
	if (i)
		end = put_header(end, "grpc-status-details-bin", "CAUSBG5vbmU");
	p = http2_put(p, NGHTTP2_HEADERS, 5, 1, block, (size_t)(end - block));
	return (size_t)(p - buf);
}

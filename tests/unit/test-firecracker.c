/* SPDX-License-Identifier: Apache-2.0 */
/* What Firecracker sends when it loads: byte for byte, and what is none of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "firecracker/handshake.h"
#include "firecracker/unit.h"

/* Of a real one, with 128 MiB. */
static const char real[] = "[{\"base_host_virt_addr\":140658903875584,\"size\":134217728,"
                           "\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]";

static int parse(const char *text, struct handshake *h)
{
	struct error err = ERROR_INIT;

	return handshake_parse(text, strlen(text), h, &err);
}

static void test_what_a_real_one_sends(void **state)
{
	struct handshake h;

	(void)state;
	assert_int_equal(parse(real, &h), 0);
	assert_int_equal(h.n_regions, 1);
	assert_int_equal((uintptr_t)h.regions[0].host_addr, 140658903875584);
	assert_int_equal(h.regions[0].size, 128 << 20);
	assert_int_equal(h.regions[0].guest_phys_addr, 0);
	assert_int_equal(h.regions[0].page_size, 4096);
	assert_int_equal(h.regions[0].memory, POSTCOPY_MEMORY_ANONYMOUS);
	assert_int_equal(h.regions[0].fd, -1);
}

/* Around the hole for devices; in whatever order. */
static void test_regions_are_sorted_by_their_place_in_the_file(void **state)
{
	struct handshake h;

	(void)state;
	assert_int_equal(
	        parse("[{\"base_host_virt_addr\":4294967296,\"size\":268435456,"
	              "\"offset\":3221225472,\"page_size\":4096},"
	              "{\"base_host_virt_addr\":17179869184,\"size\":3221225472,\"offset\":0,"
	              "\"page_size\":4096}]",
	              &h),
	        0);
	assert_int_equal(h.n_regions, 2);
	assert_int_equal(h.regions[0].size, 3221225472);
	assert_int_equal(h.regions[1].guest_phys_addr, 3221225472);
}

static void test_each_part_of_it_is_not_it_yet(void **state)
{
	struct error err = ERROR_INIT;
	struct handshake h;

	(void)state;
	for (size_t len = 1; len < strlen(real); len++)
		assert_int_equal(handshake_parse(real, len, &h, &err), -EAGAIN);
}

static void test_what_makes_no_sense_is_refused(void **state)
{
	static const char *const bad[] = {
		"[]",
		"{}",
		"[1]",
		"[{}]",
		"[{\"base_host_virt_addr\":-4096,\"size\":4096,\"offset\":0,\"page_size\":4096}]",
		"[{\"base_host_virt_addr\":\"4096\",\"size\":4096,\"offset\":0,\"page_size\":4096}"
		"]",
		"[{\"base_host_virt_addr\":4096,\"size\":0,\"offset\":0,\"page_size\":4096}]",
		"[{\"base_host_virt_addr\":4097,\"size\":4096,\"offset\":0,\"page_size\":4096}]",
		"[{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":4096,\"page_size\":4096}]",
		"[{\"base_host_virt_addr\":4096,\"size\":9223372036854771712,\"offset\":0,"
		"\"page_size\":4096}]",
		"[{\"base_host_virt_addr\":8192,\"size\":8192,\"offset\":0,\"page_size\":4096},"
		"{\"base_host_virt_addr\":65536,\"size\":4096,\"offset\":4096,\"page_size\":4096}]",
		"[{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":0,\"page_size\":4096}] x",
	};
	struct handshake h;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		if (parse(bad[i], &h) != -EPROTO)
			fail_msg("%s", bad[i]);
	assert_int_equal(parse("[{\"base_host_virt_addr\":16384,\"size\":16384,\"offset\":0,"
	                       "\"page_size\":16384}]",
	                       &h),
	                 -EOPNOTSUPP);
}

static void send_part(int sock, const char *text, size_t len, int fd)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = (void *)text, .iov_len = len };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		hdr.msg_control = control;
		hdr.msg_controllen = sizeof control;
		*CMSG_FIRSTHDR(&hdr) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
			                                 .cmsg_level = SOL_SOCKET,
			                                 .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&hdr)), &fd, sizeof fd);
	}
	assert_int_equal(sendmsg(sock, &hdr, 0), len);
}

/* Return: as handshake_receive(), of @text in two parts. */
static int receive(const char *text, int fd)
{
	char *buf = malloc(HANDSHAKE_BYTES_MAX);
	struct error err = ERROR_INIT;
	struct handshake h;
	int ends[2], uffd = -1, rc;
	size_t len = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	send_part(ends[0], text, 10, fd);
	send_part(ends[0], text + 10, strlen(text) - 10, -1);
	shutdown(ends[0], SHUT_WR);
	rc = handshake_receive(ends[1], buf, &len, &h, &uffd, &err);
	if (!rc) {
		assert_int_equal(len, strlen(text));
		assert_true(fcntl(uffd, F_GETFD) & FD_CLOEXEC);
		close(uffd);
	} else {
		assert_true(*err.text);
	}
	close(ends[0]);
	close(ends[1]);
	free(buf);
	return rc;
}

static void test_it_is_received_with_its_descriptor(void **state)
{
	(void)state;
	assert_int_equal(receive(real, STDIN_FILENO), 0);
	assert_int_equal(receive(real, -1), -EPROTO);
	assert_int_equal(receive("[{\"size\": 4096, \"offset\"", STDIN_FILENO), -EPROTO);
}

/* It becomes a file that systemd reads, and a path. */
static void test_a_unit_takes_plain_words_only(void **state)
{
	static const char *const bad[] = { "/a b", "/a\nAPI=/x", "/a$X", "/a\"", "/a%i", "" };
	struct options o = { .command = COMMAND_SOURCE, .id = "vm1", .api = "/a", .dir = "/d" };
	struct error err = ERROR_INIT;
	char text[512];

	(void)state;
	assert_int_equal(unit_text(&o, text, sizeof text, &err), 0);
	assert_string_equal(text, "ROLE=source\nID=vm1\nAPI=/a\nDIR=/d\n"
	                          "OPTIONS=\"--socket " POSTCOPY_DEFAULT_SOCKET "\"\n");
	assert_int_equal(unit_text(&o, text, 20, &err), -ENAMETOOLONG);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		o.dir = bad[i];
		assert_int_equal(unit_text(&o, text, sizeof text, &err), -EINVAL);
	}
	o.dir = "/d";
	o.id = "../../etc/vm1";
	assert_int_equal(unit_text(&o, text, sizeof text, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_a_real_one_sends),
		cmocka_unit_test(test_regions_are_sorted_by_their_place_in_the_file),
		cmocka_unit_test(test_each_part_of_it_is_not_it_yet),
		cmocka_unit_test(test_what_makes_no_sense_is_refused),
		cmocka_unit_test(test_it_is_received_with_its_descriptor),
		cmocka_unit_test(test_a_unit_takes_plain_words_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

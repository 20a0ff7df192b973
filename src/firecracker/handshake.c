/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/handshake.h"

#include <errno.h>
#include <json.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "util/cleanup.h"

#define TIMEOUT_S 10
#define SIZE_2M (2u << 20)

static bool get_u64(json_object *o, const char *key, uint64_t *ret)
{
	json_object *value;

	if (!json_object_object_get_ex(o, key, &value) ||
	    !json_object_is_type(value, json_type_int) || json_object_get_int64(value) < 0)
		return false;
	*ret = (uint64_t)json_object_get_int64(value);
	return true;
}

static int parse_region(json_object *o, size_t index, struct postcopy_region *ret,
                        struct error *err)
{
	uint64_t addr, size, offset, page_size;

	if (!json_object_is_type(o, json_type_object) ||
	    !get_u64(o, "base_host_virt_addr", &addr) || !get_u64(o, "size", &size) ||
	    !get_u64(o, "offset", &offset) || !get_u64(o, "page_size", &page_size))
		return error_set(err, -EPROTO,
		                 "region %zu: base_host_virt_addr, size, offset and page_size are "
		                 "needed, as numbers",
		                 index);
	if (page_size != 4096 && page_size != SIZE_2M)
		return error_set(err, -EOPNOTSUPP, "region %zu: pages of %llu bytes", index,
		                 (unsigned long long)page_size);
	if (!addr || !size || (addr | size | offset) % page_size || size > INT64_MAX - offset ||
	    size > INT64_MAX - addr)
		return error_set(err, -EPROTO, "region %zu: %llu bytes at %#llx, offset %llu",
		                 index, (unsigned long long)size, (unsigned long long)addr,
		                 (unsigned long long)offset);
	*ret = (struct postcopy_region){
		.memory = POSTCOPY_MEMORY_ANONYMOUS,
		.guest_phys_addr = offset,
		.size = size,
		.page_size = page_size,
		.host_addr = (void *)(uintptr_t)addr,
		.fd = -1,
	};
	return 0;
}

/* In the order of the memory file, without a gap: it is the whole of it. */
static int sort(struct handshake *h, struct error *err)
{
	uint64_t end = 0;

	for (size_t i = 1; i < h->n_regions; i++)
		for (size_t at = i;
		     at && h->regions[at].guest_phys_addr < h->regions[at - 1].guest_phys_addr;
		     at--) {
			struct postcopy_region r = h->regions[at];

			h->regions[at] = h->regions[at - 1];
			h->regions[at - 1] = r;
		}
	for (size_t i = 0; i < h->n_regions; i++) {
		if (h->regions[i].guest_phys_addr != end)
			return error_set(err, -EPROTO,
			                 "its regions leave a gap in the memory file, or overlap, "
			                 "at offset %llu",
			                 (unsigned long long)end);
		end += h->regions[i].size;
	}
	return 0;
}

static int take_array(json_object *array, struct handshake *h, struct error *err)
{
	size_t n =
	        json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;

	if (!n || n > POSTCOPY_REGIONS_MAX)
		return error_set(err, -EPROTO, "an array of 1 to %d regions is needed",
		                 POSTCOPY_REGIONS_MAX);
	for (size_t i = 0; i < n; i++)
		if (parse_region(json_object_array_get_idx(array, i), i, &h->regions[i], err))
			return err->code;
	h->n_regions = n;
	return sort(h, err);
}

int handshake_parse(const char *text, size_t len, struct handshake *ret, struct error *err)
{
	json_tokener *tokener = json_tokener_new_ex(8);
	json_object *array = NULL;
	enum json_tokener_error code;
	struct handshake h = { .n_regions = 0 };
	int rc;

	if (!tokener)
		return error_set(err, -ENOMEM, "out of memory");
	json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
	array = json_tokener_parse_ex(tokener, text, (int)len);
	code = json_tokener_get_error(tokener);
	if (code == json_tokener_continue)
		rc = -EAGAIN;
	else if (code || json_tokener_get_parse_end(tokener) != len)
		rc = error_set(err, -EPROTO, "it is no JSON: %s",
		               code ? json_tokener_error_desc(code) : "something follows it");
	else
		rc = take_array(array, &h, err);
	json_tokener_free(tokener);
	json_object_put(array);
	if (!rc)
		*ret = h;
	return rc;
}

/* Some of it, and its descriptor where that comes with it. Return: bytes; or -errno. */
static ssize_t receive_some(int sock, char *buf, size_t len, int *uffd)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	struct msghdr hdr = { .msg_iov = &iov,
		              .msg_iovlen = 1,
		              .msg_control = control,
		              .msg_controllen = sizeof control };
	ssize_t n = recvmsg(sock, &hdr, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&hdr);

	if (n < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
	    c->cmsg_len == CMSG_LEN(sizeof(int))) {
		close_fd(uffd);
		memcpy(uffd, CMSG_DATA(c), sizeof(int));
	}
	return n;
}

int handshake_receive(int sock, char *text, size_t *ret_len, struct handshake *ret, int *ret_uffd,
                      struct error *err)
{
	const struct timeval timeout = { .tv_sec = TIMEOUT_S };
	_cleanup_close_ int uffd = -1;
	size_t len = 0;
	int rc = -EAGAIN;

	(void)setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
	while (rc == -EAGAIN) {
		ssize_t n = receive_some(sock, text + len, HANDSHAKE_BYTES_MAX - len, &uffd);

		if (n < 0)
			return error_errno(err, (int)n, "Firecracker's handshake");
		if (!n)
			return error_set(err, -EPROTO,
			                 "Firecracker's handshake ends after %zu bytes", len);
		len += (size_t)n;
		rc = handshake_parse(text, len, ret, err);
		if (rc == -EAGAIN && len == HANDSHAKE_BYTES_MAX)
			rc = error_set(err, -EPROTO, "it is longer than %d bytes",
			               HANDSHAKE_BYTES_MAX);
	}
	if (!rc && uffd < 0)
		rc = error_set(err, -EPROTO, "it came without a userfaultfd");
	if (rc)
		return error_prefix(err, "Firecracker's handshake");
	*ret_len = len;
	*ret_uffd = steal_fd(&uffd);
	return 0;
}

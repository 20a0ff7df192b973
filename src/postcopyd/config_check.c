/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/config_check.h"

#include <errno.h>
#include <grp.h>
#include <libgen.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "stream/conn.h"
#include "util/cleanup.h"

static void add_error(void *arg, const struct error *err)
{
	config_errors_add(arg, err);
}

static int check_socket(const char *path, struct error *err)
{
	_cleanup_free_ char *directory = strdup(path);
	char *slash = directory ? strrchr(directory, '/') : NULL;
	struct stat st;

	if (strlen(path) >= sizeof((struct sockaddr_un *)NULL)->sun_path)
		return error_set(err, -EINVAL, "\"%s\": a socket's path has at most %zu bytes",
		                 path, sizeof((struct sockaddr_un *)NULL)->sun_path - 1);
	if (!slash || slash == directory)
		return 0;
	*slash = 0;
	if (stat(directory, &st))
		return error_errno(err, -errno, "its directory \"%s\"", directory);
	if (!S_ISDIR(st.st_mode))
		return error_set(err, -ENOTDIR, "\"%s\" is no directory", directory);
	return 0;
}

static int check_group(const char *name, struct error *err)
{
	errno = 0;
	if (getgrnam(name))
		return 0;
	return error_set(err, -EINVAL, "this host has no group \"%s\"", name);
}

static int check_address(const char *text, struct error *err)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	struct addrinfo *list = NULL;
	struct conn_target target;
	int rc;

	if (!text)
		return 0;
	rc = conn_target_parse(text, &target, err);
	if (rc)
		return rc;
	rc = getaddrinfo(target.host, target.port, &hints, &list);
	if (rc)
		return error_set(err, -EINVAL, "\"%s\": %s", text, gai_strerror(rc));
	freeaddrinfo(list);
	return 0;
}

static void check_one(const char *key, const char *value,
                      int (*check)(const char *value, struct error *err),
                      struct config_errors *errors)
{
	struct error err = ERROR_INIT;

	if (!check(value, &err))
		return;
	error_prefix(&err, "%s", key);
	config_errors_add(errors, &err);
}

static void check_groups(const char *key, const struct options_names *groups,
                         struct config_errors *errors)
{
	for (size_t i = 0; i < groups->n; i++)
		check_one(key, groups->names[i], check_group, errors);
}

/* Whether two addresses are one to listen on: the same port of one host, or of all. */
static bool is_same_place(const struct sockaddr *a, const struct sockaddr *b)
{
	const struct sockaddr_in *a4 = (const void *)a, *b4 = (const void *)b;
	const struct sockaddr_in6 *a6 = (const void *)a, *b6 = (const void *)b;
	in_port_t a_port = a->sa_family == AF_INET ? a4->sin_port : a6->sin6_port;
	in_port_t b_port = b->sa_family == AF_INET ? b4->sin_port : b6->sin6_port;

	if (!a_port || a_port != b_port)
		return false;
	/* [::] takes IPv4's place as well. */
	if ((a->sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&a6->sin6_addr)) ||
	    (b->sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&b6->sin6_addr)))
		return true;
	if (a->sa_family != b->sa_family)
		return false;
	if (a->sa_family == AF_INET6)
		return !memcmp(&a6->sin6_addr, &b6->sin6_addr, sizeof a6->sin6_addr);
	return a4->sin_addr.s_addr == b4->sin_addr.s_addr || !a4->sin_addr.s_addr ||
	       !b4->sin_addr.s_addr;
}

static struct addrinfo *find_addresses(const char *text)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	struct addrinfo *list = NULL;
	struct conn_target target;

	if (!text || conn_target_parse(text, &target, NULL) ||
	    getaddrinfo(target.host, target.port, &hints, &list))
		return NULL;
	return list;
}

static bool is_same_address(const char *a, const char *b)
{
	struct addrinfo *list_a = find_addresses(a), *list_b = find_addresses(b);
	bool same = false;

	for (struct addrinfo *i = list_a; i; i = i->ai_next)
		for (struct addrinfo *j = list_b; j; j = j->ai_next)
			same |= is_same_place(i->ai_addr, j->ai_addr);
	if (list_a)
		freeaddrinfo(list_a);
	if (list_b)
		freeaddrinfo(list_b);
	return same;
}

static const char *name_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* The directory may have two names; the sockets need not be there. */
static bool is_same_path(const char *a, const char *b)
{
	_cleanup_free_ char *a_copy = strdup(a), *b_copy = strdup(b);
	_cleanup_free_ char *a_dir = a_copy ? realpath(dirname(a_copy), NULL) : NULL;
	_cleanup_free_ char *b_dir = b_copy ? realpath(dirname(b_copy), NULL) : NULL;

	return !strcmp(a, b) ||
	       (a_dir && b_dir && !strcmp(a_dir, b_dir) && !strcmp(name_of(a), name_of(b)));
}

/* What the second one who takes it would fail at, or the first be robbed of. */
static void check_twice(const struct options *o, struct config_errors *errors)
{
	const struct {
		const char *key, *value;
	} addresses[] = { { "listen", o->listen },
		          { "control-listen", o->control_listen },
		          { "metrics-listen", o->metrics_listen } };
	struct error err = ERROR_INIT;

	if (is_same_path(o->control_path, o->vmm_path)) {
		error_set(&err, -EINVAL, "control and vmm are one path, \"%s\"", o->vmm_path);
		config_errors_add(errors, &err);
	}
	for (size_t i = 0; i < 3; i++)
		for (size_t j = 0; j < i; j++)
			if (is_same_address(addresses[i].value, addresses[j].value)) {
				error_set(&err, -EINVAL, "%s (%s) and %s (%s) are one address",
				          addresses[j].key, addresses[j].value, addresses[i].key,
				          addresses[i].value);
				config_errors_add(errors, &err);
			}
}

void config_check(const struct options *o, struct config_errors *errors)
{
	tls_check_files(&o->tls, add_error, errors);
	check_one("control", o->control_path, check_socket, errors);
	check_one("vmm", o->vmm_path, check_socket, errors);
	check_groups("control-group", &o->control_groups, errors);
	check_groups("control-read-group", &o->control_read_groups, errors);
	check_groups("vmm-group", &o->vmm_groups, errors);
	check_one("control-listen", o->control_listen, check_address, errors);
	check_one("listen", o->listen, check_address, errors);
	check_one("metrics-listen", o->metrics_listen, check_address, errors);
	check_twice(o, errors);
}

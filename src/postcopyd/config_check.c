/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/config_check.h"

#include <errno.h>
#include <grp.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "stream/conn.h"
#include "util/cleanup.h"

static void check_tls(const struct options *o, struct config_errors *errors)
{
	struct tls_context *tls = NULL;
	struct error err = ERROR_INIT;

	if (tls_context_new(&o->tls, &tls, &err))
		config_errors_add(errors, &err);
	tls_context_free(tls);
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

void config_check(const struct options *o, struct config_errors *errors)
{
	check_tls(o, errors);
	check_one("control", o->control_path, check_socket, errors);
	check_one("vmm", o->vmm_path, check_socket, errors);
	check_groups("control-group", &o->control_groups, errors);
	check_groups("vmm-group", &o->vmm_groups, errors);
	check_one("control-listen", o->control_listen, check_address, errors);
	check_one("listen", o->listen, check_address, errors);
	check_one("metrics-listen", o->metrics_listen, check_address, errors);
}

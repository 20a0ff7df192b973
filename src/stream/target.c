/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/target.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A name, or an address in digits that can be dialled as it stands. */
static int check_host(const char *text, const struct conn_target *t, bool bracketed,
                      struct error *err)
{
	const char *scope = strchr(t->host, '%');
	struct in6_addr address;
	char digits[INET6_ADDRSTRLEN];

	if (!strchr(t->host, ':')) {
		for (const char *c = t->host; *c; c++)
			if (!isalnum((unsigned char)*c) && !strchr(".-_", *c))
				return error_set(err, -EINVAL, "\"%s\": no host has such a name",
				                 text);
		return 0;
	}
	if (!bracketed)
		return error_set(err, -EINVAL, "\"%s\": an IPv6 address is written [ADDRESS]:PORT",
		                 text);
	snprintf(digits, sizeof digits, "%.*s",
	         (int)(scope ? scope - t->host : (ptrdiff_t)strlen(t->host)), t->host);
	if (inet_pton(AF_INET6, digits, &address) != 1)
		return error_set(err, -EINVAL, "\"%s\": no IPv6 address", text);
	if (IN6_IS_ADDR_LINKLOCAL(&address) && (!scope || !scope[1]))
		return error_set(err, -EINVAL,
		                 "\"%s\": such an address is of one link: name that, as in "
		                 "[fe80::1%%eth0]:%s",
		                 text, t->port);
	return 0;
}

int conn_target_parse(const char *text, struct conn_target *ret, struct error *err)
{
	struct conn_target t = { 0 };
	bool bracketed = *text == '[';
	const char *colon = strrchr(text, ':');
	const char *host = text;
	size_t host_len;
	int rc;

	if (strchr(text, '/'))
		return error_set(err, -EINVAL, "\"%s\" is a URL: it takes HOST:PORT alone", text);
	if (!colon || colon == text || !colon[1] || strlen(colon + 1) >= sizeof ret->port)
		return error_set(err, -EINVAL, "\"%s\" is not HOST:PORT", text);
	host_len = (size_t)(colon - text);
	if (bracketed && host[host_len - 1] == ']') {
		host++;
		host_len -= 2;
	}
	if (!host_len || host_len >= sizeof ret->host)
		return error_set(err, -EINVAL, "\"%s\" is not HOST:PORT", text);
	for (const char *c = colon + 1; *c; c++)
		if (*c < '0' || *c > '9')
			return error_set(err, -EINVAL, "\"%s\": the port is no number", text);
	if (strtoul(colon + 1, NULL, 10) > UINT16_MAX)
		return error_set(err, -EINVAL, "\"%s\": the port must be 0..65535", text);
	memcpy(t.host, host, host_len);
	strcpy(t.port, colon + 1);
	rc = check_host(text, &t, bracketed, err);
	if (!rc)
		*ret = t;
	return rc;
}

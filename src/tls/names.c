/* SPDX-License-Identifier: Apache-2.0 */
#include "tls/names.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <strings.h>

#include "tls/tls.h"

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS "0123456789"

struct pattern {
	enum tls_name_kind kind;
	bool is_open;     /* more may stand where its asterisk is */
	const char *text; /* without asterisk */
	size_t len;
};

/* As openssl prints them: "URI:" and "DNS:" may stand in front. Only a URI has a colon else. */
static struct pattern read_pattern(const char *text)
{
	struct pattern p = { .kind = TLS_NAME_DNS, .text = text };

	if (!strncmp(text, "URI:", 4)) {
		p.kind = TLS_NAME_URI;
		p.text += 4;
	} else if (!strncmp(text, "DNS:", 4)) {
		p.text += 4;
	} else if (strchr(text, ':')) {
		p.kind = TLS_NAME_URI;
	}
	p.len = strlen(p.text);
	if (p.kind == TLS_NAME_DNS && !strncmp(p.text, "*.", 2)) {
		p.is_open = true;
		p.text++;
		p.len--;
	} else if (p.kind == TLS_NAME_URI && p.len > 1 && !strcmp(p.text + p.len - 2, "/*")) {
		p.is_open = true;
		p.len--;
	}
	return p;
}

/* Labels of letters, digits, "-" and "_", with dots between. */
static bool is_host(const char *s, size_t len)
{
	bool in_label = false;

	for (size_t i = 0; i < len; i++) {
		if (s[i] != '.' && !strchr(LETTERS DIGITS "-_", s[i]))
			return false;
		if (s[i] == '.' && !in_label)
			return false;
		in_label = s[i] != '.';
	}
	return in_label;
}

/* What may follow a prefix: nothing that somebody could read as another place than it says. */
static bool is_path(const char *s)
{
	for (;;) {
		size_t len = strcspn(s, "/");

		if (!len || (s[0] == '.' && (len == 1 || (len == 2 && s[1] == '.'))))
			return false;
		s += len;
		if (!*s)
			return true;
		s++;
	}
}

static bool matches_dns(const struct pattern *p, const char *name)
{
	size_t len = strlen(name);

	if (!p->is_open)
		return !strcasecmp(p->text, name);
	return len > p->len && !strcasecmp(name + len - p->len, p->text) &&
	       is_host(name, len - p->len);
}

bool tls_name_matches(const char *pattern, enum tls_name_kind kind, const char *name)
{
	struct pattern p = read_pattern(pattern);

	if (p.kind != kind)
		return false;
	if (kind == TLS_NAME_DNS)
		return matches_dns(&p, name);
	if (!p.is_open)
		return !strcmp(p.text, name);
	return !strncmp(name, p.text, p.len) && !strpbrk(name, "%?#") && is_path(name + p.len);
}

static int check_dns(const struct pattern *p, const char *pattern, struct error *err)
{
	const char *from = p->is_open ? p->text + 1 : p->text;
	const char *last;

	if (!is_host(from, strlen(from)))
		return error_set(err, -EINVAL,
		                 "\"%s\" can never match: a DNS name is host.example.org, or "
		                 "*.example.org for all below; a URI begins with its scheme and a "
		                 "colon",
		                 pattern);
	last = strrchr(from, '.') ? strrchr(from, '.') + 1 : from;
	if (strspn(last, DIGITS) == strlen(last))
		return error_set(err, -EINVAL,
		                 "\"%s\" can never match: addresses in certificates are not "
		                 "looked at, only names",
		                 pattern);
	return 0;
}

static int check_uri(const struct pattern *p, const char *pattern, struct error *err)
{
	size_t scheme = strspn(p->text, LETTERS DIGITS "+-.");
	struct in6_addr address;
	const char *from;

	if (inet_pton(AF_INET6, p->text, &address) == 1 || !strncmp(p->text, "IP:", 3) ||
	    !strncmp(p->text, "email:", 6))
		return error_set(err, -EINVAL,
		                 "\"%s\" can never match: only URIs and DNS names are looked at",
		                 pattern);
	if (!scheme || !strchr(LETTERS, *p->text) || p->text[scheme] != ':' || !p->text[scheme + 1])
		return error_set(err, -EINVAL,
		                 "\"%s\" can never match: a URI begins with its scheme and a colon",
		                 pattern);
	for (size_t i = 0; i < p->len; i++)
		if (p->text[i] <= ' ' || p->text[i] > '~' || strchr("\"<>\\^`{|}*", p->text[i]))
			return error_set(err, -EINVAL,
			                 "\"%s\" can never match: \"%c\" stands in no URI%s",
			                 pattern, p->text[i],
			                 p->text[i] == '*' ? "; a prefix ends in \"/*\"" : "");
	/* "spiffe://domain/", and not all domains at once. */
	from = p->text + scheme + 1;
	from += strncmp(from, "//", 2) ? 0 : 2;
	if (p->is_open && (*from == '/' || *from == '*'))
		return error_set(err, -EINVAL,
		                 "\"%s\": a prefix has at least the domain: scheme://domain/*",
		                 pattern);
	return 0;
}

int tls_name_check(const char *pattern, struct error *err)
{
	struct pattern p = read_pattern(pattern);

	if (p.len >= TLS_NAME_MAX)
		return error_set(err, -EINVAL,
		                 "a name of %zu bytes can never match: names have at most %d",
		                 p.len, TLS_NAME_MAX - 1);
	return p.kind == TLS_NAME_DNS ? check_dns(&p, pattern, err) : check_uri(&p, pattern, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/certificates.h"

#include <time.h>

#include "telemetry/metrics.h"
#include "util/log.h"

#define HOUR_S (60 * 60)
#define DAY_S (24 * HOUR_S)
/* Looked at each day: there is one more look. */
#define CRL_WARN_BEFORE_S (2 * DAY_S)
#define WARN_BEFORE_S (14 * DAY_S)

static void look_at_crl(struct tls_context *context)
{
	int64_t now = time(NULL), expiry = tls_context_crl_expiry(context);

	if (expiry && expiry <= now)
		log_error("a CRL has expired: no new connection is possible; get a newer one, "
		          "then reload");
	else if (expiry && expiry - now <= CRL_WARN_BEFORE_S)
		log_warning("a CRL expires in %lld hours: get a newer one, then reload",
		            (long long)((expiry - now) / HOUR_S));
}

static void look(const struct certificates *c)
{
	int64_t now = time(NULL);

	if (c->n)
		look_at_crl(c->contexts[0]);
	for (size_t i = 0; i < c->n; i++) {
		int64_t expiry = tls_context_expiry(c->contexts[i]);

		if (!expiry || expiry - now > WARN_BEFORE_S)
			continue;
		if (expiry <= now)
			log_error("this host's certificate has expired: no new connection is "
			          "possible; renew it, then reload or restart");
		else
			log_warning("this host's certificate expires in %lld days: renew it, then "
			            "reload or restart",
			            (long long)((expiry - now) / DAY_S));
		/* The contexts' files are the same. */
		return;
	}
}

static void on_daily(uv_timer_t *timer)
{
	look(timer->data);
}

int certificates_reload(struct certificates *c, const struct tls_config *const *configs,
                        struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < c->n && !rc; i++)
		rc = tls_context_reload(c->contexts[i], configs[i], err);
	if (!rc)
		rc = metrics_reload(c->metrics, configs[0]->cert_path, configs[0]->key_path,
		                    configs[0]->ca_path, err);
	if (rc)
		log_error("the certificates can't be loaded anew, those of before stay: %s",
		          err->text);
	else
		log_info("the certificates are loaded anew, for connections to come");
	look(c);
	return rc;
}

void certificates_init(struct certificates *c, uv_loop_t *loop, struct tls_context *const *contexts,
                       size_t n, struct metrics *metrics)
{
	*c = (struct certificates){ .metrics = metrics };
	for (size_t i = 0; i < n && c->n < CERTIFICATES_CONTEXTS_MAX; i++)
		if (contexts[i])
			c->contexts[c->n++] = contexts[i];
	uv_timer_init(loop, &c->daily);
	c->daily.data = c;
	uv_timer_start(&c->daily, on_daily, 0, DAY_S * 1000ull);
}

void certificates_close(struct certificates *c)
{
	if (!c->daily.loop)
		return;
	uv_close((uv_handle_t *)&c->daily, NULL);
}

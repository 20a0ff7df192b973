/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/service.h"

#include <stdio.h>
#include <string.h>

#include <systemd/sd-daemon.h>

#include "migrate/migrate.h"
#include "util/clock.h"

#define STATUS_MS 1000u

static void on_watchdog(uv_timer_t *timer)
{
	(void)timer;
	(void)sd_notify(false, "WATCHDOG=1");
}

/* "3 migrations: 1 attached, 2 postcopy" */
static void describe(struct migrations *ms, const char *trouble, char *text, size_t size)
{
	unsigned int count[MIGRATION_STATES] = { 0 }, n = 0;
	size_t len;

	for (struct migration *m = migrations_next(ms, NULL); m; m = migrations_next(ms, m)) {
		struct migration_info info;

		migration_get_info(m, &info);
		count[info.state]++;
		n++;
	}
	len = (size_t)snprintf(text, size, "%u migration%s", n, n == 1 ? "" : "s");
	for (unsigned int i = 0, told = 0; i < MIGRATION_STATES && len < size; i++)
		if (count[i])
			len += (size_t)snprintf(text + len, size - len, "%s %u %s",
			                        told++ ? "," : ":", count[i],
			                        migration_state_name((enum migration_state)i));
	if (*trouble && len < size)
		snprintf(text + len, size - len, "; runs with an older configuration: %s", trouble);
}

static void on_status(uv_timer_t *timer)
{
	struct service *s = timer->data;
	char text[sizeof s->text];

	describe(s->migrations, s->trouble, text, sizeof text);
	if (!strcmp(text, s->text))
		return;
	memcpy(s->text, text, sizeof text);
	(void)sd_notifyf(false, "STATUS=%s", text);
}

void service_init(struct service *s, uv_loop_t *loop, struct migrations *migrations,
                  const char *trouble)
{
	uint64_t watchdog_us = 0;
	bool managed = sd_notify(false, "READY=1") > 0;

	*s = (struct service){ .migrations = migrations, .trouble = trouble };
	uv_timer_init(loop, &s->watchdog);
	uv_timer_init(loop, &s->status);
	s->status.data = s;
	if (!managed)
		return;
	uv_timer_start(&s->status, on_status, 0, STATUS_MS);
	if (sd_watchdog_enabled(false, &watchdog_us) > 0)
		uv_timer_start(&s->watchdog, on_watchdog, 0, watchdog_us / 2000);
}

void service_close(struct service *s)
{
	if (!s->status.loop)
		return;
	uv_close((uv_handle_t *)&s->watchdog, NULL);
	uv_close((uv_handle_t *)&s->status, NULL);
}

void service_reloading(void)
{
	(void)sd_notifyf(false, "RELOADING=1\nMONOTONIC_USEC=%llu",
	                 (unsigned long long)(clock_now_ns() / NSEC_PER_USEC));
}

void service_reloaded(void)
{
	(void)sd_notify(false, "READY=1");
}

void service_stopping(void)
{
	(void)sd_notify(false, "STOPPING=1");
}

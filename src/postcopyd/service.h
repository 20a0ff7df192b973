/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon tells the service manager (sd_notify(3)): that it is ready, what it does, that
 * it is alive, that it reloads, that it ends. Without a manager all of it is nothing.
 */
#ifndef POSTCOPYD_SERVICE_H
#define POSTCOPYD_SERVICE_H

#include <uv.h>

struct migrations;

struct service {
	struct migrations *migrations;
	uv_timer_t watchdog;
	uv_timer_t status;
	const char *trouble;
	char text[512]; /* the status that was told last */
};

/*
 * service_init() - READY=1, and from now on WATCHDOG=1 and STATUS= from the loop
 * @trouble: why what runs is not what is configured, borrowed; empty: it is
 */
void service_init(struct service *s, uv_loop_t *loop, struct migrations *migrations,
                  const char *trouble);

/* Its handles close; nothing more is told. */
void service_close(struct service *s);

/* Between these the configuration is read anew. */
void service_reloading(void);
void service_reloaded(void);

void service_stopping(void);

#endif

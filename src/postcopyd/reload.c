/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/reload.h"

#include <errno.h>

#include "util/clock.h"
#include "util/log.h"

void reload_init(struct reload *r, uv_loop_t *loop, int argc, char **argv,
                 void (*done)(void *arg, struct reload_config *config,
                              const struct config_errors *errors),
                 void *arg)
{
	*r = (struct reload){ .loop = loop, .argc = argc, .argv = argv, .done = done, .arg = arg };
	r->work.data = r;
	r->last.error = r->error.text;
	r->last.needs_restart = r->needs_restart;
}

static void find_groups(const struct options_names *names, const char *key, struct groups *ret,
                        struct config_errors *errors)
{
	struct error err = ERROR_INIT;

	if (groups_find(names, key, ret, &err))
		config_errors_add(errors, &err);
}

static void read_all(uv_work_t *work)
{
	struct reload *r = work->data;
	struct options *o = &r->config.options;

	r->errors = (struct config_errors){ .n = 0 };
	if (options_parse(r->argc, r->argv, o, &r->errors))
		return;
	find_groups(&o->control_groups, "control-group", &r->config.control, &r->errors);
	find_groups(&o->control_read_groups, "control-read-group", &r->config.control_read,
	            &r->errors);
	find_groups(&o->vmm_groups, "vmm-group", &r->config.vmm, &r->errors);
}

static void on_read(uv_work_t *work, int status)
{
	struct reload *r = work->data;

	r->is_running = false;
	if (status != UV_ECANCELED)
		r->done(r->arg, &r->config, &r->errors);
	options_deinit(&r->config.options);
	if (r->is_asked_again)
		(void)reload_start(r);
}

int reload_start(struct reload *r)
{
	r->is_asked_again = r->is_running;
	if (r->is_running)
		return 0;
	r->is_running = !uv_queue_work(r->loop, &r->work, read_all, on_read);
	return r->is_running ? 0 : -EAGAIN;
}

void reload_note(struct reload *r, const struct error *error)
{
	r->last.at_real_ns = clock_real_ns();
	r->error = error ? *error : ERROR_INIT;
	if (!error)
		r->last.n_needs_restart = 0;
}

void reload_needs_restart(void *reload, const char *key)
{
	struct reload *r = reload;

	log_warning("%s is another now, which needs a restart", key);
	if (r->last.n_needs_restart < OPTIONS_MAX)
		r->needs_restart[r->last.n_needs_restart++] = key;
}

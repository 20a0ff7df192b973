// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "ctl/bench_qemu.h"
#include "ctl/json.h"
#include "util/clock.h"

#define MONITOR_WAIT_MS 30000
#define MONITOR_NAP_MS 5
/* What Linux itself needs of the guest's memory. */
#define LINUX_MIB 128
#define WORDS_MAX 48

extern const char bench_image[], bench_image_end[];

/* QEMU reads its kernel from a file. */
static int write_guest(const char *path, struct error *err)
{
	size_t len = (size_t)(bench_image_end - bench_image);
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, bench_image, len) != (ssize_t)len)
		return error_errno(err, errno ? -errno : -EIO, "writing the guest to \"%s\"", path);
	return 0;
}

static int make_memory(struct bench_vmm *v, struct error *err)
{
	bool huge = !strcmp(v->b->options->backend, "hugetlb");

	v->memory_fd = memfd_create("ram", MFD_CLOEXEC | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
	if (v->memory_fd < 0 || ftruncate(v->memory_fd, (off_t)v->b->options->memory_bytes) < 0)
		return error_errno(err, -errno, "the guest's memory");
	return 0;
}

/* The words of one command line; those that are made live as long. */
struct words {
	const char *argv[WORDS_MAX];
	size_t n;
	char made[WORDS_MAX][256];
};

static void add(struct words *w, const char *word)
{
	w->argv[w->n++] = word;
}

static void add_made(struct words *w, const char *format, ...)
        __attribute__((format(printf, 2, 3)));

static void add_made(struct words *w, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(w->made[w->n], sizeof w->made[w->n], format, args);
	va_end(args);
	add(w, w->made[w->n]);
}

static void add_bare_guest(struct words *w, const char *kernel)
{
	add(w, "-kernel");
	add_made(w, "%s", kernel);
	add(w, "-serial");
	add(w, "chardev:console");
}

static void add_linux(struct words *w, const struct bench_options *o)
{
	add(w, "-kernel");
	add(w, o->kernel);
	add(w, "-initrd");
	add(w, o->initrd);
	add(w, "-append");
	add_made(w,
	         "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable "
	         "check_mib=%" PRIu64,
	         (o->memory_bytes >> 20) - LINUX_MIB);
	add(w, "-device");
	add(w, "virtio-serial-pci");
	add(w, "-device");
	add(w, "virtconsole,chardev=console");
}

static void compose(struct words *w, const struct bench_vmm *v, const char *kernel, bool incoming)
{
	const struct bench_options *o = v->b->options;

	add(w, v->b->qemu_path);
	for (const char *const *word =
	             (const char *const[]){ "-nodefaults", "-display", "none", "-no-reboot",
	                                    "-machine", "q35,memory-backend=ram", "-accel",
	                                    o->accel, "-smp", NULL };
	     *word; word++)
		add(w, *word);
	add_made(w, "%" PRIu64, bench_qemu_vcpus(o));
	add(w, "-m");
	add_made(w, "%" PRIu64 "M", o->memory_bytes >> 20);
	add(w, "-object");
	add_made(w, "memory-backend-file,id=ram,share=on,size=%" PRIu64 ",mem-path=/proc/%d/fd/%d",
	         o->memory_bytes, (int)getpid(), v->memory_fd);
	add(w, "-chardev");
	add(w, "file,id=console,path=/proc/self/fd/" PROCESS_STATUS_FD_TEXT);
	add(w, "-qmp");
	add_made(w, "unix:%s,server=on,wait=off", v->qmp_path);
	add(w, "-qmp");
	add_made(w, "unix:%s,server=on,wait=off", v->adapter_qmp_path);
	if (o->kernel)
		add_linux(w, o);
	else
		add_bare_guest(w, kernel);
	if (incoming) {
		add(w, "-incoming");
		add(w, "defer");
	}
	add(w, NULL);
}

/* It is there when QEMU has made it. */
static int open_monitor(struct bench_vmm *v, struct error *err)
{
	uint64_t deadline = clock_now_ns() + MONITOR_WAIT_MS * NSEC_PER_MSEC;

	for (;;) {
		int r = qmp_open(v->qmp_path, &v->qmp, err);

		if (r != -ENOENT && r != -ECONNREFUSED)
			return r;
		r = process_check(&v->process, err);
		if (r < 0)
			return r;
		if (clock_now_ns() > deadline)
			return error_set(err, -ETIMEDOUT, "%s opens no monitor", v->process.name);
		poll(NULL, 0, MONITOR_NAP_MS);
	}
}

int bench_vmm_start(struct bench_vmm *v, struct bench *b, bool incoming, struct error *err)
{
	const char *side = incoming ? "destination" : "source";
	char kernel[128], log[PATH_MAX], name[48];
	struct words words = { .n = 0 };
	int r;

	*v = BENCH_VMM_INIT;
	v->b = b;
	snprintf(v->qmp_path, sizeof v->qmp_path, "%s/%s.qmp", b->dir, side);
	snprintf(v->adapter_qmp_path, sizeof v->adapter_qmp_path, "%s/%s.adapter-qmp", b->dir,
	         side);
	snprintf(kernel, sizeof kernel, "%s/guest", b->dir);
	snprintf(log, sizeof log, "%.*s/%s-qemu.log", PATH_MAX - 64, b->log_dir, side);
	snprintf(name, sizeof name, "the %s's QEMU", side);
	r = make_memory(v, err);
	if (!r && !b->options->kernel)
		r = write_guest(kernel, err);
	if (r < 0)
		return r;
	compose(&words, v, kernel, incoming);
	r = process_start(&v->process, name, (char *const *)words.argv, log, err);
	return r < 0 ? r : open_monitor(v, err);
}

void bench_vmm_stop(struct bench_vmm *v)
{
	v->qmp = qmp_close(v->qmp);
	process_stop(&v->process);
	close_fd(&v->memory_fd);
}

static int read_line(struct bench_vmm *v, char **ret, struct error *err)
{
	return process_read_line(&v->process, QEMU_GUEST_WAIT_MS, v->b->cancel_fd, ret, err);
}

int bench_vmm_wait_ready(struct bench_vmm *v, struct bench_guest *ret, struct error *err)
{
	struct bench_guest g;
	char *line;

	for (;;) {
		int r = read_line(v, &line, err);

		if (r < 0)
			return error_prefix(err, "waiting for the guest to be ready");
		if (sscanf(line, "ready %u workers %" SCNu64 " pages progress %" SCNx64, &g.workers,
		           &g.n_pages, &g.progress_gpa) == 3)
			break;
	}
	if (!g.workers || g.workers > PACE_WORKERS_MAX ||
	    g.progress_gpa + 64 * PACE_WORKERS_MAX > v->b->options->memory_bytes)
		return error_set(err, -EPROTO, "the guest says what can't be: \"%.80s\"", line);
	*ret = g;
	return 0;
}

int bench_vmm_check_guest(struct bench_vmm *v, const struct bench_guest *g, uint64_t *ret_bad,
                          struct error *err)
{
	uint64_t bad[PACE_WORKERS_MAX] = { 0 };
	unsigned int passes[PACE_WORKERS_MAX] = { 0 }, done = 0;

	*ret_bad = 0;
	/* The pass that ends first may have begun before. */
	while (done < g->workers) {
		uint64_t n, pages, wrong;
		unsigned int worker;
		char *line;
		int r = read_line(v, &line, err);

		if (r < 0)
			return error_prefix(err, "waiting for the guest to look at its pages");
		if (sscanf(line, "pass %u %" SCNu64 " pages %" SCNu64 " bad %" SCNu64, &worker, &n,
		           &pages, &wrong) != 4 ||
		    worker >= g->workers)
			continue;
		bad[worker] = wrong;
		done += ++passes[worker] == 3;
	}
	for (unsigned int i = 0; i < g->workers; i++)
		*ret_bad += bad[i];
	return 0;
}

int bench_vmm_ask(struct bench_vmm *v, const char *command, const char *arguments,
                  struct json_object **ret, struct error *err)
{
	struct json_object *args = arguments ? json_tokener_parse(arguments) : NULL;
	int r = qmp_ask(v->qmp, command, args, -1, ret, err);

	return r < 0 ? error_prefix(err, "%s", v->process.name) : 0;
}

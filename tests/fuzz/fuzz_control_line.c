/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests to the control socket, over a real connection: an input is what a client sends
 * before it ends its side. Whatever it was, each line is answered by one JSON object and the
 * daemon serves the next client.
 */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <json-c/json.h>

#include "rpc/control.h"
#include "migrate/migrate.h"

/* Of the socket and the loop; what inputs have prepared is forgotten with them. */
#define ROUNDS_PER_HOST 500u
#define TURNS_MAX 1000u
#define TOKEN "00112233445566778899aabbccddeeff0123456789abcdef0123456789ABCDEF"

const unsigned int fuzz_rounds = 20000;

static struct {
	unsigned int rounds; /* 0: not running */
	char dir[40];
	char vmm_path[64];
	char control_path[64];
	uv_loop_t loop;
	struct migrations *migrations;
	struct control *control;
} host;

static void host_start(void)
{
	struct migrations_config config = { .max_vmstate_bytes = 1 << 20 };
	struct error err = ERROR_INIT;

	strcpy(host.dir, "/tmp/fuzz-control-XXXXXX");
	FUZZ_CHECK(mkdtemp(host.dir));
	snprintf(host.vmm_path, sizeof host.vmm_path, "%s/vmm", host.dir);
	snprintf(host.control_path, sizeof host.control_path, "%s/control", host.dir);
	config.vmm_socket = host.vmm_path;
	uv_loop_init(&host.loop);
	FUZZ_CHECK(!migrations_new(&host.loop, &config, &host.migrations, &err));
	FUZZ_CHECK(
	        !control_new(&host.loop, host.control_path, host.migrations, &host.control, &err));
}

static void host_stop(void)
{
	control_close(host.control);
	migrations_stop(host.migrations);
	migrations_close(host.migrations);
	uv_run(&host.loop, UV_RUN_DEFAULT);
	migrations_free(host.migrations);
	FUZZ_CHECK(!uv_loop_close(&host.loop));
	unlink(host.control_path);
	unlink(host.vmm_path);
	rmdir(host.dir);
	host.rounds = 0;
}

static void at_exit(void)
{
	if (host.rounds)
		host_stop();
}

static int dial(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	strcpy(addr.sun_path, host.control_path);
	FUZZ_CHECK(fd >= 0 && !connect(fd, (struct sockaddr *)&addr, sizeof addr));
	return fd;
}

/* What comes must be lines of JSON objects; a last one that is cut is the daemon's right. */
static unsigned int check_answers(char *text, size_t len)
{
	unsigned int n = 0;
	char *end;

	for (; (end = memchr(text, '\n', len)); text = end + 1) {
		struct json_object *o;

		*end = 0;
		len -= (size_t)(end + 1 - text);
		o = json_tokener_parse(text);
		FUZZ_CHECK(json_object_is_type(o, json_type_object));
		json_object_put(o);
		n++;
	}
	return n;
}

/* Return: how many answers came before the daemon hung up. */
static unsigned int talk(const uint8_t *data, size_t size)
{
	static char answers[1u << 20];
	size_t have = 0;
	ssize_t got = -1;
	int fd = dial();

	/* Small enough for the socket's buffer. */
	(void)!send(fd, data, size, MSG_NOSIGNAL);
	shutdown(fd, SHUT_WR);
	for (unsigned int turn = 0; got && turn < TURNS_MAX; turn++) {
		uv_run(&host.loop, UV_RUN_NOWAIT);
		got = recv(fd, answers + have, sizeof answers - 1 - have, 0);
		if (got < 0 && errno != EAGAIN)
			break;
		have += got > 0 ? (size_t)got : 0;
	}
	close(fd);
	return check_answers(answers, have);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char list[] = "{\"method\": \"List\"}\n";
	static bool registered;

	if (size > FUZZ_INPUT_MAX)
		return 0;
	if (!registered)
		registered = !atexit(at_exit);
	if (!host.rounds++)
		host_start();
	talk(data, size);
	if (host.rounds == ROUNDS_PER_HOST) {
		FUZZ_CHECK(talk((const uint8_t *)list, sizeof list - 1) == 1);
		host_stop();
	}
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const lines[] = {
		"{\"method\": \"Prepare\", \"params\": {\"id\": \"vm7\", \"role\": "
		"\"destination\", "
		"\"token\": \"" TOKEN "\", \"source\": \"host:1\", \"streams\": 4, "
		"\"map\": \"eager\", \"bulk\": true, \"prefetch\": false}}\n",
		"{\"method\": \"Prepare\", \"params\": {\"id\": \"vm8\", \"role\": \"source\", "
		"\"token\": \"" TOKEN "\"}}\n",
		"{\"method\": \"Start\", \"params\": {\"id\": \"vm7\", \"switchover\": false}}\n",
		"{\"method\": \"Switchover\", \"params\": {\"id\": \"vm7\"}}\n",
		"{\"method\": \"Get\", \"params\": {\"id\": \"vm7\"}}\n{\"method\": \"List\"}\n",
		"{\"method\": \"Watch\", \"params\": {\"id\": \"vm7\", \"interval_ms\": 50}}\n",
		"{\"method\": \"Report\", \"params\": {\"id\": \"vm7\"}}\n",
		"{\"method\": \"SetLimits\", \"params\": {\"id\": \"vm7\", \"bulk\": false}}\n",
		"{\"method\": \"Cancel\", \"params\": {\"id\": \"vm7\"}}\n",
		"{\"method\": \"List\", \"params\": {}}\n[1, 2]\nnull\n\"x\"\n{}\n",
		"{\"method\": \"\\u0000\\ud83d\\ude00\", \"params\": [[[[[[[[{}]]]]]]]]}\n",
	};

	if (i >= sizeof lines / sizeof *lines)
		return 0;
	memcpy(buf, lines[i], strlen(lines[i]));
	return strlen(lines[i]);
}

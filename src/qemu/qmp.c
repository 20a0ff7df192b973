/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/qmp.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "qemu/json.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/peer.h"

/* "stop" waits for the guest's disks. */
#define ANSWER_MS 60000
#define GREETING_MS 5000
#define MESSAGE_BYTES (1u << 20)

struct qmp {
	int sock;
	pid_t peer;
	unsigned int patience_ms;
	struct qmp_version version;
	struct json_tokener *tokener;
	size_t message_bytes; /* of the one that is not whole yet */
	struct json_object *greeting;
	uint64_t last_id;                              /* of what was sent */
	uint64_t taken_id;                             /* of the last answer that was waited for */
	struct json_object *answers[QMP_TOGETHER_MAX]; /* those between, by id */
	struct qmp_news news;
};

int qmp_fd(const struct qmp *q)
{
	return q->sock;
}

pid_t qmp_peer(const struct qmp *q)
{
	return q->peer;
}

const struct qmp_version *qmp_version(const struct qmp *q)
{
	return &q->version;
}

struct qmp_news *qmp_news(struct qmp *q)
{
	return &q->news;
}

void qmp_set_patience(struct qmp *q, unsigned int ms)
{
	q->patience_ms = ms;
}

struct qmp *qmp_close(struct qmp *q)
{
	if (!q)
		return NULL;
	json_object_put(q->greeting);
	for (size_t i = 0; i < QMP_TOGETHER_MAX; i++)
		json_object_put(q->answers[i]);
	if (q->tokener)
		json_tokener_free(q->tokener);
	close_fd(&q->sock);
	free(q);
	return NULL;
}

static void take_event(struct qmp_news *news, const char *name, struct json_object *data)
{
	if (!strcmp(name, "RESUME")) {
		news->resumed = true;
	} else if (!strcmp(name, "SHUTDOWN")) {
		news->shut_down = true;
		snprintf(news->reason, sizeof news->reason, "%s", json_text(data, "reason"));
	} else if (!strcmp(name, "MIGRATION")) {
		snprintf(news->migration, sizeof news->migration, "%s", json_text(data, "status"));
	}
}

/* @message: taken over. An answer that nobody waits for any more is dropped. */
static void take_message(struct qmp *q, struct json_object *message)
{
	uint64_t id = json_object_get_uint64(json_member(message, "id"));
	const char *event = json_text(message, "event");
	struct json_object **place = NULL;

	if (*event)
		take_event(&q->news, event, json_member(message, "data"));
	else if (json_member(message, "QMP"))
		place = &q->greeting;
	else if (id > q->taken_id && id <= q->last_id)
		place = &q->answers[id % QMP_TOGETHER_MAX];
	if (place && !*place)
		*place = message;
	else
		json_object_put(message);
}

static int take_bytes(struct qmp *q, const char *bytes, size_t len, struct error *err)
{
	while (len) {
		struct json_object *message = json_tokener_parse_ex(q->tokener, bytes, (int)len);
		enum json_tokener_error why = json_tokener_get_error(q->tokener);
		size_t used = json_tokener_get_parse_end(q->tokener);

		if (why == json_tokener_continue) {
			q->message_bytes += len;
			return q->message_bytes > MESSAGE_BYTES
			               ? error_set(err, -EPROTO, "QMP: a message without end")
			               : 0;
		}
		if (why != json_tokener_success)
			return error_set(err, -EPROTO, "QMP: this is no JSON: %s",
			                 json_tokener_error_desc(why));
		q->message_bytes = 0;
		take_message(q, message);
		bytes += used;
		len -= used;
		/* What ends a message, and would be taken for the next one's beginning. */
		while (len && (*bytes == '\r' || *bytes == '\n')) {
			bytes++;
			len--;
		}
	}
	return 0;
}

int qmp_wait(struct qmp *q, int timeout_ms, struct error *err)
{
	struct pollfd pfd = { .fd = q->sock, .events = POLLIN };
	char buf[16384];
	ssize_t n;

	if (poll(&pfd, 1, timeout_ms) <= 0)
		return 0;
	n = recv(q->sock, buf, sizeof buf, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return error_set(err, -ECONNRESET, "QEMU has closed its QMP socket");
	return take_bytes(q, buf, (size_t)n, err);
}

/* @message: where it will be. */
static int await(struct qmp *q, struct json_object *const *message, const char *what,
                 unsigned int timeout_ms, struct error *err)
{
	uint64_t deadline_ns = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;

	while (!*message) {
		uint64_t now_ns = clock_now_ns();
		int rc;

		if (now_ns >= deadline_ns)
			return error_set(err, -ETIMEDOUT, "QEMU has not answered %s for %u s", what,
			                 timeout_ms / 1000);
		rc = qmp_wait(q, (int)((deadline_ns - now_ns) / NSEC_PER_MSEC) + 1, err);
		if (rc)
			return error_prefix(err, "%s", what);
	}
	return 0;
}

static int send_all(struct qmp *q, const char *text, size_t len, int fd, struct error *err)
{
	char control[CMSG_SPACE(sizeof fd)] = { 0 };
	struct iovec iov = { .iov_base = (char *)text, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *c = (struct cmsghdr *)control;

		msg.msg_control = control;
		msg.msg_controllen = sizeof control;
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(c), &fd, sizeof fd);
	}
	while (iov.iov_len) {
		ssize_t n = sendmsg(q->sock, &msg, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(err, errno == EPIPE ? -ECONNRESET : -errno,
			                   "QMP: can't send");
		iov.iov_base = (char *)iov.iov_base + n;
		iov.iov_len -= (size_t)n;
		msg.msg_control = NULL;
		msg.msg_controllen = 0;
	}
	return 0;
}

static int send_command(struct qmp *q, const struct qmp_command *command, struct error *err)
{
	struct json_object *o = json_object_new_object();
	const char *text;
	int rc;

	json_object_object_add(o, "execute", json_object_new_string(command->name));
	if (command->arguments)
		json_object_object_add(o, "arguments", command->arguments);
	json_object_object_add(o, "id", json_object_new_uint64(++q->last_id));
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
	rc = text ? send_all(q, text, strlen(text), command->fd, err)
	          : error_set(err, -ENOMEM, "out of memory");
	json_object_put(o);
	return rc;
}

/* @ret: NULL: not wanted. */
static int take_answer(struct qmp *q, const char *name, struct json_object **ret, struct error *err)
{
	struct json_object **place = &q->answers[(q->taken_id + 1) % QMP_TOGETHER_MAX];
	struct json_object *failure;
	int rc = await(q, place, name, q->patience_ms, err);

	if (rc)
		return rc;
	failure = json_member(*place, "error");
	if (failure)
		rc = error_set(err, -EREMOTEIO, "QEMU refuses %s: %s", name,
		               json_text(failure, "desc"));
	else if (ret)
		*ret = json_object_get(json_member(*place, "return"));
	json_object_put(*place);
	*place = NULL;
	q->taken_id++;
	return rc;
}

int qmp_ask(struct qmp *q, const char *command, struct json_object *arguments, int fd,
            struct json_object **ret, struct error *err)
{
	int rc = send_command(q, &(struct qmp_command){ command, arguments, fd }, err);

	return rc ? rc : take_answer(q, command, ret, err);
}

int qmp_tell_all(struct qmp *q, const struct qmp_command *list, size_t n, struct error *err)
{
	size_t sent = 0;
	int rc = 0;

	while (sent < n && !rc)
		rc = send_command(q, &list[sent++], err);
	for (size_t i = sent; i < n; i++)
		json_object_put(list[i].arguments);
	for (size_t i = 0; i < n && (!rc || rc == -EREMOTEIO); i++) {
		int failed = take_answer(q, list[i].name, NULL, rc ? NULL : err);

		rc = rc ? rc : failed;
	}
	return rc;
}

static int dial(const char *path, int *ret, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int sock = -1;

	if (!*path || strlen(path) >= sizeof addr.sun_path)
		return error_set(err, -EINVAL, "QMP socket path \"%s\": give 1 to %zu bytes", path,
		                 sizeof addr.sun_path - 1);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return error_errno(err, -errno, "can't create a socket");
	if (connect(sock, (struct sockaddr *)&addr, sizeof addr))
		return error_errno(err, -errno, "can't connect to QEMU's QMP socket %s", path);
	*ret = steal_fd(&sock);
	return 0;
}

static int greet(struct qmp *q, const char *path, struct error *err)
{
	struct json_object *version, *numbers;
	int rc = await(q, &q->greeting, "the connection", GREETING_MS, err);

	if (rc == -ETIMEDOUT)
		return error_set(err, rc,
		                 "%s does not greet: another client has this monitor; give QEMU a "
		                 "QMP socket for postcopy-qemu alone",
		                 path);
	if (rc)
		return rc;
	version = json_member(json_member(q->greeting, "QMP"), "version");
	numbers = json_member(version, "qemu");
	if (!numbers)
		return error_set(err, -EPROTO, "%s is no QMP socket", path);
	q->version.major = json_object_get_int(json_member(numbers, "major"));
	q->version.minor = json_object_get_int(json_member(numbers, "minor"));
	q->version.micro = json_object_get_int(json_member(numbers, "micro"));
	snprintf(q->version.package, sizeof q->version.package, "%s",
	         json_text(version, "package"));
	return qmp_tell(q, "qmp_capabilities", err);
}

int qmp_open(const char *path, struct qmp **ret, struct error *err)
{
	_cleanup_(qmp_closep) struct qmp *q = calloc(1, sizeof *q);
	struct ucred cred;
	int rc;

	if (!q)
		return error_set(err, -ENOMEM, "out of memory");
	q->sock = -1;
	q->patience_ms = ANSWER_MS;
	q->tokener = json_tokener_new();
	if (!q->tokener)
		return error_set(err, -ENOMEM, "out of memory");
	rc = dial(path, &q->sock, err);
	if (rc)
		return rc;
	if (!peer_credentials(q->sock, &cred))
		q->peer = cred.pid;
	rc = greet(q, path, err);
	if (!rc)
		*ret = steal_ptr(&q);
	return rc;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/api.h"

#include <curl/curl.h>
#include <errno.h>
#include <json.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/clock.h"

#define BODY_MAX (256u * 1024u)
#define OTHERS_MAX 4u
/* For what Firecracker does at once. */
#define SOON_MS 10000

struct api_call {
	CURLM *multi;
	CURL *easy;
	struct curl_slist *headers;
	char *json, *body;
	size_t body_len;
	CURLcode code;
	bool done;
};
DEFINE_CLEANUP(struct api_call *, api_end);

static size_t take_body(char *data, size_t size, size_t n, void *arg)
{
	struct api_call *call = arg;
	char *body;

	(void)size; /* 1 */
	if (n > BODY_MAX - call->body_len)
		return 0;
	body = realloc(call->body, call->body_len + n + 1);
	if (!body)
		return 0;
	call->body = body;
	memcpy(body + call->body_len, data, n);
	call->body_len += n;
	body[call->body_len] = '\0';
	return n;
}

static bool set_options(struct api_call *call, const char *socket, const char *method,
                        const char *url)
{
	CURL *c = call->easy;

	call->headers = curl_slist_append(NULL, "Content-Type: application/json");
	return call->headers && !curl_easy_setopt(c, CURLOPT_UNIX_SOCKET_PATH, socket) &&
	       !curl_easy_setopt(c, CURLOPT_URL, url) &&
	       !curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method) &&
	       !curl_easy_setopt(c, CURLOPT_HTTPHEADER, call->headers) &&
	       (!call->json || !curl_easy_setopt(c, CURLOPT_POSTFIELDS, call->json)) &&
	       !curl_easy_setopt(c, CURLOPT_NOPROXY, "*") &&
	       !curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L) &&
	       !curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_body) &&
	       !curl_easy_setopt(c, CURLOPT_WRITEDATA, call);
}

int api_begin(const char *socket, const char *method, const char *path, const char *json,
              struct api_call **ret, struct error *err)
{
	_cleanup_(api_end_p) struct api_call *call = calloc(1, sizeof *call);
	char url[256];
	int running;

	snprintf(url, sizeof url, "http://localhost%s", path);
	if (call) {
		call->multi = curl_multi_init();
		call->easy = curl_easy_init();
		call->json = json ? strdup(json) : NULL;
	}
	if (!call || !call->multi || !call->easy || (json && !call->json) ||
	    !set_options(call, socket, method, url) ||
	    curl_multi_add_handle(call->multi, call->easy))
		return error_set(err, -ENOMEM, "%s %s: out of memory", method, path);
	if (curl_multi_perform(call->multi, &running))
		return error_set(err, -EIO, "%s %s: libcurl", method, path);
	*ret = steal_ptr(&call);
	return 0;
}

static void look_at_result(struct api_call *call)
{
	CURLMsg *msg;
	int left;

	while ((msg = curl_multi_info_read(call->multi, &left)))
		if (msg->msg == CURLMSG_DONE) {
			call->code = msg->data.result;
			call->done = true;
		}
}

int api_wait(struct api_call *call, struct pollfd *others, unsigned int n, int timeout_ms,
             bool *ret_done, struct error *err)
{
	struct curl_waitfd fds[OTHERS_MAX];
	int running, n_ready;
	CURLMcode code;

	for (unsigned int i = 0; i < n; i++)
		fds[i] = (struct curl_waitfd){ .fd = others[i].fd, .events = CURL_WAIT_POLLIN };
	look_at_result(call);
	if (!call->done) {
		code = curl_multi_poll(call->multi, fds, n, timeout_ms, &n_ready);
		if (!code)
			code = curl_multi_perform(call->multi, &running);
		if (code)
			return error_set(err, -EIO, "libcurl: %s", curl_multi_strerror(code));
		look_at_result(call);
	}
	for (unsigned int i = 0; i < n; i++)
		others[i].revents = 0;
	if (n && poll(others, n, 0) < 0)
		return error_errno(err, -errno, "poll");
	*ret_done = call->done;
	return 0;
}

/* {"fault_message": "..."} */
static const char *fault_message(json_object *body)
{
	json_object *text;

	return body && json_object_object_get_ex(body, "fault_message", &text)
	               ? json_object_get_string(text)
	               : "without a reason";
}

int api_result(const struct api_call *call, struct error *err)
{
	json_object *body;
	long status = 0;
	int rc;

	if (call->code)
		return error_set(err, -ECONNRESET, "Firecracker's API: %s",
		                 curl_easy_strerror(call->code));
	curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
	if (status >= 200 && status < 300)
		return 0;
	body = call->body ? json_tokener_parse(call->body) : NULL;
	rc = error_set(err, -EREMOTEIO, "Firecracker refuses (%ld): %.200s", status,
	               fault_message(body));
	json_object_put(body);
	return rc;
}

struct api_call *api_end(struct api_call *call)
{
	if (!call)
		return NULL;
	if (call->multi && call->easy)
		curl_multi_remove_handle(call->multi, call->easy);
	curl_easy_cleanup(call->easy);
	curl_multi_cleanup(call->multi);
	curl_slist_free_all(call->headers);
	free(call->json);
	free(call->body);
	free(call);
	return NULL;
}

/* Return: as api_do(), and 0 with the answer's body, which is the caller's. */
static int ask(const char *socket, const char *method, const char *path, const char *json,
               int timeout_ms, char **ret_body, struct error *err)
{
	uint64_t until_ns = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC, now_ns;
	_cleanup_(api_end_p) struct api_call *call = NULL;
	bool done = false;
	int rc = api_begin(socket, method, path, json, &call, err);

	while (!rc && !done && (now_ns = clock_now_ns()) < until_ns)
		rc = api_wait(call, NULL, 0, (int)((until_ns - now_ns) / NSEC_PER_MSEC) + 1, &done,
		              err);
	if (!rc && !done)
		rc = error_set(err, -ETIMEDOUT, "no answer for %d ms", timeout_ms);
	if (!rc)
		rc = api_result(call, err);
	if (rc)
		return error_prefix(err, "%s %s", method, path);
	if (ret_body)
		*ret_body = steal_ptr(&call->body);
	return 0;
}

int api_do(const char *socket, const char *method, const char *path, const char *json,
           int timeout_ms, struct error *err)
{
	return ask(socket, method, path, json, timeout_ms, NULL, err);
}

/* The body of an answer as an object, the caller's. */
static int ask_object(const char *socket, const char *path, int timeout_ms, json_object **ret,
                      struct error *err)
{
	_cleanup_free_ char *body = NULL;
	int rc = ask(socket, "GET", path, NULL, timeout_ms, &body, err);

	if (rc)
		return rc;
	*ret = body ? json_tokener_parse(body) : NULL;
	return *ret ? 0 : error_set(err, -EPROTO, "GET %s: the answer is no JSON", path);
}

int api_get_state(const char *socket, int timeout_ms, enum api_state *ret, struct error *err)
{
	static const char *const names[] = { [API_NOT_STARTED] = "Not started",
		                             [API_RUNNING] = "Running",
		                             [API_PAUSED] = "Paused" };
	json_object *info, *state = NULL;
	int rc = ask_object(socket, "/", timeout_ms, &info, err);

	if (rc)
		return rc;
	rc = -EPROTO;
	if (json_object_object_get_ex(info, "state", &state))
		for (unsigned int i = 0; i < sizeof names / sizeof *names; i++)
			if (!strcmp(json_object_get_string(state), names[i])) {
				*ret = (enum api_state)i;
				rc = 0;
			}
	if (rc)
		error_set(err, rc, "GET /: state \"%.40s\" is not known",
		          state ? json_object_get_string(state) : "");
	json_object_put(info);
	return rc;
}

int api_set_state(const char *socket, const char *state, struct error *err)
{
	char json[64];

	snprintf(json, sizeof json, "{\"state\": \"%s\"}", state);
	return api_do(socket, "PATCH", "/vm", json, SOON_MS, err);
}

/* A number of MiB in an object of the configuration; 0 where it is not there. */
static uint64_t get_mib(json_object *config, const char *object, const char *key)
{
	json_object *o, *value;

	if (!json_object_object_get_ex(config, object, &o) ||
	    !json_object_object_get_ex(o, key, &value))
		return 0;
	return (uint64_t)json_object_get_int64(value);
}

int api_get_memory_bytes(const char *socket, uint64_t *ret, struct error *err)
{
	json_object *config;
	uint64_t mib;
	int rc = ask_object(socket, "/vm/config", SOON_MS, &config, err);

	if (rc)
		return rc;
	mib = get_mib(config, "machine-config", "mem_size_mib");
	/* virtio-mem: its whole region is in the memory file, plugged or not. */
	mib += get_mib(config, "memory-hotplug", "total_size_mib");
	json_object_put(config);
	if (!mib || mib > UINT32_MAX)
		return error_set(err, -EPROTO, "GET /vm/config: it tells no memory size");
	*ret = mib << 20;
	return 0;
}

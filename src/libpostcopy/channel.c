/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VMM's end of a fetch channel (fetch_wire.h).
 *
 * Requests carry numbers of our own as their tags, so that the caller's tags may be anything,
 * and so that a late answer to a fetch that was given up is known for what it is.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "libpostcopy/fetch_wire.h"
#include "libpostcopy/internal.h"
#include "util/cleanup.h"
#include "util/clock.h"

_Static_assert(POSTCOPY_FETCH_MAX == FETCH_LEN_MAX, "the header tells the limit as it is");

#define FETCH_ALIGN 4096u

enum ask_state {
	ASK_FREE,
	ASK_SENT,      /* for postcopy_channel_next() */
	ASK_ANSWERED,  /* the same, and its answer is here */
	ASK_FETCHING,  /* a fetch waits for it */
	ASK_FETCHED,   /* and its answer is here */
	ASK_ABANDONED, /* a fetch has waited for it, and may again */
};

struct ask {
	enum ask_state state;
	int result;
	uint64_t number;
	uint64_t tag; /* the caller's */
	uint64_t guest_phys_addr;
	uint64_t len;
	bool discard;
};

struct postcopy_channel {
	int sock;
	bool all_present;
	bool asked_again; /* so answers may come twice */
	uint64_t last_number;
	struct ask asks[POSTCOPY_ASKS_MAX];
};

static int open_channel(struct postcopy *p, struct postcopy_channel **ret, struct error *err)
{
	_cleanup_free_ struct postcopy_channel *ch = calloc(1, sizeof *ch);
	_cleanup_close_ int ours = -1, theirs = -1;
	int pair[2], rc;

	if (!ch)
		return error_set(err, -ENOMEM, "out of memory");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return error_errno(err, -errno, "can't create a fetch channel");
	ours = pair[0];
	theirs = pair[1];
	rc = give_channel(p, theirs, err);
	if (rc < 0)
		return rc;
	ch->all_present = rc;
	ch->sock = steal_fd(&ours);
	*ret = steal_ptr(&ch);
	return 0;
}

int postcopy_channel_open(struct postcopy *p, struct postcopy_channel **ret,
                          struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, open_channel(p, ret, &e), &e);
}

static int daemon_gone(struct error *err)
{
	return error_set(err, -EPIPE,
	                 "postcopyd has closed the fetch channel: it has ended, the migration has "
	                 "failed, or it serves no more channels");
}

static struct ask *find_ask(struct postcopy_channel *ch, uint64_t number)
{
	for (unsigned int i = 0; i < POSTCOPY_ASKS_MAX; i++)
		if (ch->asks[i].state != ASK_FREE && ch->asks[i].number == number)
			return &ch->asks[i];
	return NULL;
}

/* Everything is there, and with it what was asked. */
static void take_all(struct postcopy_channel *ch)
{
	ch->all_present = true;
	for (unsigned int i = 0; i < POSTCOPY_ASKS_MAX; i++) {
		struct ask *a = &ch->asks[i];

		if (a->state == ASK_SENT)
			a->state = ASK_ANSWERED;
		else if (a->state == ASK_FETCHING)
			a->state = ASK_FETCHED;
		else if (a->state == ASK_ABANDONED)
			a->state = ASK_FREE;
	}
}

static int send_request(struct postcopy_channel *ch, const struct ask *a, struct error *err);

static int ask_again(struct postcopy_channel *ch, struct error *err)
{
	int rc = 0;

	ch->asked_again = true;
	for (unsigned int i = 0; i < POSTCOPY_ASKS_MAX && !rc; i++) {
		enum ask_state state = ch->asks[i].state;

		if (state == ASK_SENT || state == ASK_FETCHING || state == ASK_ABANDONED)
			rc = send_request(ch, &ch->asks[i], err);
	}
	return rc;
}

static int take_answer(struct postcopy_channel *ch, const struct fetch_answer *answer,
                       struct error *err)
{
	struct ask *a;

	if (answer->tag == FETCH_TAG_ALL) {
		take_all(ch);
		return 0;
	}
	if (answer->tag == FETCH_TAG_AGAIN)
		return ask_again(ch, err);
	a = find_ask(ch, answer->tag);
	if (ch->asked_again && answer->tag <= ch->last_number &&
	    (!a || a->state == ASK_ANSWERED || a->state == ASK_FETCHED))
		return 0;
	if (!a || a->state == ASK_ANSWERED || a->state == ASK_FETCHED ||
	    (answer->code && answer->code != EINVAL && answer->code != EHWPOISON))
		return error_set(err, -EPIPE,
		                 "postcopyd answers a fetch that nobody waits for, or by an "
		                 "impossible error; the channel is of no more use");
	a->result = -(int)answer->code;
	if (a->state == ASK_ABANDONED)
		a->state = ASK_FREE;
	else
		a->state = a->state == ASK_SENT ? ASK_ANSWERED : ASK_FETCHED;
	return 0;
}

/* Wait for one answer and note it. Return: 0, -ETIMEDOUT (without @err), -EPIPE or -errno. */
static int receive_answer(struct postcopy_channel *ch, uint64_t deadline_ns, struct error *err)
{
	uint8_t buf[FETCH_ANSWER_BYTES + 1];
	struct fetch_answer answer;
	ssize_t n;

	do {
		int rc = wait_readable(ch->sock, deadline_ns);

		if (rc == -ETIMEDOUT)
			return rc;
		if (rc)
			return error_errno(err, rc, "fetch channel");
		n = recv(ch->sock, buf, sizeof buf, MSG_DONTWAIT);
		/* ECONNRESET comes ahead of what was sent before the other end closed. */
	} while (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET));
	if (n < 0)
		return error_errno(err, -errno, "can't receive from the fetch channel");
	if (!n)
		return daemon_gone(err);
	if (!fetch_answer_decode(buf, (size_t)n, &answer))
		return error_set(err, -EPIPE, "postcopyd sent %zd bytes that are no answer", n);
	return take_answer(ch, &answer, err);
}

static int check_range(uint64_t guest_phys_addr, uint64_t len, struct error *err)
{
	if (!len || len > FETCH_LEN_MAX || (guest_phys_addr | len) % FETCH_ALIGN)
		return error_set(err, -EINVAL,
		                 "can't fetch %#llx bytes at %#llx: give multiples of %u, and 1 to "
		                 "%u pages",
		                 (unsigned long long)len, (unsigned long long)guest_phys_addr,
		                 FETCH_ALIGN, FETCH_LEN_MAX / FETCH_ALIGN);
	return 0;
}

/*
 * An other end that is closed is no failure yet: its last word, that all is present, may wait
 * to be read.
 */
static int send_request(struct postcopy_channel *ch, const struct ask *a, struct error *err)
{
	struct fetch_request q = { .tag = a->number,
		                   .guest_phys_addr = a->guest_phys_addr,
		                   .len = a->len,
		                   .discard = a->discard };
	uint8_t buf[FETCH_REQUEST_BYTES_MAX];
	size_t len = fetch_request_encode(&q, buf);
	ssize_t n;

	do
		n = send(ch->sock, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0 || errno == EPIPE || errno == ECONNRESET)
		return 0;
	return error_errno(err, errno == EWOULDBLOCK ? -EAGAIN : -errno,
	                   "can't send to the fetch channel");
}

/* Return: 0 with the request sent, or -EAGAIN, -errno. */
static int new_ask(struct postcopy_channel *ch, const struct ask *what, struct ask **ret,
                   struct error *err)
{
	for (unsigned int i = 0; i < POSTCOPY_ASKS_MAX; i++) {
		struct ask *a = &ch->asks[i];
		int rc;

		if (a->state != ASK_FREE)
			continue;
		*a = *what;
		a->number = ++ch->last_number;
		rc = ch->all_present ? 0 : send_request(ch, a, err);
		if (rc) {
			a->state = ASK_FREE;
			return rc;
		}
		*ret = a;
		return 0;
	}
	return error_set(err, -EAGAIN, "%d requests of this channel wait for their answer",
	                 POSTCOPY_ASKS_MAX);
}

/* The same request, that was given up, to wait on; or NULL. */
static struct ask *find_abandoned(struct postcopy_channel *ch, const struct ask *what)
{
	for (unsigned int i = 0; i < POSTCOPY_ASKS_MAX; i++) {
		struct ask *a = &ch->asks[i];

		if (a->state == ASK_ABANDONED && a->guest_phys_addr == what->guest_phys_addr &&
		    a->len == what->len && a->discard == what->discard)
			return a;
	}
	return NULL;
}

static uint64_t deadline_of(int timeout_ms)
{
	return timeout_ms < 0 ? UINT64_MAX : clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
}

/* @what as it was asked, with the daemon's @result. */
static int refused_range(const struct ask *what, int result, struct error *err)
{
	if (result == -EHWPOISON)
		return error_set(err, result,
		                 "some of the %#llx bytes at %#llx are lost: the source can't read "
		                 "them",
		                 (unsigned long long)what->len,
		                 (unsigned long long)what->guest_phys_addr);
	return error_set(err, -EINVAL, "can't %s %#llx bytes at %#llx: not within one region",
	                 what->discard ? "discard" : "fetch", (unsigned long long)what->len,
	                 (unsigned long long)what->guest_phys_addr);
}

/* Ask, and wait for the answer. */
static int ask_and_wait(struct postcopy_channel *ch, const struct ask *what, uint64_t deadline_ns,
                        struct error *err)
{
	struct ask *a = find_abandoned(ch, what);
	int rc = 0;

	if (ch->all_present)
		return 0;
	if (a)
		a->state = ASK_FETCHING;
	else
		rc = new_ask(ch, what, &a, err);
	if (rc)
		return rc;
	while (!rc && a->state == ASK_FETCHING)
		rc = receive_answer(ch, deadline_ns, err);
	if (rc) {
		a->state = ASK_ABANDONED;
		if (rc == -ETIMEDOUT)
			error_set(err, rc, "the pages at %#llx are not here in time",
			          (unsigned long long)what->guest_phys_addr);
		return rc;
	}
	a->state = ASK_FREE;
	return a->result ? refused_range(what, a->result, err) : 0;
}

static int fetch(struct postcopy_channel *ch, uint64_t guest_phys_addr, uint64_t len,
                 int timeout_ms, struct error *err)
{
	struct ask what = { .state = ASK_FETCHING, .guest_phys_addr = guest_phys_addr, .len = len };
	int rc = check_range(guest_phys_addr, len, err);

	return rc ? rc : ask_and_wait(ch, &what, deadline_of(timeout_ms), err);
}

int postcopy_channel_fetch(struct postcopy_channel *ch, uint64_t guest_phys_addr, uint64_t len,
                           int timeout_ms, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, fetch(ch, guest_phys_addr, len, timeout_ms, &e), &e);
}

static int ask(struct postcopy_channel *ch, uint64_t guest_phys_addr, uint64_t len, uint64_t tag,
               struct error *err)
{
	struct ask what = {
		.state = ASK_SENT, .tag = tag, .guest_phys_addr = guest_phys_addr, .len = len
	};
	struct ask *a = NULL;
	int rc = check_range(guest_phys_addr, len, err);

	if (!rc)
		rc = new_ask(ch, &what, &a, err);
	if (!rc && ch->all_present)
		a->state = ASK_ANSWERED;
	return rc;
}

static int discard(struct postcopy_channel *ch, uint64_t guest_phys_addr, uint64_t len,
                   int timeout_ms, struct error *err)
{
	uint64_t deadline_ns = deadline_of(timeout_ms);
	int rc = 0;

	if (!len || (guest_phys_addr | len) % FETCH_ALIGN)
		return error_set(
		        err, -EINVAL, "can't discard %#llx bytes at %#llx: give multiples of %u",
		        (unsigned long long)len, (unsigned long long)guest_phys_addr, FETCH_ALIGN);
	while (len && !rc) {
		struct ask what = { .state = ASK_FETCHING,
			            .guest_phys_addr = guest_phys_addr,
			            .len = len < FETCH_LEN_MAX ? len : FETCH_LEN_MAX,
			            .discard = true };

		rc = ask_and_wait(ch, &what, deadline_ns, err);
		guest_phys_addr += what.len;
		len -= what.len;
	}
	return rc;
}

int postcopy_discard(struct postcopy_channel *ch, uint64_t guest_phys_addr, uint64_t len,
                     int timeout_ms, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, discard(ch, guest_phys_addr, len, timeout_ms, &e), &e);
}

int postcopy_channel_ask(struct postcopy_channel *ch, uint64_t guest_phys_addr, uint64_t len,
                         uint64_t tag, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, ask(ch, guest_phys_addr, len, tag, &e), &e);
}

/* Return: one in that state, or NULL. */
static struct ask *find_state(struct postcopy_channel *ch, enum ask_state state)
{
	for (unsigned int i = 0; i < POSTCOPY_ASKS_MAX; i++)
		if (ch->asks[i].state == state)
			return &ch->asks[i];
	return NULL;
}

static int next(struct postcopy_channel *ch, int timeout_ms, uint64_t *ret_tag, int *ret_result,
                struct error *err)
{
	uint64_t deadline_ns = deadline_of(timeout_ms);
	struct ask *a;
	int rc = 0;

	while (!(a = find_state(ch, ASK_ANSWERED)) && !rc) {
		if (!find_state(ch, ASK_SENT))
			return error_set(err, -ENOENT, "nothing is asked on this channel");
		rc = receive_answer(ch, deadline_ns, err);
	}
	if (rc == -ETIMEDOUT)
		return error_set(err, rc, "no answer within %d ms", timeout_ms);
	if (rc)
		return rc;
	*ret_tag = a->tag;
	*ret_result = a->result;
	a->state = ASK_FREE;
	return 0;
}

int postcopy_channel_next(struct postcopy_channel *ch, int timeout_ms, uint64_t *ret_tag,
                          int *ret_result, struct postcopy_error *err)
{
	struct error e = ERROR_INIT;

	return report_error(err, next(ch, timeout_ms, ret_tag, ret_result, &e), &e);
}

int postcopy_channel_fd(const struct postcopy_channel *ch)
{
	return ch->sock;
}

struct postcopy_channel *postcopy_channel_close(struct postcopy_channel *ch)
{
	if (!ch)
		return NULL;
	close_fd(&ch->sock);
	free(ch);
	return NULL;
}

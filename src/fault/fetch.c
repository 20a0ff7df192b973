/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/fetch.h"

#include <errno.h>
#include <sys/socket.h>

#include "fault/resolver.h"
#include "libpostcopy/fetch_wire.h"
#include "util/cleanup.h"

int fetch_table_add_channel(struct fetch_table *t, int fd)
{
	for (unsigned int i = 0; i < t->n_channels; i++)
		if (t->channels[i] < 0) {
			t->channels[i] = fd;
			return 0;
		}
	if (t->n_channels == FETCH_CHANNELS_MAX) {
		close(fd);
		return -EMFILE;
	}
	t->channels[t->n_channels++] = fd;
	return 0;
}

static void remove_fetch(struct fetch_table *t, unsigned int i)
{
	t->fetches[i] = t->fetches[--t->n];
}

static void drop_channel(struct fetch_table *t, unsigned int channel)
{
	close_fd(&t->channels[channel]);
	for (unsigned int i = 0; i < t->n;) {
		if (t->fetches[i].channel == channel)
			remove_fetch(t, i);
		else
			i++;
	}
}

/* A VMM that does not read its answers has no more than it deserves: it is cut off. */
static void answer(struct fetch_table *t, unsigned int channel, uint64_t tag, int code)
{
	struct fetch_answer a = { .tag = tag, .code = (uint32_t)code };
	uint8_t buf[FETCH_ANSWER_BYTES];

	fetch_answer_encode(&a, buf);
	if (send(t->channels[channel], buf, sizeof buf, MSG_DONTWAIT | MSG_NOSIGNAL) !=
	    (ssize_t)sizeof buf)
		drop_channel(t, channel);
}

/* Return: 0 with the range in units, or EINVAL. */
static int locate(const struct region_table *regions, const struct fetch_request *q,
                  struct fetch *ret)
{
	for (uint32_t i = 0; i < regions->n; i++) {
		const struct region *r = &regions->regions[i];
		uint64_t offset = q->guest_phys_addr - r->guest_phys_addr;
		uint64_t first, per_page = region_units_per_page(r);

		if (q->guest_phys_addr < r->guest_phys_addr || offset >= r->size)
			continue;
		if (!q->len || (q->len > FETCH_LEN_MAX && !q->hot) || q->len > r->size - offset ||
		    (q->len | offset) % UNIT_BYTES)
			return EINVAL;
		first = offset >> UNIT_SHIFT;
		ret->region = i;
		ret->discard = q->discard;
		/* A page is mapped whole, but may be discarded in part. */
		ret->present_to = ret->faulted_to = first - (q->discard ? 0 : first % per_page);
		ret->end = first + (q->len >> UNIT_SHIFT);
		if (q->hot && ret->end % per_page)
			ret->end += per_page - ret->end % per_page;
		return 0;
	}
	return EINVAL;
}

void fetch_table_read(struct fetch_table *t, unsigned int channel,
                      const struct region_table *regions)
{
	/* What leaves the table as it was may come for ever: others have their turn meanwhile. */
	for (unsigned int i = 0;
	     i < FETCHES_MAX && t->channels[channel] >= 0 && fetch_table_has_room(t); i++) {
		struct fetch *f = &t->fetches[t->n];
		uint8_t buf[FETCH_REQUEST_BYTES_MAX + 1];
		struct fetch_request q;
		ssize_t len = recv(t->channels[channel], buf, sizeof buf, MSG_DONTWAIT);

		if (len < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (len <= 0 || !fetch_request_decode(buf, (size_t)len, &q)) {
			drop_channel(t, channel);
			return;
		}
		if (locate(regions, &q, f)) {
			if (!q.hot)
				answer(t, channel, q.tag, EINVAL);
			continue;
		}
		if (q.hot) {
			if (t->scheduler)
				scheduler_add_hot(t->scheduler, f->region, f->present_to,
				                  f->end - f->present_to);
			continue;
		}
		f->channel = channel;
		f->poisoned = false;
		f->tag = q.tag;
		t->n++;
	}
}

/* Where all of the guest's faults come this way, they are no guesses: they have the whole table. */
static void fault_missing(const struct fetch_table *t, struct fetch *f, uint64_t per_page,
                          bool asked, const struct page_state *state, struct fault_table *faults,
                          uint64_t now_ns)
{
	while (f->faulted_to < f->end &&
	       !(asked ? fault_table_full(faults) : fault_table_fetched_full(faults))) {
		uint64_t unit = f->faulted_to;
		struct fault *fault;
		int elsewhere = 0;

		if (page_state_page_present(state, f->region, unit) ||
		    fault_table_find(faults, f->region, unit)) {
			f->faulted_to += per_page;
			continue;
		}
		if (t->elsewhere)
			elsewhere = t->elsewhere(t->arg, f->region, unit);
		if (elsewhere < 0)
			return;
		f->faulted_to += per_page;
		if (elsewhere)
			continue;
		fault = fault_table_add(faults, f->region, unit, asked ? 0 : FAULT_FETCHED);
		fault->record.read_ns = now_ns;
	}
}

static bool is_present(const struct page_state *state, const struct fetch *f, uint64_t unit)
{
	if (!f->discard)
		return page_state_page_present(state, f->region, unit);
	return page_state_present(state, f->region, unit / WORD_UNITS) >> unit % WORD_UNITS & 1;
}

uint64_t fetch_table_serve(struct fetch_table *t, const struct region_table *regions,
                           struct page_state *state, struct fault_table *faults, uint64_t now_ns)
{
	bool asked = region_table_is_asked(regions);
	uint64_t discarded = 0;

	for (unsigned int i = 0; i < t->n;) {
		struct fetch *f = &t->fetches[i];
		uint64_t per_page =
		        f->discard ? 1 : region_units_per_page(&regions->regions[f->region]);

		if (f->discard)
			discarded += resolver_discard_units(state, f->region, f->present_to, f->end,
			                                    false);
		else
			fault_missing(t, f, per_page, asked, state, faults, now_ns);
		while (f->present_to < f->end && is_present(state, f, f->present_to)) {
			f->poisoned |= !f->discard &&
			               page_state_page_poisoned(state, f->region, f->present_to);
			f->present_to += per_page;
		}
		if (f->present_to < f->end) {
			i++;
			continue;
		}
		/* Out of the table first: a failed answer drops all of the channel's. */
		unsigned int channel = f->channel;
		uint64_t tag = f->tag;
		int code = f->poisoned ? EHWPOISON : 0;

		remove_fetch(t, i);
		answer(t, channel, tag, code);
	}
	return discarded;
}

void fetch_table_fault_anew(struct fetch_table *t)
{
	for (unsigned int i = 0; i < t->n; i++)
		t->fetches[i].faulted_to = t->fetches[i].present_to;
}

void fetch_table_lose(struct fetch_table *t, uint32_t region, uint64_t unit)
{
	for (unsigned int i = 0; i < t->n;) {
		struct fetch *f = &t->fetches[i];
		unsigned int channel = f->channel;
		uint64_t tag = f->tag;

		if (f->discard || f->region != region || unit < f->present_to || unit >= f->end) {
			i++;
			continue;
		}
		remove_fetch(t, i);
		answer(t, channel, tag, EHWPOISON);
	}
}

static void say(int fd, uint64_t tag)
{
	struct fetch_answer a = { .tag = tag };
	uint8_t buf[FETCH_ANSWER_BYTES];

	fetch_answer_encode(&a, buf);
	/* Who is gone, or reads nothing, needs no answer. */
	(void)!send(fd, buf, sizeof buf, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void fetch_channel_ask_again(int fd)
{
	say(fd, FETCH_TAG_AGAIN);
}

void fetch_channel_finish(int fd)
{
	say(fd, FETCH_TAG_ALL);
	close(fd);
}

void fetch_table_finish(struct fetch_table *t)
{
	for (unsigned int i = 0; i < t->n_channels; i++)
		if (t->channels[i] >= 0) {
			fetch_channel_finish(t->channels[i]);
			t->channels[i] = -1;
		}
	fetch_table_close(t);
}

void fetch_table_close(struct fetch_table *t)
{
	for (unsigned int i = 0; i < t->n_channels; i++)
		close_fd(&t->channels[i]);
	t->n_channels = 0;
	t->n = 0;
}

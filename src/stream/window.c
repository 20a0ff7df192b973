/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/window.h"

#include <errno.h>

unsigned int window_wanted(uint64_t bytes, uint64_t ns, uint64_t rtt_us)
{
	uint64_t on_its_way = bytes * rtt_us / (ns / 1000 + 1);
	uint64_t wanted = 2 * on_its_way / (WORD_UNITS * (uint64_t)UNIT_BYTES);

	if (wanted < WINDOW_BULK)
		return WINDOW_BULK;
	return wanted < WINDOW_MAX ? (unsigned int)wanted : WINDOW_MAX;
}

size_t window_ask(struct window *w, const struct scheduler_item *item, void *buf)
{
	struct frame_get get = {
		.region = item->region,
		.first_unit = item->word * WORD_UNITS,
		.want_mask = item->want_mask,
	};

	w->items[(w->head + w->n++) % WINDOW_MAX] = *item;
	return frame_get_encode(&get, w->next_id++, buf);
}

int window_answer(struct window *w, const struct frame_header *h, const void *payload,
                  struct frame_pages *ret_pages, struct scheduler_item *ret_item, struct error *err)
{
	const struct scheduler_item *asked = &w->items[w->head];
	int rc;

	if (h->type == FRAME_ERROR)
		return frame_error_decode(h, payload, err);
	if (h->type != FRAME_PAGES)
		return error_set(err, -EPROTO, "frame of type %u where PAGES must come", h->type);
	if (!w->n)
		return error_set(err, -EPROTO, "PAGES that nobody asked for");
	rc = frame_pages_decode(h, payload, ret_pages, err);
	if (rc)
		return rc;
	if (h->request_id != w->next_id - w->n || ret_pages->region != asked->region ||
	    ret_pages->first_unit != asked->word * WORD_UNITS ||
	    (ret_pages->data_mask | ret_pages->zero_mask | ret_pages->error_mask) !=
	            asked->want_mask)
		return error_set(err, -EPROTO,
		                 "PAGES for request %llu (region %u, unit %llu) are not what "
		                 "request %llu (region %u, unit %llu) asked for",
		                 (unsigned long long)h->request_id, ret_pages->region,
		                 (unsigned long long)ret_pages->first_unit,
		                 (unsigned long long)(w->next_id - w->n), asked->region,
		                 (unsigned long long)(asked->word * WORD_UNITS));
	return window_drop(w, ret_item) ? 0 : -EPROTO;
}

bool window_drop(struct window *w, struct scheduler_item *ret_item)
{
	if (!w->n)
		return false;
	*ret_item = w->items[w->head];
	w->head = (w->head + 1) % WINDOW_MAX;
	w->n--;
	return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What a page server's connections do with a page_source; inside of the stream subsystem. */
#ifndef STREAM_PAGE_SOURCE_H
#define STREAM_PAGE_SOURCE_H

#include "stream/page_server.h"

struct page_source *page_source_ref(struct page_source *s);
const char *page_source_id(const struct page_source *s);

/*
 * page_source_open() - may this HELLO's sender in?
 *
 * Return: 0 with the reply filled in; with @err set: -EACCES; -EINVAL; -ESTALE, another attachment
 * is meant; -EBUSY, somebody else holds it; -ECANCELED, -ESHUTDOWN, it has ended.
 */
int page_source_open(struct page_source *s, const struct hello *hello, struct hello_reply *reply,
                     struct error *err);

/* Serve one connection, which @hello has opened, until it ends. Return: why it did, @err set. */
int page_source_serve(struct page_source *s, struct conn *c, const struct hello *hello,
                      struct error *err);

#endif

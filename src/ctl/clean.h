/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon says goes to a terminal, sooner or later, and is not believed to be harmless there:
 * an id, a reason or a peer's name may have come from anybody. So every answer is cleaned once,
 * where it comes in (client.c), and nobody after that has to think of it.
 */
#ifndef CTL_CLEAN_H
#define CTL_CLEAN_H

#include <protobuf-c/protobuf-c.h>

/*
 * text_clean() - what a terminal may be given
 *
 * Control characters (C0, C1, DEL: escape sequences begin with one), those that change the order or
 * the line of what follows, and bytes that are no UTF-8 become '?'; newlines and tabs a space.
 */
void text_clean(char *text);

/*
 * message_clean() - all strings in @m, at any depth
 *
 * But for page tokens, which are the daemon's own and only go back to it.
 */
void message_clean(ProtobufCMessage *m);

#endif

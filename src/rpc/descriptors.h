/* SPDX-License-Identifier: Apache-2.0 */
/* The .proto files this daemon speaks, described by themselves: what reflection tells. */
#ifndef RPC_DESCRIPTORS_H
#define RPC_DESCRIPTORS_H

#include <stdint.h>

#include "google/protobuf/descriptor.pb-c.h"
#include "util/error.h"

#define DESCRIPTORS_FILES_MAX 64

struct descriptors {
	Google__Protobuf__FileDescriptorSet *set; /* each file after those that it imports */
	ProtobufCBinaryData bytes[DESCRIPTORS_FILES_MAX]; /* each file encoded; never freed */
};

/* Return: 0, or -ENOMEM with @err set. */
int descriptors_init(struct descriptors *d, struct error *err);
void descriptors_deinit(struct descriptors *d);

/*
 * descriptors_file(), _symbol() - the file of that name; the file that declares a service, method,
 * message, field, enum or value by that full name
 *
 * Return: its index in the set; -ENOENT.
 */
int descriptors_file(const struct descriptors *d, const char *name);
int descriptors_symbol(const struct descriptors *d, const char *name);

/* Files that @file needs, itself included: a bit for each index. */
uint64_t descriptors_closure(const struct descriptors *d, int file);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/descriptors.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* descriptors_blob.S: a FileDescriptorSet. */
extern const uint8_t control_desc[], control_desc_end[];

/* One length-delimited field of our own blob. Return: what follows it. */
static const uint8_t *take_file(const uint8_t *at, ProtobufCBinaryData *ret)
{
	size_t len = 0;
	unsigned int shift = 0;

	do {
		at++;
		len |= (size_t)(*at & 0x7f) << shift;
		shift += 7;
	} while (*at & 0x80);
	*ret = (ProtobufCBinaryData){ .len = len, .data = (uint8_t *)at + 1 };
	return at + 1 + len;
}

int descriptors_init(struct descriptors *d, struct error *err)
{
	const uint8_t *at = control_desc;

	d->set = google__protobuf__file_descriptor_set__unpack(
	        NULL, (size_t)(control_desc_end - control_desc), control_desc);
	if (!d->set || d->set->n_file > DESCRIPTORS_FILES_MAX)
		return error_set(err, -ENOMEM, "the services' descriptors: out of memory");
	/* The set is nothing but its files: what is told of them need not be encoded again. */
	for (size_t i = 0; i < d->set->n_file; i++)
		at = take_file(at, &d->bytes[i]);
	return 0;
}

void descriptors_deinit(struct descriptors *d)
{
	if (d->set)
		google__protobuf__file_descriptor_set__free_unpacked(d->set, NULL);
	d->set = NULL;
}

int descriptors_file(const struct descriptors *d, const char *name)
{
	for (size_t i = 0; i < d->set->n_file; i++)
		if (!strcmp(d->set->file[i]->name, name))
			return (int)i;
	return -ENOENT;
}

/* What follows "@scope." in @name; NULL where it does not begin so. */
static const char *below(const char *name, const char *scope)
{
	size_t len = strlen(scope);

	return !strncmp(name, scope, len) && name[len] == '.' ? name + len + 1 : NULL;
}

static bool enum_declares(const Google__Protobuf__EnumDescriptorProto *e, const char *name)
{
	if (!strcmp(e->name, name))
		return true;
	/* A value belongs to the scope that its enum is in. */
	for (size_t i = 0; i < e->n_value; i++)
		if (!strcmp(e->value[i]->name, name))
			return true;
	return false;
}

static bool message_declares(const Google__Protobuf__DescriptorProto *m, const char *name)
{
	const char *member = below(name, m->name);

	if (!strcmp(m->name, name))
		return true;
	if (!member)
		return false;
	for (size_t i = 0; i < m->n_field; i++)
		if (!strcmp(m->field[i]->name, member))
			return true;
	for (size_t i = 0; i < m->n_enum_type; i++)
		if (enum_declares(m->enum_type[i], member))
			return true;
	for (size_t i = 0; i < m->n_nested_type; i++)
		if (message_declares(m->nested_type[i], member))
			return true;
	return false;
}

static bool service_declares(const Google__Protobuf__ServiceDescriptorProto *s, const char *name)
{
	const char *method = below(name, s->name);

	for (size_t i = 0; method && i < s->n_method; i++)
		if (!strcmp(s->method[i]->name, method))
			return true;
	return !strcmp(s->name, name);
}

static bool file_declares(const Google__Protobuf__FileDescriptorProto *f, const char *name)
{
	name = below(name, f->package);
	if (!name)
		return false;
	for (size_t i = 0; i < f->n_service; i++)
		if (service_declares(f->service[i], name))
			return true;
	for (size_t i = 0; i < f->n_message_type; i++)
		if (message_declares(f->message_type[i], name))
			return true;
	for (size_t i = 0; i < f->n_enum_type; i++)
		if (enum_declares(f->enum_type[i], name))
			return true;
	return false;
}

int descriptors_symbol(const struct descriptors *d, const char *name)
{
	for (size_t i = 0; i < d->set->n_file; i++)
		if (file_declares(d->set->file[i], name))
			return (int)i;
	return -ENOENT;
}

uint64_t descriptors_closure(const struct descriptors *d, int file)
{
	uint64_t needed = 1ull << file;

	/* Imports come before who imports them: one pass from the end finds all. */
	for (int i = file; i >= 0; i--) {
		const Google__Protobuf__FileDescriptorProto *f = d->set->file[i];

		for (size_t j = 0; needed & 1ull << i && j < f->n_dependency; j++) {
			int import = descriptors_file(d, f->dependency[j]);

			if (import >= 0)
				needed |= 1ull << import;
		}
	}
	return needed;
}

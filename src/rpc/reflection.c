/* SPDX-License-Identifier: Apache-2.0 */
/* grpc.reflection.v1 and v1alpha: the same messages under two names. */
#include <errno.h>

#include "grpc/reflection/v1/reflection.pb-c.h"
#include "rpc/methods.h"

/* Who asks on without reading the answers is cut off beyond this. */
#define QUEUE_MAX_BYTES (1u << 20)

#define ASKED(what) GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##what
#define ANSWER(what) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##what

/* An answer with all that it may point to. */
struct reflection_answer {
	Grpc__Reflection__V1__ServerReflectionResponse message;
	Grpc__Reflection__V1__ErrorResponse error;
	Grpc__Reflection__V1__FileDescriptorResponse files;
	ProtobufCBinaryData file_bytes[DESCRIPTORS_FILES_MAX];
	Grpc__Reflection__V1__ExtensionNumberResponse extensions;
	Grpc__Reflection__V1__ListServiceResponse services;
	Grpc__Reflection__V1__ServiceResponse service[RPC_METHODS_MAX];
	Grpc__Reflection__V1__ServiceResponse *service_pointers[RPC_METHODS_MAX];
	char names[RPC_METHODS_MAX][64];
};

static void answer_error(struct reflection_answer *a, enum grpc_code code, const char *text)
{
	a->error = (Grpc__Reflection__V1__ErrorResponse)GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
	a->error.error_code = (int32_t)code;
	a->error.error_message = (char *)text;
	a->message.message_response_case = ANSWER(ERROR_RESPONSE);
	a->message.error_response = &a->error;
}

/* A file and those that it imports, each before who imports it. */
static void answer_file(struct reflection_answer *a, const struct descriptors *d, int file)
{
	uint64_t needed = file < 0 ? 0 : descriptors_closure(d, file);
	Grpc__Reflection__V1__FileDescriptorResponse *files = &a->files;

	if (file < 0) {
		answer_error(a, GRPC_NOT_FOUND, "no such file or symbol");
		return;
	}
	*files = (Grpc__Reflection__V1__FileDescriptorResponse)
	        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
	files->file_descriptor_proto = a->file_bytes;
	a->message.message_response_case = ANSWER(FILE_DESCRIPTOR_RESPONSE);
	a->message.file_descriptor_response = files;
	for (int i = file; i >= 0; i--)
		if (needed & 1ull << i)
			a->file_bytes[files->n_file_descriptor_proto++] = d->bytes[i];
}

static void answer_services(struct reflection_answer *a, const struct descriptors *d)
{
	Grpc__Reflection__V1__ListServiceResponse *list = &a->services;

	*list = (Grpc__Reflection__V1__ListServiceResponse)
	        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
	list->service = a->service_pointers;
	for (size_t i = 0; i < d->set->n_file; i++) {
		const Google__Protobuf__FileDescriptorProto *f = d->set->file[i];

		for (size_t j = 0; j < f->n_service && list->n_service < RPC_METHODS_MAX; j++) {
			size_t n = list->n_service++;

			snprintf(a->names[n], sizeof a->names[n], "%s.%s", f->package,
			         f->service[j]->name);
			a->service[n] = (Grpc__Reflection__V1__ServiceResponse)
			        GRPC__REFLECTION__V1__SERVICE_RESPONSE__INIT;
			a->service[n].name = a->names[n];
			a->service_pointers[n] = &a->service[n];
		}
	}
	a->message.message_response_case = ANSWER(LIST_SERVICES_RESPONSE);
	a->message.list_services_response = list;
}

/* None of our messages has any. */
static void answer_extensions(struct reflection_answer *a, const struct descriptors *d, char *type)
{
	if (descriptors_symbol(d, type) < 0) {
		answer_error(a, GRPC_NOT_FOUND, "no such type");
		return;
	}
	a->extensions = (Grpc__Reflection__V1__ExtensionNumberResponse)
	        GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
	a->extensions.base_type_name = type;
	a->message.message_response_case = ANSWER(ALL_EXTENSION_NUMBERS_RESPONSE);
	a->message.all_extension_numbers_response = &a->extensions;
}

static int answer_request(const struct descriptors *d, struct grpc_call *call,
                          Grpc__Reflection__V1__ServerReflectionRequest *r, struct rpc_error *e)
{
	struct reflection_answer a = {
		.message = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT,
	};

	a.message.valid_host = r->host;
	a.message.original_request = r;
	switch (r->message_request_case) {
	case ASKED(FILE_BY_FILENAME):
		answer_file(&a, d, descriptors_file(d, r->file_by_filename));
		break;
	case ASKED(FILE_CONTAINING_SYMBOL):
		answer_file(&a, d, descriptors_symbol(d, r->file_containing_symbol));
		break;
	case ASKED(FILE_CONTAINING_EXTENSION):
		answer_error(&a, GRPC_NOT_FOUND, "no such extension");
		break;
	case ASKED(ALL_EXTENSION_NUMBERS_OF_TYPE):
		answer_extensions(&a, d, r->all_extension_numbers_of_type);
		break;
	case ASKED(LIST_SERVICES):
		answer_services(&a, d);
		break;
	default:
		answer_error(&a, GRPC_INVALID_ARGUMENT, "message_request: nothing is asked");
	}
	return message_send(call, &a.message.base, e);
}

static void reflection_call(struct grpc_call *call, const uint8_t *bytes, size_t len, void *arg)
{
	_cleanup_message_ ProtobufCMessage *request = NULL;
	struct rpc_error e = RPC_ERROR_INIT;
	struct rpc *rpc = arg;
	int rc = 0;

	if (!bytes) {
		grpc_call_finish(call, NULL);
		return;
	}
	if (grpc_call_queued(call) > QUEUE_MAX_BYTES)
		rc = error_set(&e.error, -EMSGSIZE, "read the answers before you ask on");
	if (!rc)
		rc = message_unpack(&grpc__reflection__v1__server_reflection_request__descriptor,
		                    bytes, len, &request, &e);
	if (!rc)
		rc = answer_request(&rpc->descriptors, call, (void *)request, &e);
	if (rc)
		rpc_fail(call, &e);
}

const struct grpc_method reflection_methods[] = {
	{ .path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	  .role = GRPC_READER,
	  .call = reflection_call,
	  .client_streams = true },
	{ .path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
	  .role = GRPC_READER,
	  .call = reflection_call,
	  .client_streams = true },
	{ .path = NULL },
};

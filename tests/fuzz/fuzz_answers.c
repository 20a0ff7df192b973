/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What postcopyctl makes of a daemon's answers, and of status lines. The first byte picks the
 * message (5 to 7: a report or a list as JSON text, as it comes from a VMM that benchmarks), and
 * who takes it: each of them takes longer than the parser.
 */
#include "fuzz.h"

#include <ctype.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/report_html.h"
#include "ctl/json.h"
#include "ctl/migration_json.h"
#include "ctl/top.h"

const unsigned int fuzz_rounds = 20000;

/* Texts that came are never markup of ours. */
static void check_page(struct json_object *report)
{
	char *page = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&page, &len);

	report_html_write(f, report);
	fclose(f);
	FUZZ_CHECK(len > 16 && !strncmp(page, "<!", 2));
	FUZZ_CHECK(!strcmp(page + len - 8, "</html>\n"));
	/* Not strchr(): under ASan each call of it looks for the end of the page. */
	for (const char *c = page; (c = memchr(c, '<', (size_t)(page + len - c))); c++)
		FUZZ_CHECK(isalpha((unsigned char)c[1]) || c[1] == '/' || c[1] == '!');
	free(page);
}

static void check_top(struct json_object *o)
{
	const struct top_screen screen = { .columns = 100, .lines = 8 };
	struct json_object *list = json_object_new_array();
	struct top top = { 0 };
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	json_object_array_add(list, json_object_get(o));
	FUZZ_CHECK(!top_update(&top, list, 1000000000));
	FUZZ_CHECK(!top_update(&top, list, 2000000000));
	top_draw(&top, NULL, NULL, &screen, f);
	fclose(f);
	FUZZ_CHECK(len);
	free(text);
	top_deinit(&top);
	json_object_put(list);
}

static void check_text(struct json_object *o)
{
	const char *text = json_object_to_json_string(o);
	struct json_object *back;

	FUZZ_CHECK(text);
	back = json_tokener_parse(text);
	FUZZ_CHECK(back);
	json_object_put(back);
}

static void check_result(struct json_object *o)
{
	struct error err = ERROR_INIT;

	if (!bench_result_good(o, &err))
		FUZZ_CHECK(err.code < 0);
}

static void (*const checks[])(struct json_object *) = { check_page, check_top, check_text,
	                                                check_result };
#define N_CHECKS (sizeof checks / sizeof *checks)
#define N_MESSAGES 8u

static struct json_object *read_message(uint8_t which, const uint8_t *data, size_t size)
{
	static const ProtobufCMessageDescriptor *const types[] = {
		&postcopy__v1__migration__descriptor,     &postcopy__v1__report__descriptor,
		&postcopy__v1__missing_range__descriptor, &postcopy__v1__check_response__descriptor,
		&postcopy__v1__host_info__descriptor,
	};
	ProtobufCMessage *m = protobuf_c_message_unpack(types[which], NULL, size, data);
	struct json_object *o = NULL;

	if (!m)
		return NULL;
	switch (which) {
	case 0:
		o = migration_json((void *)m);
		break;
	case 1:
		o = report_json((void *)m);
		break;
	case 2:
		o = missing_range_json((void *)m);
		break;
	case 3:
		o = check_response_json((void *)m);
		break;
	case 4:
		o = host_info_json((void *)m);
		break;
	}
	FUZZ_CHECK(o);
	protobuf_c_message_free_unpacked(m, NULL);
	return o;
}

static struct json_object *read_text(const uint8_t *data, size_t size)
{
	char *text = calloc(1, size + 1);
	struct json_object *o;

	memcpy(text, data, size);
	o = json_tokener_parse(text);

	free(text);
	return o;
}

int fuzz_one(const uint8_t *data, size_t size)
{
	struct json_object *o;

	if (!size)
		return 0;
	o = data[0] % N_MESSAGES < 5 ? read_message(data[0] % N_MESSAGES, data + 1, size - 1)
	                             : read_text(data + 1, size - 1);
	if (o)
		checks[data[0] / N_MESSAGES % N_CHECKS](o);
	json_object_put(o);
	return 0;
}

static size_t pack(uint8_t which, const void *message, uint8_t *buf)
{
	buf[0] = which;
	return 1 + protobuf_c_message_pack(message, buf + 1);
}

static size_t make_seed(unsigned int i, uint8_t *buf)
{
	static const char text[] =
	        "{\"id\":\"<v>\",\"state\":\"postcopy\",\"role\":\"destination\",\"downtime_us\":{"
	        "\"pause\":5,"
	        "\"send\":1e300},\"timeline\":[[0,1],[2.5,3]],\"fault_dots\":[[1,2,0],[3,4,-1]],"
	        "\"phases\":[\"queue\",\"map\"],\"fault_histogram\":[[1,2],[1e9,3]],\"arrival\":[["
	        "5,1,0]],"
	        "\"slow_faults\":[{\"at_ms\":1,\"us\":2,\"phases_us\":[1,1]}],\"pages_total\":8,"
	        "\"pages_present\":3,\"memory_bytes\":1073741824}";
	Postcopy__V1__Migration migration = POSTCOPY__V1__MIGRATION__INIT;
	Postcopy__V1__DestinationStatus destination = POSTCOPY__V1__DESTINATION_STATUS__INIT;
	Postcopy__V1__Latency latency = POSTCOPY__V1__LATENCY__INIT;
	Postcopy__V1__Report report = POSTCOPY__V1__REPORT__INIT;
	Postcopy__V1__HostInfo info = POSTCOPY__V1__HOST_INFO__INIT;

	latency.count = 7;
	latency.p50_ns = 1 << 20;
	destination.fault_latency = destination.guest_stall = &latency;
	migration.id = (char *)"vm-7";
	migration.reason = (char *)"<b>no & way</b>";
	migration.destination = &destination;
	report.migration = &migration;
	info.version = info.hostname = (char *)"1\x1b[2J";
	switch (i) {
	case 0:
		return pack(0, &migration, buf);
	case 1:
		return pack(1, &report, buf);
	case 2:
		return pack(4, &info, buf);
	case 3:
		buf[0] = 7;
		memcpy(buf + 1, text, sizeof text - 1);
		return sizeof text;
	default:
		return 0;
	}
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	size_t len = make_seed(i / N_CHECKS, buf);

	buf[0] = (uint8_t)(buf[0] + i % N_CHECKS * N_MESSAGES);
	return len;
}

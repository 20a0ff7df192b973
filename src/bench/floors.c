/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/floors.h"

#include "ctl/json.h"
#include "util/clock.h"

static struct json_object *quantiles(const struct histogram *ns)
{
	struct json_object *o = json_object_new_object();

	json_set_number(o, "p50", (double)histogram_quantile(ns, 500) / NSEC_PER_USEC);
	json_set_number(o, "p99", (double)histogram_quantile(ns, 990) / NSEC_PER_USEC);
	return o;
}

/* One measurement of a throughput. */
struct rate_floor {
	const char *key;
	int (*measure)(const struct rate_floor *f, double *ret_bytes_per_s, struct error *err);
	const char *pki_dir;
	unsigned int streams;
};

static int measure_tls(const struct rate_floor *f, double *ret, struct error *err)
{
	return floor_tls_throughput(f->pki_dir, f->streams, ret, err);
}

static int measure_pwrite(const struct rate_floor *f, double *ret, struct error *err)
{
	(void)f;
	return floor_pwrite(ret, err);
}

static int measure_memcpy(const struct rate_floor *f, double *ret, struct error *err)
{
	(void)f;
	return floor_memcpy(ret, err);
}

static double median_of_3(const double *v)
{
	double low = v[0] < v[1] ? v[0] : v[1];
	double high = v[0] < v[1] ? v[1] : v[0];

	return v[2] < low ? low : v[2] > high ? high : v[2];
}

/* The middle one of three, so that a neighbour's burst doesn't lower the bar. */
static int add_rate(struct json_object *o, const struct rate_floor *f, struct error *err)
{
	double rates[3];

	for (size_t i = 0; i < 3; i++) {
		int r = f->measure(f, &rates[i], err);

		if (r < 0)
			return r;
	}
	json_set_number(o, f->key, median_of_3(rates));
	return 0;
}

int floors_measure(const char *pki_dir, unsigned int streams, struct json_object **ret,
                   struct error *err)
{
	const struct rate_floor rates[] = {
		{ "tls_bytes_per_s", measure_tls, pki_dir, streams },
		{ "pwrite_bytes_per_s", measure_pwrite, NULL, 0 },
		{ "memcpy_bytes_per_s", measure_memcpy, NULL, 0 },
	};
	_cleanup_json_ struct json_object *o = json_object_new_object();
	struct histogram pingpong = { .count = 0 }, resolve = { .count = 0 };
	int r = floor_tls_pingpong(pki_dir, &pingpong, err);

	if (!r)
		r = floor_uffd_resolve(&resolve, err);
	for (size_t i = 0; !r && i < sizeof rates / sizeof *rates; i++)
		r = add_rate(o, &rates[i], err);
	if (r < 0)
		return r;
	json_object_object_add(o, "tls_pingpong_us", quantiles(&pingpong));
	json_object_object_add(o, "uffd_resolve_us", quantiles(&resolve));
	*ret = steal_ptr(&o);
	return 0;
}

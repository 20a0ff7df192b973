/* SPDX-License-Identifier: Apache-2.0 */
/* A migration as control.proto has it, and the small messages it is made of. */
#ifndef RPC_MIGRATION_MESSAGE_H
#define RPC_MIGRATION_MESSAGE_H

#include "migrate/migrate.h"
#include "postcopy/v1/control.pb-c.h"

#define SOURCE_ADDRESS_MAX (sizeof(struct conn_target) + 4)

/* A fault's own phases; with eBPF entry and wakeup as well. */
#define STALL_PHASES (FAULT_PHASES + 2)

struct stalls;

/* The message with all that it points to: nothing is allocated. */
struct migration_message {
	Postcopy__V1__Migration message;
	Google__Protobuf__Timestamp state_time, prepare_time, resume_time;
	Google__Protobuf__Duration elapsed, time_to_complete;
	Google__Protobuf__Duration downtime_total, pause, send, load, resume;
	Postcopy__V1__Downtime downtime;
	Postcopy__V1__Parties parties;
	Postcopy__V1__Bandwidth bandwidth;
	Postcopy__V1__Waiting waiting;
	Google__Protobuf__Duration waiting_elapsed, waiting_next;
	Postcopy__V1__SourceStatus source;
	Postcopy__V1__DestinationStatus destination;
	Postcopy__V1__Limits limits;
	Postcopy__V1__Warm warm_policy;
	Postcopy__V1__WarmStatus warm;
	Google__Protobuf__Duration max_time, policy_catch_up, warm_elapsed, catch_up;
	char warm_refused[2 * ERROR_TEXT_MAX + 2];
	Postcopy__V1__Fill fill;
	Postcopy__V1__Faults faults;
	Postcopy__V1__Prefetch prefetch;
	Postcopy__V1__Latency fault, fault_idle, fault_bulk, stall;
	Postcopy__V1__Latency stall_joined, stall_phases;
	Postcopy__V1__Latency phase_latencies[STALL_PHASES];
	Postcopy__V1__PhaseLatency phases[STALL_PHASES], *phase_pointers[STALL_PHASES];
	char reason[3 * ERROR_TEXT_MAX];
	char holder[STREAM_HOLDER_HEX_MAX], holder_name[STREAM_HOLDER_NAME_MAX];
	Google__Protobuf__Duration holder_silent;
	Postcopy__V1__BulkPace pace;
	Google__Protobuf__Duration round_trip, queued;
	char source_address[SOURCE_ADDRESS_MAX];
};

/* @m as it is now; valid until the loop goes on. @stalls may be NULL. */
void migration_message_init(struct migration_message *ret, struct migration *m,
                            const struct stalls *stalls);

Postcopy__V1__State state_message(enum migration_state state);
Google__Protobuf__Timestamp timestamp_message(uint64_t real_ns);
Google__Protobuf__Duration duration_message(uint64_t ns);

/* All remote faults, those with and those without bulk in flight. */
void all_faults(const struct pull_stats *s, struct histogram *ret);

#endif

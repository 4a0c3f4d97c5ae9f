// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Changes a hash map as fast as BPF_PROG_TEST_RUN can run it: a generator for tests and benchmarks.
 *
 * What each operation does follows from the writer's settings and the number of operations that the
 * writer has done before, so that a test can work out what the map must hold; the twin of that sum
 * is in tests/integration/churn_twin.py. The packet's first four bytes say which writer a run is for.
 * Two threads must not run the same writer at once. Build with -DEMIT to have each change emitted,
 * or with -DEMIT_PERF to have it sent to perf buffers, one for each CPU, for comparison.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "mapbridge.h"

#define CHURN_WRITERS 64
#define CHURN_OPERATIONS_MAX 32 /* of one run */
#define CHURN_IN_PLACE 1        /* write a value that is there through its pointer */

#ifndef RING_BYTES
#define RING_BYTES (1 << 24)
#endif
#ifndef MAP_ENTRIES
#define MAP_ENTRIES (1 << 17)
#endif

struct churn_key {
	__u64 number;
	__u64 check; /* ~number */
};

struct churn_value {
	__u64 count;    /* updates since the key was inserted, the insertion included */
	__u64 changed;  /* bpf_ktime_get_ns() */
	__u64 sequence; /* number of the writer's operation, from 0 */
};

struct churn_writer {
	__u64 done;      /* operations so far */
	__u64 first_key; /* the writer's keys are [first_key, first_key + keys) */
	__u32 keys;
	__u32 operations; /* of one run */
	__u32 deletes;    /* of 1024 operations */
	__u32 flags;
	__u64 updates; /* from here on: what was done */
	__u64 deletions;
	__u64 vain; /* deletes of keys that were not there */
	__u64 refused;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAP_ENTRIES);
	__type(key, struct churn_key);
	__type(value, struct churn_value);
} churn SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CHURN_WRITERS);
	__type(key, __u32);
	__type(value, struct churn_writer);
} churn_writers SEC(".maps");

#if defined(EMIT)
MAPBRIDGE_RING(churn_ring, RING_BYTES);
MAPBRIDGE_LOSSES(churn_lost);
#define emit_update(packet, began, key, value) \
	mapbridge_emit_update(&churn_ring, &churn_lost, began, key, value)
#define emit_delete(packet, began, key) \
	mapbridge_emit_delete(&churn_ring, &churn_lost, began, key, struct churn_value)
#elif defined(EMIT_PERF)
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} churn_ring SEC(".maps");
MAPBRIDGE_LOSSES(churn_lost);

typedef MAPBRIDGE_RECORD(struct churn_key, struct churn_value) churn_record;

static __always_inline void send(struct __sk_buff *packet, churn_record *record)
{
	if (bpf_perf_event_output(packet, &churn_ring, BPF_F_CURRENT_CPU, record, sizeof(*record)))
		mb_count_loss(&churn_lost);
}

static __always_inline void emit_update(struct __sk_buff *packet, __u64 began,
					struct churn_key *key, struct churn_value *value)
{
	churn_record record;

	mapbridge_fill_update(&record, began, key, value);
	send(packet, &record);
}

static __always_inline void emit_delete(struct __sk_buff *packet, __u64 began,
					struct churn_key *key)
{
	churn_record record = {};

	mapbridge_fill_delete(&record, began, key);
	send(packet, &record);
}
#else
#define emit_update(packet, began, key, value) ((void)(began))
#define emit_delete(packet, began, key) ((void)(began))
#endif

/* The finalizer of splitmix64: every bit of the answer depends on every bit of the question. */
static __always_inline __u64 mix(__u64 x)
{
	x += 0x9E3779B97F4A7C15ull;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
	return x ^ (x >> 31);
}

static __always_inline void remove_key(struct __sk_buff *packet, struct churn_writer *writer,
				       struct churn_key *key)
{
	__u64 began = MAPBRIDGE_BEGIN();

	if (bpf_map_delete_elem(&churn, key)) {
		writer->vain++;
		return;
	}
	writer->deletions++;
	emit_delete(packet, began, key);
}

static __always_inline void update_key(struct __sk_buff *packet, struct churn_writer *writer,
				       struct churn_key *key, __u64 sequence)
{
	__u64 began = MAPBRIDGE_BEGIN();
	struct churn_value *found = bpf_map_lookup_elem(&churn, key);
	struct churn_value value = {
		.count = found ? found->count + 1 : 1,
		.changed = began,
		.sequence = sequence,
	};

	if (found && writer->flags & CHURN_IN_PLACE) {
		*found = value;
	} else if (bpf_map_update_elem(&churn, key, &value, BPF_ANY)) {
		writer->refused++;
		return;
	}
	writer->updates++;
	emit_update(packet, began, key, &value);
}

static __always_inline void operate(struct __sk_buff *packet, struct churn_writer *writer)
{
	__u64 sequence = writer->done++;
	__u64 random = mix(sequence ^ (writer->first_key << 32));
	struct churn_key key = {};

	key.number = writer->first_key + (random & 0xFFFFFFFF) % (writer->keys ?: 1);
	key.check = ~key.number;
	if ((random >> 32) % 1024 < writer->deletes)
		remove_key(packet, writer, &key);
	else
		update_key(packet, writer, &key, sequence);
}

SEC("tc")
int churn_run(struct __sk_buff *packet)
{
	__u32 *data = (__u32 *)(long)packet->data;
	struct churn_writer *writer;
	__u32 number;

	if ((void *)(data + 1) > (void *)(long)packet->data_end)
		return TC_ACT_SHOT;
	number = *data;
	writer = bpf_map_lookup_elem(&churn_writers, &number);
	if (!writer)
		return TC_ACT_SHOT;
	for (int i = 0; i < CHURN_OPERATIONS_MAX; i++) {
		if (i >= writer->operations)
			break;
		operate(packet, writer);
	}
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Two writers that are always at the same sixteen keys: which ones follows from what both have done
 * so far, so neither runs ahead; or it is told, where the other writer is not this program. Each key
 * is left after some writes, and what its last writes were is a question of order; so one run of
 * both asks it thousands of times. The packet's first four bytes say which writer runs. Build with
 * -DEMIT to have each change emitted.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "mapbridge.h"

#define KEYS 16
#define OPERATIONS 128 /* of both together, before they go on to the next keys */
#define NUMBERS 16384  /* then they begin again; values are never the same */

struct contend_key {
	__u64 number;
};

struct contend_value {
	__u64 writer;
	__u64 sequence;
};

struct contend_writer {
	__u64 done;
	__u64 changes;
	__u64 first; /* of the keys, plus one; 0: as both writers have come */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NUMBERS * 2);
	__type(key, struct contend_key);
	__type(value, struct contend_value);
} contend SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct contend_writer);
} contend_writers SEC(".maps");

#ifdef EMIT
MAPBRIDGE_RING(contend_ring, 1 << 24);
MAPBRIDGE_LOSSES(contend_lost);
#define BEGIN() MAPBRIDGE_BEGIN()
#define emit_update(began, key, value) \
	mapbridge_emit_update(&contend_ring, &contend_lost, began, key, value)
#define emit_delete(began, key) \
	mapbridge_emit_delete(&contend_ring, &contend_lost, began, key, struct contend_value)
#else
#define BEGIN() 0
#define emit_update(began, key, value) ((void)(began))
#define emit_delete(began, key) ((void)(began))
#endif

/* The finalizer of splitmix64. */
static __always_inline __u64 mix(__u64 x)
{
	x += 0x9E3779B97F4A7C15ull;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
	return x ^ (x >> 31);
}

SEC("tc")
int contend_run(struct __sk_buff *packet)
{
	__u32 *data = (__u32 *)(long)packet->data;
	volatile struct contend_writer *mine, *other;
	struct contend_value value;
	struct contend_key key;
	__u64 random, first, began;
	__u32 me, they;

	if ((void *)(data + 1) > (void *)(long)packet->data_end)
		return TC_ACT_SHOT;
	me = *data & 1;
	they = me ^ 1;
	mine = bpf_map_lookup_elem(&contend_writers, &me);
	other = bpf_map_lookup_elem(&contend_writers, &they);
	if (!mine || !other)
		return TC_ACT_SHOT;
	random = mix(mine->done ^ ((__u64)me << 48));
	first = mine->first ? mine->first - 1 : (mine->done + other->done) / OPERATIONS * KEYS;
	key.number = first % NUMBERS + random % KEYS;
	value.writer = me;
	value.sequence = mine->done++;
	began = BEGIN();
	if ((random >> 32) % 8 == 0) {
		if (bpf_map_delete_elem(&contend, &key))
			return TC_ACT_OK;
		emit_delete(began, &key);
	} else {
		if (bpf_map_update_elem(&contend, &key, &value, BPF_ANY))
			return TC_ACT_SHOT;
		emit_update(began, &key, &value);
	}
	mine->changes++;
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";

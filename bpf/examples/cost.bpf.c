// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * One update of a hash map for each run, and nothing else: what capture adds to it is measured by
 * `mapbridge bench overhead`. KEY_WORDS and VALUE_WORDS are sizes in units of 8 bytes. Build with
 * -DEMIT to have each change emitted.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "mapbridge.h"

#define COST_KEYS 1024 /* all of them are there after the first runs; a power of two */

#ifndef KEY_WORDS
#define KEY_WORDS 1
#endif
#ifndef VALUE_WORDS
#define VALUE_WORDS 1
#endif

struct cost_key {
	__u64 word[KEY_WORDS];
};

struct cost_value {
	__u64 word[VALUE_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, COST_KEYS * 2);
	__type(key, struct cost_key);
	__type(value, struct cost_value);
} cost SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} cost_runs SEC(".maps");

#ifdef EMIT
MAPBRIDGE_RING(cost_ring, 1 << 24);
MAPBRIDGE_LOSSES(cost_lost);
#endif

SEC("tc")
int cost_run(struct __sk_buff *packet)
{
	struct cost_value value = {};
	struct cost_key key = {};
	__u32 zero = 0;
	__u64 *runs = bpf_map_lookup_elem(&cost_runs, &zero);

	if (!runs)
		return TC_ACT_SHOT;
	key.word[0] = *runs % COST_KEYS;
	value.word[0] = (*runs)++;
#ifdef EMIT
	__u64 began = MAPBRIDGE_BEGIN();
#endif
	if (bpf_map_update_elem(&cost, &key, &value, BPF_ANY))
		return TC_ACT_SHOT;
#ifdef EMIT
	mapbridge_emit_update(&cost_ring, &cost_lost, began, &key, &value);
#endif
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";

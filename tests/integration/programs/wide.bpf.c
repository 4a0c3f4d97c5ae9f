// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Writes in place, and emits, values that are odd in size, too wide to copy inline, too wide at all. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "mapbridge.h"

struct odd_key {
	char bytes[7];
};

struct odd_value {
	char bytes[13];
};

struct wide_value {
	char bytes[3001];
};

struct huge_value {
	char bytes[40001];
};

#define TABLE(name, value_type)                       \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_HASH);      \
		__uint(max_entries, 64);              \
		__type(key, struct odd_key);          \
		__type(value, value_type);            \
	} name SEC(".maps");                          \
	MAPBRIDGE_RING(name##_ring, 1 << 16);         \
	MAPBRIDGE_LOSSES(name##_lost)

TABLE(odd, struct odd_value);
TABLE(wide, struct wide_value);
TABLE(huge, struct huge_value);

SEC("tc")
int wide_touch(struct __sk_buff *packet)
{
	__u64 began = MAPBRIDGE_BEGIN();
	struct odd_key key;
	struct odd_value *odd_found;
	struct wide_value *wide_found;
	struct huge_value *huge_found;

	if (bpf_skb_load_bytes(packet, 0, &key, sizeof(key)))
		return TC_ACT_SHOT;
	odd_found = bpf_map_lookup_elem(&odd, &key);
	if (odd_found) {
		odd_found->bytes[12]++;
		mapbridge_emit_update(&odd_ring, &odd_lost, 0, &key, odd_found);
	}
	wide_found = bpf_map_lookup_elem(&wide, &key);
	if (wide_found) {
		wide_found->bytes[3000]++;
		mapbridge_emit_update(&wide_ring, &wide_lost, began, &key, wide_found);
	}
	huge_found = bpf_map_lookup_elem(&huge, &key);
	if (huge_found) {
		huge_found->bytes[40000]++;
		mapbridge_emit_key(&huge_ring, &huge_lost, began, &key);
	}
	return TC_ACT_OK;
}

SEC("tc")
int wide_remove(struct __sk_buff *packet)
{
	__u64 began = MAPBRIDGE_BEGIN();
	struct odd_key key;

	if (bpf_skb_load_bytes(packet, 0, &key, sizeof(key)))
		return TC_ACT_SHOT;
	if (!bpf_map_delete_elem(&odd, &key))
		mapbridge_emit_delete(&odd_ring, &odd_lost, began, &key, struct odd_value);
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";

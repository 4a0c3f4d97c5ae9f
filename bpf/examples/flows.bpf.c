// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Counts packets and bytes of flows, as most programs count: the value is changed in place, through
 * the pointer that the lookup gave. No function is called for that, so no probe can see it. Two things
 * can: a sweep, which compares the whole map now and then (sweep = "2s" in the map's table, with
 * ignore = ["seen"] where a new time alone is no news), and the program itself, with mapbridge.h.
 *
 * -DEMIT emits what the program inserts, which probes would see too; -DEMIT_IN_PLACE also what it
 * changes in place. A packet's first four bytes name its flow; the next four are 1 when it is to be
 * seen and not counted.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "mapbridge.h"

struct flow {
	__u64 packets;
	__u64 bytes;
	__u64 seen; /* bpf_ktime_get_ns() of the last packet */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

#ifdef EMIT
MAPBRIDGE_RING(flows_ring, 1 << 20);
MAPBRIDGE_LOSSES(flows_lost);
#endif

static __always_inline void insert(__u32 *key, __u64 began, __u64 bytes)
{
	struct flow fresh = {.packets = 1, .bytes = bytes, .seen = began};

	if (bpf_map_update_elem(&flows, key, &fresh, BPF_NOEXIST))
		return;
#ifdef EMIT
	mapbridge_emit_update(&flows_ring, &flows_lost, began, key, &fresh);
#endif
}

SEC("tc")
int flows_run(struct __sk_buff *packet)
{
	__u32 *data = (__u32 *)(long)packet->data;
	__u64 began = MAPBRIDGE_BEGIN();
	struct flow *flow;
	__u32 key;

	if ((void *)(data + 2) > (void *)(long)packet->data_end)
		return TC_ACT_OK;
	key = data[0];
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow) {
		insert(&key, began, packet->len);
		return TC_ACT_OK;
	}
	flow->seen = began;
	if (data[1] != 1) {
		__sync_fetch_and_add(&flow->packets, 1);
		__sync_fetch_and_add(&flow->bytes, packet->len);
	}
#ifdef EMIT_IN_PLACE
	mapbridge_emit_update(&flows_ring, &flows_lost, began, &key, flow);
#endif
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";

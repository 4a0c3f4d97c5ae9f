// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Puts into a ring what a packet holds: u32 length, u32 discard, then the record's bytes. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "mapbridge.h"

#define RECORD_MAX 3072
#define DISCARDED 40

MAPBRIDGE_RING(raw_ring, 1 << 16);
MAPBRIDGE_LOSSES(raw_lost);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, char[RECORD_MAX]);
} raw_scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} raw_map SEC(".maps");

SEC("tc")
int raw_put(struct __sk_buff *packet)
{
	__u32 head[2], first = 0;
	__u64 length;
	char *scratch = bpf_map_lookup_elem(&raw_scratch, &first);

	if (!scratch || bpf_skb_load_bytes(packet, 0, head, sizeof(head)))
		return TC_ACT_SHOT;
	if (head[1]) {
		void *reserved = bpf_ringbuf_reserve(&raw_ring, DISCARDED, 0);

		if (reserved)
			bpf_ringbuf_discard(reserved, 0);
		return TC_ACT_OK;
	}
	length = head[0];
	asm volatile("" : "+r"(length)); /* one register from the check to the calls */
	if (length < 1 || length > RECORD_MAX)
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(packet, sizeof(head), scratch, length))
		return TC_ACT_SHOT;
	if (bpf_ringbuf_output(&raw_ring, scratch, length, 0))
		mb_count_loss(&raw_lost);
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "GPL";

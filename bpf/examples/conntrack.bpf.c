// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * A small TCP connection tracker: two tc programs that keep one hash map, `ct`, with one entry per
 * connection that crosses an interface. It is an ordinary program of the kind that firewalls and
 * load balancers run, and knows nothing of replication.
 *
 *   clang -O2 -g -target bpf -DCT_ENTRIES_MAX=131072 -c conntrack.bpf.c -o conntrack.bpf.o
 *   bpftool prog loadall conntrack.bpf.o /sys/fs/bpf/x pinmaps /sys/fs/bpf/x
 *   tc qdisc add dev DEV clsact
 *   tc filter add dev DEV ingress bpf direct-action object-pinned /sys/fs/bpf/x/ct_ingress
 *   tc filter add dev DEV egress bpf direct-action object-pinned /sys/fs/bpf/x/ct_egress
 *
 * An entry is inserted by a SYN, written again when the connection changes state, and deleted when
 * both sides have closed and acknowledged, or by a reset. Everything is done by map operations, and
 * only then: a connection costs three writes to open, two or three to close. Nothing is counted in
 * place through a looked-up pointer, packet by packet: such stores are no map operations, nobody
 * who watches the map can see them, and a reader could find half of one. Bytes per side come for
 * free all the same: they are differences of TCP sequence numbers, exact when a side has finished.
 *
 * What is left out: expiry of idle entries (user space's work in a real tracker), windows and
 * sequence checks (a forged RST deletes), IP fragments and IPv6 extension headers (passed by).
 * An update reads, changes a copy and writes it back: when the two sides of one connection are
 * handled by two CPUs at the same instant, one of the changes can be lost.
 *
 * Build with -DEMIT (and -I for mapbridge.h) to have it tell of its changes itself.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef CT_ENTRIES_MAX
#define CT_ENTRIES_MAX 131072
#endif

/* 1: what belongs to no known connection is dropped, as firewalls and NAT do. */
#ifndef CT_STRICT
#define CT_STRICT 0
#endif

#define CT_IPV4 4
#define CT_IPV6 6

enum ct_state {
	CT_SYN_SENT = 1,
	CT_SYN_RECEIVED = 2,
	CT_ESTABLISHED = 3,
	CT_FIN_WAIT = 4, /* one side has finished */
	CT_CLOSING = 5,  /* both have, not yet acknowledged */
} __attribute__((packed)); /* one byte, so that a field can be of this type and name its states */

/* Flags hold two bits of a kind, one per end of the key: shift by the end (0 or 1). */
#define CT_FIN_SEEN 0x01
#define CT_FIN_ACKED 0x04
#define CT_BOTH_FIN_SEEN (CT_FIN_SEEN | CT_FIN_SEEN << 1)
#define CT_BOTH_FIN_ACKED (CT_FIN_ACKED | CT_FIN_ACKED << 1)

/*
 * Both directions of a connection have the same key: the smaller (address, port) is end 0. An IPv4
 * address stands in the first 4 bytes, the other 12 are zero. Padding is explicit, because every
 * byte of a key counts.
 */
struct ct_key {
	__be32 address[2][4];
	__be16 port[2];
	__u8 family; /* CT_IPV4 or CT_IPV6 */
	__u8 protocol;
	__u8 zero[2];
};

struct ct_value {
	__u64 changed_ns;       /* CLOCK_MONOTONIC of the last state change */
	__u32 bytes[2];         /* payload sent by each end, modulo 2^32; set when it has finished */
	__u32 isn[2];           /* initial sequence number of each end */
	__u32 fin_end[2];       /* sequence number behind each end's FIN */
	__u32 changes;          /* writes of this entry so far */
	enum ct_state state;
	__u8 flags;
	__u8 initiator;         /* the end that sent the SYN */
	__u8 zero;
};

_Static_assert(sizeof(struct ct_key) == 40, "no hidden padding");
_Static_assert(sizeof(struct ct_value) == 40, "no hidden padding");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CT_ENTRIES_MAX);
	__type(key, struct ct_key);
	__type(value, struct ct_value);
} ct SEC(".maps");

#ifdef EMIT
#include "mapbridge.h"

#ifndef RING_BYTES
#define RING_BYTES (1 << 24)
#endif
MAPBRIDGE_RING(ct_ring, RING_BYTES);
MAPBRIDGE_LOSSES(ct_lost);
#define ct_began() MAPBRIDGE_BEGIN()
#define emit_update(began, key, value) mapbridge_emit_update(&ct_ring, &ct_lost, began, key, value)
#define emit_delete(began, key) \
	mapbridge_emit_delete(&ct_ring, &ct_lost, began, key, struct ct_value)
#else
#define ct_began() 0
#define emit_update(began, key, value) ((void)(began))
#define emit_delete(began, key) ((void)(began))
#endif

/* Connections that found the map full: not tracked, so at least counted. */
__u64 ct_untracked;

/* One TCP segment, as far as tracking needs it. */
struct segment {
	__u32 seq;
	__u32 ack;
	__u32 payload;
	__u8 from; /* the end of the key that sent it */
	bool syn, has_ack, fin, rst;
};

static __always_inline int compare_ends(const __be32 *a, const __be32 *b, __be16 pa, __be16 pb)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u32 x = bpf_ntohl(a[i]), y = bpf_ntohl(b[i]);

		if (x != y)
			return x < y ? -1 : 1;
	}
	return (int)bpf_ntohs(pa) - (int)bpf_ntohs(pb);
}

/* Fills key (zeroed by the caller) and segment. bpf_skb_load_bytes also reads paged data. */
static __always_inline bool parse(struct __sk_buff *skb, struct ct_key *key, struct segment *seg)
{
	__be32 source[4] = {}, target[4] = {};
	__u32 offset = ETH_HLEN, total;
	struct tcphdr tcp;
	int order;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0)
			return false;
		if (ip.protocol != IPPROTO_TCP || (ip.frag_off & bpf_htons(0x3fff)))
			return false;
		key->family = CT_IPV4;
		source[0] = ip.saddr;
		target[0] = ip.daddr;
		total = bpf_ntohs(ip.tot_len) - ip.ihl * 4;
		offset += ip.ihl * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0)
			return false;
		if (ip.nexthdr != IPPROTO_TCP)
			return false;
		key->family = CT_IPV6;
		__builtin_memcpy(source, &ip.saddr, sizeof(source));
		__builtin_memcpy(target, &ip.daddr, sizeof(target));
		total = bpf_ntohs(ip.payload_len);
		offset += sizeof(ip);
	} else {
		return false;
	}
	if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)) < 0)
		return false;

	order = compare_ends(source, target, tcp.source, tcp.dest);
	seg->from = order > 0;
	__builtin_memcpy(key->address[0], order > 0 ? target : source, sizeof(source));
	__builtin_memcpy(key->address[1], order > 0 ? source : target, sizeof(source));
	key->port[0] = order > 0 ? tcp.dest : tcp.source;
	key->port[1] = order > 0 ? tcp.source : tcp.dest;
	key->protocol = IPPROTO_TCP;

	seg->seq = bpf_ntohl(tcp.seq);
	seg->ack = bpf_ntohl(tcp.ack_seq);
	seg->payload = total - tcp.doff * 4;
	seg->syn = tcp.syn;
	seg->has_ack = tcp.ack;
	seg->fin = tcp.fin;
	seg->rst = tcp.rst;
	return true;
}

/*
 * One of a pair by constant offsets: clang turns a variable index into stack memory into `pointer
 * | offset`, which the verifier refuses.
 */
static __always_inline __u32 at_end(const __u32 pair[2], __u8 end)
{
	__u32 first = pair[0], second = pair[1];

	return end ? second : first;
}

static __always_inline void set_end(__u32 pair[2], __u8 end, __u32 number)
{
	__u32 first = pair[0], second = pair[1];

	pair[0] = end ? first : number;
	pair[1] = end ? number : second;
}

static __always_inline void write_entry(const struct ct_key *key, struct ct_value *value)
{
	__u64 began = ct_began();

	value->changed_ns = bpf_ktime_get_ns();
	value->changes++;
	if (bpf_map_update_elem(&ct, key, value, BPF_ANY) < 0)
		__sync_fetch_and_add(&ct_untracked, 1);
	else
		emit_update(began, key, value);
}

static __always_inline void delete_entry(const struct ct_key *key)
{
	__u64 began = ct_began();

	if (!bpf_map_delete_elem(&ct, key))
		emit_delete(began, key);
}

/* A SYN begins a connection, unless it is sent again or the old one on these ports still lives. */
static __always_inline void begin(const struct ct_key *key, const struct ct_value *old,
				  const struct segment *seg)
{
	struct ct_value value = {};

	if (old && (old->state == CT_ESTABLISHED || old->state == CT_SYN_RECEIVED))
		return;
	if (old && old->state == CT_SYN_SENT && at_end(old->isn, seg->from) == seg->seq)
		return;
	value.state = CT_SYN_SENT;
	value.initiator = seg->from;
	set_end(value.isn, seg->from, seg->seq);
	write_entry(key, &value);
}

/* The FIN of one end, and the acknowledgement of the other end's. Returns whether any was new. */
static __always_inline bool advance_close(struct ct_value *value, const struct segment *seg)
{
	__u8 from = seg->from, to = !from;
	__u32 fin_end = seg->seq + seg->payload + 1;
	bool changed = false;

	if (seg->fin && !(value->flags & CT_FIN_SEEN << from)) {
		set_end(value->fin_end, from, fin_end);
		/* SYN and FIN take a sequence number each. */
		set_end(value->bytes, from, fin_end - at_end(value->isn, from) - 2);
		value->flags |= CT_FIN_SEEN << from;
		value->state = (value->flags & CT_BOTH_FIN_SEEN) == CT_BOTH_FIN_SEEN ? CT_CLOSING
										     : CT_FIN_WAIT;
		changed = true;
	}
	if ((value->flags & CT_FIN_SEEN << to) && !(value->flags & CT_FIN_ACKED << to) &&
	    (__s32)(seg->ack - at_end(value->fin_end, to)) >= 0) {
		value->flags |= CT_FIN_ACKED << to;
		changed = true;
	}
	return changed;
}

/* Returns whether the segment begins a connection or belongs to one. */
static __always_inline bool track(const struct ct_key *key, const struct segment *seg)
{
	const struct ct_value *old = bpf_map_lookup_elem(&ct, key);
	struct ct_value value;
	bool changed = false;

	if (seg->rst) {
		if (old)
			delete_entry(key);
		return old;
	}
	if (seg->syn && !seg->has_ack) {
		begin(key, old, seg);
		return true;
	}
	if (!old || !seg->has_ack) /* connections older than the tracker are not picked up */
		return old;
	value = *old;
	if (seg->syn) {
		if (value.state != CT_SYN_SENT || seg->from == value.initiator)
			return true;
		value.state = CT_SYN_RECEIVED;
		set_end(value.isn, seg->from, seg->seq);
		write_entry(key, &value);
		return true;
	}
	if (value.state == CT_SYN_RECEIVED && seg->from == value.initiator) {
		value.state = CT_ESTABLISHED;
		changed = true;
	}
	if (value.state >= CT_ESTABLISHED && advance_close(&value, seg))
		changed = true;
	if ((value.flags & CT_BOTH_FIN_ACKED) == CT_BOTH_FIN_ACKED)
		delete_entry(key);
	else if (changed)
		write_entry(key, &value);
	return true;
}

static __always_inline int see(struct __sk_buff *skb)
{
	struct ct_key key = {};
	struct segment seg = {};

	if (parse(skb, &key, &seg) && !track(&key, &seg) && CT_STRICT)
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC; /* let the next filter, if any, decide */
}

SEC("tc")
int ct_ingress(struct __sk_buff *skb)
{
	return see(skb);
}

SEC("tc")
int ct_egress(struct __sk_buff *skb)
{
	return see(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Writes a map from a timer's callback, as orders.py says. On its own because a callback needs a
 * loader that links programs, which BCC is not.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define RUNS_MAX 256
#define CLOCK_MONOTONIC 1

/* Twin of ORDER in orders.py. */
struct order {
	__u32 target;
	__u32 action;
	__u32 next;
	__u32 left;
	__u32 thread;
	__u32 spare;
	__u64 base;
};

struct key {
	__u32 prefix;
	__u32 number;
};

struct alarm {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct key);
	__type(value, __u64);
} timed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct order);
} orders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct alarm);
} alarms SEC(".maps");

static void obey(struct order *order)
{
	__u64 value = order->base + order->next, *held;
	struct key key = { .prefix = 32, .number = order->next++ };

	if (order->action == 0)
		bpf_map_update_elem(&timed, &key, &value, BPF_ANY);
	else if (order->action == 1)
		bpf_map_update_elem(&timed, &key, &value, BPF_NOEXIST);
	else if (order->action == 2)
		bpf_map_delete_elem(&timed, &key);
	else {
		held = bpf_map_lookup_elem(&timed, &key);
		if (held)
			*held = value;
	}
	order->left--;
}

static int on_alarm(void *map, __u32 *index, struct alarm *alarm)
{
	__u32 zero = 0;
	struct order *order = bpf_map_lookup_elem(&orders, &zero);

	if (!order)
		return 0;
	for (int i = 0; i < RUNS_MAX && order->left; i++)
		obey(order);
	return 0;
}

SEC("tc")
int set_alarm(struct __sk_buff *packet)
{
	__u32 zero = 0;
	struct alarm *alarm = bpf_map_lookup_elem(&alarms, &zero);

	if (!alarm)
		return 1;
	bpf_timer_init(&alarm->timer, &alarms, CLOCK_MONOTONIC);
	bpf_timer_set_callback(&alarm->timer, on_alarm);
	return bpf_timer_start(&alarm->timer, 1000, 0);
}

char LICENSE[] SEC("license") = "GPL";

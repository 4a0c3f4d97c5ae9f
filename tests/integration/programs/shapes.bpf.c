// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* A map whose key and value hold every kind of type that C has for them. */
#include <linux/bpf.h>
#include <linux/in6.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

enum colour { RED = 1, GREEN = 2, BLUE = 200, ALSO_GREEN = 2 };
enum depth { DEEP = -7, FLAT = 0, HIGH = 9 };
enum wide { WIDE_NONE, WIDE_ALL = 0x1122334455667788 };

typedef __u32 number_t;
typedef number_t count_t;
typedef struct {
	__s16 x, y;
} point_t;

struct range {
	__be16 first;
	__be16 last;
	point_t corners[2];
};

struct shape_key {
	__be32 saddr;
	__u8 daddr[16];
	__u8 h_source[6];
	__be16 port;
	count_t index;
};

struct shape_value {
	__u8 tiny;
	__s8 tiny_signed;
	__s16 small;
	__s32 middle;
	__s64 large;
	count_t count;
	bool yes;
	bool many[3];
	char name[11];
	enum colour colour;
	enum depth depth;
	enum wide wide;
	enum colour colours[2];
	__u32 low : 3;
	__u32 middle_bits : 17;
	__s32 signed_bits : 6;
	enum colour colour_bits : 8;
	__u64 long_bits : 53;
	__u64 rest_bits : 11;
	union {
		__u32 whole;
		struct {
			__u16 half;
			__u8 quarter[2];
		};
	};
	union {
		__u64 as_number;
		__u8 as_bytes[8];
	} either;
	struct range ranges[2][3];
	__u16 grid[3][2];
	struct in6_addr nexthop;
	void *pointer;
	struct {
		const volatile __u32 inside;
		char tag;
	} nested;
	struct {
		__u8 a;
		__u32 b;
	} __attribute__((packed)) tight;
	unsigned __int128 huge;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct shape_key);
	__type(value, struct shape_value);
} shapes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, count_t);
} plain SEC(".maps");

SEC("tc")
int look(struct __sk_buff *packet)
{
	struct shape_key key = {};
	__u32 index = 0;

	return !bpf_map_lookup_elem(&shapes, &key) + !bpf_map_lookup_elem(&plain, &index);
}

char LICENSE[] SEC("license") = "GPL";

/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The record of a change, as it lies in a ring buffer. One ring belongs to one map, so that
 * records of single changes all have the same size and a drained piece of the ring is an array.
 *
 * Twin: bridge/capture/record.py. tests/unit/test_record_layout.py compiles this file and compares.
 * Compiles as part of a BCC program, with clang -target bpf, and with a host compiler. Numbers are
 * in the byte order of the machine; the bridge runs on little-endian ones only.
 *
 *   single      header | key, padded to 8 | value, padded to 8     (deletes too: constant size)
 *   READ_KEY    header | key, padded to 8                          (user space looks the value up)
 *   BATCH       header | count keys, packed | padding to 8 | count values, packed
 *               (deletes, and READ_KEY: header | count keys, packed)
 *   RESCAN      header                                             (look at the whole map again)
 *
 * Padding is zero.
 */
#ifndef MAPBRIDGE_RECORD_H
#define MAPBRIDGE_RECORD_H

#include <linux/types.h>

enum mapbridge_op {
	MAPBRIDGE_UPDATE = 1,
	MAPBRIDGE_DELETE = 2,
	MAPBRIDGE_EVICT = 3,
};

enum mapbridge_flag {
	MB_BATCH = 1,
	MB_READ_KEY = 2, /* the value is not in the record */
	MB_RESCAN = 4,   /* neither is the key; count: changes that it stands for, 0 unknown */
};

/* The operation began longer ago than the field can say, or nobody saw it begin. */
#define MB_DURATION_UNKNOWN 0xFFFFFFFFu

/* The largest record of a batch, and of a single change: what they are put together in exists for
 * each CPU, that of single changes for each probe too. */
#define MB_SCRATCH_SIZE 32768u
#define MB_SINGLE_SIZE_MAX 8192u

struct mb_header {
	__u64 left;     /* bpf_ktime_get_ns() when the operation had ended */
	__u32 duration; /* ns since it began, see mb_duration() */
	__u32 writer;   /* thread id in the initial pid namespace; 0: unknown */
	__u32 count;    /* changes in this record; 1 for a single */
	__u8 op;        /* enum mapbridge_op */
	__u8 flags;     /* enum mapbridge_flag, or-ed */
	__u16 cpu;
};

#define MB_PAD8(size) (((size) + 7u) & ~7u)
#define MB_HEADER_SIZE 24u
#define MB_READ_KEY_SIZE(key_size) (MB_HEADER_SIZE + MB_PAD8(key_size))
#define MB_SINGLE_SIZE(key_size, value_size) (MB_READ_KEY_SIZE(key_size) + MB_PAD8(value_size))
/* Whether single changes of a map carry their value; if not, all of them have the READ_KEY form, as
 * they have for per-CPU maps, whose values no single CPU knows. */
#define MB_SINGLE_FITS(key_size, value_size) \
	(MB_SINGLE_SIZE(key_size, value_size) <= MB_SINGLE_SIZE_MAX)
#define MB_BATCH_VALUES_OFFSET(key_size, count) (MB_HEADER_SIZE + MB_PAD8((key_size) * (count)))

_Static_assert(sizeof(struct mb_header) == MB_HEADER_SIZE, "size of mb_header");
_Static_assert(__builtin_offsetof(struct mb_header, left) == 0, "left");
_Static_assert(__builtin_offsetof(struct mb_header, duration) == 8, "duration");
_Static_assert(__builtin_offsetof(struct mb_header, writer) == 12, "writer");
_Static_assert(__builtin_offsetof(struct mb_header, count) == 16, "count");
_Static_assert(__builtin_offsetof(struct mb_header, op) == 20, "op");
_Static_assert(__builtin_offsetof(struct mb_header, flags) == 21, "flags");
_Static_assert(__builtin_offsetof(struct mb_header, cpu) == 22, "cpu");

/* entered 0: not known; nor is one of an operation that took 4.29 s or longer. */
static inline __attribute__((always_inline)) __u32 mb_duration(__u64 entered, __u64 left)
{
	__u64 duration = left - entered;

	return entered && duration < MB_DURATION_UNKNOWN ? (__u32)duration : MB_DURATION_UNKNOWN;
}

#endif

/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * For authors of BPF programs: tell the bridge yourself what your program changes.
 *
 * This is the cheapest way to have a map followed, the only one that sees a value written in place
 * through a looked-up pointer, and it needs no probes. Linux 5.8 or later, licence compatible with
 * the GPL.
 *
 *	#include <linux/bpf.h>
 *	#include <bpf/bpf_helpers.h>
 *	#include <mapbridge.h>
 *
 *	MAPBRIDGE_RING(sessions_ring, 1 << 24);   // bytes, a power of two
 *	MAPBRIDGE_LOSSES(sessions_lost);          // changes that found the ring full
 *
 *	__u64 began = MAPBRIDGE_BEGIN();          // before the change
 *	struct session *session = bpf_map_lookup_elem(&sessions, &key);
 *	if (session) {
 *		session->packets++;
 *		mapbridge_emit_update(&sessions_ring, &sessions_lost, began, &key, session);
 *	}
 *
 *	began = MAPBRIDGE_BEGIN();
 *	if (!bpf_map_delete_elem(&sessions, &key))
 *		mapbridge_emit_delete(&sessions_ring, &sessions_lost, began, &key, struct session);
 *
 * Rules. One ring for each map. Emit after the change has happened, and only if it has. Give the
 * time before the change as `began`: the bridge needs it to put the change in order with those of
 * other nodes; 0 says "not known" and costs an additional write now and then. The key and value
 * pointers must have the types of the map's key and value, because sizes and alignment are taken
 * from them; types of 8-byte fields copy fastest.
 *
 * With BCC, which declares maps its own way, use MAPBRIDGE_RECORD, mapbridge_fill_update and
 * mapbridge_fill_delete, then ring.ringbuf_output(&record, sizeof(record), 0), and count the calls
 * that fail in a BPF_ARRAY(lost, u64, 1), with __sync_fetch_and_add.
 */
#ifndef MAPBRIDGE_H
#define MAPBRIDGE_H

#include "record.h"

/* The struct of a single change. Every member is aligned to 8, and so the size is a multiple. */
#define MAPBRIDGE_RECORD(key_type, value_type)           \
	struct {                                         \
		struct mb_header header;                 \
		key_type key __attribute__((aligned(8)));     \
		value_type value __attribute__((aligned(8))); \
	}

/* What the compiler copies with stores of its own; more goes through a helper. */
#define MB_COPY_INLINE_MAX 128

#define MAPBRIDGE_BEGIN() bpf_ktime_get_ns()

#define mb_copy(to, from)                                                         \
	do {                                                                      \
		if (sizeof(*(from)) <= MB_COPY_INLINE_MAX ||                      \
		    (_Alignof(__typeof__(*(from))) == 8 && sizeof(*(from)) <= 1024)) \
			__builtin_memcpy((void *)(to), (from), sizeof(*(from)));  \
		else                                                              \
			bpf_probe_read_kernel((void *)(to), sizeof(*(from)), (from)); \
	} while (0)

/* The last eight bytes that a member takes, zeroed before the copy: padding holds nothing old. */
#define mb_clear_padding(member)                                                       \
	do {                                                                           \
		if (sizeof(member) % 8)                                                \
			*(__u64 *)((char *)&(member) + sizeof(member) / 8 * 8) = 0;    \
	} while (0)

static inline __attribute__((always_inline)) void mb_fill_header(struct mb_header *header, __u8 op,
								  __u8 flags, __u64 began)
{
	header->left = bpf_ktime_get_ns();
	header->duration = mb_duration(began, header->left);
	header->writer = 0; /* in a softirq the current task has nothing to do with the change */
	header->count = 1;
	header->op = op;
	header->flags = flags;
	header->cpu = (__u16)bpf_get_smp_processor_id();
}

#define mapbridge_fill_update(record, began, key_pointer, value_pointer)     \
	do {                                                                 \
		mb_fill_header(&(record)->header, MAPBRIDGE_UPDATE, 0, began); \
		mb_clear_padding((record)->key);                             \
		mb_copy(&(record)->key, key_pointer);                        \
		mb_clear_padding((record)->value);                           \
		mb_copy(&(record)->value, value_pointer);                    \
	} while (0)

/* The value's bytes stay as they are: readers take those of deletes for zero. */
#define mapbridge_fill_delete(record, began, key_pointer)                    \
	do {                                                                 \
		mb_fill_header(&(record)->header, MAPBRIDGE_DELETE, 0, began); \
		mb_clear_padding((record)->key);                             \
		mb_copy(&(record)->key, key_pointer);                        \
	} while (0)

#ifdef __BPF_HELPERS__ /* bpf/bpf_helpers.h of libbpf was included before */

#define MAPBRIDGE_RING(name, bytes)                   \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_RINGBUF);   \
		__uint(max_entries, bytes);           \
	} name SEC(".maps")

/* Counts only when the ring is full, so one counter for all CPUs is cheap enough. */
#define MAPBRIDGE_LOSSES(name)                        \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_ARRAY);     \
		__uint(max_entries, 1);               \
		__type(key, __u32);                   \
		__type(value, __u64);                 \
	} name SEC(".maps")

static inline __attribute__((always_inline)) void mb_count_loss(void *losses)
{
	__u32 first = 0;
	__u64 *lost = bpf_map_lookup_elem(losses, &first);

	if (lost)
		__sync_fetch_and_add(lost, 1);
}

/*
 * Both give 0, or -1 when the ring was full and the loss was counted. Submitting with flags 0 wakes
 * the reader only when it had read everything, so a busy reader costs no wake-ups.
 */
#define mapbridge_emit_update(ring, losses, began, key_pointer, value_pointer)                     \
	({                                                                                         \
		typedef MAPBRIDGE_RECORD(__typeof__(*(key_pointer)),                               \
					 __typeof__(*(value_pointer))) mb_record;                  \
		mb_check_size(mb_record, sizeof(*(key_pointer)), sizeof(*(value_pointer)));        \
		mb_record *mb_reserved = bpf_ringbuf_reserve(ring, sizeof(mb_record), 0);          \
		if (mb_reserved) {                                                                 \
			mapbridge_fill_update(mb_reserved, began, key_pointer, value_pointer);     \
			bpf_ringbuf_submit(mb_reserved, 0);                                        \
		} else {                                                                           \
			mb_count_loss(losses);                                                     \
		}                                                                                  \
		mb_reserved ? 0 : -1;                                                              \
	})

#define mapbridge_emit_delete(ring, losses, began, key_pointer, value_type)                        \
	({                                                                                         \
		typedef MAPBRIDGE_RECORD(__typeof__(*(key_pointer)), value_type) mb_record;        \
		mb_check_size(mb_record, sizeof(*(key_pointer)), sizeof(value_type));              \
		mb_record *mb_reserved = bpf_ringbuf_reserve(ring, sizeof(mb_record), 0);          \
		if (mb_reserved) {                                                                 \
			mapbridge_fill_delete(mb_reserved, began, key_pointer);                    \
			bpf_ringbuf_submit(mb_reserved, 0);                                        \
		} else {                                                                           \
			mb_count_loss(losses);                                                     \
		}                                                                                  \
		mb_reserved ? 0 : -1;                                                              \
	})

/* For values too large to be copied: the bridge reads the key's value from the map. */
#define mapbridge_emit_key(ring, losses, began, key_pointer)                                       \
	({                                                                                         \
		typedef struct {                                                                   \
			struct mb_header header;                                                   \
			__typeof__(*(key_pointer)) key __attribute__((aligned(8)));                \
		} mb_record;                                                                       \
		mb_record *mb_reserved = bpf_ringbuf_reserve(ring, sizeof(mb_record), 0);          \
		if (mb_reserved) {                                                                 \
			mb_fill_header(&mb_reserved->header, MAPBRIDGE_UPDATE, MB_READ_KEY, began); \
			mb_clear_padding(mb_reserved->key);                                        \
			mb_copy(&mb_reserved->key, key_pointer);                                   \
			bpf_ringbuf_submit(mb_reserved, 0);                                        \
		} else {                                                                           \
			mb_count_loss(losses);                                                     \
		}                                                                                  \
		mb_reserved ? 0 : -1;                                                              \
	})

#define mb_check_size(record, key_size, value_size)                                                \
	_Static_assert(sizeof(record) == MB_SINGLE_SIZE(key_size, value_size) &&                   \
			       MB_SINGLE_FITS(key_size, value_size),                               \
		       "mapbridge: the value is too large for a record, use mapbridge_emit_key")

#endif /* __BPF_HELPERS__ */
#endif

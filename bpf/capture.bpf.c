// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The capture programs: every attachment that reports changes of watched maps.
 *
 * Compiled by bridge/capture/loader.py, which passes as -D constants
 *   MB_WITH_FUNCTIONS      kprobe and kretprobe on the map type's own functions
 *   MB_WITH_FENTRY         fentry and fexit there instead (MB_AT_PREEMPT_COUNT, MB_AT_PROG_ACTIVE
 *                          and MB_AT_PER_CPU_OFFSET: addresses of the kernel's variables); the
 *                          system call's programs then leave updates and deletes to them
 *   MB_WITH_SYSCALL        kprobe and kretprobe on the system call bpf(2)
 *   MB_WITH_TRACEPOINTS    the same two programs on syscalls:sys_{enter,exit}_bpf
 *   MB_WITH_BLINDNESS      raw tracepoints on irq:softirq_{entry,exit} and sched:sched_switch
 *                          (MB_AT_PROG_ACTIVE and MB_AT_PER_CPU_OFFSET: addresses of the kernel's variables)
 *   MB_WITH_PERF           records go through perf buffers, one per map and CPU, not ring buffers
 *   MB_AT_<STRUCT>_<FIELD> byte offsets in kernel structs, out of the kernel's own BTF
 *   MB_SLOTS, MB_CPUS      how many maps can be watched at once; how many CPUs there may be
 * No kernel struct is read through a header: compiling stays cheap and one set of headers serves
 * kernels that it was not made for.
 *
 * One record per operation that succeeded, made at its end, with the times of its begin and end.
 *
 * No program here updates or deletes in a map: a probed function that is reached from inside a probe
 * is refused and counted as a miss by the kernel, and those counts must mean something. What is
 * remembered between two programs therefore lies in the values of arrays.
 *
 * Programs of fentry and fexit are guarded one by one, if at all: see capture_fentry.h. Programs on
 * kprobes, kretprobes and classic tracepoints share the kernel's per-CPU guard
 * bpf_prog_active: on one CPU one of them runs at a time, with preemption off. Each kind has its
 * own scratch per CPU all the same, so that a change of attachment cannot make two share one.
 */
#include <asm/ptrace.h>
#include "record.h"

#define MB_ALL_MAPS MB_SLOTS /* slot of losses that cannot be laid at one map's door */

/* Twin of WATCH in bridge/capture/tables.py. */
struct watch {
	u32 slot;
	u32 key_size;
	u32 value_size;
	u32 chunk_updates; /* entries of a batch that fit a record, at least 1 */
	u32 chunk_deletes;
	u32 flags; /* enum watch_flag */
};
enum watch_flag { WATCH_KEYS_ONLY = 1 }; /* user space looks the values up */
_Static_assert(sizeof(struct watch) == 24, "twin in tables.py");

/* Twin of LOSS_KINDS in bridge/capture/tables.py; the last four are spare. */
enum loss { LOST_RING_FULL, LOST_UNPAIRED, LOST_FAULT, LOST_STASH_FULL, LOSS_KINDS = 8 };
struct losses {
	u64 count[LOSS_KINDS];
};
_Static_assert(sizeof(struct losses) == 64, "twin in tables.py");

/* The columns of one record; MB_SCRATCH_SIZE bounds the whole. */
#define KEYS_MAX 8192
#define VALUES_MAX MB_SCRATCH_SIZE
#define CHUNKS_MAX 64

/*
 * What one operation needs while its records are made. It lies in memory and is read through a
 * volatile pointer on purpose: a number out of memory is any number to the verifier, while one in a
 * register is a case of its own, and in a loop the cases multiply.
 */
struct work {
	u64 entered;
	u64 left;
	u64 keys; /* addresses of the columns; a single operation is a column of one */
	u64 values;
	u64 count;
	u64 done;
	u64 op;
	u64 spare;
};

/*
 * A record of a batch on its way to a ring, one for each CPU. An ordinary array with the CPU as
 * index, because a per-CPU array's values are too small: the verifier wants room for the largest
 * values behind the largest keys, although MB_SCRATCH_SIZE rules out that both come together.
 */
struct scratch {
	u8 record[MB_HEADER_SIZE + KEYS_MAX + 8 + VALUES_MAX + 8];
	struct work work;
};

#define KEY_MAX 512 /* twin of KEY_SIZE_MAX in bridge/model.py */

/* The record of a single change. The same holds: key and value are never both as large as can be. */
struct single {
	struct mb_header header;
	u8 body[KEY_MAX + 8 + MB_SINGLE_SIZE_MAX + 8];
};

/* How many watched maps have an id with these low bits. Looked at first, because the kernel puts
 * the look into an array in the program's own code, and an unwatched map should cost little. */
#define SIEVE_SIZE 1024 /* twin in tables.py */
BPF_ARRAY(sieve, u32, SIEVE_SIZE);
BPF_HASH(watched, u32, struct watch, MB_SLOTS);
BPF_HASH(own_threads, u32, u32, 256);
#ifdef MB_WITH_PERF
/* The events live as long as the descriptor by which they were put in: the reader keeps it. */
BPF_PERF_ARRAY(ring_shape, MB_CPUS);
#else
BPF_RINGBUF_OUTPUT(ring_shape, 1);
#endif
BPF_ARRAY_OF_MAPS(rings, "ring_shape", MB_SLOTS);
/* Mapped into user space, so that looking at it costs no system call: a lookup by bpf(2) would
 * blind the kprobes on that CPU while it lasts. Losses are rare, so one counter for all CPUs. */
BPF_F_TABLE("array", u32, struct losses, losses, MB_SLOTS + 1, BPF_F_MMAPABLE);

static __always_inline void lose(u32 slot, enum loss kind, u64 changes)
{
	struct losses *entry = losses.lookup(&slot);
	if (entry)
		__sync_fetch_and_add(&entry->count[kind], changes);
}

#define HIDE(number) asm volatile("" : "+r"(number))

/* What is known of a map that is watched; NULL for all others. */
static __always_inline struct watch *watch_of(u32 id)
{
	u32 low = id & (SIEVE_SIZE - 1);
	u32 *count = sieve.lookup(&low);

	return count && *count ? watched.lookup(&id) : 0;
}

#define READ_KERNEL(into, address) \
	bpf_probe_read_kernel(&(into), sizeof(into), (const void *)(address))
#define READ_USER(into, address) bpf_probe_read_user(&(into), sizeof(into), (const void *)(address))

static __always_inline void fill_header(struct scratch *scratch, u32 count, u8 flags)
{
	volatile struct work *work = &scratch->work;
	struct mb_header *header = (struct mb_header *)scratch->record;
	u64 left = work->left;

	header->left = left;
	header->duration = mb_duration(work->entered, left);
	header->writer = bpf_get_current_pid_tgid();
	header->count = count;
	header->op = work->op;
	header->flags = flags;
	header->cpu = bpf_get_smp_processor_id();
}

/* ctx: what the program was called with, which a perf buffer wants to see. */
#ifdef MB_WITH_PERF
#define SEND(ctx, ring, record, size) \
	bpf_perf_event_output(ctx, ring, BPF_F_CURRENT_CPU, record, size)
#else
#define SEND(ctx, ring, record, size) bpf_ringbuf_output(ring, record, size, 0)
#endif

static __always_inline void output(void *ctx, const struct watch *watch, void *record, u64 size,
				   u64 changes)
{
	u32 slot = watch->slot;
	void *ring = rings.lookup(&slot);

	if (!ring || SEND(ctx, ring, record, size))
		lose(slot, LOST_RING_FULL, changes);
}

/* "Look at this map again": what happened is known, what changed is not. */
static __always_inline void emit_rescan(void *ctx, const struct watch *watch,
					struct scratch *scratch)
{
	fill_header(scratch, 0, MB_RESCAN);
	output(ctx, watch, scratch->record, MB_HEADER_SIZE, 1);
}

/*
 * Emit one change, whose key and value lie in kernel memory. Returns 0, or -1 when that could not be
 * read. The sizes are hidden from the compiler before each bound is checked; otherwise it checks a
 * copy, and the verifier loses the bound.
 */
static __always_inline int emit_single(void *ctx, const struct watch *watch, struct single *record,
				       u64 key, u64 value, u64 entered, u8 op)
{
	u64 key_size = watch->key_size, value_size = watch->value_size, size, left;
	u8 flags = 0;

	HIDE(key_size);
	if (key_size > KEY_MAX)
		return -1;
	HIDE(key_size);
	if (key_size == 0)
		return -1;
	/* The word that the padding is in: what an earlier record left there must not reach a reader. */
	*(u64 *)(record->body + (key_size & ~7ULL)) = 0;
	if (bpf_probe_read_kernel(record->body, key_size, (const void *)key))
		return -1;
	size = (key_size + 7) & ~7ULL;
	if (watch->flags & WATCH_KEYS_ONLY) {
		flags = MB_READ_KEY;
	} else {
		HIDE(value_size);
		if (value_size > MB_SINGLE_SIZE_MAX)
			return -1;
		HIDE(value_size);
		if (value_size == 0)
			return -1;
		*(u64 *)(record->body + size + (value_size & ~7ULL)) = 0;
		/* Without a value the bytes are those of an earlier record; the reader clears them. */
		if (op == MAPBRIDGE_UPDATE &&
		    bpf_probe_read_kernel(record->body + size, value_size, (const void *)value))
			return -1;
		size += (value_size + 7) & ~7ULL;
	}
	left = bpf_ktime_get_ns();
	record->header.left = left;
	record->header.duration = mb_duration(entered, left);
	record->header.writer = bpf_get_current_pid_tgid();
	record->header.count = 1;
	record->header.op = op;
	record->header.flags = flags;
	record->header.cpu = bpf_get_smp_processor_id();
	output(ctx, watch, record, MB_HEADER_SIZE + size, 1);
	return 0;
}

/*
 * Emit the next `count` entries of the work, which lie in the caller's memory, as one record; with
 * one entry the layout is that of a single record. Returns 0, or -1 when memory could not be read.
 *
 * Sizes are 64-bit locals, hidden from the compiler before each bound is checked; otherwise it
 * checks a copy or joins two checks into one, and the verifier loses the bound.
 */
static __always_inline int emit(void *ctx, const struct watch *watch, struct scratch *scratch,
				u64 count)
{
	volatile struct work *work = &scratch->work;
	u64 keys_size = count * watch->key_size, values_size = count * watch->value_size, size;
	u64 keys = work->keys, values = work->values;
	u8 flags = count > 1 ? MB_BATCH : 0, is_update = work->op == MAPBRIDGE_UPDATE;

	HIDE(keys_size);
	if (keys_size > KEYS_MAX)
		return -1;
	HIDE(keys_size);
	if (keys_size == 0)
		return -1;
	/* Zero the word that the padding is in: what an earlier record left there must not reach a
	 * reader. Without padding it is the word behind, which is written later or not sent. */
	*(u64 *)(scratch->record + MB_HEADER_SIZE + (keys_size & ~7ULL)) = 0;
	if (bpf_probe_read_user(scratch->record + MB_HEADER_SIZE, keys_size, (const void *)keys))
		return -1;
	work->keys = keys + keys_size;
	size = MB_HEADER_SIZE + ((keys_size + 7) & ~7ULL);

	if (is_update || count == 1) { /* single records are all of one size */
		u64 end = size + values_size;

		HIDE(end);
		HIDE(values_size);
		if ((watch->flags & WATCH_KEYS_ONLY) || end > MB_SCRATCH_SIZE ||
		    values_size > VALUES_MAX) {
			flags |= MB_READ_KEY;
		} else if (values_size) {
			*(u64 *)(scratch->record + size + (values_size & ~7ULL)) = 0;
			if (is_update && bpf_probe_read_user(scratch->record + size, values_size,
							     (const void *)values))
				return -1;
			size += (values_size + 7) & ~7ULL;
		}
		work->values = values + values_size;
	}
	fill_header(scratch, count, flags);
	output(ctx, watch, scratch->record, size, count);
	return 0;
}

/* The private data of an open file of this process; 0 when there is none. */
static __always_inline u64 private_data_of(u32 fd)
{
	u64 task = bpf_get_current_task(), files = 0, table = 0, array = 0, file = 0, data = 0;
	u32 size = 0;

	READ_KERNEL(files, task + MB_AT_TASK_STRUCT_FILES);
	READ_KERNEL(table, files + MB_AT_FILES_STRUCT_FDT);
	READ_KERNEL(size, table + MB_AT_FDTABLE_MAX_FDS);
	if (fd >= size)
		return 0;
	READ_KERNEL(array, table + MB_AT_FDTABLE_FD);
	READ_KERNEL(file, array + 8ULL * fd);
	READ_KERNEL(data, file + MB_AT_FILE_PRIVATE_DATA); /* a failed read leaves zero */
	return data;
}

/* The key of an element of an LRU map, by its node in the list of those that were used last. */
#define KEY_OF_NODE(node) ((node) - MB_AT_HTAB_ELEM_LRU_NODE + MB_AT_HTAB_ELEM_KEY)

#ifdef MB_AT_PER_CPU_OFFSET
BPF_ARRAY(bases, u64, MB_CPUS); /* read once each: a look into an array is no call */

/* What to add to the address of a per-CPU variable. */
static __always_inline u64 base_of(u32 cpu)
{
	u64 *base = bases.lookup(&cpu);

	if (!base)
		return 0;
	if (!*base)
		READ_KERNEL(*base, MB_AT_PER_CPU_OFFSET + 8ULL * cpu);
	return *base;
}
#endif

#include "capture_canary.h"

#ifdef MB_WITH_FUNCTIONS
#include "capture_functions.h"
#endif

#ifdef MB_WITH_FENTRY
#include "capture_fentry.h"
#endif

#if defined(MB_WITH_SYSCALL) || defined(MB_WITH_TRACEPOINTS)
#include "capture_syscall.h"
#endif

#ifdef MB_WITH_BLINDNESS
#include "capture_blindness.h"
#endif

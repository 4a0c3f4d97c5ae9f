/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Part of capture.bpf.c: entry and exit of the system call bpf(2). They see what user space writes.
 */
#ifndef MAPBRIDGE_CAPTURE_SYSCALL_H
#define MAPBRIDGE_CAPTURE_SYSCALL_H

/* enum bpf_cmd, include/uapi/linux/bpf.h: part of the kernel's stable interface. */
#define UPDATE_ELEM 2
#define DELETE_ELEM 3
#define LOOKUP_AND_DELETE_ELEM 21
#define LOOKUP_AND_DELETE_BATCH 25
#define UPDATE_BATCH 26
#define DELETE_BATCH 27
#ifdef MB_WITH_FENTRY
/* Updates and deletes end in the functions that are watched; these two have code of their own. */
#define WRITING_COMMANDS ((1U << LOOKUP_AND_DELETE_ELEM) | (1U << LOOKUP_AND_DELETE_BATCH))
#else
#define WRITING_COMMANDS                                                                         \
	((1U << UPDATE_ELEM) | (1U << DELETE_ELEM) | (1U << LOOKUP_AND_DELETE_ELEM) |            \
	 (1U << LOOKUP_AND_DELETE_BATCH) | (1U << UPDATE_BATCH) | (1U << DELETE_BATCH))
#endif
#define IS_BATCH(command) ((command) >= LOOKUP_AND_DELETE_BATCH)

/* union bpf_attr: offsets of the single and of the batch commands. */
#define ATTR_MAP_FD 0
#define ATTR_KEY 8
#define ATTR_VALUE 16
#define ATTR_BATCH_KEYS 16
#define ATTR_BATCH_VALUES 24
#define ATTR_BATCH_COUNT 32
#define ATTR_BATCH_MAP_FD 36

#define ENOENT_ 2
#define EFAULT_ 14
#define ENOSPC_ 28
#define UNKNOWN 0xffffffff

/* A call between its entry and its exit. */
struct call {
	u64 attr;
	u64 entered;
	u32 command;
	u32 map; /* 0: the page of the attributes was absent at entry */
	u32 requested; /* entries of a batch, or UNKNOWN for the same reason */
	u32 spare;
};
/*
 * By thread, in a table of its own making: the functions of every other kind of map may be probed,
 * and a probed function that is reached from a probe counts as missed. `claims` says how many
 * threads want a slot; whoever reads 1 after having counted itself in owns it, and nobody else can.
 */
struct call_slot {
	u64 claims;
	u64 owner; /* pid_tgid, valid while claimed */
	struct call call;
};
#define CALL_SLOTS 8192
#define CALL_WAYS 4
BPF_ARRAY(calls, struct call_slot, CALL_SLOTS);
BPF_ARRAY(syscall_scratch, struct scratch, MB_CPUS);

/*
 * The id of the map behind a descriptor of this process; 0 when there is none. Whether the file is
 * a map at all need not be checked: with any other file the call fails and nothing is recorded.
 */
static __always_inline u32 map_of(u32 fd)
{
	u32 id = 0;

	READ_KERNEL(id, private_data_of(fd) + MB_AT_BPF_MAP_ID);
	return id;
}

/* Returns whether the call's map is one of the watched; `call->map` stays 0 when it is not known
 * yet. */
static __always_inline int resolve(struct call *call)
{
	u32 fd = 0;

	if (READ_USER(fd, call->attr + (IS_BATCH(call->command) ? ATTR_BATCH_MAP_FD : ATTR_MAP_FD)))
		return 1;
	call->map = map_of(fd);
	return watch_of(call->map) != 0;
}

static __always_inline struct call_slot *slot_at(u64 pid_tgid, u32 way)
{
	u32 place = ((u32)pid_tgid * 0x9e3779b1U >> 16) + way;

	place &= CALL_SLOTS - 1;
	return calls.lookup(&place);
}

/* The slot of this thread; NULL when it has none. */
static __always_inline struct call_slot *find_call(u64 pid_tgid)
{
	struct call_slot *found = 0;

#pragma unroll
	for (u32 way = 0; way < CALL_WAYS; way++) {
		struct call_slot *slot = slot_at(pid_tgid, way);

		if (slot && slot->claims && slot->owner == pid_tgid)
			found = slot;
	}
	return found;
}

static __always_inline void drop_call(struct call_slot *slot)
{
	slot->owner = 0;
	__sync_fetch_and_add(&slot->claims, -1);
}

/* Returns 0, or -1 when all places are taken. */
static __always_inline int keep_call(u64 pid_tgid, const struct call *call)
{
#pragma unroll
	for (u32 way = 0; way < CALL_WAYS; way++) {
		struct call_slot *slot = slot_at(pid_tgid, way);

		if (!slot || slot->claims)
			continue;
		__sync_fetch_and_add(&slot->claims, 1);
		if (*(volatile u64 *)&slot->claims == 1) {
			slot->call = *call;
			slot->owner = pid_tgid;
			return 0;
		}
		__sync_fetch_and_add(&slot->claims, -1);
	}
	return -1;
}

static __always_inline int enter_call(u32 command, u64 attr)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	u32 thread = pid_tgid, slot = MB_ALL_MAPS;
	struct call call = {.attr = attr, .command = command, .requested = UNKNOWN};
	struct call_slot *old = find_call(pid_tgid);
	struct watch *watch;

	/* An exit that was not seen must not lend its stash to another call's exit. */
	if (old) {
		watch = watch_of(old->call.map);
		lose(watch ? watch->slot : slot, LOST_UNPAIRED, 1);
		drop_call(old);
	}
	if (command >= 32 || !((WRITING_COMMANDS >> command) & 1))
		return 0;
	if (!resolve(&call))
		return 0;
	if (own_threads.lookup(&thread))
		return 0;
	if (IS_BATCH(command) && READ_USER(call.requested, attr + ATTR_BATCH_COUNT))
		call.requested = UNKNOWN;
	call.entered = bpf_ktime_get_ns();
	if (keep_call(pid_tgid, &call)) {
		watch = watch_of(call.map);
		lose(watch ? watch->slot : slot, LOST_STASH_FULL, 1);
	}
	return 0;
}

/*
 * How many entries were done. Of a batch the kernel writes that number over `count`, except where
 * it refuses the call before the first entry: then `count` is still what was asked for. Returns -1
 * when it cannot be known.
 */
static __always_inline s64 entries_done(const struct call *call, s64 result)
{
	u32 count = 0;

	if (!IS_BATCH(call->command)) {
		if (result == -EFAULT_ && call->command == LOOKUP_AND_DELETE_ELEM)
			return -1; /* gone, though its value could not be handed over */
		return result == 0;
	}
	if (READ_USER(count, call->attr + ATTR_BATCH_COUNT))
		return -1;
	if (result == 0)
		return count;
	if (call->command == LOOKUP_AND_DELETE_BATCH && (result == -ENOENT_ || result == -ENOSPC_))
		return count;
	/* Lookup and delete: entries are gone that could not be handed to the caller. The others:
	 * all may be done, and only `count` could not be written. */
	if (result == -EFAULT_ && (call->command == LOOKUP_AND_DELETE_BATCH || count >= call->requested))
		return -1;
	if (call->requested == UNKNOWN)
		return count ? -1 : 0;
	return count < call->requested ? count : 0;
}

static __always_inline void emit_entries(void *ctx, const struct watch *watch,
					 struct scratch *scratch)
{
	volatile struct work *work = &scratch->work;

	for (int i = 0; i < CHUNKS_MAX; i++) {
		u64 left_over = work->count - work->done, some = left_over;
		u64 chunk = work->op == MAPBRIDGE_UPDATE ? watch->chunk_updates : watch->chunk_deletes;

		if (left_over == 0)
			return;
		if (some > chunk)
			some = chunk;
		work->done += some;
		if (emit(ctx, watch, scratch, some)) {
			lose(watch->slot, LOST_FAULT, left_over);
			break;
		}
	}
	if (work->done < work->count)
		emit_rescan(ctx, watch, scratch);
}

/* Note where keys and values lie. Returns 0, or -1 when the attributes cannot be read. */
static __always_inline int find_columns(const struct call *call, volatile struct work *work)
{
	int batch = IS_BATCH(call->command);
	u64 keys = 0, values = 0;

	if (READ_USER(keys, call->attr + (batch ? ATTR_BATCH_KEYS : ATTR_KEY)))
		return -1;
	/* The caller's attributes may end behind the last field that its command uses. */
	if (work->op == MAPBRIDGE_UPDATE &&
	    READ_USER(values, call->attr + (batch ? ATTR_BATCH_VALUES : ATTR_VALUE)))
		return -1;
	work->keys = keys;
	work->values = values;
	return 0;
}

/* All memory of the caller is read here: the kernel has just used it, so its pages are present. */
static __always_inline int leave_call(void *ctx, s64 result)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct call_slot *found = find_call(pid_tgid);
	struct call call;
	volatile struct work *work;
	struct scratch *scratch;
	struct watch *watch;
	u32 cpu = bpf_get_smp_processor_id();
	s64 count;

	if (!found)
		return 0;
	call = found->call;
	drop_call(found);
	if (call.map == 0)
		resolve(&call);
	watch = watch_of(call.map);
	scratch = syscall_scratch.lookup(&cpu);
	if (!watch || !scratch)
		return 0;
	count = entries_done(&call, result);
	if (count == 0)
		return 0;
	work = &scratch->work;
	work->left = bpf_ktime_get_ns();
	work->entered = call.entered;
	work->count = count;
	work->done = 0;
	work->op = call.command == UPDATE_ELEM || call.command == UPDATE_BATCH ? MAPBRIDGE_UPDATE
									       : MAPBRIDGE_DELETE;
	if (count < 0)
		emit_rescan(ctx, watch, scratch);
	else if (find_columns(&call, work))
		lose(watch->slot, LOST_FAULT, count);
	else
		emit_entries(ctx, watch, scratch);
	return 0;
}

#ifdef MB_WITH_SYSCALL
/* The kernel's wrapper of a system call gets one argument: where the caller's registers lie. */
int on_bpf_entry(struct pt_regs *ctx)
{
	u64 user = PT_REGS_PARM1(ctx), command = 0, attr = 0;

#if defined(__x86_64__)
	READ_KERNEL(command, user + offsetof(struct pt_regs, di));
	READ_KERNEL(attr, user + offsetof(struct pt_regs, si));
#elif defined(__aarch64__)
	READ_KERNEL(command, user + offsetof(struct pt_regs, regs[0]));
	READ_KERNEL(attr, user + offsetof(struct pt_regs, regs[1]));
#else
#error "system call probes: architecture not supported"
#endif
	return enter_call(command, attr);
}

int on_bpf_return(struct pt_regs *ctx)
{
	return leave_call(ctx, (int)PT_REGS_RC(ctx));
}
#endif

#ifdef MB_WITH_TRACEPOINTS
/* /sys/kernel/tracing/events/syscalls/sys_{enter,exit}_bpf/format */
struct enter_args {
	u64 common;
	u64 number;
	u64 command;
	u64 attr;
	u64 size;
};

struct exit_args {
	u64 common;
	u64 number;
	s64 result;
};

int on_enter_bpf(struct enter_args *args)
{
	return enter_call(args->command, args->attr);
}

int on_exit_bpf(struct exit_args *args)
{
	return leave_call(args, args->result);
}
#endif

#endif

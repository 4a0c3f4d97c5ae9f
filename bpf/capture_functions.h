/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Part of capture.bpf.c: kprobe and kretprobe on the map types' own functions. They see what BPF
 * programs write, and nothing that comes by bpf(2): the kernel skips programs on kprobes while it
 * works on a map for that call.
 */
#ifndef MAPBRIDGE_CAPTURE_FUNCTIONS_H
#define MAPBRIDGE_CAPTURE_FUNCTIONS_H

#if defined(__x86_64__)
/* A call pushes the return address, the return pops it. */
#define SP_BEFORE_RETURN(ctx) (PT_REGS_SP(ctx) - 8)
/* Registers that a function must hand back unchanged: they tell one call from another that began
 * at the same stack depth. */
#define CALLER_STATE(ctx) ((ctx)->bx ^ ((ctx)->bp << 1) ^ ((ctx)->r12 << 2) ^ ((ctx)->r13 << 3) ^ \
			   ((ctx)->r14 << 4) ^ ((ctx)->r15 << 5))
#elif defined(__aarch64__)
#define SP_BEFORE_RETURN(ctx) PT_REGS_SP(ctx)
#define CALLER_STATE(ctx) ((ctx)->regs[19] ^ ((ctx)->regs[20] << 1) ^ ((ctx)->regs[21] << 2) ^ \
			   ((ctx)->regs[22] << 3) ^ ((ctx)->regs[25] << 4) ^ ((ctx)->regs[29] << 5))
#else
#error "function probes: architecture not supported"
#endif

/* An operation between the entry and the return of its function. */
struct operation {
	u64 sp; /* at entry; 0: the slot is free */
	u64 caller;
	u64 entered;
	u64 key;
	u64 value;
	u32 map;
	u32 slot;
	u8 op;
	u8 spare[15];
};
_Static_assert(sizeof(struct operation) == 64, "a power of two keeps the index cheap");

/* Task, softirq, hardirq and NMI level, and tasks that were preempted in between: all on one CPU,
 * which a program cannot leave. */
#define LEVELS 8
#define STALE_NS 1000000000ULL
struct operations {
	struct operation open[LEVELS];
};
BPF_PERCPU_ARRAY(operations, struct operations, 1);
BPF_ARRAY(function_scratch, struct single, MB_CPUS);

/* Find room for the call that begins with stack pointer `sp`; LEVELS when there is none. */
static __always_inline u32 take_level(struct operations *all, u64 sp, u64 now)
{
	u32 level = LEVELS, stale = LEVELS;

#pragma unroll
	for (u32 i = 0; i < LEVELS; i++) {
		u64 other = all->open[i].sp;

		if (other == 0) {
			level = i;
		} else if (other == sp) { /* its return was not seen: that frame is gone */
			lose(all->open[i].slot, LOST_UNPAIRED, 1);
			all->open[i].sp = 0;
			level = i;
		} else if (all->open[i].entered + STALE_NS < now) {
			stale = i;
		}
	}
	if (level == LEVELS && stale != LEVELS) {
		lose(all->open[stale & (LEVELS - 1)].slot, LOST_UNPAIRED, 1);
		level = stale;
	}
	return level;
}

static __always_inline int begin_operation(struct pt_regs *ctx, u64 key, u64 value, u8 op)
{
	u64 map = PT_REGS_PARM1(ctx), sp = PT_REGS_SP(ctx), now;
	u32 id = 0, zero = 0, level;
	struct operations *all;
	struct operation *mine;
	struct watch *watch;

	if (READ_KERNEL(id, map + MB_AT_BPF_MAP_ID)) {
		lose(MB_ALL_MAPS, LOST_FAULT, 1);
		return 0;
	}
	watch = watch_of(id);
	if (!watch)
		return 0;
	all = operations.lookup(&zero);
	if (!all)
		return 0;
	now = bpf_ktime_get_ns();
	level = take_level(all, sp, now);
	if (level == LEVELS) {
		lose(watch->slot, LOST_STASH_FULL, 1);
		return 0;
	}
	mine = &all->open[level & (LEVELS - 1)];
	mine->sp = sp;
	mine->caller = CALLER_STATE(ctx);
	mine->entered = now;
	mine->key = key;
	mine->value = value;
	mine->map = id;
	mine->slot = watch->slot;
	mine->op = op;
	return 0;
}

/*
 * Key and value are read here, from the caller's memory: the caller stands right behind its call,
 * so its stack and the values that it points to are as they were.
 */
static __always_inline int end_operation(struct pt_regs *ctx, u8 op, int succeeded)
{
	u64 sp = SP_BEFORE_RETURN(ctx);
	u32 zero = 0, cpu = bpf_get_smp_processor_id(), level = LEVELS;
	struct operations *all = operations.lookup(&zero);
	struct operation *mine;
	struct single *scratch;
	struct watch *watch;

	if (!all)
		return 0;
#pragma unroll
	for (u32 i = 0; i < LEVELS; i++)
		if (all->open[i].sp == sp)
			level = i;
	if (level == LEVELS) /* of an unwatched map, or begun before the attach */
		return 0;
	mine = &all->open[level & (LEVELS - 1)];
	mine->sp = 0;
	if (mine->op != op || mine->caller != CALLER_STATE(ctx)) {
		lose(mine->slot, LOST_UNPAIRED, 1);
		return 0;
	}
	if (!succeeded)
		return 0;
	watch = watch_of(mine->map); /* again: the slot may belong to another map by now */
	scratch = function_scratch.lookup(&cpu);
	if (!watch || !scratch)
		return 0;
	if (emit_single(ctx, watch, scratch, mine->key, mine->value, mine->entered, op))
		lose(watch->slot, LOST_FAULT, 1);
	return 0;
}

/* (map, key, value, flags) and (map, key); 0 is success. */
int on_update_entry(struct pt_regs *ctx)
{
	return begin_operation(ctx, PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx), MAPBRIDGE_UPDATE);
}

int on_update_return(struct pt_regs *ctx)
{
	return end_operation(ctx, MAPBRIDGE_UPDATE, (int)PT_REGS_RC(ctx) == 0);
}

int on_delete_entry(struct pt_regs *ctx)
{
	return begin_operation(ctx, PT_REGS_PARM2(ctx), 0, MAPBRIDGE_DELETE);
}

int on_delete_return(struct pt_regs *ctx)
{
	return end_operation(ctx, MAPBRIDGE_DELETE, (int)PT_REGS_RC(ctx) == 0);
}

/* (map, node of the LRU list); true is success. */
int on_evict_entry(struct pt_regs *ctx)
{
	return begin_operation(ctx, KEY_OF_NODE(PT_REGS_PARM2(ctx)), 0, MAPBRIDGE_EVICT);
}

int on_evict_return(struct pt_regs *ctx)
{
	return end_operation(ctx, MAPBRIDGE_EVICT, (u8)PT_REGS_RC(ctx));
}

#endif

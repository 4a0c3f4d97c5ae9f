/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Part of capture.bpf.c: fentry and fexit on the map types' own functions. Unlike programs on
 * kprobes they also run while the kernel works on a map for bpf(2), so they see every writer, and
 * in every softirq that interrupts one.
 *
 * From Linux 5.12 on a program that is interrupted by its own function is not run again on that
 * CPU: the kernel refuses the inner call and counts it in recursion_misses. So each fexit program
 * is there twice. The second copy works only where the first is running on this CPU, which its
 * per-CPU counter `active` tells: that is how a call looks for which the first was refused. What
 * both missed is the first one's misses less the second one's steps. Before 5.12 the program is
 * simply entered again, and one copy suffices.
 */
#ifndef MAPBRIDGE_CAPTURE_FENTRY_H
#define MAPBRIDGE_CAPTURE_FENTRY_H

/* include/linux/preempt.h: an NMI, a hardirq, or a softirq that is being served. Bits from 0x200 on
 * in the softirq byte only say that softirqs are held off, as in much of a task's own work. */
#define IN_NMI 0xf00000
#define IN_HARDIRQ 0x0f0000
#define IN_SOFTIRQ 0x000100

/* When an operation began, by where its frame lies. A slot that two frames share keeps the later
 * one; the other's begin is then unknown, and its record says so. */
#define BEGINNINGS 64
struct beginning {
	u64 frame;
	u64 entered;
};
struct beginnings {
	struct beginning of[BEGINNINGS];
};
BPF_PERCPU_ARRAY(beginnings, struct beginnings, 1);

/*
 * All functions that programs stand at, and what they do; twin of FUNCTIONS in functions.py. The
 * arguments are (map, key, value, flags), (map, key), or (map, node) where the kernel evicts.
 */
#define MAP_FUNCTIONS(X)                                                                           \
	X(0, UPDATE, htab_map_update_elem)                                                         \
	X(1, DELETE, htab_map_delete_elem)                                                         \
	X(2, UPDATE, htab_lru_map_update_elem)                                                     \
	X(3, DELETE, htab_lru_map_delete_elem)                                                     \
	X(4, EVICT, htab_lru_map_delete_node)                                                      \
	X(5, UPDATE, htab_percpu_map_update_elem)                                                  \
	X(6, UPDATE, htab_lru_percpu_map_update_elem)                                              \
	X(7, UPDATE, bpf_percpu_hash_update)                                                       \
	X(8, UPDATE, array_map_update_elem)                                                        \
	X(9, UPDATE, bpf_percpu_array_update)                                                      \
	X(10, UPDATE, trie_update_elem)                                                            \
	X(11, DELETE, trie_delete_elem)
#define FUNCTIONS 12

#ifdef MB_AT_BPF_PROG_ACTIVE
#define SCRATCHES (2 * FUNCTIONS) /* for each CPU */
#else
#define SCRATCHES 4
#endif
BPF_ARRAY(fexit_scratch, struct single, MB_CPUS * SCRATCHES);

static __always_inline u32 preempt_count(u32 cpu)
{
	u32 count = IN_SOFTIRQ; /* what cannot be read must not pass for an own write */

	READ_KERNEL(count, base_of(cpu) + MB_AT_PREEMPT_COUNT);
	return count;
}

/*
 * Whether an own thread writes by bpf(2). The thread's id alone will not do: a softirq on top of
 * the thread bears it too. Nor will the two together: a program that the thread makes to run writes
 * in the same context, but the kernel holds bpf_prog_active only while it serves bpf(2) (and inside
 * programs on kprobes and classic tracepoints).
 */
static __always_inline int is_own(u32 cpu)
{
	u32 thread = bpf_get_current_pid_tgid(), active = 0;

	if (!own_threads.lookup(&thread))
		return 0;
	if (preempt_count(cpu) & (IN_NMI | IN_HARDIRQ | IN_SOFTIRQ))
		return 0;
	READ_KERNEL(active, base_of(cpu) + MB_AT_PROG_ACTIVE);
	return active != 0;
}

/* A field by its offset, without a call: the verifier knows the first argument's type. */
static __always_inline u32 map_id_of(u64 *ctx)
{
	u32 id;

	asm volatile("%0 = *(u64 *)(%1 + 0)\n\t%0 = *(u32 *)(%0 + %2)"
		     : "=&r"(id)
		     : "r"(ctx), "i"(MB_AT_BPF_MAP_ID));
	return id;
}

/* The arguments of one call lie at one place from its entry to its exit, and no other call that is
 * under way has that place. The difference of two pointers is a number, even to the verifier. */
static __always_inline u64 frame_of(u64 *ctx, struct beginnings *all)
{
	u64 frame = (u64)ctx;

	asm volatile("%0 -= %1" : "+r"(frame) : "r"(all));
	return frame;
}

static __always_inline struct beginning *beginning_of(u64 frame, struct beginnings *all)
{
	u64 index = ((frame >> 4) ^ (frame >> 10)) & (BEGINNINGS - 1);

	HIDE(index);
	index &= BEGINNINGS - 1;
	return &all->of[index];
}

static __always_inline int note_beginning(u64 *ctx, u32 id)
{
	u32 zero = 0;
	struct beginnings *all;
	struct beginning *mine;
	u64 frame;

	if (!watch_of(id))
		return 0;
	all = beginnings.lookup(&zero);
	if (!all)
		return 0;
	frame = frame_of(ctx, all);
	mine = beginning_of(frame, all);
	mine->frame = frame;
	mine->entered = bpf_ktime_get_ns();
	return 0;
}

/*
 * Where the kernel refuses a program that is running already, each one has a scratch of its own.
 * Elsewhere one program interrupts itself, so the scratch is that of the context; up to Linux 5.10
 * a program holds preemption off, so tasks cannot share one either.
 */
static __always_inline struct single *scratch_on(u32 cpu, u32 which)
{
	u32 place = which;

#ifndef MB_AT_BPF_PROG_ACTIVE
	u32 count = preempt_count(cpu);

	place = count & IN_NMI ? 3 : count & IN_HARDIRQ ? 2 : count & IN_SOFTIRQ ? 1 : 0;
#endif
	place += cpu * SCRATCHES;
	return fexit_scratch.lookup(&place);
}

static __always_inline int report(u64 *ctx, u32 id, u64 key, u64 value, int succeeded, u8 op,
				  u32 which)
{
	u32 zero = 0, cpu;
	struct beginnings *all;
	volatile struct beginning *mine;
	struct single *scratch;
	struct watch *watch = watch_of(id);
	u64 frame, entered;

	if (!watch)
		return 0;
	cpu = bpf_get_smp_processor_id();
	all = beginnings.lookup(&zero);
	scratch = scratch_on(cpu, which);
	if (!all || !scratch)
		return 0;
	frame = frame_of(ctx, all);
	mine = beginning_of(frame, all);
	entered = mine->entered; /* first: whoever overwrites it from now on overwrites the frame too */
	if (mine->frame == frame)
		mine->frame = 0;
	else
		entered = 0;
	if (!succeeded)
		return 0;
	/* What an own write drives out is lost all the same: evictions have no owner. */
	if (op != MAPBRIDGE_EVICT && is_own(cpu))
		return 0;
	if (emit_single(ctx, watch, scratch, key, value, entered, op))
		lose(watch->slot, LOST_FAULT, 1);
	return 0;
}

/* The map that is evicted from is an untyped pointer to the kernel: read its memory by a call. */
static __always_inline u32 evicting_map_id_of(u64 *ctx)
{
	u32 id = 0;

	READ_KERNEL(id, ctx[0] + MB_AT_BPF_MAP_ID);
	return id;
}

/* The result stands behind the arguments: an int on some kernels, a long on others; or a bool. */
#define ID_UPDATE(ctx) map_id_of(ctx)
#define ID_DELETE(ctx) map_id_of(ctx)
#define ID_EVICT(ctx) evicting_map_id_of(ctx)
#define REPORT_UPDATE(ctx, which)                                                                  \
	report(ctx, map_id_of(ctx), (ctx)[1], (ctx)[2], (int)(ctx)[4] == 0, MAPBRIDGE_UPDATE, which)
#define REPORT_DELETE(ctx, which)                                                                  \
	report(ctx, map_id_of(ctx), (ctx)[1], 0, (int)(ctx)[2] == 0, MAPBRIDGE_DELETE, which)
#define REPORT_EVICT(ctx, which)                                                                   \
	report(ctx, evicting_map_id_of(ctx), KEY_OF_NODE((ctx)[1]), 0, (u8)(ctx)[2],               \
	       MAPBRIDGE_EVICT, which)

#define ENTRY_AND_EXIT(index, OP, symbol)                                                          \
	int enter_##symbol(u64 *ctx)                                                               \
	{                                                                                          \
		return note_beginning(ctx, ID_##OP(ctx));                                          \
	}                                                                                          \
	int leave_##symbol(u64 *ctx)                                                               \
	{                                                                                          \
		return REPORT_##OP(ctx, 2 * (index));                                              \
	}
MAP_FUNCTIONS(ENTRY_AND_EXIT)

#ifdef MB_AT_BPF_PROG_ACTIVE
/* Calls that the second copies took over. */
BPF_F_TABLE("array", u32, u64, steps, FUNCTIONS, BPF_F_MMAPABLE);

/* The first copies, and where their counters lie. */
struct guard {
	u64 active; /* address, less the CPU's base; 0: not learnt */
	u32 fd;     /* the program, in the process that learns; 0: none */
	u32 id;     /* of the program that was found, to check the way by */
};
_Static_assert(sizeof(struct guard) == 16, "twin in nesting.py");
BPF_ARRAY(guards, struct guard, FUNCTIONS);

/* Made to run by a test run of the process that owns the programs. */
int learn_guards(void *ctx)
{
#pragma unroll
	for (u32 i = 0; i < FUNCTIONS; i++) {
		u32 index = i;
		struct guard *guard = guards.lookup(&index);
		u64 program = 0, aux = 0;

		if (!guard)
			return 0;
		if (!guard->fd)
			continue;
		program = private_data_of(guard->fd);
		READ_KERNEL(aux, program + MB_AT_BPF_PROG_AUX);
		READ_KERNEL(guard->id, aux + MB_AT_BPF_PROG_AUX_ID);
		READ_KERNEL(guard->active, program + MB_AT_BPF_PROG_ACTIVE);
	}
	return 0;
}

/*
 * Whether the first copy was refused for this very call: it is running, so it is not its turn.
 * The counter is an int, or (7.2) a byte for each context.
 *
 * Where the kernel preempts tasks inside of it, one that is preempted between its two copies by one
 * that is in turn preempted inside the first copy is reported twice: the same change once more.
 */
static __always_inline int step_in(u32 index)
{
	struct guard *guard = guards.lookup(&index);
	u32 running = 0;
	u64 *count;

	if (!guard || !guard->active)
		return 0;
	READ_KERNEL(running, base_of(bpf_get_smp_processor_id()) + guard->active);
	if (!running)
		return 0;
	count = steps.lookup(&index);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 1;
}

#define SECOND_COPY(index, OP, symbol)                                                             \
	int again_##symbol(u64 *ctx)                                                               \
	{                                                                                          \
		return step_in(index) ? REPORT_##OP(ctx, 2 * (index) + 1) : 0;                     \
	}
MAP_FUNCTIONS(SECOND_COPY)
#endif

#endif

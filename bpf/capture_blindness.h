/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Part of capture.bpf.c: counts the operations that the function part cannot see.
 *
 * While a CPU works on a map for bpf(2), the kernel skips programs on kprobes there, and so in the
 * softirqs that interrupt that work, and in other tasks where the kernel preempts one in the midst
 * of it. The kprobe itself is hit all the same, and the kernel counts its hits per CPU. So: hits
 * during a softirq that began inside such work, or while another task runs, are operations that
 * nobody saw. Raw tracepoints are not subject to the guard. What a softirq did while another task
 * ran counts twice: more can be counted than went unseen.
 */
#ifndef MAPBRIDGE_CAPTURE_BLINDNESS_H
#define MAPBRIDGE_CAPTURE_BLINDNESS_H

#define HIT_COUNTERS 10 /* the entry probes of the map functions, twin in blindness.py */

struct hit_counter {
	u64 address; /* of the count, less the CPU's base */
	u32 fd;      /* the probe's perf event, in the process that learns */
	u32 spare;
	u64 sum; /* over all CPUs when it was learnt, to check the address by */
};
_Static_assert(sizeof(struct hit_counter) == 24, "twin in blindness.py");

BPF_ARRAY(hit_counters, struct hit_counter, HIT_COUNTERS);
BPF_F_TABLE("array", u32, u64, blind, HIT_COUNTERS, BPF_F_MMAPABLE);

#define UNCOUNTED 0xffffffffffffffffULL
struct hits {
	u64 of[HIT_COUNTERS]; /* UNCOUNTED: nobody knew where when the counting began */
	u64 counting;
	u64 holder; /* of those between switches: the task that was preempted inside bpf(2) */
};
BPF_PERCPU_ARRAY(hits_in_softirq, struct hits, 1);
BPF_PERCPU_ARRAY(hits_in_task, struct hits, 1);

static __always_inline u64 hits_of(u32 index, u64 base)
{
	struct hit_counter *counter = hit_counters.lookup(&index);
	u64 hits = 0;

	if (!counter || !counter->address)
		return UNCOUNTED;
	READ_KERNEL(hits, base + counter->address);
	return hits;
}

/* Made to run by a test run of the process that owns the perf events. */
int learn_hit_counters(void *ctx)
{
#pragma unroll
	for (u32 i = 0; i < HIT_COUNTERS; i++) {
		u32 index = i;
		struct hit_counter *counter = hit_counters.lookup(&index);
		u64 call = 0, probe = 0, address = 0, sum = 0;

		if (!counter)
			return 0;
		if (!counter->fd)
			continue;
		READ_KERNEL(call, private_data_of(counter->fd) + MB_AT_PERF_EVENT_TP_EVENT);
		READ_KERNEL(probe, call - MB_AT_TRACE_PROBE_EVENT_CALL + MB_AT_TRACE_PROBE_EVENT_PROBES);
		probe -= MB_AT_TRACE_PROBE_LIST + MB_AT_TRACE_KPROBE_TP;
		READ_KERNEL(address, probe + MB_AT_TRACE_KPROBE_NHIT);
		for (u32 cpu = 0; cpu < MB_CPUS; cpu++) {
			u64 hits = 0;

			READ_KERNEL(hits, base_of(cpu) + address);
			sum += hits;
		}
		counter->address = address;
		counter->sum = sum;
	}
	return 0;
}

static __always_inline u32 prog_active(u64 base)
{
	u32 active = 0;

	READ_KERNEL(active, base + MB_AT_PROG_ACTIVE);
	return active;
}

static __always_inline void begin_counting(struct hits *before, u64 base)
{
#pragma unroll
	for (u32 i = 0; i < HIT_COUNTERS; i++)
		before->of[i] = hits_of(i, base);
	before->counting = 1;
}

static __always_inline void end_counting(struct hits *before, u64 base)
{
	before->counting = 0;
#pragma unroll
	for (u32 i = 0; i < HIT_COUNTERS; i++) {
		u32 index = i;
		u64 *count = blind.lookup(&index), hits;

		if (!count || before->of[i] == UNCOUNTED)
			continue;
		hits = hits_of(i, base) - before->of[i];
		if (hits)
			__sync_fetch_and_add(count, hits);
	}
}

int on_softirq_entry(void *ctx)
{
	u64 base = base_of(bpf_get_smp_processor_id());
	u32 zero = 0;
	struct hits *before;

	if (!prog_active(base))
		return 0;
	before = hits_in_softirq.lookup(&zero);
	if (before)
		begin_counting(before, base);
	return 0;
}

int on_softirq_exit(void *ctx)
{
	u32 zero = 0;
	struct hits *before = hits_in_softirq.lookup(&zero);

	if (before && before->counting)
		end_counting(before, base_of(bpf_get_smp_processor_id()));
	return 0;
}

/* (preempt, previous task, next task, ...). A task that holds the guard alone sees to itself: what
 * it writes by bpf(2) is reported at the call's exit. */
int on_switch(u64 *ctx)
{
	u64 base = base_of(bpf_get_smp_processor_id());
	u32 zero = 0, active;
	struct hits *before = hits_in_task.lookup(&zero);

	if (!before)
		return 0;
	if (before->counting)
		end_counting(before, base);
	active = prog_active(base);
	if (!active) {
		before->holder = 0;
		return 0;
	}
	if (!before->holder)
		before->holder = ctx[1];
	if (active > 1 || ctx[2] != before->holder)
		begin_counting(before, base);
	return 0;
}

#endif

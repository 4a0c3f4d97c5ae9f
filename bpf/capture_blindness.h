/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Part of capture.bpf.c: counts the operations that the function part cannot see.
 *
 * While a CPU works on a map for bpf(2), the kernel skips programs on kprobes there, and so in the
 * softirqs that interrupt that work. The kprobe itself is hit all the same, and the kernel counts
 * its hits per CPU. So: hits during a softirq that began inside such work are operations that
 * nobody saw. Raw tracepoints are not subject to the guard.
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
	u64 of[HIT_COUNTERS]; /* UNCOUNTED: nobody knew where when the softirq began */
	u64 counting;         /* 0: this softirq is not blind */
};
BPF_PERCPU_ARRAY(hits_before, struct hits, 1);

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

int on_softirq_entry(void *ctx)
{
	u64 base = base_of(bpf_get_smp_processor_id());
	u32 active = 0, zero = 0;
	struct hits *before;

	READ_KERNEL(active, base + MB_AT_PROG_ACTIVE);
	if (!active)
		return 0;
	before = hits_before.lookup(&zero);
	if (!before)
		return 0;
#pragma unroll
	for (u32 i = 0; i < HIT_COUNTERS; i++)
		before->of[i] = hits_of(i, base);
	before->counting = 1;
	return 0;
}

int on_softirq_exit(void *ctx)
{
	u32 zero = 0;
	struct hits *before = hits_before.lookup(&zero);
	u64 base;

	if (!before || !before->counting)
		return 0;
	before->counting = 0;
	base = base_of(bpf_get_smp_processor_id());
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
	return 0;
}

#endif

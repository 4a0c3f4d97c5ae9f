/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Part of capture.bpf.c: the canaries, maps that are written in every way, to see which ways are
 * seen.
 */
#ifndef MAPBRIDGE_CAPTURE_CANARY_H
#define MAPBRIDGE_CAPTURE_CANARY_H

/* Names, sizes, keys and values: twins in bridge/capture/canary.py. */
#define CANARY_ENTRIES 64
#define CANARY_LRU_ENTRIES 512 /* small ones evict long before they are full */
#define CANARY_KEY 0x70726f67
#define CANARY_INDEX 7 /* where keys are indexes */
#define CANARY_VALUE 0x6d6170627269ULL

struct canary_prefix {
	u32 length;
	u32 address;
};

BPF_HASH(canary_hash, u32, u64, CANARY_ENTRIES);
BPF_TABLE("lru_hash", u32, u64, canary_lru_hash, CANARY_LRU_ENTRIES);
BPF_TABLE("percpu_hash", u32, u64, canary_percpu_hash, CANARY_ENTRIES);
BPF_TABLE("lru_percpu_hash", u32, u64, canary_lru_percpu_hash, CANARY_LRU_ENTRIES);
BPF_TABLE("array", u32, u64, canary_array, CANARY_ENTRIES);
BPF_TABLE("percpu_array", u32, u64, canary_percpu_array, CANARY_ENTRIES);
BPF_F_TABLE("lpm_trie", struct canary_prefix, u64, canary_lpm_trie, CANARY_ENTRIES,
	    BPF_F_NO_PREALLOC);

/* Classifiers, made to run by test runs. They write all canaries; only those watched are reported. */
int update_canaries(void *packet)
{
	struct canary_prefix prefix = {32, CANARY_KEY};
	u32 key = CANARY_KEY, index = CANARY_INDEX;
	u64 value = CANARY_VALUE;

	canary_hash.update(&key, &value);
	canary_lru_hash.update(&key, &value);
	canary_percpu_hash.update(&key, &value);
	canary_lru_percpu_hash.update(&key, &value);
	canary_array.update(&index, &value);
	canary_percpu_array.update(&index, &value);
	canary_lpm_trie.update(&prefix, &value);
	return 0;
}

int delete_canaries(void *packet)
{
	struct canary_prefix prefix = {32, CANARY_KEY};
	u32 key = CANARY_KEY;

	canary_hash.delete(&key);
	canary_lru_hash.delete(&key);
	canary_percpu_hash.delete(&key);
	canary_lru_percpu_hash.delete(&key);
	canary_lpm_trie.delete(&prefix);
	return 0;
}

#endif

"""When two keys of a map are the same, and what a missing key says; both depend on the map's type.

Invariant: two keys that mean one entry to the kernel have the same bytes everywhere behind here,
and a key that a map lacks counts as deleted only where nothing but a delete can have removed it.

* A prefix of an LPM trie is known by its leading bits; the kernel keeps whatever stands behind
  them, so the same entry comes with different bytes (``longest_prefix_match`` in
  ``kernel/bpf/lpm_trie.c``). They are zeroed.
* An LRU map drops entries to make room. One node lacking room says nothing of the others' maps, so
  an eviction is not a delete, unless the operator wants it to be one: then it becomes one here,
  before it is published, so that all nodes fold the stream alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bridge.model import U8, DeltaBatch, Evict, Op

_LENGTH_BYTES = 4  # struct bpf_lpm_trie_key: u32 prefixlen, in the machine's byte order
_MASKS = np.array([0xFF00 >> bits & 0xFF for bits in range(9)], np.uint8)  # by leading bits


@dataclass(frozen=True, slots=True)
class Identity:
    """``prefixes``: an LPM trie. ``evicts``: the map drops entries by itself."""

    prefixes: bool = False
    evicts: bool = False
    policy: Evict = Evict.LOCAL

    @property
    def missing_means_deleted(self) -> bool:
        """Whether a key that the map lacks is gone for everybody."""
        return not self.evicts or self.policy is Evict.REPLICATE

    def keys(self, keys: U8) -> U8:
        """The same keys, ``u8[n, key_size]``, in the bytes that stand for their entry."""
        return canonical_prefixes(keys) if self.prefixes else keys

    def batch(self, batch: DeltaBatch) -> DeltaBatch:
        """What is captured, as it is to be published."""
        if self.prefixes:
            batch = replace(batch, keys=canonical_prefixes(batch.keys))
        if self.evicts and self.policy is Evict.REPLICATE:
            evictions = batch.ops == np.uint8(Op.EVICT)
            if evictions.any():
                batch = replace(batch, ops=np.where(evictions, np.uint8(Op.DELETE), batch.ops))
        return batch


def canonical_prefixes(keys: U8) -> U8:
    """Prefixes ``u8[n, 4 + address]`` with zeros behind their leading bits, as a copy.

    A length beyond the address, which the kernel refuses, leaves all bits.
    """
    length = np.ascontiguousarray(keys[:, :_LENGTH_BYTES]).view("<u4")[:, 0].astype(np.int64)
    starts = 8 * np.arange(keys.shape[1] - _LENGTH_BYTES)
    bits = np.clip(length[:, np.newaxis] - starts, 0, 8)
    canonical = keys.copy()
    canonical[:, _LENGTH_BYTES:] &= _MASKS[bits]
    return canonical

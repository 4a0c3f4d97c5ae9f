"""Which kernel maps the bridge can take, by their type and shape."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bridge.kernel.maptypes import PER_CPU_TYPES, MapType
from bridge.model import KEY_SIZE_MAX, VALUE_SIZE_MAX, MapInfo


class Support(enum.StrEnum):
    """How much of the bridge works with a map."""

    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one map; ``reason`` is empty for a plain yes.

    ``publish_only``: what other nodes say of such a map cannot be written into it.
    """

    support: Support
    reason: str = ""
    publish_only: bool = False


_OBJECTS = "its values are kernel objects of this machine"
_QUEUE = "it has no keys"
_STORAGE = "its entries belong to sockets, tasks, inodes or cgroups of this machine"
_REASONS = {
    MapType.PROG_ARRAY: _OBJECTS,
    MapType.PERF_EVENT_ARRAY: _OBJECTS,
    MapType.CGROUP_ARRAY: _OBJECTS,
    MapType.ARRAY_OF_MAPS: _OBJECTS,
    MapType.HASH_OF_MAPS: _OBJECTS,
    MapType.DEVMAP: _OBJECTS,
    MapType.DEVMAP_HASH: _OBJECTS,
    MapType.SOCKMAP: _OBJECTS,
    MapType.SOCKHASH: _OBJECTS,
    MapType.CPUMAP: _OBJECTS,
    MapType.XSKMAP: _OBJECTS,
    MapType.REUSEPORT_SOCKARRAY: _OBJECTS,
    MapType.STRUCT_OPS: _OBJECTS,
    MapType.INSN_ARRAY: _OBJECTS,
    MapType.STACK_TRACE: "its entries are stacks of this machine",
    MapType.QUEUE: _QUEUE,
    MapType.STACK: _QUEUE,
    MapType.BLOOM_FILTER: _QUEUE,
    MapType.RINGBUF: _QUEUE,
    MapType.USER_RINGBUF: _QUEUE,
    MapType.ARENA: _QUEUE,
    MapType.CGROUP_STORAGE: _STORAGE,
    MapType.PERCPU_CGROUP_STORAGE: _STORAGE,
    MapType.SK_STORAGE: _STORAGE,
    MapType.INODE_STORAGE: _STORAGE,
    MapType.TASK_STORAGE: _STORAGE,
    MapType.CGRP_STORAGE: _STORAGE,
}


_KNOWN = frozenset((MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE, MapType.ARRAY))
_CPUS = "its values belong to the CPUs of this machine"


def judge(info: MapInfo) -> Verdict:
    """Whether the bridge can take the map."""
    if info.type in _REASONS:
        return Verdict(Support.NO, _REASONS[MapType(info.type)])
    if info.key_size > KEY_SIZE_MAX or info.value_size > VALUE_SIZE_MAX:
        return Verdict(
            Support.NO, f"keys over {KEY_SIZE_MAX} or values over {VALUE_SIZE_MAX} bytes"
        )
    if info.type in PER_CPU_TYPES:
        return Verdict(Support.YES, f"publish only, {_CPUS}", publish_only=True)
    if info.type in _KNOWN:
        return Verdict(Support.YES)
    return Verdict(Support.NO, "this type is not known to this version")

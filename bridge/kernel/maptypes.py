"""Numbers of the kernel's map interface (``include/uapi/linux/bpf.h``)."""

from __future__ import annotations

import enum


class MapType(enum.IntEnum):
    """``enum bpf_map_type``. A newer kernel may know more: see ``type_name``."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33
    INSN_ARRAY = 34


class UpdateFlag(enum.IntFlag):
    """Flags of an update."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2
    LOCK = 4


class MapFlag(enum.IntFlag):
    """Flags of a map's creation, those in use."""

    NONE = 0
    NO_PREALLOC = 1 << 0
    NO_COMMON_LRU = 1 << 1
    RDONLY = 1 << 3
    WRONLY = 1 << 4


PER_CPU_TYPES = frozenset(
    (
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_PERCPU_HASH,
        MapType.PERCPU_CGROUP_STORAGE,
    )
)

# Types whose every slot always exists.
ARRAY_TYPES = frozenset((MapType.ARRAY, MapType.PERCPU_ARRAY))

# Types whose values programs change through a looked-up pointer as a rule, where no probe sees it.
IN_PLACE_TYPES = ARRAY_TYPES | PER_CPU_TYPES

# Types whose LOOKUP_BATCH walks buckets or indexes and so never comes back to a key. The others
# walk by the last key and start again when it has vanished.
SINGLE_PASS_TYPES = frozenset(
    (
        MapType.HASH,
        MapType.LRU_HASH,
        MapType.PERCPU_HASH,
        MapType.LRU_PERCPU_HASH,
        MapType.ARRAY,
        MapType.PERCPU_ARRAY,
    )
)

# Types that make room for a new key by dropping one that was not used for long.
LRU_TYPES = frozenset((MapType.LRU_HASH, MapType.LRU_PERCPU_HASH))


def type_name(number: int) -> str:
    """The type's name in lower case; ``type 99`` for one that this list does not have."""
    try:
        return MapType(number).name.lower()
    except ValueError:
        return f"type {number}"

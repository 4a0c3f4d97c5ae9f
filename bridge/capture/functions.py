"""The kernel's own functions that change a map, by the type of the map.

Twin of ``MAP_FUNCTIONS`` in ``bpf/capture_fentry.h``. Programs reach these functions directly: the
kernel puts a call of the map type's function in place of the helper. bpf(2) reaches them too, but
for the updates of per-CPU maps, which have functions of their own because they bring a value for
each CPU (``bpf_map_update_value`` in ``kernel/bpf/syscall.c``).
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.kernel.maptypes import MapType
from bridge.model import Op


@dataclass(frozen=True, slots=True)
class MapFunction:
    """``number``: its place in ``MAP_FUNCTIONS``. ``by_programs``: BPF programs reach it."""

    number: int
    op: Op
    symbol: str
    by_programs: bool = True


FUNCTIONS = (
    MapFunction(0, Op.UPDATE, "htab_map_update_elem"),
    MapFunction(1, Op.DELETE, "htab_map_delete_elem"),
    MapFunction(2, Op.UPDATE, "htab_lru_map_update_elem"),
    MapFunction(3, Op.DELETE, "htab_lru_map_delete_elem"),
    MapFunction(4, Op.EVICT, "htab_lru_map_delete_node"),
    MapFunction(5, Op.UPDATE, "htab_percpu_map_update_elem"),
    MapFunction(6, Op.UPDATE, "htab_lru_percpu_map_update_elem"),
    MapFunction(7, Op.UPDATE, "bpf_percpu_hash_update", by_programs=False),
    MapFunction(8, Op.UPDATE, "array_map_update_elem"),
    MapFunction(9, Op.UPDATE, "bpf_percpu_array_update", by_programs=False),
    MapFunction(10, Op.UPDATE, "trie_update_elem"),
    MapFunction(11, Op.DELETE, "trie_delete_elem"),
)

_NUMBERS: dict[int, tuple[int, ...]] = {
    MapType.HASH: (0, 1),
    MapType.LRU_HASH: (2, 3, 4),
    MapType.PERCPU_HASH: (5, 7, 1),
    MapType.LRU_PERCPU_HASH: (6, 7, 3, 4),
    MapType.ARRAY: (8,),
    MapType.PERCPU_ARRAY: (8, 9),
    MapType.LPM_TRIE: (10, 11),
}

# Types whose changes probes report, each with a canary of its own in bpf/capture_canary.h.
PROBED_TYPES = tuple(MapType(number) for number in _NUMBERS)


def functions_of(map_type: int, *, by_programs: bool) -> tuple[MapFunction, ...]:
    """The functions that change maps of a type; ``by_programs``: only what programs reach.

    A type that the probes do not cover has none.
    """
    chosen = (FUNCTIONS[number] for number in _NUMBERS.get(map_type, ()))
    return tuple(one for one in chosen if one.by_programs or not by_programs)

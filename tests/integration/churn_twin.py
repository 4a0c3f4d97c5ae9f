"""Twin of ``bpf/examples/churn.bpf.c``: loads it, runs it, and knows what its map must hold."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bridge.bench import churn
from bridge.bench.churn import Churn, Writer
from bridge.model import U64, DeltaBatch, Op

KEY_SIZE = 16
VALUE_SIZE = 24
IN_PLACE = 1  # CHURN_IN_PLACE
_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Entry:
    """What must stand in the map for a key, its time left out."""

    count: int
    sequence: int


class TwinChurn(Churn):
    """The loaded program, and what its map holds."""

    def entries(self) -> dict[int, Entry]:
        """What the map holds."""
        found: dict[int, Entry] = {}
        for keys, values in self.loaded.map("churn").scan():
            for (number, check), (count, _, sequence) in zip(
                keys.view(np.uint64).tolist(), values.view(np.uint64).tolist(), strict=True
            ):
                assert check == ~number & (1 << 64) - 1
                found[number] = Entry(count, sequence)
        return found


@contextlib.contextmanager
def loaded_churn(cache: Path, *defines: str) -> Iterator[TwinChurn]:
    pins = Path(f"/sys/fs/bpf/mapbridge_churn_{os.getpid()}_{next(_serial)}")
    with churn.loaded_churn(cache, pins, defines) as running:
        yield TwinChurn(running.loaded)


def mix(x: U64) -> U64:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = x ^ (x >> np.uint64(31))
    return mixed


def operations(writer: Writer, done: int, first: int = 0) -> tuple[U64, npt.NDArray[np.bool_]]:
    """Of the operations ``first`` to ``done``: the key's number, and whether it is a delete."""
    sequence = np.arange(first, done, dtype=np.uint64)
    random = mix(sequence ^ np.uint64((writer.first_key << 32) & (1 << 64) - 1))
    keys: U64 = np.uint64(writer.first_key) + (random & np.uint64(0xFFFFFFFF)) % np.uint64(
        writer.keys
    )
    return keys, (random >> np.uint64(32)) % np.uint64(1024) < writer.deletes


def foretold(writer: Writer, done: int) -> tuple[Writer, dict[int, Entry]]:
    """Counts and entries after ``done`` operations of a writer with keys of its own."""
    entries: dict[int, Entry] = {}
    updates = deletions = vain = 0
    keys, deletes = operations(writer, done)
    pairs = zip(keys.tolist(), deletes.tolist(), strict=True)
    for sequence, (key, is_delete) in enumerate(pairs):
        if not is_delete:
            held = entries.get(key)
            entries[key] = Entry(held.count + 1 if held else 1, sequence)
            updates += 1
        elif entries.pop(key, None) is not None:
            deletions += 1
        else:
            vain += 1
    counted = replace(writer, done=done, updates=updates, deletions=deletions, vain=vain)
    return counted, entries


def fold(batches: Sequence[DeltaBatch]) -> dict[bytes, bytes]:
    """The state that the changes lead to, one after the other."""
    state: dict[bytes, bytes] = {}
    for batch in batches:
        for op, key, value in zip(batch.ops.tolist(), batch.keys, batch.values, strict=True):
            if op == Op.UPDATE:
                state[key.tobytes()] = value.tobytes()
            else:
                state.pop(key.tobytes(), None)
    return state


def keeper(batches: list[DeltaBatch]) -> Callable[[DeltaBatch], bool]:
    """A sink that always has room."""

    def keep(batch: DeltaBatch) -> bool:
        batches.append(batch)
        return True

    return keep


def rows(batches: Sequence[DeltaBatch]) -> int:
    return sum(len(batch) for batch in batches)

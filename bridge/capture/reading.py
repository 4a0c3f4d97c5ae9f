"""Entries that were read out of a map, as changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from bridge.core.fingerprints import Differences
from bridge.model import U8, Cause, DeltaBatch, MapInfo, Op


class Scannable(Protocol):
    """The part of a kernel map that a scan needs."""

    @property
    def info(self) -> MapInfo: ...
    def scan(self) -> Iterator[tuple[U8, U8]]: ...
    def lookup(self, key: bytes) -> bytes | None: ...


def read_again(target: Scannable, keys: U8) -> list[DeltaBatch]:
    """What the map holds of these keys now, as changes; absent ones are deletes."""
    began = ktime_ns()
    values = np.zeros((len(keys), target.info.value_size), np.uint8)
    ops = np.full(len(keys), Op.DELETE, np.uint8)
    for row, key in enumerate(keys):
        value = target.lookup(key.tobytes())
        if value is not None:
            ops[row] = Op.UPDATE
            values[row] = np.frombuffer(value, np.uint8)
    read = DeltaBatch.of_entries(Op.UPDATE, keys, values, ktime_ns(), began=began)
    return [replace(read, ops=ops)]


def as_changes(
    found: Differences, info: MapInfo, began: int, ended: int, cause: Cause
) -> list[DeltaBatch]:
    """Differences that a scan found between two times, as own changes: deletes first."""
    nothing = np.zeros((len(found.deleted_keys), info.value_size), np.uint8)
    sides = (
        (Op.DELETE, found.deleted_keys, nothing),
        (Op.UPDATE, found.updated_keys, found.updated_values),
    )
    return [
        DeltaBatch.of_entries(op, keys, values, ended, began=began, cause=cause)
        for op, keys, values in sides
        if len(keys)
    ]


def ktime_ns() -> int:
    """The clock of the kernel's records (bpf_ktime_get_ns)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

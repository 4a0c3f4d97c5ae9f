"""Whether a replica equals its source, byte by byte.

Both maps are read whole and their keys sorted as bytes. The answer is exact for maps at rest; of
entries that change while the maps are read it says what was seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from bridge.errors import BridgeError
from bridge.model import U8, MapInfo, Rows

EXAMPLES_MAX = 5


class CompareError(BridgeError):
    """Two maps that cannot be compared: their keys or values differ in width."""


class Scannable(Protocol):
    """The part of a kernel map that a comparison needs."""

    info: MapInfo

    def scan(self) -> Iterator[tuple[U8, U8]]: ...


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that differs. The side that lacks the key has ``None``."""

    kind: Literal["missing", "wrong", "extra"]
    key: bytes
    source_value: bytes | None
    replica_value: bytes | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """``missing`` from the replica, ``wrong`` in value, ``extra`` in the replica."""

    source_entries: int
    replica_entries: int
    missing: int
    wrong: int
    extra: int
    examples: tuple[Difference, ...] = ()

    @property
    def equal(self) -> bool:
        return self.missing == 0 and self.wrong == 0 and self.extra == 0

    def __str__(self) -> str:
        return (
            f"source {self.source_entries:,} entries, replica {self.replica_entries:,}: "
            f"{self.missing:,} missing, {self.wrong:,} wrong, {self.extra:,} extra"
        )


def compare(source: Scannable, replica: Scannable) -> Comparison:
    """Reads both maps and compares them. Raises CompareError when their widths differ."""
    ours, theirs = source.info, replica.info
    if (ours.key_size, ours.value_size) != (theirs.key_size, theirs.value_size):
        raise CompareError(
            f"maps: key and value sizes differ (got {ours.key_size} + {ours.value_size} and "
            f"{theirs.key_size} + {theirs.value_size})",
            hint="compare maps of the same program",
        )
    return compare_entries(*read_entries(source), *read_entries(replica))


def read_entries(kernel_map: Scannable) -> tuple[U8, U8]:
    """All entries as (``u8[n, key_size]``, ``u8[n, value_size]``)."""
    info = kernel_map.info
    keys: list[U8] = [np.zeros((0, info.key_size), np.uint8)]
    values: list[U8] = [np.zeros((0, info.value_size), np.uint8)]
    for some_keys, some_values in kernel_map.scan():
        keys.append(some_keys)
        values.append(some_values)
    return np.concatenate(keys), np.concatenate(values)


def compare_entries(
    source_keys: U8, source_values: U8, replica_keys: U8, replica_values: U8
) -> Comparison:
    """The comparison of two sets of entries in any order; no key may occur twice on a side."""
    source_keys, source_values = _sorted(source_keys, source_values)
    replica_keys, replica_values = _sorted(replica_keys, replica_values)
    at = _positions(replica_keys, source_keys)
    found = at >= 0
    differs = (source_values[found] != replica_values[at[found]]).any(axis=1)
    missing = np.flatnonzero(~found)
    wrong = np.flatnonzero(found)[differs]
    is_extra = np.ones(len(replica_keys), np.bool_)
    is_extra[at[found]] = False
    extra = np.flatnonzero(is_extra)
    examples = [
        Difference("missing", source_keys[i].tobytes(), source_values[i].tobytes(), None)
        for i in missing[:EXAMPLES_MAX]
    ]
    examples += [
        Difference(
            "wrong",
            source_keys[i].tobytes(),
            source_values[i].tobytes(),
            replica_values[at[i]].tobytes(),
        )
        for i in wrong[:EXAMPLES_MAX]
    ]
    examples += [
        Difference("extra", replica_keys[i].tobytes(), None, replica_values[i].tobytes())
        for i in extra[:EXAMPLES_MAX]
    ]
    return Comparison(
        len(source_keys), len(replica_keys), len(missing), len(wrong), len(extra), tuple(examples)
    )


def _as_units(keys: U8) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Each row as one opaque unit, which numpy orders by its bytes."""
    rows = np.ascontiguousarray(keys)
    return rows.view(np.dtype((np.void, rows.shape[1]))).reshape(len(rows))


def _sorted(keys: U8, values: U8) -> tuple[U8, U8]:
    order = np.argsort(_as_units(keys), kind="stable")
    keys, values = keys[order], values[order]
    if len(keys) > 1 and (keys[1:] == keys[:-1]).all(axis=1).any():
        raise ValueError("keys: one occurs twice")
    return keys, values


def _positions(sorted_keys: U8, wanted: U8) -> Rows:
    """The row of each wanted key, -1 where it is not there."""
    if not len(sorted_keys):
        return np.full(len(wanted), -1, np.intp)
    at = np.searchsorted(_as_units(sorted_keys), _as_units(wanted))
    at = np.minimum(at, len(sorted_keys) - 1)
    return np.where((sorted_keys[at] == wanted).all(axis=1), at, -1)

"""Changes as objects that people and JSON have: a column at a time, put together last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.layout.render import CHUNK_ROWS, Renderer, Shown, wall_clocks
from bridge.layout.types import Layout
from bridge.model import U8, Delta, DeltaBatch, Op

OPERATIONS = {int(op): op.name.lower() for op in Op}


class Fields:
    """Shows keys and values of one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._key = Renderer(layout.key, "key")
        self._value = Renderer(layout.value, "value")

    def keys(self, rows: U8) -> Sequence[Shown]:
        return self._key.listed(rows)

    def values(self, rows: U8, clock_offset: int | None = None) -> Sequence[Shown]:
        """``clock_offset``: of the node that wrote, for kernel times as the time of day."""
        return self._value.listed(rows, clock_offset)


class FieldsOf:
    """``Fields`` by layout, made once each."""

    def __init__(self) -> None:
        self._made: dict[Layout, Fields] = {}

    def __call__(self, layout: Layout | None) -> Fields | None:
        if layout is None:
            return None
        if layout not in self._made:
            if len(self._made) >= 64:
                self._made.clear()
            self._made[layout] = Fields(layout)
        return self._made[layout]


@dataclass(frozen=True, slots=True)
class Told:
    """Some changes of one batch, in their order: a list per column, all of one length."""

    operations: Sequence[str]
    keys: Sequence[Shown]
    values: Sequence[Shown | None]  # None: not an update
    times: Sequence[str]  # ISO 8601 with microseconds, UTC
    writers: Sequence[int]
    sequences: Sequence[int]

    def __len__(self) -> int:
        return len(self.operations)


def tell(delta: Delta, rows: npt.NDArray[np.intp], fields: Fields | None) -> Told:
    """The given rows of a batch; keys and values in hexadecimal without ``fields``."""
    batch = delta.batch
    ops = batch.ops[rows].tolist()
    keys, values = batch.keys.take(rows, axis=0), batch.values.take(rows, axis=0)
    shown: Sequence[Shown | None]
    if fields is None:
        keys_shown: Sequence[Shown] = [row.tobytes().hex() for row in keys]
        shown = [row.tobytes().hex() for row in values]
    else:
        keys_shown, shown = fields.keys(keys), fields.values(values, delta.clock_offset)
    if any(op != Op.UPDATE for op in ops):
        shown = [value if op == Op.UPDATE else None for value, op in zip(shown, ops, strict=True)]
    nanoseconds = batch.left[rows].astype(np.int64) + delta.clock_offset
    return Told(
        [OPERATIONS[op] for op in ops],
        keys_shown,
        shown,
        wall_clocks(nanoseconds),
        batch.writers[rows].tolist(),
        (delta.first_sequence + rows).tolist(),
    )


def tell_one_by_one(
    batch: DeltaBatch, fields: Fields | None, clock_offset: int
) -> Iterator[tuple[str, Shown, Shown | None]]:
    """Operation, key and value of each change, some of them made at a time."""
    for first in range(0, len(batch), CHUNK_ROWS):
        part = batch.take(slice(first, first + CHUNK_ROWS))
        ops = part.ops.tolist()
        keys, values = _shown(part, fields, clock_offset)
        for op, key, value in zip(ops, keys, values, strict=True):
            yield OPERATIONS[op], key, value if op == Op.UPDATE else None


def _shown(
    batch: DeltaBatch, fields: Fields | None, clock_offset: int
) -> tuple[Sequence[Shown], Sequence[Shown]]:
    if fields is not None:
        return fields.keys(batch.keys), fields.values(batch.values, clock_offset)
    return [row.tobytes().hex() for row in batch.keys], [
        row.tobytes().hex() for row in batch.values
    ]

"""Changes as the bytes of a feed: JSON lines for people, typed messages for programs.

Either way the bytes of several batches can be put one behind the other: lines are lines, and
``Changes`` messages behind each other are one with all their changes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import orjson

from bridge.feed.rows import FieldsOf, tell
from bridge.feed.typed import TypedEncoder
from bridge.layout.types import Layout
from bridge.model import Delta

CHUNK_ROWS = 1024
_LAYOUTS_MAX = 64


class Kind(enum.StrEnum):
    """What a feed carries."""

    JSON = "json"
    TYPED = "typed"


class Encoder(Protocol):
    """Pieces of a batch in its order: how many rows, and their bytes."""

    def pieces(
        self, delta: Delta, layout: Layout | None, sequence: int, first: int, size_max: int
    ) -> Iterator[tuple[int, bytes]]:
        """Rows from ``first`` on, each piece of at most ``size_max`` bytes, or of one row."""

    def takes(self, layout: Layout | None) -> bool:
        """Whether changes in that layout can be written at all."""


def encoder_of(kind: Kind) -> Encoder:
    return JsonEncoder() if kind is Kind.JSON else _TypedFeed()


class JsonEncoder:
    """One object per line; keys and values by their fields, or in hexadecimal without a layout."""

    def __init__(self) -> None:
        self._fields_of = FieldsOf()

    def takes(self, layout: Layout | None) -> bool:
        del layout
        return True

    def pieces(
        self, delta: Delta, layout: Layout | None, sequence: int, first: int, size_max: int
    ) -> Iterator[tuple[int, bytes]]:
        for start in range(first, len(delta.batch), CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, len(delta.batch)))
            lines = self.lines(delta, layout, sequence, rows)
            yield from _bounded(lines, size_max)

    def lines(
        self,
        delta: Delta,
        layout: Layout | None,
        sequence: int,
        rows: np.ndarray[tuple[int], np.dtype[np.intp]],
    ) -> list[bytes]:
        """The given rows, each with its line end."""
        told = tell(delta, rows, self._fields_of(layout))
        origin, cause = delta.origin, delta.batch.cause.name.lower()
        key_name, value_name = ("key_hex", "value_hex") if layout is None else ("key", "value")
        dumps, option = orjson.dumps, orjson.OPT_APPEND_NEWLINE
        head = {"map": origin.map, "node": origin.node, "cause": cause}
        lines = []
        for time, op, key, value, writer, number in zip(
            told.times,
            told.operations,
            told.keys,
            told.values,
            told.writers,
            told.sequences,
            strict=True,
        ):
            change = {"time": time, **head, "op": op, key_name: key}
            if value is not None:
                change[value_name] = value
            change["writer"] = writer
            change["sequence"] = number
            change["stream_sequence"] = sequence
            lines.append(dumps(change, option=option))
        return lines


class _TypedFeed:
    """``Changes`` messages of the map's own ``.proto``; nothing without a layout."""

    def __init__(self) -> None:
        self._encoders: dict[Layout, TypedEncoder] = {}

    def takes(self, layout: Layout | None) -> bool:
        return layout is not None

    def pieces(
        self, delta: Delta, layout: Layout | None, sequence: int, first: int, size_max: int
    ) -> Iterator[tuple[int, bytes]]:
        assert layout is not None, "typed changes need a layout"
        encoder = self._encoders.get(layout)
        if encoder is None:
            if len(self._encoders) >= _LAYOUTS_MAX:
                self._encoders.clear()
            encoder = self._encoders[layout] = TypedEncoder(layout)
        for start in range(first, len(delta.batch), CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, len(delta.batch)))
            data, lengths = encoder.changes(delta, rows, sequence)
            if len(data) <= size_max:
                yield len(rows), data
                continue
            ends = np.cumsum(lengths).tolist()
            parts = [data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
            yield from _bounded(parts, size_max)


def _bounded(parts: list[bytes], size_max: int) -> Iterator[tuple[int, bytes]]:
    """Parts joined, as many as fit."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        if held and size + len(part) > size_max:
            yield len(held), b"".join(held)
            held, size = [], 0
        held.append(part)
        size += len(part)
    if held:
        yield len(held), b"".join(held)

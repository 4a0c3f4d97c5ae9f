"""Keys and values as people and JSON have them, a column at a time.

Numbers stay numbers; addresses, MACs and enumerators become text, pointers and bytes without a
meaning hexadecimal. A struct is a dictionary, an array a list. Each field of all rows is turned
into a list at once, and the rows are put together last: that costs a few microseconds a row.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bridge.layout.columns import Column, Decoder, numbers_of
from bridge.layout.forms import KTIME_MARK, Form, Shape, is_filler, shape_of
from bridge.layout.types import Field, Kind, Type
from bridge.model import U8

Shown: TypeAlias = "int | float | bool | str | list[Shown] | dict[str, Shown]"

CHUNK_ROWS = 1024  # made at once when rows are asked for one by one
_FAMILY = "family"
_IPV4_FAMILIES = (2, 4)  # AF_INET, and the version number that programs use as well


class Renderer:
    """Shows the keys, or the values, of one layout."""

    def __init__(self, found: Type, name: str) -> None:
        self._decoder = Decoder(found, name)
        self._name = name

    def rows(self, rows: U8) -> Iterator[Shown]:
        """One for each row of ``u8[n, size]``, made when it is asked for, some at a time."""
        for start in range(0, len(rows), CHUNK_ROWS):
            yield from self.listed(rows[start : start + CHUNK_ROWS])

    def listed(self, rows: U8, clock_offset: int | None = None) -> Sequence[Shown]:
        """All rows of ``u8[n, size]``.

        ``clock_offset``: CLOCK_REALTIME less CLOCK_MONOTONIC of the host whose values these are, in
        nanoseconds. With it, kernel times (by a field's rule) are shown as the time of day.
        """
        view = self._decoder.view(rows)
        if self._decoder.wrapped:
            only = self._decoder.record.fields[0]
            return _column(only, self._decoder.record, view, clock_offset)
        return _records(self._decoder.record, view, clock_offset)


def _records(record: Type, view: npt.NDArray[np.void], clock_offset: int | None) -> Sequence[Shown]:
    if not record.fields:
        return [{} for _ in range(len(view))]
    names = [field.name for field in record.fields]
    columns = [_column(field, record, view, clock_offset) for field in record.fields]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _column(
    field: Field, holder: Type, view: npt.NDArray[np.void], clock_offset: int | None
) -> Sequence[Shown]:
    """One field of all records of ``view``, which has one dimension."""
    shape = shape_of(field)
    if shape.form is not Form.PLAIN:
        return _shaped(field, shape, holder, view)
    inner, dimensions = field.type.innermost, field.type.dimensions
    if inner.is_record:
        flat = _records(inner, view[field.name].reshape(-1), clock_offset)
        return _grouped(flat, dimensions, len(view))
    if inner.kind is Kind.BYTES:
        raw = np.ascontiguousarray(view[field.name]).reshape(len(view), -1)
        return [row.hex() for row in _split(raw)]
    column = numbers_of(field, view)
    if clock_offset is not None and KTIME_MARK in inner.typedefs:
        return _grouped(_times(column.reshape(-1), clock_offset), dimensions, len(view))
    plain = inner.kind in (Kind.INT, Kind.BOOL, Kind.FLOAT)
    if plain:
        listed: list[Shown] = column.tolist()
        return listed
    numbers = column.reshape(-1).tolist()
    if inner.kind is Kind.ENUM:
        names = {value: name for name, value in reversed(inner.enumerators)}
        return _grouped([names.get(number, number) for number in numbers], dimensions, len(view))
    if inner.kind is Kind.POINTER:
        return _grouped(list(map(hex, numbers)), dimensions, len(view))
    return _grouped([_text(number) for number in numbers], dimensions, len(view))


def _shaped(
    field: Field, shape: Shape, holder: Type, view: npt.NDArray[np.void]
) -> Sequence[Shown]:
    """Addresses and MACs, from their bytes."""
    raw = np.ascontiguousarray(view[field.name]).view(np.uint8).reshape(-1, shape.size)
    parts = _split(raw)
    if shape.form is Form.MAC:
        return _grouped([part.hex(":") for part in parts], shape.dimensions, len(view))
    if shape.size == 4:
        texts = list(map(socket.inet_ntop, repeat(socket.AF_INET), parts))
        return _grouped(texts, shape.dimensions, len(view))
    short = _say_ipv4(holder, view)
    if short is None:
        texts = list(map(socket.inet_ntop, repeat(socket.AF_INET6), parts))
        return _grouped(texts, shape.dimensions, len(view))
    each = np.repeat(short, len(raw) // max(len(view), 1)) & ~raw[:, 4:].any(axis=1)
    texts = [
        socket.inet_ntop(socket.AF_INET, part[:4])
        if is_short
        else socket.inet_ntop(socket.AF_INET6, part)
        for part, is_short in zip(parts, each.tolist(), strict=True)
    ]
    return _grouped(texts, shape.dimensions, len(view))


def _times(column: Column, clock_offset: int) -> list[Shown]:
    """Kernel times as the time of day; 0, which stands for never, as it is."""
    numbers = column.astype(np.int64)
    texts = wall_clocks(numbers + np.int64(clock_offset))
    return [text if number else 0 for text, number in zip(texts, numbers.tolist(), strict=True)]


def wall_clocks(nanoseconds: npt.NDArray[np.int64]) -> list[str]:
    """``2026-01-02T03:04:05.678901+00:00`` of nanoseconds since 1970."""
    texts = np.datetime_as_string(nanoseconds.astype("datetime64[ns]"), unit="us").tolist()
    return [f"{text}+00:00" for text in texts]


def _say_ipv4(holder: Type, view: npt.NDArray[np.void]) -> npt.NDArray[np.bool_] | None:
    """Per record, whether a field ``family`` says that of an address its first 4 bytes count."""
    for field in holder.fields:
        if field.name.lower() == _FAMILY and field.type.kind in (Kind.INT, Kind.ENUM):
            return np.isin(numbers_of(field, view), _IPV4_FAMILIES)
    return None


def _split(raw: U8) -> list[bytes]:
    """Rows of bytes as ``bytes``."""
    data, size = raw.tobytes(), raw.shape[1]
    return [data[at : at + size] for at in range(0, len(data), size)]


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _grouped(flat: Sequence[Shown], dimensions: tuple[int, ...], rows: int) -> Sequence[Shown]:
    """Elements as lists by the dimensions of their array, the last dimension innermost."""
    for count in reversed(dimensions):
        if count == 0:
            return [[] for _ in range(rows)]
        flat = [list(flat[at : at + count]) for at in range(0, len(flat), count)]
    return flat


def line_of(shown: Shown) -> str:
    """One line for people; fields that fill a gap and are zero are left out."""
    if isinstance(shown, dict):
        return " ".join(f"{name}={_inner(value)}" for name, value in _worth_it(shown))
    return _inner(shown)


def _inner(shown: Shown) -> str:
    if isinstance(shown, dict):
        return f"{{{line_of(shown)}}}"
    if isinstance(shown, list):
        return f"[{', '.join(_inner(each) for each in shown)}]"
    if isinstance(shown, str) and not shown.isprintable():
        return shown.encode("unicode_escape").decode()  # whatever a map holds, to a terminal
    return str(shown).lower() if isinstance(shown, bool) else str(shown)


def _worth_it(shown: Mapping[str, Shown]) -> Iterator[tuple[str, Shown]]:
    for name, value in shown.items():
        if not (is_filler(name) and _is_zero(value)):
            yield name, value


def _is_zero(shown: Shown) -> bool:
    if isinstance(shown, list):
        return all(_is_zero(each) for each in shown)
    return not shown if not isinstance(shown, str) else not shown.strip("0")

"""Changes from one layout to another, field by field: for clusters in which two versions run.

Invariant: every row that is mapped means the same in both layouts, as far as the target has fields
for it. Fields are the same when their paths are; their places do not matter. Numbers may become
wider, arrays and texts longer; a field that the target alone has is zero, one that the source alone
has is left out of values. Keys must have the same fields and lengths, or two keys could become one.
Where that does not hold, or a number could lose bits, there is an obstacle and no mapping: which
rows would survive is never guessed. Members that share bytes (unions) must be arranged alike.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.layout.columns import Column, Decoder, numbers_of
from bridge.layout.fingerprint import describe
from bridge.layout.forms import is_filler
from bridge.layout.types import Field, Kind, Layout, Type
from bridge.model import U8

_Records = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why rows of one layout cannot become rows of the other. ``path`` begins with the role."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class _Copy:
    """One field that is no struct, by the names that lead to it, the same in both layouts."""

    holders: tuple[str, ...]
    source: Field
    target: Field


@dataclass(frozen=True, slots=True)
class _Plan:
    source: Decoder
    target: Decoder
    copies: tuple[_Copy, ...]

    def rows(self, rows: U8) -> U8:
        """``u8[n, source size]`` → ``u8[n, target size]``."""
        made = np.zeros((len(rows), self.target.record.size), np.uint8)
        old, new = self.source.view(rows), self.target.view(made)
        for copy in self.copies:
            read, write = old, new
            for name in copy.holders:
                read, write = read[name], write[name]
                write = write[tuple(slice(0, count) for count in read.shape)]
            _store(copy.target, write, numbers_of(copy.source, read))
        return made


@dataclass(frozen=True, slots=True)
class Mapping:
    """Turns keys and values of one layout into those of another."""

    key: _Plan
    value: _Plan

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of a key and of a value that are mapped."""
        return self.key.source.record.size, self.value.source.record.size

    def keys(self, rows: U8) -> U8:
        return self.key.rows(rows)

    def values(self, rows: U8) -> U8:
        return self.value.rows(rows)


def plan_mapping(source: Layout, target: Layout) -> Mapping | list[Obstacle]:
    """How rows become rows of ``target``, or all that stands in the way."""
    obstacles: list[Obstacle] = []
    plans = []
    for role, old, new in (("key", source.key, target.key), ("value", source.value, target.value)):
        readers = Decoder(old, role), Decoder(new, role)
        planner = _Planner(is_key=role == "key")
        planner.record(readers[0].record, readers[1].record, role, ())
        obstacles += planner.obstacles
        plans.append(_Plan(*readers, tuple(planner.copies)))
    return obstacles or Mapping(*plans)


class _Planner:
    def __init__(self, *, is_key: bool) -> None:
        self._is_key = is_key
        self.copies: list[_Copy] = []
        self.obstacles: list[Obstacle] = []

    def record(self, source: Type, target: Type, path: str, holders: tuple[str, ...]) -> None:
        """All fields of a struct or union."""
        old = {field.name: field for field in source.fields}
        new = {field.name: field for field in target.fields}
        if not self._shared_alike(source, target, path):
            return
        for name, field in new.items():
            if name in old:
                self._field(old[name], field, f"{path}.{name}", holders)
            elif self._is_key and not is_filler(name):
                self._obstacle(f"{path}.{name}", "is new in the key")
        if self._is_key:
            for name in old.keys() - new.keys():
                if not is_filler(name):
                    self._obstacle(f"{path}.{name}", "is gone from the key")

    def _shared_alike(self, source: Type, target: Type, path: str) -> bool:
        """Whether members that share bytes do so in the same way in both."""
        old, new = _shared(source), _shared(target)
        for name in sorted(old.keys() | new.keys()):
            here = {field.name for field in source.fields} & {f.name for f in target.fields}
            if name in here and old.get(name) != new.get(name):
                self._obstacle(f"{path}.{name}", "shares its bytes with other fields than before")
                return False
        return True

    def _field(self, old: Field, new: Field, path: str, holders: tuple[str, ...]) -> None:
        if is_filler(old.name) and describe(old.type) != describe(new.type):
            return
        sizes = old.type.dimensions, new.type.dimensions
        shorter = any(b < a or (self._is_key and a != b) for a, b in zip(*sizes, strict=False))
        if len(sizes[0]) != len(sizes[1]) or shorter:
            self._obstacle(path, f"was {old.type.label}, is {new.type.label}")
            return
        source, target = old.type.innermost, new.type.innermost
        if source.is_record and target.is_record:
            self.record(source, target, path, (*holders, old.name))
            return
        reason = _cannot(source, target, old.bits, new.bits)
        if self._is_key and not reason and target.kind is Kind.TEXT and target.size != source.size:
            reason = f"has another length in the key ({source.size}, now {target.size})"
        if reason:
            self._obstacle(path, reason)
        else:
            self.copies.append(_Copy(holders, old, new))

    def _obstacle(self, path: str, reason: str) -> None:
        self.obstacles.append(Obstacle(path, reason))


def _cannot(source: Type, target: Type, old_bits: int, new_bits: int) -> str:
    """Why a value of one type may not be one of the other; empty when it always is."""
    if source.kind is not target.kind and {source.kind, target.kind} != {Kind.INT, Kind.ENUM}:
        return f"was {source.label}, is {target.label}"
    if source.network_order != target.network_order:
        # Did the bytes change, or only what a header calls them? Nothing here can tell.
        return f"was {source.label}, is {target.label}: in network order on one side only"
    if source.kind in (Kind.POINTER, Kind.BYTES):
        return "" if source.size == target.size else f"has {target.size} bytes, not {source.size}"
    old, new = old_bits or 8 * source.size, new_bits or 8 * target.size
    if new < old:
        return f"has become narrower ({old} bits, now {new})"
    # Compilers before LLVM 15 did not tell the sign of an enum; its bits are the same without.
    plain = source.kind is target.kind is Kind.INT
    signs_count = plain or (new != old and Kind.ENUM in (source.kind, target.kind))
    if signs_count and source.signed != target.signed and (source.signed or new == old):
        return "has changed between signed and unsigned"
    return _renamed(source, target) if source.kind is target.kind is Kind.ENUM else ""


def _renamed(source: Type, target: Type) -> str:
    """Which name of an enum means something else now."""
    mask = (1 << 8 * min(source.size, target.size)) - 1
    old = {name: value & mask for name, value in source.enumerators}
    new = {name: value & mask for name, value in target.enumerators}
    known = {value: name for name, value in new.items()}
    for name, value in old.items():
        if new.get(name, value) != value:
            return f"{name} was {value}, is {new[name]}"
        if name not in new and value in known:
            return f"{value} was {name}, is {known[value]}"
    return ""


def _shared(record: Type) -> dict[str, tuple[object, ...]]:
    """Fields that overlap others, each with the arrangement of all that it overlaps with."""
    ordered = sorted(record.fields, key=lambda field: field.bit_offset)
    groups: list[list[Field]] = []
    end = -1
    for field in ordered:
        if field.bit_offset < end:
            groups[-1].append(field)
        else:
            groups.append([field])
            end = -1
        end = max(end, field.bit_offset + (field.bits or 8 * field.type.size))
    found: dict[str, tuple[object, ...]] = {}
    for group in groups:
        if len(group) > 1:
            start = group[0].bit_offset
            told = sorted((f.name, f.bit_offset - start, f.bits, describe(f.type)) for f in group)
            found |= {field.name: tuple(told) for field in group}
    return found


def _store(field: Field, records: _Records, column: Column) -> None:
    """Write a column into a field of all records; arrays may be longer there than here."""
    if field.bits:
        put_bits(field, records[field.name], column)
        return
    held: Column = records[field.name]
    held[tuple(slice(0, count) for count in column.shape)] = column


def put_bits(field: Field, touched: Column, column: Column) -> None:
    """Set the bits of a bit field in the bytes ``u8[..., touched]`` that it shares with others."""
    if sys.byteorder != "little":
        raise NotImplementedError("bit fields are written on little-endian machines only")
    number = column.astype(np.int64).view(np.uint64)
    shift, bits = field.bit_offset % 8, field.bits
    for index in range(field.size):
        start = 8 * index - shift  # of this byte's lowest bit, in the number
        low, high = max(start, 0), min(start + 8, bits)
        mask = ((1 << (high - low)) - 1) << (low - start)
        part = (number >> np.uint64(low)) << np.uint64(low - start)
        cut = part.astype(np.uint8) & np.uint8(mask)
        kept = touched[..., index].astype(np.uint8) & np.uint8(~mask & 0xFF)
        touched[..., index] = kept | cut

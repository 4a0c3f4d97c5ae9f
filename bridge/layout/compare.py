"""What differs between two layouts, for people: fields that came, went, moved or changed."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from bridge.layout.fingerprint import describe, fingerprint
from bridge.layout.mapping import Obstacle, plan_mapping
from bridge.layout.types import Layout, Leaf, Type, as_record, leaves


class Change(enum.StrEnum):
    """What happened to a field."""

    ADDED = "added"
    REMOVED = "removed"
    MOVED = "moved"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field. ``before`` and ``after`` have place and type, or are empty."""

    path: str
    change: Change
    before: str
    after: str


class Fit(enum.StrEnum):
    """Whether changes in one layout can be applied to a map of another."""

    SAME = "same"
    MAPPED = "mapped"  # by the names of fields
    PARKED = "parked"  # not at all: such changes wait


@dataclass(frozen=True, slots=True)
class Compatibility:
    """Of changes that come in one layout to a map of another."""

    fit: Fit
    obstacles: tuple[Obstacle, ...] = ()


def differences(old: Layout, new: Layout) -> list[Difference]:
    """All fields that are not the same in both, keys first."""
    found = []
    for role, before, after in (("key", old.key, new.key), ("value", old.value, new.value)):
        found += list(_of_type(role, as_record(before, role), as_record(after, role)))
    return found


def compatibility(source: Layout, target: Layout) -> Compatibility:
    """Whether changes in layout ``source`` can be applied to a map of layout ``target``."""
    if fingerprint(source) == fingerprint(target):
        return Compatibility(Fit.SAME)
    planned = plan_mapping(source, target)
    if isinstance(planned, list):
        return Compatibility(Fit.PARKED, tuple(planned))
    return Compatibility(Fit.MAPPED)


def _of_type(role: str, before: Type, after: Type) -> Iterator[Difference]:
    old = {leaf.path: leaf for leaf in leaves(before)}
    new = {leaf.path: leaf for leaf in leaves(after)}
    for path in [*old, *(path for path in new if path not in old)]:
        here, there = old.get(path), new.get(path)
        told = ("" if here is None else _told(here)), ("" if there is None else _told(there))
        if here is None:
            yield Difference(f"{role}.{path}", Change.ADDED, *told)
        elif there is None:
            yield Difference(f"{role}.{path}", Change.REMOVED, *told)
        elif _kind(here) != _kind(there):
            yield Difference(f"{role}.{path}", Change.CHANGED, *told)
        elif here.bit_offset != there.bit_offset:
            yield Difference(f"{role}.{path}", Change.MOVED, *told)
    if before.size != after.size:
        sizes = f"{before.size} bytes", f"{after.size} bytes"
        yield Difference(role, Change.CHANGED, *sizes)


def _kind(leaf: Leaf) -> tuple[int, str]:
    return leaf.field.bits, describe(leaf.field.type)


def _told(leaf: Leaf) -> str:
    at, bit = divmod(leaf.bit_offset, 8)
    field = leaf.field
    place = f"{at}.{bit}, {field.bits} bits" if field.bits else f"{at}"
    values = ", ".join(f"{name}={value}" for name, value in field.type.innermost.enumerators)
    return f"{field.type.label} at {place}" + (f" ({values})" if values else "")

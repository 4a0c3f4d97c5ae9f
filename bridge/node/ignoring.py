"""Which bytes of a map's values count, out of what its configuration says to ignore."""

from __future__ import annotations

import numpy as np

from bridge.config.settings import MapConfig
from bridge.config.units import parse_range
from bridge.errors import BridgeError, Exit
from bridge.kernel.maps import KernelMap
from bridge.layout.reader import read_layout
from bridge.layout.types import Type
from bridge.model import U8


class IgnoreError(BridgeError):
    """The map's values have no such bytes or fields."""

    exit_code = Exit.CONFIG


def counted_bytes(entry: MapConfig, opened: KernelMap) -> U8 | None:
    """``u8[value_size]``: 255 for each byte that counts, 0 for the others; ``None``: all count.

    Raises ``IgnoreError``; for names also what ``read_layout`` raises.
    """
    if not entry.ignore:
        return None
    size = opened.info.value_size
    counted = np.full(size, 255, np.uint8)
    value: Type | None = None
    for part in entry.ignore:
        ignored = parse_range(part)
        if ignored is None:
            value = read_layout(opened).value if value is None else value
            ignored = _bytes_of(entry, value, part)
        if ignored.stop > size:
            raise IgnoreError(
                f"map {entry.name}: ignore {part}: values have {size} bytes",
                hint="see the fields and their places with `mapbridge schema show`",
            )
        counted[ignored.start : ignored.stop] = 0
    if not counted.any():
        raise IgnoreError(f"map {entry.name}: ignore: nothing of a value is left to be compared")
    return counted


def both(some: U8 | None, others: U8 | None) -> U8 | None:
    """The bits of a value that count by both."""
    if some is None or others is None:
        return others if some is None else some
    return some & others


def _bytes_of(entry: MapConfig, value: Type, path: str) -> range:
    """The bytes of a field, named with dots for fields of fields."""
    here, offset = value, 0
    for name in path.split("."):
        found = next((f for f in here.fields if f.name == name), None) if here.is_record else None
        if found is None or found.bits:
            known = ", ".join(f.name for f in here.fields if not f.bits) or "none"
            raise IgnoreError(
                f"map {entry.name}: ignore {path}: no such field of whole bytes (it has: {known})",
                hint='name another one, or bytes such as "16:24"',
            )
        here, offset = found.type, offset + found.offset
    return range(offset, offset + here.size)

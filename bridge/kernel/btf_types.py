"""What BTF tells of one type: its kind, its record, members and codings, as values.

The reader of the blob that they stand in is ``btf``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.IntEnum):
    """``BTF_KIND_*``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


@dataclass(frozen=True, slots=True)
class Record:
    """One type. ``extent`` is a size in bytes or the id of another type, by kind.

    ``has_bitfields`` is the record's flag: of an enum it means that the values are signed.
    """

    id: int
    kind: Kind
    name: str
    extent: int
    elements: int
    has_bitfields: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union. ``bits`` is 0 unless it is a bit field."""

    name: str
    type_id: int
    bit_offset: int
    bits: int = 0


@dataclass(frozen=True, slots=True)
class IntCoding:
    """How an integer is meant. ``bits`` below its size, or an offset: a bit field of older BTF."""

    is_signed: bool
    is_bool: bool
    bit_offset: int
    bits: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member lies in its outermost struct: bytes from its start, and its size."""

    offset: int
    size: int

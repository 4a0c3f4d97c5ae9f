"""The shape of a map's keys and values: types with fields, offsets and sizes.

A ``Type`` says what some bytes hold. Typedef names are kept, outermost first, because they carry
meaning that the integer behind them has not (``__be32``). Members of anonymous structs and unions
stand in their holder, as C code addresses them. All sizes and offsets are in bytes, except where a
name says bits.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

_NETWORK_ORDER = frozenset({"__be16", "__be32", "__be64", "be16", "be32", "be64"})


class Kind(enum.StrEnum):
    """What a type is, to one who decodes it."""

    INT = "int"
    BOOL = "bool"
    ENUM = "enum"
    FLOAT = "float"
    POINTER = "pointer"
    TEXT = "text"  # an array of char
    ARRAY = "array"
    STRUCT = "struct"
    UNION = "union"
    BYTES = "bytes"  # what is not described, or has no number of its kind (128 bits)


@dataclass(frozen=True, slots=True)
class Type:
    """A type. Which fields matter follows from ``kind``.

    name         the C name of an integer, or the tag of a struct, union or enum; may be empty
    typedefs     names that stand for it, outermost first
    signed       of INT and ENUM
    enumerators  of ENUM: (name, value)
    element      of ARRAY, ``count`` of them
    fields       of STRUCT and UNION, in their order
    """

    kind: Kind
    size: int
    name: str = ""
    typedefs: tuple[str, ...] = ()
    signed: bool = False
    enumerators: tuple[tuple[str, int], ...] = ()
    element: Type | None = None
    count: int = 0
    fields: tuple[Field, ...] = ()

    @property
    def is_record(self) -> bool:
        return self.kind in (Kind.STRUCT, Kind.UNION)

    @property
    def network_order(self) -> bool:
        """Whether a typedef says that the bytes stand in network order."""
        return not _NETWORK_ORDER.isdisjoint(self.typedefs)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The counts of nested arrays, outermost first; empty for anything else."""
        found: list[int] = []
        inner = self
        while inner.kind is Kind.ARRAY:
            assert inner.element is not None
            found.append(inner.count)
            inner = inner.element
        return tuple(found)

    @property
    def innermost(self) -> Type:
        """The element behind all dimensions of an array; itself for anything else."""
        inner = self
        while inner.kind is Kind.ARRAY:
            assert inner.element is not None
            inner = inner.element
        return inner

    @property
    def label(self) -> str:
        """The type as C code would name it."""
        if self.typedefs:
            return self.typedefs[0]
        if self.kind is Kind.ARRAY:
            return self.innermost.label + "".join(f"[{count}]" for count in self.dimensions)
        if self.kind is Kind.TEXT:
            return f"char[{self.size}]"
        if self.kind is Kind.POINTER:
            return "void *"
        if self.kind in (Kind.STRUCT, Kind.UNION, Kind.ENUM):
            return f"{self.kind} {self.name}".rstrip()
        return self.name or f"bytes[{self.size}]"


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a struct or union. ``bits`` is 0 unless it is a bit field.

    ``bit_offset`` counts from the start of the holder, in the machine's own bit order.
    """

    name: str
    bit_offset: int
    type: Type
    bits: int = 0

    @property
    def offset(self) -> int:
        """Byte in which the field begins."""
        return self.bit_offset // 8

    @property
    def size(self) -> int:
        """Bytes that the field touches."""
        if not self.bits:
            return self.type.size
        return (self.bit_offset + self.bits + 7) // 8 - self.offset


@dataclass(frozen=True, slots=True)
class Layout:
    """The types of a map's keys and values."""

    key: Type
    value: Type


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field by its path from the outermost struct; ``bit_offset`` counts from there.

    Fields of arrays of structs have ``[]`` in their path, and the offset of the first element.
    """

    path: str
    bit_offset: int
    field: Field
    holder: Type


def leaves(record: Type, prefix: str = "", bit_offset: int = 0) -> Iterator[Leaf]:
    """All fields that are no structs themselves, in their order."""
    for field in record.fields:
        path = f"{prefix}{field.name}" + "[]" * (
            len(field.type.dimensions) if field.type.innermost.is_record else 0
        )
        inner = field.type.innermost
        if inner.is_record:
            yield from leaves(inner, f"{path}.", bit_offset + field.bit_offset)
        else:
            yield Leaf(path, bit_offset + field.bit_offset, field, record)


def as_record(found: Type, name: str) -> Type:
    """A struct as it is; anything else as the only field of one, called ``name``."""
    if found.is_record:
        return found
    return Type(Kind.STRUCT, found.size, fields=(Field(name, 0, found),))

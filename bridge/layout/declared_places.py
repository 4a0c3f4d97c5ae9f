"""Where C puts the fields of a struct: sizes, alignment and bit fields of the BPF target.

``long`` and pointers have 8 bytes, ``char`` is signed, an enum is an ``int`` unless its values need
more or ``packed`` allows less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge.layout.types import Field, Kind, Type


@dataclass(frozen=True, slots=True)
class Sized:
    """A type with what only its declaration knows: how it wants to be aligned."""

    type: Type
    align: int


def enum_of(tag: str, values: list[tuple[str, int]], *, packed: bool) -> Type:
    """As small as ``packed`` allows, else an ``int``, else 8 bytes."""
    numbers = [value for _, value in values] or [0]
    signed = min(numbers) < 0
    size = next(
        size
        for size in ((1, 2, 4, 8) if packed else (4, 8))
        if size == 8
        or (-(1 << (8 * size - 1)) <= min(numbers) and max(numbers) < 1 << (8 * size - signed))
    )
    return Type(Kind.ENUM, size, tag, (), signed, tuple(values))


def placed(
    members: list[tuple[str, Sized, int | None, int]], *, is_union: bool, packed: bool
) -> tuple[list[Field], int, int]:
    """Fields at their places, the bytes that they take, and the struct's alignment.

    The rules are those of the System V ABI, which the BPF target follows: a bit field does not
    cross a boundary of its declared type, and one of width 0 ends the unit.
    """
    fields: list[Field] = []
    bit, most, align = 0, 0, 1
    for name, sized, bits, wanted in members:
        found, step = sized.type, 1 if packed else sized.align
        step = max(step, wanted)
        if is_union:
            bit = 0
        if bits is None:
            bit = -(-bit // (8 * step)) * 8 * step
            align = max(align, step)
            if not name:
                fields += [replace(f, bit_offset=f.bit_offset + bit) for f in found.fields]
            elif found.size:
                fields.append(Field(name, bit, found))
            bit += 8 * found.size
        else:
            unit = 8 * found.size
            crosses = not packed and bit // unit != (bit + bits - 1) // unit
            if bits == 0 or crosses:
                bit = -(-bit // unit) * unit
            if wanted:
                bit = -(-bit // (8 * wanted)) * 8 * wanted
            if name:
                align = max(align, step)
                fields.append(Field(name, bit, found, bits))
            bit += bits
        most = max(most, bit)
    return fields, (most + 7) // 8, align

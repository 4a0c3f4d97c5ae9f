"""Types out of BTF made by hand: what the compiler at hand does not write."""

from __future__ import annotations

import pytest

from bridge.kernel.btf import Btf, BtfError
from bridge.kernel.btf_types import Kind as Btfs
from bridge.layout.reader import FIELDS_MAX, read_type
from bridge.layout.types import Kind, Leaf, Type, leaves
from tests.unit.test_kernel_btf import Blob

SIGNED, CHAR, BOOL = 1 << 24, 2 << 24, 4 << 24


def read(blob: Blob, type_id: int, size: int) -> Type:
    return read_type(Btf(blob.bytes(), "made"), type_id, size)


def test_enums_of_newer_compilers_have_signs_and_64_bits() -> None:
    blob = Blob()
    minus, plus = blob.text("MINUS"), blob.text("PLUS")
    blob.add(-Btfs.ENUM, blob.text("small"), 1, minus, 0xFFFFFFFE, plus, 5, elements=2)
    blob.add(-Btfs.ENUM64, blob.text("wide"), 8, minus, 0, 0xFFFFFFFF, plus, 1, 2, elements=2)
    blob.add(Btfs.ENUM64, blob.text("top"), 8, plus, 0, 0xFFFFFFFF, elements=1)
    small, wide, top = (read(blob, n, size) for n, size in ((1, 1), (2, 8), (3, 8)))
    assert (small.signed, small.enumerators) == (True, (("MINUS", -2), ("PLUS", 5)))
    assert (wide.signed, wide.enumerators) == (True, (("MINUS", -(1 << 32)), ("PLUS", 2 << 32 | 1)))
    assert (top.signed, top.enumerators) == (False, (("PLUS", 0xFFFFFFFF << 32),))


def test_an_enum_of_64_bits_described_with_32_has_no_names() -> None:
    blob = Blob()
    blob.add(Btfs.ENUM, blob.text("wide"), 8, blob.text("CUT"), 7, elements=1)
    assert read(blob, 1, 8).enumerators == ()


def test_bit_fields_of_older_compilers_are_integers_of_few_bits() -> None:
    blob = Blob()
    blob.add(Btfs.INT, blob.text("unsigned int"), 4, 3 << 16 | 5)  # bits 3 to 7 of its 4 bytes
    blob.add(Btfs.INT, blob.text("int"), 4, SIGNED | 32)
    a, b = blob.text("a"), blob.text("b")
    blob.add(Btfs.STRUCT, blob.text("s"), 8, a, 1, 0, b, 2, 32, elements=2)
    first, second = read(blob, 3, 8).fields
    assert (first.bit_offset, first.bits, first.size) == (3, 5, 1)
    assert (second.bit_offset, second.bits, second.type.signed) == (32, 0, True)


def test_floats_booleans_characters_and_what_has_no_number() -> None:
    blob = Blob()
    blob.add(Btfs.FLOAT, blob.text("double"), 8)
    blob.add(Btfs.FLOAT, blob.text("long double"), 16)
    blob.add(Btfs.INT, blob.text("_Bool"), 1, BOOL | 8)
    blob.add(Btfs.INT, blob.text("char"), 1, CHAR | 8)
    blob.add(Btfs.ARRAY, 0, 0, 4, 3, 7)
    blob.add(Btfs.INT, blob.text("__int128"), 16, SIGNED | 128)
    blob.add(Btfs.FWD, blob.text("hidden"), 0)
    kinds = [read(blob, n, size).kind for n, size in ((1, 8), (2, 16), (3, 1), (4, 1), (5, 7))]
    assert kinds == [Kind.FLOAT, Kind.BYTES, Kind.BOOL, Kind.INT, Kind.TEXT]
    assert (read(blob, 6, 16).kind, read(blob, 7, 0).kind) == (Kind.BYTES, Kind.BYTES)
    assert read(blob, 0, 12) == Type(Kind.BYTES, 12)


def test_what_takes_no_bytes_or_has_no_name_is_left_out() -> None:
    blob = Blob()
    blob.add(Btfs.INT, blob.text("u32"), 4, 32)
    blob.add(Btfs.ARRAY, 0, 0, 1, 1, 0)
    a, tail = blob.text("a"), blob.text("tail")
    members = (a, 1, 0, 0, 1, 7 << 24 | 32, tail, 2, 64)
    blob.add(-Btfs.STRUCT, blob.text("s"), 8, *members, elements=3)
    assert [field.name for field in read(blob, 3, 8).fields] == ["a"]


def test_typedefs_are_kept_outermost_first() -> None:
    blob = Blob()
    blob.add(Btfs.TYPEDEF, blob.text("port_t"), 2)
    blob.add(Btfs.CONST, 0, 3)
    blob.add(Btfs.TYPEDEF, blob.text("__be16"), 4)
    blob.add(Btfs.INT, blob.text("unsigned short"), 2, 16)
    found = read(blob, 1, 2)
    assert (found.typedefs, found.network_order) == (("port_t", "__be16"), True)
    assert found.label == "port_t"


def test_a_size_other_than_the_maps_is_refused() -> None:
    blob = Blob()
    blob.add(Btfs.INT, blob.text("u32"), 4, 32)
    with pytest.raises(BtfError, match=r"u32 has 4 bytes \(got a map with 8\)"):
        read(blob, 1, 8)


def test_circles_and_floods_of_types_end() -> None:
    circle = Blob()
    name = circle.text("inner")
    circle.add(Btfs.STRUCT, circle.text("s"), 4, name, 1, 0, elements=1)
    with pytest.raises(BtfError, match="nested too deep"):
        read(circle, 1, 4)
    nameless = Blob()
    nameless.add(Btfs.STRUCT, nameless.text("s"), 4, 0, 1, 0, elements=1)
    with pytest.raises(BtfError, match="circle"):
        read(nameless, 1, 4)
    flood = Blob()
    flood.add(Btfs.INT, flood.text("u8"), 1, 8)
    members = [n for at in range(FIELDS_MAX + 1) for n in (0, 1, 8 * at)]
    flood.add(Btfs.STRUCT, flood.text("s"), FIELDS_MAX + 1, *members, elements=FIELDS_MAX + 1)
    with pytest.raises(BtfError, match="too many fields"):
        read(flood, 2, FIELDS_MAX + 1)


def test_variables_of_a_section_are_its_fields() -> None:
    blob = Blob()
    blob.add(Btfs.INT, blob.text("u32"), 4, 32)
    blob.add(Btfs.VAR, blob.text("lost"), 1, 1)
    blob.add(Btfs.VAR, blob.text("seen"), 1, 1)
    blob.add(Btfs.VAR, blob.text("seen"), 1, 0)
    variables = (2, 0, 4, 3, 8, 4, 4, 12, 4)
    blob.add(Btfs.DATASEC, blob.text(".bss"), 16, *variables, elements=3)
    found: list[Leaf] = list(leaves(read(blob, 5, 16)))
    assert [(leaf.path, leaf.bit_offset) for leaf in found] == [
        ("lost", 0),
        ("seen", 64),
        ("seen_12", 96),
    ]

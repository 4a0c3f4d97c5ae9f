"""Layouts made by hand: fingerprints, columns, forms, and what people are shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bridge.layout.columns import Decoder
from bridge.layout.fingerprint import fingerprint
from bridge.layout.forms import Form, shape_of
from bridge.layout.render import Renderer, line_of
from bridge.layout.types import Field, Kind, Layout, Type, leaves

U8_T = Type(Kind.INT, 1, "unsigned char", ("__u8",))
U32_T = Type(Kind.INT, 4, "unsigned int", ("__u32",))
S32_T = Type(Kind.INT, 4, "int", signed=True)
BE32 = Type(Kind.INT, 4, "unsigned int", ("__be32", "__u32"))
BE16 = Type(Kind.INT, 2, "unsigned short", ("__be16", "__u16"))
TEXT = Type(Kind.TEXT, 8, "char")
STATE = Type(Kind.ENUM, 1, "state", enumerators=(("NEW", 1), ("OLD", 2)))


def array(element: Type, *counts: int) -> Type:
    found = element
    for count in reversed(counts):
        found = Type(Kind.ARRAY, found.size * count, element=found, count=count)
    return found


def struct(*fields: Field, size: int = 0) -> Type:
    return Type(Kind.STRUCT, size or sum(f.size for f in fields), "s", fields=fields)


def packed(*fields: tuple[str, Type]) -> Type:
    at, found = 0, []
    for name, kind in fields:
        found.append(Field(name, 8 * at, kind))
        at += kind.size
    return struct(*found)


def shown(found: Type, data: bytes) -> object:
    (row,) = Renderer(found, "value").rows(np.frombuffer(data, np.uint8).reshape(1, -1))
    return row


def line(found: Type, data: bytes) -> str:
    (row,) = Renderer(found, "value").rows(np.frombuffer(data, np.uint8).reshape(1, -1))
    return line_of(row)


LAYOUT = Layout(U32_T, packed(("state", STATE), ("count", U32_T), ("name", TEXT)))


def test_fingerprint_is_the_same_for_ever() -> None:
    """Other nodes run other versions of the bridge: a new number here parts their maps."""
    assert fingerprint(LAYOUT) == 0x6687E221CD586116


def test_names_of_types_do_not_count() -> None:
    plain = replace(U32_T, name="u32", typedefs=())
    other = packed(("state", replace(STATE, name="other")), ("count", plain), ("name", TEXT))
    assert fingerprint(Layout(plain, replace(other, name="t"))) == fingerprint(LAYOUT)


@pytest.mark.parametrize(
    "value",
    [
        packed(("state", STATE), ("counter", U32_T), ("name", TEXT)),
        packed(("state", STATE), ("count", S32_T), ("name", TEXT)),
        packed(("state", STATE), ("count", BE32), ("name", TEXT)),
        packed(("count", U32_T), ("state", STATE), ("name", TEXT)),
        packed(("state", STATE), ("count", U32_T), ("name", array(U8_T, 8))),
        packed(("state", STATE), ("count", array(U8_T, 2, 2)), ("name", TEXT)),
        packed(
            ("state", replace(STATE, enumerators=(("NEW", 1), ("OLD", 3)))),
            ("count", U32_T),
            ("name", TEXT),
        ),
        struct(*LAYOUT.value.fields, size=16),
    ],
    ids=["name", "sign", "order", "place", "kind", "dimensions", "enumerators", "size"],
)
def test_all_that_a_reader_needs_counts(value: Type) -> None:
    assert fingerprint(Layout(U32_T, value)) != fingerprint(LAYOUT)


def test_key_and_value_are_told_apart() -> None:
    assert fingerprint(Layout(U32_T, S32_T)) != fingerprint(Layout(S32_T, U32_T))


def test_bit_fields_of_all_places_and_widths() -> None:
    """Each against Python's own numbers; the layout of bits is that of little-endian machines."""
    random = np.random.default_rng(1009)
    rows = random.integers(0, 256, (97, 16), np.uint8)
    whole = [int.from_bytes(row.tobytes(), "little") for row in rows]
    compared = 0
    for bits in range(1, 65):
        for start in range(0, 128 - bits, 3):
            for signed in (False, True):
                kind = Type(Kind.INT, 8, signed=signed)
                record = struct(Field("x", start, kind, bits), size=16)
                expected = [number >> start & (1 << bits) - 1 for number in whole]
                if signed:
                    expected = [x - (x >> bits - 1 << bits) for x in expected]
                assert Decoder(record, "v").columns(rows)["x"].tolist() == expected
                compared += 1
    assert compared == 4118


def test_rows_out_of_a_wider_array_are_read_right() -> None:
    wide = np.arange(60, dtype=np.uint8).reshape(5, 12)
    columns = Decoder(packed(("a", BE16), ("b", U8_T)), "v").columns(wide[::2, 4:7])
    assert columns["a"].tolist() == [4 << 8 | 5, 28 << 8 | 29, 52 << 8 | 53]
    assert columns["b"].tolist() == [6, 30, 54]
    with pytest.raises(ValueError, match="need 3 bytes"):
        Decoder(packed(("a", BE16), ("b", U8_T)), "v").columns(wide)


def test_a_million_keys_are_views_not_copies() -> None:
    rows = np.zeros((1_000_003, 8), np.uint8)
    columns = Decoder(packed(("a", U32_T), ("b", BE32)), "k").columns(rows)
    assert all(np.shares_memory(column, rows) for column in columns.values())


@pytest.mark.parametrize(
    ("name", "kind", "form", "dimensions"),
    [
        ("saddr", BE32, Form.ADDRESS, ()),
        ("src_ip", U32_T, Form.ADDRESS, ()),
        ("Addr", array(U8_T, 16), Form.ADDRESS, ()),
        ("address", array(BE32, 2, 4), Form.ADDRESS, (2,)),
        ("ips", array(BE32, 3), Form.ADDRESS, (3,)),
        ("dst_ip6", array(U8_T, 16), Form.ADDRESS, ()),
        ("saddr", array(U8_T, 6), Form.MAC, ()),
        ("h_dest", array(U8_T, 2, 6), Form.MAC, (2,)),
        ("pad", array(U8_T, 6), Form.PLAIN, ()),
        ("addr", Type(Kind.INT, 8, "long"), Form.PLAIN, ()),
        ("addr", S32_T, Form.PLAIN, ()),
        ("flip", U32_T, Form.PLAIN, ()),
        ("skip", U32_T, Form.PLAIN, ()),
        ("count", BE32, Form.PLAIN, ()),
    ],
)
def test_forms_by_name_and_type(
    name: str, kind: Type, form: Form, dimensions: tuple[int, ...]
) -> None:
    shape = shape_of(Field(name, 0, kind))
    assert (shape.form, shape.dimensions) == (form, dimensions)


@pytest.mark.parametrize(
    ("family", "tail", "expected"),
    [
        (4, 0, "198.18.0.1"),
        (2, 0, "198.18.0.1"),
        (6, 0, "c612:1::"),
        (10, 0, "c612:1::"),
        (4, 7, "c612:1::7"),  # what does not fit an IPv4 address is not hidden
    ],
)
def test_a_family_beside_an_address_decides(family: int, tail: int, expected: str) -> None:
    record = packed(("addr", array(BE32, 4)), ("family", U8_T))
    data = bytes([198, 18, 0, 1, *[0] * 11, tail, family])
    assert shown(record, data) == {"addr": expected, "family": family}


def test_what_people_are_shown() -> None:
    record = packed(
        ("port", BE16),
        ("mac", array(U8_T, 6)),
        ("state", STATE),
        ("odd", STATE),
        ("name", TEXT),
        ("pad", array(U8_T, 3)),
        ("reserved", U8_T),
        ("inner", array(packed(("yes", Type(Kind.BOOL, 1)), ("at", Type(Kind.POINTER, 8))), 1)),
    )
    data = b"\x1f\x90\x02\0\0\0\0\x2a\x02\x07eth0\0\x01\0\0\0\0\0\x09\x01" + b"\xff" + bytes(7)
    assert shown(record, data) == {
        "port": 8080,
        "mac": "02:00:00:00:00:2a",
        "state": "OLD",
        "odd": 7,
        "name": "eth0",
        "pad": [0, 0, 0],
        "reserved": 9,
        "inner": [{"yes": True, "at": "0xff"}],
    }
    assert line(record, data) == (
        "port=8080 mac=02:00:00:00:00:2a state=OLD odd=7 name=eth0 reserved=9 "
        "inner=[{yes=true at=0xff}]"
    )


def test_a_plain_number_needs_no_name() -> None:
    assert shown(U32_T, bytes([1, 1, 0, 0])) == 257
    assert line(U32_T, bytes([1, 1, 0, 0])) == "257"


def test_control_characters_of_a_map_do_not_reach_the_terminal() -> None:
    assert line(packed(("name", TEXT)), b"\x1b[2J\nx\0\0") == "name=\\x1b[2J\\nx"


def test_leaves_of_nested_structs_count_from_the_outermost() -> None:
    inner = packed(("a", U8_T), ("b", U32_T))
    outer = packed(("first", U32_T), ("many", array(inner, 2, 3)), ("last", U8_T))
    assert [(leaf.path, leaf.bit_offset) for leaf in leaves(outer)] == [
        ("first", 0),
        ("many[][].a", 32),
        ("many[][].b", 40),
        ("last", 272),
    ]

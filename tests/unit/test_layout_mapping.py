"""Rows from one version of a program's structs to another's."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.layout.columns import Decoder
from bridge.layout.compare import Change, Fit, compatibility, differences
from bridge.layout.declared import read_declared
from bridge.layout.mapping import Mapping, plan_mapping, put_bits
from bridge.layout.types import Field, Kind, Layout, Type
from bridge.model import U8

KEY = "struct k { __be32 ip; __u16 port; __u8 pad[2]; };"
OLD = (
    "enum s { NEW = 1, OPEN }; struct in { short x; __u8 y; };"
    "struct v { enum s state; __u32 count; __be16 port; char name[4]; struct in in[2];"
    " __u32 a : 3, b : 9; union { __u32 whole; __u8 part[4]; }; };"
)
NEWER = (
    "enum s { NEW = 1, OPEN, GONE }; struct in { __u8 y; int between; int x; };"
    "struct v { __u64 first; enum s state; __u64 count; __be32 port; char name[8]; struct in in[3];"
    " __u64 b : 40; __u64 a : 3; union { __u32 whole; __u8 part[4]; }; int last; };"
)


def layout(value: str, key: str = KEY) -> Layout:
    return read_declared(key + value, "struct k", "struct v")


def mapped(source: Layout, target: Layout) -> Mapping:
    plan = plan_mapping(source, target)
    assert isinstance(plan, Mapping), plan
    return plan


def random_rows(size: int, count: int = 211) -> U8:
    return np.random.default_rng(7).integers(0, 256, (count, size), np.uint8)


def test_fields_move_by_their_names_and_grow() -> None:
    source, target = layout(OLD), layout(NEWER)
    rows = random_rows(source.value.size)
    before = Decoder(source.value, "value").columns(rows)
    after = Decoder(target.value, "value").columns(mapped(source, target).values(rows))
    for path in ("state", "count", "port", "a", "b", "whole", "part"):
        assert after[path].tolist() == before[path].tolist(), path
    assert [name.ljust(8, b"\0") for name in after["name"].tolist()] == [
        name.ljust(8, b"\0") for name in before["name"].tolist()
    ]
    for path in ("in[].x", "in[].y"):
        assert after[path][:, :2].tolist() == before[path].tolist()
        assert not after[path][:, 2].any()
    for path in ("first", "in[].between", "last"):
        assert not after[path].any()


def test_a_field_in_the_middle_goes_both_ways() -> None:
    """The usual step of a rolling upgrade: old and new nodes take each other's changes."""
    old = layout("struct v { __u32 a; __u32 b; };")
    new = layout("struct v { __u32 a; __u64 between; __u32 b; };")
    rows = random_rows(old.value.size)
    there = mapped(old, new).values(rows)
    assert np.array_equal(mapped(new, old).values(there), rows)
    assert np.array_equal(mapped(old, new).keys(random_rows(8)), random_rows(8))
    assert compatibility(old, new).fit is compatibility(new, old).fit is Fit.MAPPED
    assert compatibility(old, old).fit is Fit.SAME


@pytest.mark.parametrize(
    ("old", "new", "path", "reason"),
    [
        ("__u64 a;", "__u32 a;", "value.a", "narrower (64 bits, now 32)"),
        ("__s32 a;", "__u64 a;", "value.a", "signed and unsigned"),
        ("__u32 a;", "__s32 a;", "value.a", "signed and unsigned"),
        ("__u32 a;", "float a;", "value.a", "was __u32, is float"),
        ("char a[8];", "char a[4];", "value.a", "narrower"),
        ("__u32 a[3];", "__u32 a[2];", "value.a", "was __u32[3], is __u32[2]"),
        ("__u32 a[2];", "__u32 a;", "value.a", "was __u32[2], is __u32"),
        ("enum { A = 1 } a;", "enum { A = 2 } a;", "value.a", "A was 1, is 2"),
        ("enum { A = 1 } a;", "enum { B = 1 } a;", "value.a", "1 was A, is B"),
        ("__u32 a : 5;", "__u32 a : 4;", "value.a", "narrower (5 bits, now 4)"),
        (
            "union { __u32 a; __u16 b; };",
            "union { __u32 a; __u8 b; };",
            "value.a",
            "shares its bytes",
        ),
        ("union { __u32 a; __u16 b; };", "__u32 a; __u16 b;", "value.a", "shares its bytes"),
        ("struct { __u16 b; } a;", "struct { __u8 b; } a;", "value.a.b", "narrower"),
        ("__u32 a;", "__be32 a;", "value.a", "in network order on one side only"),
        ("void *a;", "__u64 a;", "value.a", "was void *, is __u64"),
    ],
)
def test_what_could_lose_a_value_is_an_obstacle(old: str, new: str, path: str, reason: str) -> None:
    source, target = layout(f"struct v {{ {old} }};"), layout(f"struct v {{ {new} }};")
    found = compatibility(source, target)
    assert found.fit is Fit.PARKED
    assert found.obstacles[0].path == path
    assert reason in found.obstacles[0].reason


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("struct k { __be32 ip; __u16 port; __u16 zone; };", "key.zone: is new in the key"),
        ("struct k { __be32 ip; __u8 pad[4]; };", "key.port: is gone from the key"),
        ("struct k { __be32 ip[2]; __u16 port; };", "key.ip: was __be32, is __be32[2]"),
    ],
)
def test_keys_must_have_the_same_fields(key: str, reason: str) -> None:
    value = "struct v { int a; };"
    found = compatibility(layout(value), layout(value, key))
    assert reason in [str(obstacle) for obstacle in found.obstacles]


def test_a_wider_number_in_a_key_goes_one_way() -> None:
    value = "struct v { int a; };"
    old, new = layout(value), layout(value, "struct k { __be32 ip; __u32 port; };")
    assert compatibility(old, new).fit is Fit.MAPPED
    assert compatibility(new, old).fit is Fit.PARKED


def test_bits_are_put_where_they_are_read() -> None:
    """Every place and width, beside bits of others that must stay."""
    for bits in range(1, 65):
        for start in range(0, 72 - min(bits, 64) + 1, 5):
            field = Field("x", start, Type(Kind.INT, 8), bits)
            record = Type(Kind.STRUCT, 24, fields=(field,))
            rows = random_rows(24, 13)
            numbers = random_rows(8, 13).reshape(-1).view(np.uint64)
            numbers = numbers & np.uint64((1 << bits) - 1)
            whole = [int.from_bytes(row.tobytes(), "little") for row in rows]
            mask = (1 << bits) - 1 << start
            expected = [w & ~mask | int(x) << start for w, x in zip(whole, numbers, strict=True)]
            put_bits(field, Decoder(record, "v").view(rows)["x"], numbers)
            assert [int.from_bytes(row.tobytes(), "little") for row in rows] == expected


def test_differences_for_people() -> None:
    old, new = layout(OLD), layout(NEWER)
    told = {each.path: (each.change, each.before, each.after) for each in differences(old, new)}
    assert told["value.first"] == (Change.ADDED, "", "__u64 at 0")
    assert told["value.count"] == (Change.CHANGED, "__u32 at 4", "__u64 at 16")
    assert told["value.whole"][0] is Change.MOVED
    assert told["value"] == (Change.CHANGED, "28 bytes", "88 bytes")
    assert told["value.state"][2] == "enum s at 8 (NEW=1, OPEN=2, GONE=3)"
    assert not any(path.startswith("key") for path in told)
    assert differences(old, old) == []

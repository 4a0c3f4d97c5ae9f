"""BTF blobs made by hand: what the running kernel's blob does not contain."""

from __future__ import annotations

import struct

import pytest

from bridge.kernel.btf import Btf, BtfError
from bridge.kernel.btf_types import Kind, Place


class Blob:
    """Builds a BTF blob record by record."""

    def __init__(self) -> None:
        self._types = b""
        self._text = b"\0"

    def text(self, name: str) -> int:
        if not name:
            return 0
        at = len(self._text)
        self._text += name.encode() + b"\0"
        return at

    def add(self, kind: int, name: int, extent: int, *tail: int, elements: int = 0) -> None:
        flag = 0
        if kind < 0:
            kind, flag = -kind, 1 << 31
        info = flag | kind << 24 | elements
        self._types += struct.pack(f"={3 + len(tail)}I", name, info, extent, *tail)

    def bytes(self, magic: int = 0xEB9F, header: int = 24) -> bytes:
        head = struct.pack("=HBBIIIII", magic, 1, 0, header, 0, len(self._types),
                           len(self._types), len(self._text))  # fmt: skip
        return head + bytes(header - 24) + self._types + self._text


def sample() -> Blob:
    """``struct outer { int id; union { long big; struct { int low, high[3]; }; } ; int f:3; }``"""
    blob = Blob()
    blob.add(Kind.INT, blob.text("int"), 4, 32)  # 1
    blob.add(Kind.INT, blob.text("long"), 8, 64)  # 2
    blob.add(Kind.ARRAY, 0, 0, 5, 1, 3)  # 3: number[3]
    low, high = blob.text("low"), blob.text("high")
    blob.add(Kind.STRUCT, 0, 16, low, 1, 0, high, 3, 32, elements=2)  # 4
    blob.add(Kind.TYPEDEF, blob.text("number"), 6)  # 5
    blob.add(Kind.CONST, 0, 1)  # 6
    blob.add(Kind.UNION, 0, 16, blob.text("big"), 2, 0, 0, 4, 0, elements=2)  # 7
    members = (blob.text("id"), 1, 0, 0, 7, 64, blob.text("f"), 1, 3 << 24 | 192)
    blob.add(-Kind.STRUCT, blob.text("outer"), 32, *members, elements=3)  # 8
    blob.add(Kind.FUNC, blob.text("act"), 0)  # 9
    blob.add(Kind.PTR, 0, 8)  # 10
    blob.add(Kind.STRUCT, blob.text("holder"), 8, blob.text("at"), 10, 0, elements=1)  # 11
    return blob


@pytest.mark.parametrize("header", [24, 32], ids=["as-today", "longer-header"])
def test_nested_anonymous_members(header: int) -> None:
    btf = Btf(sample().bytes(header=header), "sample")
    assert len(btf) == 12
    assert btf.place("outer", "id") == Place(0, 4)
    assert btf.place("outer", "big") == Place(8, 8)
    assert btf.place("outer", "low") == Place(8, 4)
    assert btf.place("outer", "high") == Place(12, 12)
    assert btf.place("holder", "at").size == struct.calcsize("P")
    assert btf.size("outer") == 32
    assert btf.size("number") == 4
    assert btf.has_function("act")
    assert not btf.has_function("outer")


def test_bit_field_has_no_place() -> None:
    btf = Btf(sample().bytes(), "sample")
    with pytest.raises(BtfError, match=r"outer\.f is a bit field"):
        btf.place("outer", "f")


def test_a_name_stored_as_the_tail_of_another() -> None:
    blob = Blob()
    whole = blob.text("long_name")
    blob.add(Kind.INT, whole, 4, 32)
    blob.add(Kind.STRUCT, whole + len("long_"), 6, elements=0)
    btf = Btf(blob.bytes(), "shared")
    assert btf.size("name") == 6
    assert btf.size("long_name") == 4


def test_pointer_is_not_walked_through() -> None:
    with pytest.raises(BtfError, match="stuck at id"):
        Btf(sample().bytes(), "sample").place("holder", "at.id")


def test_circle_of_types_ends() -> None:
    blob = Blob()
    blob.add(Kind.TYPEDEF, blob.text("a"), 2)
    blob.add(Kind.TYPEDEF, blob.text("b"), 1)
    with pytest.raises(BtfError, match="circle"):
        Btf(blob.bytes(), "circle").size("a")


def damaged() -> list[tuple[str, bytes]]:
    good = sample().bytes()
    unknown = Blob()
    unknown.add(99, 0, 0)
    cut = Blob()
    cut.add(Kind.STRUCT, 0, 4, elements=9)
    return [
        ("bytes", b"\x9f\xeb"),
        ("magic", sample().bytes(magic=0x1234)),
        ("sections", good[:-20]),
        ("unknown kind 99 at type 1", unknown.bytes()),
        ("cut off", cut.bytes()),
    ]


@pytest.mark.parametrize(
    ("reason", "data"), damaged(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_damaged_blobs_are_refused(reason: str, data: bytes) -> None:
    with pytest.raises(BtfError, match=reason) as caught:
        Btf(data, "broken")
    assert "broken" in str(caught.value)


def test_type_id_outside() -> None:
    with pytest.raises(BtfError, match="type id 12"):
        Btf(sample().bytes(), "sample").record(12)

"""Filters: what they choose, and how a wrong one is told."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.errors import Exit
from bridge.feed.where import Where, WhereError
from bridge.layout.declared import read_declared
from bridge.model import Delta, DeltaBatch, Op, Origin

TYPES = """
enum ct_state { CT_NEW = 1, CT_ESTABLISHED = 3, CT_GONE = 4 } __attribute__((packed));
struct in { __u16 port; __be32 ip; };
struct k { __be32 saddr; __u8 mac[6]; __u16 from; struct in in[2]; __be32 addr[4]; };
struct v { __u64 packets; enum ct_state state; bool up; char name[6]; int delta;
  __u32 low : 3; float rate; __u32 n[2][2]; };
"""
LAYOUT = read_declared(TYPES, "struct k", "struct v")
ROWS = 5


def delta() -> Delta:
    """Row 0 to 3 are updates with rising numbers, row 4 is a delete of the key of row 0."""
    from bridge.layout.columns import Decoder

    keys = np.zeros((ROWS, LAYOUT.key.size), np.uint8)
    values = np.zeros((ROWS, LAYOUT.value.size), np.uint8)
    key, value = Decoder(LAYOUT.key, "k").view(keys), Decoder(LAYOUT.value, "v").view(values)
    for row in range(4):
        key["saddr"][row] = 0x0A000001 + row
        key["mac"][row] = [2, 0, 0, 0, 0, row]
        key["from"][row] = row
        key["in"]["port"][row] = [row, 80]
        key["in"]["ip"][row] = [0x7F000001, 0x0A000001 + row]
        value["packets"][row] = (1 << 63) + row
        value["state"][row] = [1, 3, 3, 4][row]
        value["up"][row] = row % 2
        value["name"][row] = [b"a", b"ab", b"abcdef", b""][row]
        value["delta"][row] = row - 2
        value["low"][row] = row
        value["rate"][row] = row / 2
        value["n"][row] = [[row, 1], [2, 3]]
    keys[:, 28:32] = keys[:, :4]
    raw = np.ascontiguousarray(values)
    raw[1, int(LAYOUT.value.fields[3].offset) + 3] = 7  # behind the end of the text
    keys[4] = keys[0]
    raw[4] = 0
    ops = np.array([1, 1, 1, 1, Op.DELETE], np.uint8)
    writers = np.arange(100, 100 + ROWS, dtype=np.uint32)
    zero = np.zeros(ROWS, np.uint64)
    batch = DeltaBatch(ops, keys, raw, zero, zero, writers)
    return Delta(Origin("c", "flows", "lb-1", 7), 11, batch)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('value.state == "ESTABLISHED"', [1, 2]),
        ('value.state == "CT_ESTABLISHED"', [1, 2]),
        ('value.state != "ESTABLISHED"', [0, 3]),
        ('not value.state == "ESTABLISHED"', [0, 3]),
        ('value.state in ["NEW", 4]', [0, 3]),
        ('value.state not in ["NEW", 4]', [1, 2]),
        ("value.packets >= 9223372036854775810", [2, 3]),
        ("9223372036854775810 > value.packets", [0, 1]),
        ("value.packets > -1", [0, 1, 2, 3]),
        ("value.delta < 0", [0, 1]),
        ("value.delta == -2", [0]),
        ("value.up == true", [1, 3]),
        ("value.low == 3", [3]),
        ("value.rate > 0.6", [2, 3]),
        ('value.name == "ab"', [1]),
        ('value.name == "abcdef"', [2]),
        ('value.name in ["", "a"]', [0, 3]),
        ("value.n[0][0] == 2", [2]),
        ('value.n["*"]["*"] == 3', [0, 1, 2, 3]),
        ('value.n[0]["*"] == 3', [3]),
        ('key.saddr == "10.0.0.2"', [1]),
        ('key.saddr in "10.0.0.2/31"', [1, 2]),
        ('key.saddr not in ["10.0.0.2/31", "10.0.0.1"]', [3]),
        ('key.mac == "02:00:00:00:00:03"', [3]),
        ("key.in[0].port == 2", [2]),
        ('key.in["*"].port == 80', [0, 1, 2, 3, 4]),
        ('key.in["*"].ip == "10.0.0.3"', [2]),
        ('key.addr in "10.0.0.0/30"', [0, 1, 2, 4]),
        ('key["from"] == 3', [3]),
        ('op == "delete"', [4]),
        ('op == "delete" or value.packets > 0 and not value.up == true', [0, 2, 4]),
        ('not (op == "update")', [4]),
        ('node == "lb-1" and map == "flows"', [0, 1, 2, 3, 4]),
        ('node in ["lb-2"] or cause == "scan"', []),
        ("writer >= 103 or sequence == 11", [0, 3, 4]),
        ("value.packets == 0 or value.packets != 0", [0, 1, 2, 3]),
    ],
)
def test_rows_that_are_chosen(text: str, rows: list[int]) -> None:
    text = text.replace("key.in[", 'key["in"][')
    where = Where(text)
    where.check(LAYOUT)
    assert np.flatnonzero(where.mask(delta(), LAYOUT)).tolist() == rows


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("value.stat == 1", 1, "value has no field 'stat'"),
        ('value.state == "OPEN"', 1, "no such name (got 'OPEN')"),
        ('value.state < "GONE"', 1, "have no order"),
        ('op == "update" and valu.x == 1', 20, "no such name (got 'valu')"),
        ("value.n == 1", 1, "value.n is an array of 2: name an element"),
        ("value.n[0] == 1", 1, "value.n is an array of 2: name an element"),
        ("value.n[0][2] == 1", 1, "has no element 2 (it has 2)"),
        ("value.packets[0] == 1", 1, "value.packets is no array"),
        ("value == 1", 1, "is a struct: name one of its fields"),
        ("value.packets.x == 1", 1, "value.packets has no fields"),
        ("key.saddr == 7", 1, "is an address"),
        ('key.saddr == "10.0.0.0/8"', 1, "a network is compared with `in`"),
        ('key.saddr == "10.0.0.300"', 1, "is an address"),
        ('key.saddr > "10.0.0.1"', 1, "saddr has no order"),
        ('key.mac == "02:00"', 1, "is a MAC address"),
        ('value.name == "abcdefg"', 1, "at most 6 bytes"),
        ("value.packets = 1", 15, "a single ="),
        ("value.packets ==", 17, "invalid syntax"),
        ("value.packets", 1, "needs a comparison"),
        ("0 < value.packets < 9", 1, "one comparison at a time"),
        ("value.packets is 9", 1, "`is` is no comparison"),
        ("value.packets == [1]", 18, "a list is compared with `in`"),
        ("value.packets == key.from2", 18, "needs a number"),
        ("__import__('os').system('x') == 1", 1, "needs a field here"),
        ("(lambda: 1)() == 1", 1, "needs a field here"),
        ('op == "updat"', 7, "op is one of update, delete, evict"),
        ('writer == "x"', 11, "compared with a number"),
        ('node > "a"', 8, "has no order"),
        ('node.x == "a"', 1, "node has no fields"),
        ("value.packets == 'x'", 1, "is a number"),
    ],
)
def test_a_wrong_filter_names_its_place(text: str, column: int, said: str) -> None:
    with pytest.raises(WhereError) as caught:
        Where(text).check(LAYOUT)
    first, shown, mark = str(caught.value).splitlines()
    assert said in first
    assert first.startswith(f"filter, column {column}: ")
    assert shown == f"  {text}"
    assert mark.index("^") == column + 1
    assert caught.value.exit_code is Exit.USAGE


def test_fields_need_a_layout() -> None:
    with pytest.raises(WhereError, match="no layout of this map was found"):
        Where("value.x == 1").mask(delta(), None)
    assert Where('op == "delete"').mask(delta(), None).sum() == 1


@pytest.mark.parametrize("text", ["(" * 3000 + "1", "a" * 5000, "op\n==\n'x'", "\0"])
def test_text_that_no_parser_should_see(text: str) -> None:
    with pytest.raises(WhereError):
        Where(text)

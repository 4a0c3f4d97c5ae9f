"""Layouts in C syntax: what is understood, and what is told of the rest."""

from __future__ import annotations

import pytest

from bridge.layout.declared import DeclaredError, read_declared
from bridge.layout.types import Kind, Type, leaves

FLOWS = """
/* as in the program */
#define NAME_LENGTH 16   // with the final zero
enum state { NEW = 1, OPEN, GONE = 1 << 4 };
typedef struct {
    __be32 saddr, daddr;
    __be16 port[2];
} pair_t;
struct flow {
    pair_t both;
    enum state state;
    __u64 packets : 40, : 0;
    unsigned low : 3, high : 30;
    union {
        __u32 whole;
        struct { u16 half; char tag; };
    };
    const char *text;
    char name[NAME_LENGTH];
    unsigned long long many[2][3];
};
"""


def places(found: Type) -> list[tuple[str, int, int]]:
    return [(leaf.path, leaf.bit_offset, leaf.field.bits) for leaf in leaves(found)]


def test_fields_stand_where_c_puts_them() -> None:
    layout = read_declared(
        FLOWS.replace("__attribute__((aligned(16))) ", ""), "pair_t", "struct flow"
    )
    assert (layout.key.label, layout.key.size, layout.value.size) == ("pair_t", 12, 112)
    assert places(layout.value) == [
        ("both.saddr", 0, 0),
        ("both.daddr", 32, 0),
        ("both.port", 64, 0),
        ("state", 96, 0),
        ("packets", 128, 40),
        ("low", 192, 3),
        ("high", 224, 30),
        ("whole", 256, 0),
        ("half", 256, 0),
        ("tag", 272, 0),
        ("text", 320, 0),
        ("name", 384, 0),
        ("many", 512, 0),
    ]
    fields = {field.name: field.type for field in layout.value.fields}
    assert fields["state"].enumerators == (("NEW", 1), ("OPEN", 2), ("GONE", 16))
    assert fields["name"].kind is Kind.TEXT
    assert layout.key.fields[0].type.network_order


def test_keys_and_values_need_no_struct() -> None:
    layout = read_declared("", "__u8[6]", "unsigned long")
    assert (layout.key.dimensions, layout.key.size, layout.value.size) == ((6,), 6, 8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("struct k { uint a; };", "types, line 1, column 12: no such type (got 'uint')"),
        ("struct k {\n  int a\n};", "types, line 3, column 1: needs ';' here (got '}')"),
        ("struct k { int a, a; };", "field a: is there twice"),
        ("struct k { struct other o; };", "no such type (got 'struct other')"),
        ("struct k { int (*call)(void); };", "functions and pointers to them"),
        ("struct k { int a : 40; };", "no width for a bit field of int"),
        ("struct k { void nothing; };", "its type has no size"),
        ("struct k { int a[-1]; };", "an array has 0 to"),
        (
            "struct k { int a; } __attribute__((mode(DI)));",
            "attribute: not understood (got 'mode')",
        ),
        ("#include <x.h>\nstruct k { int a; };", "line 1, column 1: only '#define NAME NUMBER'"),
        ("struct k { int a; } @", "line 1, column 21: not understood (got '@')"),
        ("int counter;", "only types are declared here"),
        ("struct k { int a; }; struct k { int b; };", "struct k: is there twice"),
        ("struct k { int a[N]; };", "needs a number here (got 'N')"),
        ("struct k { long float a; };", "no such type (got 'long float')"),
        ("struct k {", "no such type (got '')"),
        ("struct k {}; ", "key, line 1, column 1: has no size"),
        ("struct k { int a[1 << 99]; };", "cannot be shifted by 99"),
        ("struct k { " + "struct { " * 40 + "int a;", "nested too deep"),
    ],
)
def test_what_is_not_understood_is_an_error_with_its_place(text: str, said: str) -> None:
    with pytest.raises(DeclaredError) as caught:
        read_declared(text, "struct k", "int")
    assert said in str(caught.value)


def test_a_type_name_must_be_one() -> None:
    for name in ("struct k", "int x", "int, int", ""):
        with pytest.raises(DeclaredError, match=r"^value, line 1, column \d+: "):
            read_declared("", "int", name)

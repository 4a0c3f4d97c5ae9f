"""The same declarations by the project's reader and by clang: one layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bridge.kernel.features import Capability
from bridge.kernel.objects import compile_object, load_object
from bridge.layout.declared import read_declared
from bridge.layout.fingerprint import describe, fingerprint
from bridge.layout.reader import read_layout
from bridge.layout.types import Kind, Type
from bridge.resources import bpf_directory, bpf_source
from tests.integration.kernel_support import BPFFS, needs, unique_name

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN)

SHAPES = Path(__file__).with_name("programs") / "shapes.bpf.c"
IN6 = """struct in6_addr {
	union { __u8 u6_addr8[16]; __be16 u6_addr16[8]; __be32 u6_addr32[4]; } in6_u;
};"""

MORE = """
enum tiny { T_ONE = 1, T_TWO = -2 } __attribute__((packed));
struct inner { __u8 a; __u16 b : 9; __u16 c : 9; } __attribute__((packed));
struct more {
	char c;
	struct inner inner[3];
	enum tiny tiny;
	__u32 x : 31, y : 2;
	__u8 : 0;
	__u64 z : 33;
	_Bool flag : 1;
	__u8 last __attribute__((aligned(8)));
	union { __u8 one; __u64 eight; } __attribute__((packed)) u;
	double ratio;
	unsigned char raw[0];
};
"""

PROGRAM = """// SPDX-License-Identifier: Apache-2.0
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
{types}
struct {{
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, struct more);
}} more SEC(".maps");
SEC("tc")
int look(struct __sk_buff *packet)
{{
	__u32 key = 0;
	return !bpf_map_lookup_elem(&more, &key);
}}
char LICENSE[] SEC("license") = "GPL";
"""


def declarations(source: Path, first: str, end: str) -> str:
    text = source.read_text()
    return text[text.index(first) : text.index(end)]


def without_enumerators(found: Type) -> Type:
    """Compilers before LLVM 15 wrote neither signs nor 64 bits of enumerators into BTF."""
    if found.kind is Kind.ENUM:
        return replace(found, signed=False, enumerators=())
    if found.element is not None:
        return replace(found, element=without_enumerators(found.element))
    fields = tuple(replace(f, type=without_enumerators(f.type)) for f in found.fields)
    return replace(found, fields=fields)


@pytest.mark.parametrize("name", ["shapes", "conntrack", "more"])
def test_the_reader_agrees_with_clang(name: str, tmp_path: Path) -> None:
    source, key, value, map_name = SHAPES, "struct shape_key", "struct shape_value", "shapes"
    if name == "shapes":
        text = IN6 + declarations(SHAPES, "enum colour", "struct {\n\t__uint")
    elif name == "conntrack":
        source, map_name = bpf_source("examples/conntrack.bpf.c"), "ct"
        text = declarations(source, "enum ct_state {", "/* Flags hold") + declarations(
            source, "struct ct_key", "_Static_assert"
        )
        key, value = "struct ct_key", "struct ct_value"
    else:
        source, key, value, map_name = tmp_path / "more.bpf.c", "__u32", "struct more", "more"
        source.write_text(PROGRAM.format(types=MORE))
        text = MORE
    compiled = compile_object(source, include=[bpf_directory()], cache=tmp_path / "cache")
    with load_object(compiled, BPFFS / unique_name("declared")) as loaded:
        by_clang = read_layout(loaded.map(map_name))
    declared = read_declared(text, key, value)
    assert describe(without_enumerators(declared.key)) == describe(
        without_enumerators(by_clang.key)
    )
    assert describe(without_enumerators(declared.value)) == describe(
        without_enumerators(by_clang.value)
    )
    if name == "conntrack":
        assert fingerprint(declared) == fingerprint(by_clang)

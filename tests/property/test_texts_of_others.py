"""Texts and bytes that others write: understood, or refused with the one error that is meant."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from bridge.feed.schema import SchemaError, decode_schema
from bridge.feed.where import Where, WhereError
from bridge.layout.columns import Decoder
from bridge.layout.declared import DeclaredError, read_declared
from bridge.layout.document import DocumentError, from_document, to_document
from bridge.layout.fingerprint import fingerprint
from bridge.layout.mapping import Mapping, plan_mapping
from bridge.layout.proto import proto_text
from bridge.layout.types import Layout
from tests.unit.test_feed_where import LAYOUT, delta

WORDS = st.sampled_from(
    [
        *(
            "struct",
            "union",
            "enum",
            "typedef",
            "k",
            "v",
            "a",
            "b",
            "{",
            "}",
            ";",
            ",",
            ":",
            "[",
            "]",
        ),
        *("int", "__u8", "__be32", "char", "*", "(", ")", "=", "1", "3", "0", "-", "~", "<<", "|"),
        *(
            "unsigned",
            "long",
            "__attribute__",
            "packed",
            "aligned",
            "void",
            "const",
            "\n",
            "#define",
        ),
    ]
)
FILTER_WORDS = st.sampled_from(
    [
        *("value", "key", "op", "node", ".", "packets", "state", "saddr", "[", "]", "(", ")", "0"),
        *(
            "==",
            "<",
            "in",
            "not",
            "and",
            "or",
            "is",
            "1",
            "-",
            '"x"',
            '"10.0.0.0/8"',
            ",",
            "lambda",
        ),
        *("for", "if", "else", "*", ":=", "=", "true", "n", '"*"', "await", "{", "}"),
    ]
)
SIZES = {"__u8": 1, "__u16": 2, "__u32": 4, "__u64": 8, "__s16": 2, "__s64": 8, "__be32": 4}


@settings(max_examples=500, deadline=None)
@given(st.lists(WORDS, max_size=60).map(" ".join))
@example("struct k { int a[" + "(" * 5000)
@example("struct k { int a[" + "-" * 5000 + "1]; };")
def test_declarations(text: str) -> None:
    with contextlib.suppress(DeclaredError):
        read_declared(text, "struct k", "struct v")


@settings(max_examples=500, deadline=None)
@given(st.lists(FILTER_WORDS, max_size=25).map(" ".join))
@example("not " * 1000 + 'op == "delete"')
@example("value" + ".x" * 2000 + " == 1")
def test_filters(text: str) -> None:
    with contextlib.suppress(WhereError):
        mask = Where(text).mask(delta(), LAYOUT)
        assert mask.shape == (5,)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_schemas(data: bytes) -> None:
    with pytest.raises(SchemaError):
        decode_schema(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["key", "value", "kind", "size", "fields", "name", "type", "element"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_documents(document: object) -> None:
    with contextlib.suppress(DocumentError):
        from_document(document)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Structs of a few of the same field names, in any order, of any integers."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True))
    kinds = draw(st.lists(st.sampled_from(sorted(SIZES)), min_size=5, max_size=5))
    counts = draw(st.lists(st.sampled_from(["", "", "[2]", "[3]"]), min_size=5, max_size=5))
    fields = " ".join(f"{k} {n}{c};" for n, k, c in zip(names, kinds, counts, strict=False))
    packed = draw(st.sampled_from(["", " __attribute__((packed))"]))
    return read_declared(f"struct v {{ {fields} }}{packed};", "__u32", "struct v")


@settings(max_examples=300, deadline=None)
@given(layouts(), layouts(), st.integers(0, 2**32))
def test_a_mapping_never_changes_a_value(source: Layout, target: Layout, seed: int) -> None:
    plan = plan_mapping(source, target)
    if not isinstance(plan, Mapping):
        assert plan
        return
    rows = np.random.default_rng(seed).integers(0, 256, (7, source.value.size), np.uint8)
    before = Decoder(source.value, "v").columns(rows)
    after = Decoder(target.value, "v").columns(plan.values(rows))
    for name, column in after.items():
        if name not in before:
            assert not column.any()
            continue
        held = before[name]
        assert column[tuple(slice(0, n) for n in held.shape)].tolist() == held.tolist()
        assert int((column != 0).sum()) == int((held != 0).sum())


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_a_layout_comes_back_from_its_document(layout: Layout) -> None:
    assert from_document(to_document(layout)) == layout
    assert "message Value {" in proto_text("m", layout, fingerprint(layout))

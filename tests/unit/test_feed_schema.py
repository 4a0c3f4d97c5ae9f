"""Layouts that travel: as documents, and as the message that a publisher stores."""

from __future__ import annotations

import copy

import orjson
import pytest

from bridge.feed.schema import MapSchema, SchemaError, decode_schema, encode_schema
from bridge.layout.declared import read_declared
from bridge.layout.document import DocumentError, from_document, to_document
from bridge.layout.types import Layout
from bridge.wire import schema_pb2 as pb
from tests.unit.test_layout import LAYOUT
from tests.unit.test_layout_declared import FLOWS


@pytest.mark.parametrize(
    "layout", [LAYOUT, read_declared(FLOWS, "pair_t", "struct flow")], ids=["plain", "flows"]
)
def test_a_layout_comes_back_from_its_message(layout: Layout) -> None:
    schema = MapSchema.of("c", "flows", layout)
    data = encode_schema(schema)
    assert decode_schema(data) == schema
    assert encode_schema(MapSchema.of("c", "flows", layout)) == data
    message = pb.MapSchema.FromString(data)
    assert (message.key_size, message.value_size) == (layout.key.size, layout.value.size)
    assert "message Change " in message.proto


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("value", "fields", 0, "bit_offset"), 1 << 20, "bit_offset must be 0 to"),
        (("value", "fields", 2, "bit_offset"), 96, "ends behind its holder"),
        (("value", "fields", 1, "bit_offset"), 3, "no bit field"),
        (("value", "fields", 1, "name"), "state", "names of their own"),
        (("value", "fields", 1, "type", "size"), 3, "no int has 3 bytes"),
        (("value", "fields", 0, "type", "enumerators"), [["A", "1"]], "a name and a number"),
        (("value", "kind"), "thing", "no such kind"),
        (("value", "size"), -1, "size must be"),
        (("key", "size"), 8192, "no int has 8192 bytes"),
        (("key",), [], "must be an object"),
    ],
)
def test_a_document_is_not_trusted(path: tuple[str | int, ...], value: object, said: str) -> None:
    document: object = copy.deepcopy(to_document(LAYOUT))
    inner = document
    for step in path[:-1]:
        inner = inner[step]  # type: ignore[index]
    inner[path[-1]] = value  # type: ignore[index]
    with pytest.raises(DocumentError, match=said):
        from_document(document)


def test_a_schema_with_the_fingerprint_of_another_layout_is_refused() -> None:
    message = pb.MapSchema.FromString(encode_schema(MapSchema.of("c", "flows", LAYOUT)))
    message.layout ^= 1
    with pytest.raises(SchemaError, match="its fields are those of layout 6687e221cd586116"):
        decode_schema(message.SerializeToString())
    message.fields = orjson.dumps({"key": 7})
    with pytest.raises(SchemaError, match="cannot be read"):
        decode_schema(message.SerializeToString())
    with pytest.raises(SchemaError, match="cannot be read"):
        decode_schema(b"\xff\xff")

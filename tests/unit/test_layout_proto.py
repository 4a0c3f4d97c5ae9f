"""The generated ``.proto``: protoc takes it, and its numbers do not depend on the version."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from bridge.feed.descriptors import file_descriptor
from bridge.layout.fingerprint import fingerprint
from bridge.layout.messages import field_number, package_of
from bridge.layout.proto import proto_text
from bridge.layout.types import Field, Kind, Layout, Type
from tests.unit.test_layout import BE32, S32_T, STATE, TEXT, U8_T, U32_T, array, packed, struct


def compiled(layout: Layout, directory: Path, name: str = "flows") -> FileDescriptorProto:
    """What protoc makes of the text, which must be what the project makes without protoc."""
    source = directory / "map.proto"
    source.write_text(proto_text(name, layout, fingerprint(layout)))
    include = resources.files("grpc_tools") / "_proto"
    out = directory / "map.bin"
    arguments = ["protoc", f"--proto_path={directory}", f"--proto_path={include}"]
    assert protoc.main([*arguments, f"--descriptor_set_out={out}", str(source)]) == 0
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    assert file_descriptor(name, layout) == file
    return file


def numbers(message: DescriptorProto, prefix: str = "") -> dict[str, int]:
    found = {f"{prefix}{field.name}": field.number for field in message.field}
    for nested in message.nested_type:
        found |= numbers(nested, f"{prefix}{nested.name}.")
    return found


INNER = packed(("low", U32_T), ("high", S32_T))
VALUE = packed(
    ("state", STATE), ("inner", array(INNER, 2)), ("name", TEXT), ("many", array(U32_T, 2, 3))
)


def test_messages_have_the_maps_fields(tmp_path: Path) -> None:
    file = compiled(Layout(packed(("saddr", BE32), ("raw", array(U8_T, 5))), VALUE), tmp_path)
    key, value, change, changes = file.message_type
    assert file.package == "mapbridge.maps.flows"
    assert [(f.name, f.type, f.label) for f in key.field] == [("saddr", 12, 1), ("raw", 12, 1)]
    assert [(f.name, f.type_name or f.type, f.label) for f in value.field] == [
        ("state", ".mapbridge.maps.flows.Value.State", 1),
        ("inner", ".mapbridge.maps.flows.Value.Inner", 3),
        ("name", 9, 1),
        ("many", 13, 3),
    ]
    assert [(v.name, v.number) for v in value.enum_type[0].value] == [
        ("STATE_UNSPECIFIED", 0),
        ("NEW", 1),
        ("OLD", 2),
    ]
    assert [(f.name, f.number) for f in change.field][:3] == [
        ("operation", 1),
        ("key", 2),
        ("value", 3),
    ]
    assert [(f.name, f.number, f.label) for f in changes.field] == [("change", 1, 3)]


def test_numbers_stay_when_fields_come_and_go(tmp_path: Path) -> None:
    """These stand in files that others have compiled."""
    old = numbers(compiled(Layout(U32_T, VALUE), tmp_path).message_type[1])
    assert old == {
        "state": 195838,
        "inner": 136935,
        "name": 95054,
        "many": 60596,
        "Inner.low": 7860,
        "Inner.high": 240448,
    }
    fields = [(field.name, field.type) for field in VALUE.fields]
    inner = packed(("low", U32_T), ("middle", U8_T), ("high", S32_T))
    fields[1] = ("inner", array(inner, 2))
    newer = packed(("first", U8_T), *fields[:1], ("between", U32_T), *fields[1:3])
    new = numbers(compiled(Layout(U32_T, newer), tmp_path).message_type[1])
    assert {name: new[name] for name in old if name != "many"} == {
        name: number for name, number in old.items() if name != "many"
    }
    assert len(set(new) - set(old)) == 3


def test_numbers_that_protobuf_reserves_or_that_are_taken_are_passed_by() -> None:
    first = field_number("a", set())
    taken = {first}
    second = field_number("a", taken)
    assert second == field_number("a'", set()) != first
    assert taken == {first, second}
    spread = [field_number(f"field_{n}", set()) for n in range(10_007)]
    assert min(spread) >= 16
    assert max(spread) < 1 << 18
    assert not any(19_000 <= number < 20_000 for number in spread)


AWKWARD = [
    packed(("_pad", U8_T), ("__reserved", U8_T), ("x1", U8_T)),
    packed(("message", U32_T), ("bytes", U32_T), ("repeated", array(U32_T, 2)), ("enum", STATE)),
    packed(("inner", INNER), ("Inner", INNER), ("INNER", U32_T)),
    packed(("state", STATE), ("other", STATE), ("NEW", U32_T)),
    packed(("state", STATE), ("twin", Type(Kind.ENUM, 4, "t", enumerators=(("OLD", 0), ("A", 0))))),
    packed(("wide", Type(Kind.ENUM, 4, "w", enumerators=(("TOP", 0xFFFFFFFF),)))),
    packed(("none", Type(Kind.ENUM, 8, "n"))),
    packed(("_1", INNER)),
    struct(Field("only", 0, U32_T, 3), Field("bits", 3, STATE, 5), size=4),
    Type(Kind.UNION, 4, fields=(Field("one", 0, U32_T), Field("two", 0, array(U8_T, 4)))),
    Type(Kind.BYTES, 16),
    Type(Kind.STRUCT, 4),
    array(INNER, 2, 2),
    TEXT,
]


@pytest.mark.parametrize(
    "found", AWKWARD, ids=lambda found: found.fields[0].name if found.fields else found.label
)
def test_awkward_names_and_types_compile(found: Type, tmp_path: Path) -> None:
    file = compiled(Layout(found, found), tmp_path, "a.map-1\n}")
    key, value, *_ = file.message_type
    wanted = [field.name for field in found.fields] if found.is_record else ["key"]
    assert [field.name for field in key.field] == wanted
    assert len({field.number for field in value.field}) == len(value.field)


def test_names_that_json_cannot_tell_apart_are_changed(tmp_path: Path) -> None:
    found = packed(("a_b", U32_T), ("aB", U32_T), ("AB", U32_T), ("aB_2", U32_T))
    key = compiled(Layout(found, U32_T), tmp_path).message_type[0]
    assert [field.name for field in key.field] == ["a_b", "aB_2_2", "AB", "aB_2"]
    assert [field.number for field in key.field] == [
        field_number(name, set()) for name in ("a_b", "aB", "AB", "aB_2")
    ]


@pytest.mark.parametrize(
    ("name", "package"),
    [("ct", "ct"), ("a.b-C", "a_b_c"), ("1st", "map_1st"), ("ü", "map__"), ("_x", "map__x")],
)
def test_packages(name: str, package: str) -> None:
    assert package_of(name) == f"mapbridge.maps.{package}"

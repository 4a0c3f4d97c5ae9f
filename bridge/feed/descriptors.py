"""A map's messages as protobuf descriptors, made without protoc and equal to its own."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import descriptor_pb2 as pb

from bridge.layout.messages import (
    EnumModel,
    FieldModel,
    MessageModel,
    json_name,
    messages_of,
    package_of,
)
from bridge.layout.types import Layout

_SCALARS: Mapping[str, pb.FieldDescriptorProto.Type.ValueType] = {
    "double": pb.FieldDescriptorProto.TYPE_DOUBLE,
    "float": pb.FieldDescriptorProto.TYPE_FLOAT,
    "int64": pb.FieldDescriptorProto.TYPE_INT64,
    "uint64": pb.FieldDescriptorProto.TYPE_UINT64,
    "fixed64": pb.FieldDescriptorProto.TYPE_FIXED64,
    "bool": pb.FieldDescriptorProto.TYPE_BOOL,
    "string": pb.FieldDescriptorProto.TYPE_STRING,
    "bytes": pb.FieldDescriptorProto.TYPE_BYTES,
    "uint32": pb.FieldDescriptorProto.TYPE_UINT32,
    "sint32": pb.FieldDescriptorProto.TYPE_SINT32,
    "sint64": pb.FieldDescriptorProto.TYPE_SINT64,
}


def file_descriptor(map_name: str, layout: Layout) -> pb.FileDescriptorProto:
    """The file with ``Key``, ``Value``, ``Change`` and ``Changes`` of a map."""
    package = package_of(map_name)
    messages = messages_of(layout)
    # Names that stand for a message at the top of the file; all others are found in their holder.
    top = {id(model): f".{package}.{model.name}" for model in messages}
    return pb.FileDescriptorProto(
        name="map.proto",
        package=package,
        syntax="proto3",
        message_type=[_message(model, f".{package}.{model.name}", top) for model in messages],
    )


def descriptor_set(map_name: str, layout: Layout) -> bytes:
    """The file as a serialised ``FileDescriptorSet``, the same bytes on every node."""
    file = file_descriptor(map_name, layout)
    return pb.FileDescriptorSet(file=[file]).SerializeToString(deterministic=True)


def _message(model: MessageModel, path: str, top: Mapping[int, str]) -> pb.DescriptorProto:
    found = pb.DescriptorProto(name=model.name)
    for nested in model.nested:
        if isinstance(nested, MessageModel):
            found.nested_type.append(_message(nested, f"{path}.{nested.name}", top))
        else:
            found.enum_type.append(_enum(nested))
    for field in model.fields:
        found.field.append(_field(field, path, top))
    return found


def _field(field: FieldModel, path: str, top: Mapping[int, str]) -> pb.FieldDescriptorProto:
    label = pb.FieldDescriptorProto.LABEL_OPTIONAL
    if field.repeated:
        label = pb.FieldDescriptorProto.LABEL_REPEATED
    found = pb.FieldDescriptorProto(
        name=field.name, number=field.number, label=label, json_name=json_name(field.name)
    )
    if field.nested is None:
        found.type = _SCALARS[field.type]
        return found
    found.type = pb.FieldDescriptorProto.TYPE_ENUM
    if isinstance(field.nested, MessageModel):
        found.type = pb.FieldDescriptorProto.TYPE_MESSAGE
    found.type_name = top.get(id(field.nested), f"{path}.{field.nested.name}")
    return found


def _enum(model: EnumModel) -> pb.EnumDescriptorProto:
    values = [pb.EnumValueDescriptorProto(name=n, number=v) for n, v in model.values]
    found = pb.EnumDescriptorProto(name=model.name, value=values)
    if model.aliases:
        found.options.allow_alias = True
    return found

"""The message that tells what the bytes of a map mean: made by publishers, read by everybody."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from google.protobuf.message import DecodeError

from bridge.errors import BridgeError
from bridge.feed.descriptors import descriptor_set
from bridge.layout.document import DocumentError, from_document, to_document
from bridge.layout.fingerprint import fingerprint
from bridge.layout.proto import proto_text
from bridge.layout.types import Layout
from bridge.wire import schema_pb2 as pb


class SchemaError(BridgeError):
    """Bytes that are no schema, or one that does not describe what it says."""


@dataclass(frozen=True, slots=True)
class MapSchema:
    """A layout of a map, by its fingerprint. ``proto`` and ``descriptors`` follow from it."""

    cluster: str
    map: str
    fingerprint: int
    layout: Layout

    @staticmethod
    def of(cluster: str, map_name: str, layout: Layout) -> MapSchema:
        return MapSchema(cluster, map_name, fingerprint(layout), layout)

    @property
    def proto(self) -> str:
        return proto_text(self.map, self.layout, self.fingerprint)

    @property
    def descriptors(self) -> bytes:
        """A serialised ``FileDescriptorSet``."""
        return descriptor_set(self.map, self.layout)


def encode_schema(schema: MapSchema) -> bytes:
    """The message; the same bytes on every node."""
    return pb.MapSchema(
        cluster=schema.cluster,
        map=schema.map,
        layout=schema.fingerprint,
        key_size=schema.layout.key.size,
        value_size=schema.layout.value.size,
        proto=schema.proto,
        descriptor_set=schema.descriptors,
        fields=orjson.dumps(to_document(schema.layout)),
    ).SerializeToString(deterministic=True)


def decode_schema(data: bytes) -> MapSchema:
    """The schema in ``data``, believed only when its fields have its fingerprint."""
    message = pb.MapSchema()
    try:
        message.ParseFromString(data)
        layout = from_document(orjson.loads(message.fields))
    except (DecodeError, orjson.JSONDecodeError, DocumentError) as error:
        raise SchemaError(f"schema: cannot be read ({error})") from error
    found = fingerprint(layout)
    if found != message.layout:
        raise SchemaError(
            f"schema of map {message.map}: its fields are those of layout {found:016x} "
            f"(got {message.layout:016x})"
        )
    return MapSchema(message.cluster, message.map, found, layout)

"""Typed messages read by Python's own protobuf: for tests, and for those who use it."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from bridge.feed.descriptors import file_descriptor
from bridge.layout.messages import package_of
from bridge.layout.types import Layout


def message_classes(map_name: str, layout: Layout) -> dict[str, type[Message]]:
    """``Key``, ``Value``, ``Change`` and ``Changes`` of a map, in a pool of their own."""
    file: descriptor_pb2.FileDescriptorProto = file_descriptor(map_name, layout)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{package_of(map_name)}.{name}")
        )
        for name in ("Key", "Value", "Change", "Changes")
    }

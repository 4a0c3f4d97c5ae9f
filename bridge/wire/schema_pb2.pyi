from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class MapSchema(_message.Message):
    __slots__ = ("cluster", "map", "layout", "key_size", "value_size", "proto", "descriptor_set", "fields")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    KEY_SIZE_FIELD_NUMBER: _ClassVar[int]
    VALUE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROTO_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_SET_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    map: str
    layout: int
    key_size: int
    value_size: int
    proto: str
    descriptor_set: bytes
    fields: bytes
    def __init__(self, cluster: _Optional[str] = ..., map: _Optional[str] = ..., layout: _Optional[int] = ..., key_size: _Optional[int] = ..., value_size: _Optional[int] = ..., proto: _Optional[str] = ..., descriptor_set: _Optional[bytes] = ..., fields: _Optional[bytes] = ...) -> None: ...

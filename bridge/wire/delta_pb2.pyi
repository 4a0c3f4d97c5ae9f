from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_COLUMNS: _ClassVar[Encoding]
    ENCODING_COLUMNS_ZSTD: _ClassVar[Encoding]

class Op(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OP_UNSPECIFIED: _ClassVar[Op]
    OP_UPDATE: _ClassVar[Op]
    OP_DELETE: _ClassVar[Op]
    OP_EVICT: _ClassVar[Op]

class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAUSE_CHANGE: _ClassVar[Cause]
    CAUSE_SCAN: _ClassVar[Cause]
    CAUSE_REPAIR: _ClassVar[Cause]
ENCODING_UNSPECIFIED: Encoding
ENCODING_COLUMNS: Encoding
ENCODING_COLUMNS_ZSTD: Encoding
OP_UNSPECIFIED: Op
OP_UPDATE: Op
OP_DELETE: Op
OP_EVICT: Op
CAUSE_CHANGE: Cause
CAUSE_SCAN: Cause
CAUSE_REPAIR: Cause

class DeltaBatch(_message.Message):
    __slots__ = ("cluster", "map", "node", "incarnation", "first_sequence", "count", "layout", "key_size", "value_size", "base_time", "clock_offset", "time_unit_ns", "encoding", "cause", "ops", "keys", "values", "times", "writers")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    KEY_SIZE_FIELD_NUMBER: _ClassVar[int]
    VALUE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BASE_TIME_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIT_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    OPS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    WRITERS_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    map: str
    node: str
    incarnation: int
    first_sequence: int
    count: int
    layout: int
    key_size: int
    value_size: int
    base_time: int
    clock_offset: int
    time_unit_ns: int
    encoding: Encoding
    cause: Cause
    ops: bytes
    keys: bytes
    values: bytes
    times: bytes
    writers: bytes
    def __init__(self, cluster: _Optional[str] = ..., map: _Optional[str] = ..., node: _Optional[str] = ..., incarnation: _Optional[int] = ..., first_sequence: _Optional[int] = ..., count: _Optional[int] = ..., layout: _Optional[int] = ..., key_size: _Optional[int] = ..., value_size: _Optional[int] = ..., base_time: _Optional[int] = ..., clock_offset: _Optional[int] = ..., time_unit_ns: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., cause: _Optional[_Union[Cause, str]] = ..., ops: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., values: _Optional[bytes] = ..., times: _Optional[bytes] = ..., writers: _Optional[bytes] = ...) -> None: ...

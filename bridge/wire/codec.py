"""Changes as bytes and back: the message ``DeltaBatch`` of ``schemas/mapbridge/v1/delta.proto``.

What comes off the wire is not trusted: ``decode`` either gives a batch in which every length,
operation and bound holds, or raises ``WireError`` and nothing else.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from google.protobuf.message import DecodeError

from bridge.errors import BridgeError
from bridge.model import (
    KEY_SIZE_MAX,
    U8,
    U32,
    U64,
    VALUE_SIZE_MAX,
    Cause,
    Delta,
    DeltaBatch,
    Op,
    Origin,
)
from bridge.wire import delta_pb2 as pb
from bridge.wire.subjects import NAME_LENGTH_MAX, SubjectError, check_token, escape

DECODED_BYTES_MAX: Final = 128 << 20  # deletes have no row on the wire, but one in memory
_U32_MAX: Final = 0xFFFF_FFFF
_U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF
_LOCAL_ROW_BYTES: Final = 1 + 8 + 8 + 4  # ops, entered, left, writers in memory
_CAUSES: Final = {int(cause): cause for cause in Cause}


class WireError(BridgeError):
    """Bytes that are no message of the bridge, or a batch that no message can hold."""


def row_bytes(key_size: int, value_size: int) -> int:
    """The most bytes that one change takes in a message (an update with its own writer)."""
    return key_size + value_size + 1 + 4 + 4


def encode(delta: Delta) -> bytes:
    """The message of ``delta``; ``entered`` does not travel, times are rounded to the unit.

    Raises ``WireError`` when the batch is empty or breaks a bound.
    """
    origin, batch = delta.origin, delta.batch
    count = len(batch)
    _check_names(origin.cluster, origin.map, origin.node)
    _check_bounds(count, delta.first_sequence, batch.key_size, batch.value_size)
    _check_ops(batch.ops)
    base_time, unit, times = _pack_times(batch.left)
    updates = np.flatnonzero(batch.ops == Op.UPDATE)
    plain = len(updates) == count
    try:
        message = pb.DeltaBatch(
            cluster=origin.cluster,
            map=origin.map,
            node=origin.node,
            incarnation=origin.incarnation,
            first_sequence=delta.first_sequence,
            count=count,
            layout=delta.layout,
            key_size=batch.key_size,
            value_size=batch.value_size,
            base_time=base_time,
            clock_offset=delta.clock_offset,
            time_unit_ns=unit,
            encoding=pb.ENCODING_COLUMNS,
            cause=pb.Cause.Name(int(batch.cause)),
            ops=b"" if plain else batch.ops.tobytes(),
            keys=batch.keys.tobytes(),
            values=(batch.values if plain else batch.values.take(updates, axis=0)).tobytes(),
            times=times.tobytes(),
            writers=_pack_writers(batch.writers),
        )
    except ValueError as error:  # a number outside its field's range
        raise WireError(f"message: {error}") from error
    return message.SerializeToString()


def decode(data: bytes) -> Delta:
    """The changes in ``data``. Columns are read-only views where the bytes allow it.

    Raises ``WireError`` with the reason, for any bytes.
    """
    message = pb.DeltaBatch()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"message: is no DeltaBatch ({error})") from error
    if message.encoding != pb.ENCODING_COLUMNS:
        raise WireError(f"encoding: not known (got {int(message.encoding)})")
    cause = _CAUSES.get(int(message.cause))
    if cause is None:
        raise WireError(f"cause: not known (got {int(message.cause)})")
    _check_names(message.cluster, message.map, message.node)
    count, key_size, value_size = message.count, message.key_size, message.value_size
    _check_bounds(count, message.first_sequence, key_size, value_size)
    ops = _unpack_ops(message.ops, count)
    keys = _column("keys", message.keys, count, key_size).reshape(count, key_size)
    values = _unpack_values(message.values, ops, len(message.ops) == 0, count, value_size)
    batch = DeltaBatch(
        ops,
        keys,
        values,
        np.zeros(count, np.uint64),
        _unpack_times(message.times, count, message.base_time, message.time_unit_ns),
        _unpack_writers(message.writers, count),
        cause,
    )
    return Delta(
        Origin(message.cluster, message.map, message.node, message.incarnation),
        message.first_sequence,
        batch,
        message.clock_offset,
        message.layout,
    )


def _check_names(cluster: str, map_name: str, node: str) -> None:
    try:
        check_token("cluster", cluster)
        check_token("node", node)
        escape(map_name)
    except SubjectError as error:
        raise WireError(str(error)) from error
    assert len(map_name) <= NAME_LENGTH_MAX


def _check_bounds(count: int, first_sequence: int, key_size: int, value_size: int) -> None:
    if not 1 <= count <= _U32_MAX:
        raise WireError(f"count: needs at least one change (got {count})")
    if not 1 <= first_sequence <= _U64_MAX - count + 1:
        raise WireError(f"first_sequence: out of range (got {first_sequence})")
    if not 1 <= key_size <= KEY_SIZE_MAX:
        raise WireError(f"key_size: needs 1 to {KEY_SIZE_MAX} (got {key_size})")
    if not 1 <= value_size <= VALUE_SIZE_MAX:
        raise WireError(f"value_size: needs 1 to {VALUE_SIZE_MAX} (got {value_size})")
    size = count * (key_size + value_size + _LOCAL_ROW_BYTES)
    if size > DECODED_BYTES_MAX:
        raise WireError(f"count: {count} changes take more than {DECODED_BYTES_MAX} bytes")


def _check_ops(ops: U8) -> None:
    least, most = int(ops.min()), int(ops.max())
    if least < Op.UPDATE or most > Op.EVICT:
        got = least if least < Op.UPDATE else most
        raise WireError(f"ops: no such operation (got {got})")


def _column(name: str, data: bytes, rows: int, width: int) -> U8:
    if len(data) != rows * width:
        raise WireError(f"{name}: needs {rows * width} bytes (got {len(data)})")
    return np.frombuffer(data, np.uint8)


def _unpack_ops(data: bytes, count: int) -> U8:
    if not data:
        return np.full(count, Op.UPDATE, np.uint8)
    ops = _column("ops", data, count, 1)
    _check_ops(ops)
    return ops


def _unpack_values(data: bytes, ops: U8, plain: bool, count: int, value_size: int) -> U8:
    if plain:
        return _column("values", data, count, value_size).reshape(count, value_size)
    updates = ops == Op.UPDATE
    rows = int(np.count_nonzero(updates))
    row = np.dtype((np.void, value_size))  # assigned whole, which takes half the time
    values = np.zeros(count, row)
    values[np.flatnonzero(updates)] = _column("values", data, rows, value_size).view(row)
    return values.view(np.uint8).reshape(count, value_size)


def _pack_times(left: U64) -> tuple[int, int, U32]:
    base, most = int(left.min()), int(left.max())
    unit = max(1, -(-(most - base) // _U32_MAX))
    offsets = left - np.uint64(base)
    if unit > 1:
        offsets //= np.uint64(unit)
    return base, unit, offsets.astype("<u4")


def _unpack_times(data: bytes, count: int, base: int, unit: int) -> U64:
    offsets = _column("times", data, count, 4).view("<u4")
    if unit < 1:
        raise WireError(f"time_unit_ns: needs at least 1 (got {unit})")
    if base + int(offsets.max()) * unit > _U64_MAX:
        raise WireError(f"times: beyond 64 bits (base {base}, unit {unit})")
    times = offsets.astype(np.uint64)
    if unit > 1:
        times *= np.uint64(unit)
    times += np.uint64(base)
    return times


def _pack_writers(writers: U32) -> bytes:
    first = int(writers[0])
    if not bool((writers == first).all()):
        return writers.astype("<u4").tobytes()
    return first.to_bytes(4, "little") if first else b""


def _unpack_writers(data: bytes, count: int) -> U32:
    if not data:
        return np.zeros(count, np.uint32)
    if len(data) == 4:
        return np.full(count, int.from_bytes(data, "little"), np.uint32)
    return _column("writers", data, count, 4).view("<u4").astype(np.uint32, copy=False)

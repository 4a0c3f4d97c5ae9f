"""The record of a change as it lies in a ring buffer, and its way into columns.

Twin of ``bpf/record.h``, which describes the forms of a record; a test compiles that file and
compares. A ring belongs to one map, so that the records of single changes have one size and a
drained piece of the ring is a two-dimensional array: ``u8[n, record_size]``.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.model import U8, U32, U64, DeltaBatch, Op

assert sys.byteorder == "little", "records are decoded on little-endian machines only"


class Flag(enum.IntFlag):
    """Forms of a record. Twin of ``enum mapbridge_flag``."""

    BATCH = 1
    READ_KEY = 2
    RESCAN = 4


DURATION_UNKNOWN = 0xFFFF_FFFF
SCRATCH_SIZE = 32_768  # of the record of a batch
SINGLE_SIZE_MAX = 8_192
HEADER = np.dtype(
    [
        ("left", "<u8"),
        ("duration", "<u4"),
        ("writer", "<u4"),
        ("count", "<u4"),
        ("op", "u1"),
        ("flags", "u1"),
        ("cpu", "<u2"),
    ]
)
HEADER_SIZE = 24
assert HEADER.itemsize == HEADER_SIZE

Lookup = Callable[[bytes], bytes | None]


class MalformedRecordError(ValueError):
    """A record that no program of this layout can have written; it is counted, not reported."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of one map's records.

    ``keys_only``: no record carries a value, as with per-CPU maps, whose values no CPU knows alone.
    """

    key_size: int
    value_size: int
    keys_only: bool = False

    @property
    def carries_value(self) -> bool:
        """Whether singles carry their value; if not, they have the READ_KEY form."""
        size = read_key_size(self.key_size) + pad8(self.value_size)
        return not self.keys_only and size <= SINGLE_SIZE_MAX

    @property
    def single_size(self) -> int:
        """Size in bytes of the record of a single change (``MB_SINGLE_SIZE``)."""
        size = read_key_size(self.key_size)
        return size + pad8(self.value_size) if self.carries_value else size


def pad8(size: int) -> int:
    return (size + 7) & ~7


def read_key_size(key_size: int) -> int:
    """Size in bytes of a record with a key and no value."""
    return HEADER_SIZE + pad8(key_size)


def ring_bytes(wanted: int, page_size: int = 4096) -> int:
    """The smallest size that a ring buffer may have and that is not less than ``wanted``."""
    return 1 << (max(wanted, page_size) - 1).bit_length()


def headers(records: U8) -> npt.NDArray[np.void]:
    """The headers of ``u8[n, record_size]``, as a view."""
    return records[:, :HEADER_SIZE].view(HEADER)[:, 0]


def decode_singles(records: U8, layout: Layout) -> DeltaBatch:
    """Singles that carry their value; the columns are copies, the records may go.

    Raises ``MalformedRecordError`` when the records are not of that size.
    """
    key_end = HEADER_SIZE + layout.key_size
    value_start = read_key_size(layout.key_size)
    if records.shape[1] != layout.single_size or not layout.carries_value:
        raise MalformedRecordError(f"single: wrong size (got {records.shape[1]} bytes)")
    values = records[:, value_start : value_start + layout.value_size]
    return _assemble(headers(records), _packed(records[:, HEADER_SIZE:key_end]), _packed(values))


def decode_keys(records: U8, layout: Layout, lookup: Lookup) -> tuple[DeltaBatch, int]:
    """Singles in the READ_KEY form, with values looked up; and how many keys had gone.

    An update whose key is not there any more is left out: the change that removed it has a record
    of its own behind this one.
    """
    key_end = HEADER_SIZE + layout.key_size
    if records.shape[1] != read_key_size(layout.key_size):
        raise MalformedRecordError(f"read-key single: wrong size (got {records.shape[1]} bytes)")
    head = headers(records)
    return _with_values(head, _packed(records[:, HEADER_SIZE:key_end]), layout, lookup)


def decode_batch(record: U8, layout: Layout, lookup: Lookup) -> tuple[DeltaBatch, int]:
    """The changes of one BATCH record ``u8[record_size]``; and how many keys had gone."""
    if len(record) < HEADER_SIZE:
        raise MalformedRecordError(f"batch: too short (got {len(record)} bytes)")
    head = headers(record[np.newaxis, :])
    count, op, flags = int(head["count"][0]), int(head["op"][0]), int(head["flags"][0])
    keys_end = HEADER_SIZE + count * layout.key_size
    if keys_end > len(record):
        raise MalformedRecordError(f"batch: too short for {count} keys (got {len(record)} bytes)")
    keys = record[HEADER_SIZE:keys_end].reshape(count, layout.key_size).copy()
    head = np.repeat(head, count)
    if flags & Flag.READ_KEY:
        return _with_values(head, keys, layout, lookup)
    if op != Op.UPDATE:
        return _assemble(head, keys, np.zeros((count, layout.value_size), np.uint8)), 0
    start = HEADER_SIZE + pad8(count * layout.key_size)
    end = start + count * layout.value_size
    if end > len(record):
        raise MalformedRecordError(f"batch: too short for {count} values (got {len(record)} bytes)")
    return _assemble(head, keys, record[start:end].reshape(count, layout.value_size).copy()), 0


def _with_values(
    head: npt.NDArray[np.void], keys: U8, layout: Layout, lookup: Lookup
) -> tuple[DeltaBatch, int]:
    values = np.zeros((len(keys), layout.value_size), np.uint8)
    present = np.ones(len(keys), np.bool_)
    for row in np.flatnonzero(head["op"] == Op.UPDATE):
        value = lookup(keys[row].tobytes())
        if value is None:
            present[row] = False
        else:
            values[row] = np.frombuffer(value, np.uint8)
    batch = _assemble(head, keys, values)
    gone = len(keys) - int(np.count_nonzero(present))
    return (batch.take(present) if gone else batch), gone


def _assemble(head: npt.NDArray[np.void], keys: U8, values: U8) -> DeltaBatch:
    ops: U8 = head["op"].copy()
    left: U64 = head["left"].copy()
    writers: U32 = head["writer"].copy()
    duration = head["duration"]
    entered: U64 = left - duration
    unknown = duration == DURATION_UNKNOWN
    if unknown.any():
        entered[unknown] = 0
    removed = ops != Op.UPDATE
    if removed.any():
        if bool(((ops - np.uint8(1)) >= len(Op)).any()):  # 0 wraps to 255
            raise MalformedRecordError(f"record: unknown operation (got {ops.min()}..{ops.max()})")
        values[removed] = 0
    return DeltaBatch(ops, keys, values, entered, left, writers)


def _packed(columns: U8) -> U8:
    """A contiguous copy of ``u8[n, size]`` whose rows lie apart.

    Rows are moved as items of ``size`` bytes: numpy copies those several times faster than it
    copies a two-dimensional array with a short last axis.
    """
    size = columns.shape[1]
    if not size:
        return np.zeros(columns.shape, np.uint8)
    return columns.view(np.dtype((np.void, size))).copy().view(np.uint8)

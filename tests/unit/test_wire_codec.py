"""The codec: what comes back, and what is refused, with its reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bridge.model import VALUE_SIZE_MAX, Cause, Delta, DeltaBatch, Op
from bridge.wire import delta_pb2 as pb
from bridge.wire.codec import WireError, decode, encode, row_bytes
from tests.bus_kit import numbered_batch, numbered_delta, origin, same_changes


def mixed_batch() -> DeltaBatch:
    batch = numbered_batch(1, 7, key_size=3, value_size=5)
    ops = np.array([1, 2, 1, 3, 3, 1, 2], np.uint8)
    values = batch.values.copy()
    values[ops != Op.UPDATE] = 0
    writers = np.arange(7, dtype=np.uint32) * 1000
    return DeltaBatch(ops, batch.keys, values, batch.entered, batch.left, writers, Cause.REPAIR)


def message_of(delta: Delta) -> pb.DeltaBatch:
    message = pb.DeltaBatch()
    message.ParseFromString(encode(delta))
    return message


def test_what_is_sent_comes_back() -> None:
    sent = Delta(origin(), 11, mixed_batch(), clock_offset=-5, layout=2**64 - 1)
    got = decode(encode(sent))
    assert (got.origin, got.first_sequence, got.last_sequence) == (origin(), 11, 17)
    assert (got.clock_offset, got.layout) == (-5, 2**64 - 1)
    assert same_changes(got.batch, sent.batch)


def test_plain_updates_carry_neither_ops_nor_writers() -> None:
    message = message_of(numbered_delta(1, 13))
    assert (message.ops, message.writers) == (b"", b"")
    assert len(message.keys) == 13 * 16
    assert len(message.values) == 13 * 24


def test_one_writer_is_sent_once() -> None:
    batch = replace(numbered_batch(1, 13), writers=np.full(13, 4242, np.uint32))
    message = message_of(Delta(origin(), 1, batch))
    assert message.writers == (4242).to_bytes(4, "little")
    assert same_changes(decode(message.SerializeToString()).batch, batch)


def test_deletes_carry_no_value() -> None:
    message = message_of(Delta(origin(), 1, mixed_batch()))
    assert len(message.values) == 3 * 5


def test_entered_stays_at_home() -> None:
    batch = replace(numbered_batch(1, 2), entered=np.full(2, 99, np.uint64))
    assert not decode(encode(Delta(origin(), 1, batch))).batch.entered.any()


@pytest.mark.parametrize("span", [2**32 - 1, 2**32, 2**40 + 17, 2**64 - 1])
def test_wide_time_spans_lose_less_than_one_unit(span: int) -> None:
    left = np.array([0, span // 3, span], np.uint64)
    batch = replace(numbered_batch(1, 3), left=left)
    data = encode(Delta(origin(), 1, batch))
    message = pb.DeltaBatch()
    message.ParseFromString(data)
    got = decode(data).batch.left
    assert (got <= left).all()
    assert int((left - got).max()) < message.time_unit_ns
    assert message.time_unit_ns == 1 or span >= 2**32


def test_the_row_bound_holds() -> None:
    rows = 1009
    batch = replace(
        numbered_batch(1, rows, key_size=4, value_size=8),
        ops=np.where(np.arange(rows) == 5, 2, 1).astype(np.uint8),
        writers=np.arange(rows, dtype=np.uint32),
        left=np.arange(rows, dtype=np.uint64) * 10**12,
    )
    delta = Delta(replace(origin(), map="\U0001f41d" * 64), 2**63, batch, 2**62, 2**64 - 1)
    assert len(encode(delta)) <= rows * row_bytes(4, 8) + 1024


def test_largest_key_and_value_fit() -> None:
    batch = numbered_batch(1, 3, key_size=512, value_size=VALUE_SIZE_MAX)
    assert same_changes(decode(encode(Delta(origin(), 1, batch))).batch, batch)


def test_columns_are_views_of_the_message() -> None:
    batch = decode(encode(numbered_delta(1, 3))).batch
    assert not batch.keys.flags.writeable
    assert not batch.keys.flags.owndata
    assert not batch.values.flags.owndata


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("encoding", 2, "encoding: not known"),
        ("encoding", 0, "encoding: not known"),
        ("encoding", 77, "encoding: not known"),
        ("cause", 9, "cause: not known"),
        ("count", 0, "count: needs at least one"),
        ("count", 8, "ops: needs 8 bytes"),
        ("count", 2**32 - 1, "take more than"),
        ("key_size", 0, "key_size: needs 1 to 512"),
        ("key_size", 513, "key_size: needs 1 to 512"),
        ("value_size", 0, "value_size: needs 1 to 65536"),
        ("value_size", 65537, "value_size: needs 1 to 65536"),
        ("first_sequence", 0, "first_sequence: out of range"),
        ("first_sequence", 2**64 - 3, "first_sequence: out of range"),
        ("ops", b"\1\2", "ops: needs 7 bytes"),
        ("ops", b"\1\2\1\3\3\1\4", "ops: no such operation (got 4)"),
        ("ops", b"\1\2\1\3\3\1\0", "ops: no such operation (got 0)"),
        ("ops", b"\1\2\1\3\3\1\1", "values: needs 20 bytes"),
        ("ops", b"", "values: needs 35 bytes"),
        ("keys", b"abc", "keys: needs 21 bytes"),
        ("values", b"abc", "values: needs 15 bytes"),
        ("times", b"abc", "times: needs 28 bytes"),
        ("writers", b"abcde", "writers: needs 28 bytes"),
        ("time_unit_ns", 0, "time_unit_ns: needs at least 1"),
        ("base_time", 2**64 - 2, "times: beyond 64 bits"),
        ("cluster", "a.b", "cluster: needs"),
        ("node", "", "node: needs"),
        ("node", "x" * 65, "node: needs"),
        ("map", "", "name: needs"),
        ("map", "m" * 65, "name: needs"),
    ],
)
def test_what_does_not_add_up_is_refused(field: str, value: object, reason: str) -> None:
    message = message_of(Delta(origin(), 11, mixed_batch()))
    setattr(message, field, value)
    data = message.SerializeToString()
    with pytest.raises(WireError) as caught:
        decode(data)
    assert reason in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"\xff" * 64])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


def test_an_empty_batch_is_not_sent() -> None:
    with pytest.raises(WireError, match="count"):
        encode(Delta(origin(), 1, DeltaBatch.empty(4, 4)))


def test_an_unknown_operation_is_not_sent() -> None:
    batch = replace(numbered_batch(1, 3), ops=np.array([1, 2, 9], np.uint8))
    with pytest.raises(WireError, match="got 9"):
        encode(Delta(origin(), 1, batch))


@pytest.mark.parametrize(
    "bad", [{"clock_offset": 2**63}, {"layout": -1}, {"first_sequence": 2**64}]
)
def test_numbers_out_of_range_are_not_sent(bad: dict[str, int]) -> None:
    with pytest.raises(WireError):
        encode(replace(numbered_delta(1, 3), **bad))  # type: ignore[arg-type]


def test_the_schema_names_the_same_causes_and_operations() -> None:
    assert {f"CAUSE_{c.name}": int(c) for c in Cause} == dict(pb.Cause.items())
    named = dict(pb.Op.items())
    assert named.pop("OP_UNSPECIFIED") == 0
    assert {f"OP_{op.name}": int(op) for op in Op} == named

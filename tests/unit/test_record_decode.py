"""Records become columns: each form is built by hand, field by field, and read back."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from bridge.capture.record import (
    DURATION_UNKNOWN,
    Flag,
    Layout,
    MalformedRecordError,
    decode_batch,
    decode_keys,
    decode_singles,
    ring_bytes,
)
from bridge.model import U8, Op


def header(op: int, *, left: int = 0, duration: int = 0, count: int = 1, flags: int = 0) -> bytes:
    return struct.pack("<QIIIBBH", left, duration, 4711, count, op, flags, 1)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def rows(*records: bytes) -> U8:
    """Records as they lie in a ring: each behind the eight bytes of its head."""
    block = b"".join(bytes(8) + padded(record) for record in records)
    return np.frombuffer(block, np.uint8).reshape(len(records), -1)[:, 8:]


def no_lookup(key: bytes) -> bytes | None:
    raise AssertionError(f"nobody asked for {key!r}")


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(0, 70))
def test_singles_of_any_size(data: st.DataObject, key_size: int, value_size: int) -> None:
    changes = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(list(Op)),
                st.binary(min_size=key_size, max_size=key_size),
                st.binary(min_size=value_size, max_size=value_size),
                st.integers(2**33, 2**63),
                st.one_of(st.just(DURATION_UNKNOWN), st.integers(0, DURATION_UNKNOWN - 1)),
            ),
            min_size=1,
            max_size=13,
        )
    )
    batch = decode_singles(
        rows(
            *(
                header(op, left=left, duration=d) + padded(key) + padded(value)
                for op, key, value, left, d in changes
            )
        ),
        Layout(key_size, value_size),
    )
    assert len(batch) == len(changes)
    for row, (op, key, value, left, duration) in enumerate(changes):
        assert batch.ops[row] == op
        assert batch.keys[row].tobytes() == key
        assert batch.values[row].tobytes() == (value if op is Op.UPDATE else bytes(value_size))
        assert batch.left[row] == left
        assert batch.entered[row] == (0 if duration == DURATION_UNKNOWN else left - duration)
        assert batch.writers[row] == 4711
    assert batch.keys.flags.c_contiguous
    assert batch.values.flags.c_contiguous


def test_columns_do_not_hold_on_to_the_records() -> None:
    records = rows(header(Op.UPDATE) + b"12345678" + b"abcdefgh").copy()
    batch = decode_singles(records, Layout(8, 8))
    records[:] = 0
    assert batch.keys.tobytes() == b"12345678"
    assert batch.values.tobytes() == b"abcdefgh"
    assert batch.ops[0] == Op.UPDATE


@pytest.mark.parametrize("op", [0, 4, 255])
def test_unknown_operation_is_malformed(op: int) -> None:
    records = rows(header(Op.UPDATE) + bytes(16), header(op) + bytes(16))
    with pytest.raises(MalformedRecordError):
        decode_singles(records, Layout(8, 8))


@pytest.mark.parametrize("extra", [-8, 8])
def test_single_of_another_size_is_malformed(extra: int) -> None:
    with pytest.raises(MalformedRecordError):
        decode_singles(rows(header(Op.UPDATE) + bytes(16 + extra)), Layout(8, 8))


def test_large_values_are_looked_up_and_gone_keys_left_out() -> None:
    layout = Layout(4, 40_000)
    assert not layout.carries_value
    held = {b"aaaa": bytes([1]) * 40_000, b"cccc": bytes([3]) * 40_000}
    asked: list[bytes] = []

    def lookup(key: bytes) -> bytes | None:
        asked.append(key)
        return held.get(key)

    def record(op: Op, key: bytes) -> bytes:
        return header(op, flags=Flag.READ_KEY) + padded(key)

    batch, gone = decode_keys(
        rows(
            record(Op.UPDATE, b"aaaa"),
            record(Op.UPDATE, b"bbbb"),
            record(Op.DELETE, b"cccc"),
            record(Op.UPDATE, b"cccc"),
        ),
        layout,
        lookup,
    )
    assert gone == 1
    assert asked == [b"aaaa", b"bbbb", b"cccc"]
    assert [key.tobytes() for key in batch.keys] == [b"aaaa", b"cccc", b"cccc"]
    assert batch.ops.tolist() == [Op.UPDATE, Op.DELETE, Op.UPDATE]
    assert [int(value[0]) for value in batch.values] == [1, 0, 3]
    assert [int(value[-1]) for value in batch.values] == [1, 0, 3]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_batch_of_updates(count: int) -> None:
    layout = Layout(5, 3)
    keys = bytes(range(count * 5))
    values = bytes(range(100, 100 + count * 3))
    record = header(Op.UPDATE, left=10_000, duration=4_000, count=count, flags=Flag.BATCH)
    record += padded(keys) + values
    batch, gone = decode_batch(np.frombuffer(record, np.uint8), layout, no_lookup)
    assert gone == 0
    assert batch.keys.tobytes() == keys
    assert batch.values.tobytes() == values
    assert batch.left.tolist() == [10_000] * count
    assert batch.entered.tolist() == [6_000] * count
    assert batch.ops.tolist() == [Op.UPDATE] * count


def test_batch_of_deletes_and_of_keys_to_read() -> None:
    layout = Layout(4, 8)
    keys = b"aaaabbbbcccc"
    record = header(Op.DELETE, count=3, flags=Flag.BATCH) + keys
    batch, _ = decode_batch(np.frombuffer(record, np.uint8), layout, no_lookup)
    assert batch.keys.tobytes() == keys
    assert not batch.values.any()
    assert batch.values.shape == (3, 8)
    record = header(Op.UPDATE, count=3, flags=Flag.BATCH | Flag.READ_KEY) + keys
    read = {b"aaaa": b"A" * 8, b"cccc": b"C" * 8}.get
    batch, gone = decode_batch(np.frombuffer(record, np.uint8), layout, read)
    assert gone == 1
    assert batch.keys.tobytes() == b"aaaacccc"
    assert batch.values.tobytes() == b"A" * 8 + b"C" * 8


@pytest.mark.parametrize(
    ("count", "body"),
    [(2, 7), (2, 8 + 15), (0xFFFFFFFF, 64)],
    ids=["keys", "values", "absurd"],
)
def test_batch_that_ends_too_early_is_malformed(count: int, body: int) -> None:
    record = header(Op.UPDATE, count=count, flags=Flag.BATCH) + bytes(body)
    with pytest.raises(MalformedRecordError):
        decode_batch(np.frombuffer(record, np.uint8), Layout(4, 8), no_lookup)


@pytest.mark.parametrize("op", [Op.UPDATE, Op.DELETE])
def test_batch_of_nothing(op: Op) -> None:
    record = header(op, count=0, flags=Flag.BATCH)
    batch, _ = decode_batch(np.frombuffer(record, np.uint8), Layout(4, 8), no_lookup)
    assert len(batch) == 0


@pytest.mark.parametrize(
    ("wanted", "size"), [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (10**7, 1 << 24)]
)
def test_ring_bytes(wanted: int, size: int) -> None:
    assert ring_bytes(wanted) == size

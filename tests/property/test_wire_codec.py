"""The codec against generated batches, and against bytes that nobody meant."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from bridge.model import U64, Cause, Delta, DeltaBatch, Op, Origin, Rows
from bridge.wire import delta_pb2 as pb
from bridge.wire.codec import WireError, decode, encode, row_bytes
from bridge.wire.subjects import SubjectError, delta_subject, escape, parse_subject, unescape

NUMBERS = st.integers(0, 2**64 - 1)
TOKENS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
ORIGINS = st.builds(Origin, cluster=TOKENS, map=NAMES, node=TOKENS, incarnation=NUMBERS)


@st.composite
def batches(draw: st.DrawFn) -> DeltaBatch:
    rows = draw(st.integers(1, 20))
    key_size, value_size = draw(st.integers(1, 16)), draw(st.integers(1, 16))

    ops = draw(hnp.arrays(np.uint8, rows, elements=st.sampled_from([int(op) for op in Op])))
    values = draw(hnp.arrays(np.uint8, (rows, value_size)))
    values[ops != Op.UPDATE] = 0
    few_writers = st.sampled_from([0, 7, 2**32 - 1])
    return DeltaBatch(
        ops,
        draw(hnp.arrays(np.uint8, (rows, key_size))),
        values,
        draw(hnp.arrays(np.uint64, rows)),
        draw(hnp.arrays(np.uint64, rows)),
        draw(hnp.arrays(np.uint32, rows, elements=few_writers)),
        draw(st.sampled_from(Cause)),
    )


DELTAS = st.builds(
    Delta,
    origin=ORIGINS,
    first_sequence=st.integers(1, 2**64 - 100),
    batch=batches(),
    clock_offset=st.integers(-(2**63), 2**63 - 1),
    layout=NUMBERS,
)


@given(DELTAS)
def test_a_delta_comes_back_but_for_the_time_unit(delta: Delta) -> None:
    data = encode(delta)
    unit = _parsed(data).time_unit_ns
    got = decode(data)
    assert got.origin == delta.origin
    assert got.first_sequence == delta.first_sequence
    assert (got.clock_offset, got.layout) == (delta.clock_offset, delta.layout)
    sent, back = delta.batch, got.batch
    for column in ("ops", "keys", "values", "writers"):
        assert np.array_equal(getattr(sent, column), getattr(back, column)), column
    assert sent.cause == back.cause
    assert (back.left <= sent.left).all()
    assert int((sent.left - back.left).max()) < unit
    assert np.array_equal(_order(back.left, unit), _order(sent.left, unit))
    rows = len(sent)
    assert len(data) <= rows * row_bytes(sent.key_size, sent.value_size) + 1024
    if unit == 1:
        assert encode(got) == data, "decoding loses nothing that was sent"


@given(st.binary(max_size=400))
def test_random_bytes_raise_wire_errors_only(data: bytes) -> None:
    _check_total(data)


@settings(max_examples=200)
@given(DELTAS, st.data())
def test_damaged_messages_raise_wire_errors_only(delta: Delta, data: st.DataObject) -> None:
    raw = bytearray(encode(delta))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            raw[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 20))]
        else:
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        if not raw:
            break
    _check_total(bytes(raw))


@given(st.data())
def test_any_fields_raise_wire_errors_only(data: st.DataObject) -> None:
    message = pb.DeltaBatch(cluster="c", map="m", node="n", encoding=pb.ENCODING_COLUMNS)
    small = st.integers(0, 5)
    u32 = st.one_of(small, st.integers(0, 2**32 - 1))
    message.first_sequence = data.draw(st.one_of(small, NUMBERS))
    message.count = data.draw(u32)
    message.key_size, message.value_size = data.draw(u32), data.draw(u32)
    message.base_time = data.draw(NUMBERS)
    message.time_unit_ns = data.draw(st.one_of(small, NUMBERS))
    for column in ("ops", "keys", "values", "times", "writers"):
        setattr(message, column, data.draw(st.binary(max_size=20)))
    _check_total(message.SerializeToString())


@given(NAMES)
def test_any_name_is_one_token_and_comes_back(name: str) -> None:
    assert unescape(escape(name)) == name


@given(st.text(max_size=80))
def test_a_token_stands_for_one_name_only(token: str) -> None:
    try:
        name = unescape(token)
    except SubjectError:
        return
    assert escape(name) == token


@given(ORIGINS)
def test_subjects_name_their_origin(of: Origin) -> None:
    named = parse_subject(delta_subject(of))
    assert (named.cluster, named.map, named.node) == (of.cluster, of.map, of.node)


def _check_total(data: bytes) -> None:
    """Either a delta that can be used throughout, or a WireError."""
    try:
        delta = decode(data)
    except WireError:
        return
    assert len(delta.batch) >= 1
    assert delta.batch.values.shape[0] == len(delta.batch)
    decode(encode(delta))


def _parsed(data: bytes) -> pb.DeltaBatch:
    message = pb.DeltaBatch()
    message.ParseFromString(data)
    return message


def _order(left: U64, unit: int) -> Rows:
    base = left.min()
    return np.argsort((left - base) // np.uint64(unit), kind="stable")

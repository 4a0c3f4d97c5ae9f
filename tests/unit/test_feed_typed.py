"""The typed feed's bytes, as Python's protobuf reads them: every field of every row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf.message import Message

from bridge.feed import pieces
from bridge.feed.reading import message_classes
from bridge.feed.typed import TypedEncoder
from bridge.layout.columns import Decoder, numbers_of
from bridge.layout.declared import read_declared
from bridge.layout.forms import Form, shape_of
from bridge.layout.messages import MessageModel, messages_of
from bridge.layout.types import Kind, Layout, as_record
from bridge.model import U8, Delta, DeltaBatch, Op, Origin
from tests.unit.test_layout import LAYOUT
from tests.unit.test_layout_proto import AWKWARD

ROWS = 67
WIDE = read_declared(
    """
    enum e { E_ONE = 1, E_MINUS = -2 }; enum tiny { T_ONE = 1 } __attribute__((packed));
    struct in { __s16 x; __u8 raw[5]; char name[4]; __be64 far; float rate; };
    struct k { __be32 saddr; __u8 mac[2][6]; __be32 ip6[4]; __be32 ips[2]; __u64 id; };
    struct v { __s8 a; __s64 b; __u64 c; bool yes; bool many[3]; enum e e; enum tiny t[2];
      struct in in[2][2]; double d[2]; float f; char name[9]; char names[2][3]; void *p; void *q[2];
      __u32 low : 3; __s32 high : 7; __u8 grid[2][3]; __u32 numbers[5]; __s16 signs[2];
      unsigned __int128 huge; union { __u32 whole; __u8 part[4]; } u; __u32 none[0]; };
    """,
    "struct k",
    "struct v",
)


def random_delta(layout: Layout, seed: int) -> Delta:
    random = np.random.default_rng(seed)
    keys = random.integers(0, 256, (ROWS, layout.key.size), np.uint8)
    values = random.integers(0, 256, (ROWS, layout.value.size), np.uint8)
    values[random.random(values.shape) < 0.5] = 0
    ops = random.integers(1, 4, ROWS).astype(np.uint8)
    values[ops != Op.UPDATE] = 0
    left = random.integers(0, 1 << 60, ROWS).astype(np.uint64)
    writers = random.integers(0, 1 << 32, ROWS).astype(np.uint32)
    batch = DeltaBatch(ops, keys, values, np.zeros(ROWS, np.uint64), left, writers)
    return Delta(Origin("c", "flows", "node-ü"[:5], 7), 1 << 40, batch, clock_offset=-5)


def check(model: MessageModel, read: Message, record: npt.NDArray[np.void]) -> None:
    """A message against numpy's reading of the same bytes; ``record`` has one row."""
    for field in model.fields:
        source = field.source
        assert source is not None
        found = getattr(read, field.name)
        shape, inner = shape_of(source), source.type.innermost
        held = np.ascontiguousarray(record[source.name])
        if isinstance(field.nested, MessageModel):
            elements = held.reshape(-1)
            messages = list(found) if field.repeated else [found]
            assert len(messages) == len(elements)
            for index, message in enumerate(messages):
                check(field.nested, message, elements[index : index + 1])
            continue
        raw = held.tobytes()
        if shape.form is not Form.PLAIN or field.type == "bytes":
            parts = b"".join(found) if field.repeated else found
            assert parts == raw, field.name
            assert not field.repeated or len({len(each) for each in found}) == 1
        elif field.type == "string":
            size = inner.size
            texts = [raw[at : at + size].split(b"\0")[0] for at in range(0, len(raw), size)]
            expected = [text.decode("utf-8", "backslashreplace") for text in texts]
            assert (list(found) if field.repeated else [found]) == expected
        else:
            numbers = numbers_of(source, record).reshape(-1)
            if inner.kind is Kind.ENUM and field.nested is not None:
                numbers = numbers.astype(np.int32)
            got = np.array(list(found) if field.repeated else [found], numbers.dtype)
            assert np.array_equal(got, numbers, equal_nan=numbers.dtype.kind == "f")


@pytest.mark.parametrize(
    "layout",
    [LAYOUT, WIDE, *(Layout(found, found) for found in AWKWARD if found.size > 0)],
    ids=lambda layout: layout.value.label,
)
def test_protobuf_reads_what_was_encoded(layout: Layout) -> None:
    delta = random_delta(layout, 7)
    rows = np.arange(ROWS)[::2]
    data, lengths = TypedEncoder(layout).changes(delta, rows, 99)
    assert int(lengths.sum()) == len(data)
    changes = message_classes("flows", layout)["Changes"].FromString(data).change  # type: ignore[attr-defined]
    assert len(changes) == len(rows)
    key, value, *_ = messages_of(layout)
    batch = delta.batch
    for change, row in zip(changes, rows.tolist(), strict=True):
        assert change.operation == batch.ops[row]
        assert change.HasField("value") == (batch.ops[row] == Op.UPDATE)
        assert change.time_ns == int(batch.left[row]) - 5
        assert (change.node, change.writer) == (delta.origin.node, batch.writers[row])
        assert (change.sequence, change.stream_sequence) == ((1 << 40) + row, 99)
        one: list[tuple[MessageModel, Message, str, U8]]
        one = [(key, change.key, "key", batch.keys)]
        if batch.ops[row] == Op.UPDATE:
            one.append((value, change.value, "value", batch.values))
        for model, read, name, column in one:
            found = layout.key if name == "key" else layout.value
            view = Decoder(as_record(found, name), name).view(column[row : row + 1])
            check(model, read, view)


def test_varints_of_every_length() -> None:
    numbers = [0, 1, 127, 128, 16_383, 16_384, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
    piece = pieces.varints(np.array(numbers, np.uint64))
    assert [row[mask].tobytes() for row, mask in zip(piece.data, piece.there, strict=True)] == [
        varint(number) for number in numbers
    ]
    assert piece.flat() == b"".join(map(varint, numbers))


def varint(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7)

"""Changes as the typed messages of their map's own ``.proto``, encoded a column at a time.

The bytes are those of ``Changes`` in the schema: any protobuf library reads them. Fields that are
zero are left out, as proto3 wants it; structs, addresses and elements of arrays are always there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bridge.feed import pieces
from bridge.feed.pieces import FIXED32, FIXED64, VARINT, Piece
from bridge.layout.columns import Column, Decoder, numbers_of
from bridge.layout.forms import Form, shape_of
from bridge.layout.messages import EnumModel, FieldModel, MessageModel, messages_of
from bridge.layout.types import Field, Kind, Layout
from bridge.model import U8, U64, Delta, Op

_Records = npt.NDArray[np.void]
_Encode = Callable[[_Records], Piece]

_OPERATION, _KEY, _VALUE, _TIME, _NODE, _WRITER, _SEQUENCE, _STREAM = range(1, 9)
_CHANGE = 1  # of Changes


class TypedEncoder:
    """Encodes the changes of one layout."""

    def __init__(self, layout: Layout) -> None:
        key, value, _, _ = messages_of(layout)
        self._key, self._value = Decoder(layout.key, "key"), Decoder(layout.value, "value")
        self._key_of, self._value_of = _message(key), _message(value)

    def changes(
        self, delta: Delta, rows: npt.NDArray[np.intp], stream_sequence: int
    ) -> tuple[bytes, U64]:
        """The given rows as a ``Changes``, and how many bytes each of them takes."""
        batch, n = delta.batch, len(rows)
        updates = batch.ops[rows] == Op.UPDATE
        key = self._key_of(self._key.view(batch.keys.take(rows, axis=0)))
        value = self._value_of(self._value.view(batch.values.take(rows, axis=0)))
        times = batch.left[rows].astype(np.int64) + delta.clock_offset
        node = np.frombuffer(delta.origin.node.encode(), np.uint8)
        nodes = pieces.raw(np.broadcast_to(node, (n, len(node))))
        change = pieces.beside(
            [
                _numbers(_OPERATION, batch.ops[rows].astype(np.uint64)),
                pieces.delimited(_KEY, key),
                pieces.delimited(_VALUE, value).where(updates),
                _numbers(_TIME, times.view(np.uint64)),
                pieces.delimited(_NODE, nodes),
                _numbers(_WRITER, batch.writers[rows].astype(np.uint64)),
                _numbers(_SEQUENCE, (delta.first_sequence + rows).astype(np.uint64)),
                _numbers(_STREAM, np.full(n, stream_sequence, np.uint64)),
            ],
            n,
        )
        whole = pieces.delimited(_CHANGE, change)
        return whole.flat(), whole.lengths


def _message(model: MessageModel) -> _Encode:
    """Records → the bytes of one message each."""
    parts = [_field(field) for field in model.fields]

    def encode(records: _Records) -> Piece:
        return pieces.beside([part(records) for part in parts], len(records))

    return encode


def _field(model: FieldModel) -> _Encode:
    field, number = model.source, model.number
    assert field is not None, f"{model.name}: is no field of the map"
    shape, inner = shape_of(field), field.type.innermost
    dimensions = field.type.dimensions
    if isinstance(model.nested, MessageModel):
        encode = _message(model.nested)
        return lambda records: _each(number, encode(records[field.name].reshape(-1)), records)
    if shape.form is not Form.PLAIN:
        return lambda records: _each(
            number, pieces.raw(_bytes(records, field, shape.size)), records
        )
    if model.type == "bytes":
        is_array = inner.kind is Kind.INT
        size = dimensions[-1] if is_array else inner.size
        return lambda records: _each(number, pieces.raw(_bytes(records, field, size)), records)
    if model.type == "string":
        return lambda records: _texts(model, _bytes(records, field, inner.size), records)
    convert = _converter(model)
    if model.repeated:
        return lambda records: _packed(model, convert(_flat(field, records)), len(records))
    return lambda records: _single(model, convert(numbers_of(field, records)))


def _each(number: int, elements: Piece, records: _Records) -> Piece:
    """One field per element, all elements of a record side by side."""
    if not len(elements.data):
        return pieces.beside([], len(records))
    return pieces.grouped(pieces.delimited(number, elements), len(records))


def _bytes(records: _Records, field: Field, size: int) -> U8:
    """A field as rows of ``size`` bytes, all elements of all records."""
    held = np.ascontiguousarray(records[field.name])
    return held.reshape(-1).view(np.uint8).reshape(-1, size)


def _texts(model: FieldModel, rows: U8, records: _Records) -> Piece:
    """Texts up to their first zero; what is no UTF-8 is written with backslashes."""
    there = np.logical_and.accumulate(rows != 0, axis=1)
    if bool((rows & 0x80)[there].any()):
        rows, there = _proper(rows, there)
    piece = pieces.delimited(model.number, Piece(rows, there))
    if not model.repeated:
        return piece.where(np.logical_or.reduce(there, axis=1))
    return pieces.grouped(piece, len(records))


def _proper(rows: U8, there: npt.NDArray[np.bool_]) -> tuple[U8, npt.NDArray[np.bool_]]:
    """Rows as valid UTF-8; row by row, because it is rare."""
    texts = [
        row[mask].tobytes().decode("utf-8", "backslashreplace").encode()
        for row, mask in zip(rows, there, strict=True)
    ]
    width = max(map(len, texts))
    data = np.frombuffer(b"".join(text.ljust(width, b"\0") for text in texts), np.uint8)
    lengths = np.array([len(text) for text in texts])
    return data.reshape(-1, width), np.arange(width) < lengths[:, np.newaxis]


def _converter(model: FieldModel) -> Callable[[Column], U64]:
    """Numbers as protobuf writes them, in 64 bits."""
    if isinstance(model.nested, EnumModel):
        return lambda column: column.astype(np.int32).astype(np.int64).view(np.uint64)
    match model.type:
        case "sint32" | "sint64":
            return _zigzag
        case "float":
            return lambda c: np.ascontiguousarray(c, np.float32).view(np.uint32).astype(np.uint64)
        case "double":
            return lambda c: np.ascontiguousarray(c, np.float64).view(np.uint64)
    return lambda column: column.astype(np.uint64)


def _zigzag(column: Column) -> U64:
    number = column.astype(np.int64)
    return ((number << 1) ^ (number >> 63)).view(np.uint64)


def _wire(model: FieldModel) -> int:
    return {"float": FIXED32, "double": FIXED64, "fixed64": FIXED64}.get(model.type, VARINT)


def _single(model: FieldModel, numbers: U64) -> Piece:
    """A number of each record, left out where it is zero."""
    wire = _wire(model)
    if wire == VARINT:
        return _numbers(model.number, numbers)
    head = pieces.tag(model.number, wire, len(numbers))
    return pieces.beside([head, _fixed(numbers, wire)], len(numbers)).where(numbers != 0)


def _numbers(number: int, numbers: U64) -> Piece:
    head = pieces.tag(number, VARINT, len(numbers))
    return pieces.beside([head, pieces.varints(numbers)], len(numbers)).where(numbers != 0)


def _fixed(numbers: U64, wire: int) -> Piece:
    width = 8 if wire == FIXED64 else 4
    return pieces.raw(numbers.astype(f"<u{width}").view(np.uint8).reshape(-1, width))


def _packed(model: FieldModel, numbers: U64, rows: int) -> Piece:
    """All elements of a record in one field."""
    if not len(numbers):
        return pieces.beside([], rows)
    wire = _wire(model)
    elements = pieces.varints(numbers) if wire == VARINT else _fixed(numbers, wire)
    return pieces.delimited(model.number, pieces.grouped(elements, rows))


def _flat(field: Field, records: _Records) -> Column:
    return numbers_of(field, records).reshape(-1)

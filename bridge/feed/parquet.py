"""Changes as Parquet files: columns with the names of the fields, typed after the layout.

The values are those of the JSON feed: addresses, MACs and enumerators as text, structs and arrays
nested. A file has the changes of one layout; those in another one go to a file of their own, so no
column ever changes its type. Needs pyarrow, the extra ``parquet``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.bus.protocol import Received
from bridge.errors import BridgeError, UnavailableError
from bridge.feed.rows import Fields, FieldsOf, Told, tell
from bridge.layout.forms import KTIME_MARK, Form, shape_of
from bridge.layout.render import CHUNK_ROWS, Shown
from bridge.layout.types import Field, Kind, Layout, Type

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 65_536  # changes that are held until they are written together


class ParquetError(BridgeError):
    """A file could not be written."""


class ParquetFiles:
    """Writes changes to ``path``, and to ``NAME.2.parquet`` and so on for further layouts.

    ``close`` completes the files: before that they cannot be read. Raises ``UnavailableError``
    without pyarrow, ``ParquetError``.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise UnavailableError(
                f"{path}: Parquet needs pyarrow", hint="pip install 'mapbridge[parquet]'"
            ) from error
        self._parquet = pyarrow.parquet
        self._path = path
        self._fields_of = FieldsOf()
        self._files: dict[Layout | None, _File] = {}

    @property
    def paths(self) -> list[Path]:
        """The files so far."""
        return [file.path for file in self._files.values()]

    def add(self, item: Received, layout: Layout | None) -> None:
        """The changes of one message."""
        file = self._files.get(layout)
        if file is None:
            file = self._files[layout] = self._open(layout)
        fields = self._fields_of(layout)
        for start in range(0, len(item.delta.batch), CHUNK_ROWS):
            file.add(item, start, fields)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _open(self, layout: Layout | None) -> _File:
        import pyarrow as pa

        path, number = self._path, len(self._files) + 1
        if number > 1:
            path = path.with_name(f"{path.stem}.{number}{path.suffix}")
        schema = schema_of(layout)
        try:
            return _File(path, schema, self._parquet.ParquetWriter(path, schema))
        except (OSError, pa.ArrowException) as error:
            raise ParquetError(f"{path}: cannot be written ({error})") from error


class _File:
    def __init__(self, path: Path, schema: pa.Schema, writer: Any) -> None:  # noqa: ANN401
        self.path = path
        self._schema = schema
        self._writer = writer
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, item: Received, start: int, fields: Fields | None) -> None:
        import pyarrow as pa

        delta = item.delta
        rows = np.arange(start, min(start + CHUNK_ROWS, len(delta.batch)))
        told = tell(delta, rows, fields)
        times = delta.batch.left[rows].astype(np.int64) + delta.clock_offset
        columns: list[Any] = [
            times,
            [delta.origin.map] * len(told),
            [delta.origin.node] * len(told),
            [delta.batch.cause.name.lower()] * len(told),
            told.operations,
            *_fitted(told, self._schema),
            told.writers,
            told.sequences,
            [item.sequence] * len(told),
        ]
        arrays = [
            pa.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._held.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows += len(rows)
        if self._rows >= GROUP_ROWS:
            self._write()

    def close(self) -> None:
        import pyarrow as pa

        self._write()
        try:
            self._writer.close()
        except (OSError, pa.ArrowException) as error:
            raise ParquetError(f"{self.path}: cannot be written ({error})") from error

    def _write(self) -> None:
        import pyarrow as pa

        held, self._held, self._rows = self._held, [], 0
        if not held:
            return
        try:
            self._writer.write_table(pa.Table.from_batches(held))
        except (OSError, pa.ArrowException) as error:
            raise ParquetError(f"{self.path}: cannot be written ({error})") from error


def schema_of(layout: Layout | None) -> pa.Schema:
    """The columns of a file, ``key_hex`` and ``value_hex`` where no layout is known."""
    import pyarrow as pa

    if layout is None:
        key, value = pa.field("key_hex", pa.string()), pa.field("value_hex", pa.string())
    else:
        key = pa.field("key", _type_of(layout.key))
        value = pa.field("value", _type_of(layout.value))
    return pa.schema(
        [
            pa.field("time", pa.timestamp("ns", tz="UTC")),
            *(pa.field(name, pa.string()) for name in ("map", "node", "cause", "op")),
            key,
            value,
            pa.field("writer", pa.uint32()),
            pa.field("sequence", pa.uint64()),
            pa.field("stream_sequence", pa.uint64()),
        ]
    )


def _type_of(found: Type) -> pa.DataType:
    """Of a whole key or value; one that is no struct is shown like the field of one."""
    import pyarrow as pa

    if found.is_record:
        return pa.struct([pa.field(field.name, _field_type(field)) for field in found.fields])
    return _field_type(Field("value", 0, found))


def _field_type(field: Field) -> pa.DataType:
    """As ``bridge.layout.render`` shows it."""
    import pyarrow as pa

    shape, inner = shape_of(field), field.type.innermost
    dimensions = field.type.dimensions
    if shape.form is not Form.PLAIN:
        found, dimensions = pa.string(), shape.dimensions
    elif inner.is_record:
        found = _type_of(inner)
    elif inner.kind is Kind.BYTES:
        return pa.string()
    elif KTIME_MARK in inner.typedefs or inner.kind not in (Kind.INT, Kind.BOOL, Kind.FLOAT):
        found = pa.string()
    elif inner.kind is Kind.BOOL:
        found = pa.bool_()
    elif inner.kind is Kind.FLOAT:
        found = pa.float64() if inner.size == 8 else pa.float32()
    else:
        found = _integer(inner.signed, 8 if field.bits else inner.size)
    for _ in dimensions:
        found = pa.list_(found)
    return found


def _integer(signed: bool, size: int) -> pa.DataType:
    import pyarrow as pa

    names = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}
    found: pa.DataType = getattr(pa, f"{'' if signed else 'u'}{names[size]}")()
    return found


def _fitted(told: Told, schema: pa.Schema) -> tuple[list[Any], list[Any]]:
    """Keys and values with text wherever the column has text."""
    key, value = schema.field(5).type, schema.field(6).type
    return (
        [_as_text(shown, key) for shown in told.keys],
        [None if shown is None else _as_text(shown, value) for shown in told.values],
    )


def _as_text(shown: Shown, wanted: pa.DataType) -> Shown:
    """Enumerators without a name, and times that never were, are numbers: as digits here."""
    import pyarrow as pa

    if isinstance(shown, dict):
        return {name: _as_text(each, wanted.field(name).type) for name, each in shown.items()}
    if isinstance(shown, list):
        return [_as_text(each, wanted.value_type) for each in shown]
    return str(shown) if pa.types.is_string(wanted) else shown

"""Decoding at the speed of batches: a type as a numpy dtype, and rows of bytes as columns.

A bit field stands in the dtype as the bytes that it touches, and is cut out of them by shifts.
Members of unions overlap, so each is there under its own name: nothing in the bytes says which one
was meant. Integers with a typedef for network order become big-endian dtypes.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from bridge.layout.types import Field, Kind, Type, as_record
from bridge.model import U8, U64

Column = npt.NDArray[np.generic]


def dtype_of(found: Type) -> np.dtype[np.generic]:
    """The dtype of a type, of exactly its size."""
    match found.kind:
        case Kind.INT | Kind.ENUM:
            order = ">" if found.network_order else "="
            return np.dtype(f"{order}{'i' if found.signed else 'u'}{found.size}")
        case Kind.BOOL:
            return np.dtype("u1") if found.size == 1 else np.dtype(f"u{found.size}")
        case Kind.FLOAT:
            return np.dtype(f"f{found.size}")
        case Kind.POINTER:
            return np.dtype(f"u{found.size}")
        case Kind.TEXT:
            return np.dtype(f"S{found.size}")
        case Kind.BYTES:
            return np.dtype((np.uint8, (found.size,)))
        case Kind.ARRAY:
            return np.dtype((dtype_of(found.innermost), found.dimensions))
    return np.dtype(
        {
            "names": [field.name for field in found.fields],
            "formats": [_field_dtype(field) for field in found.fields],
            "offsets": [field.offset for field in found.fields],
            "itemsize": found.size,
        }
    )


def _field_dtype(field: Field) -> np.dtype[np.generic]:
    return np.dtype((np.uint8, (field.size,))) if field.bits else dtype_of(field.type)


class Decoder:
    """Decodes the keys, or the values, of one layout.

    ``record`` is the type, wrapped into a struct with a field called ``name`` if it is none.
    """

    def __init__(self, found: Type, name: str) -> None:
        self.record = as_record(found, name)
        self.wrapped = not found.is_record
        self.dtype = dtype_of(self.record)

    def view(self, rows: U8) -> npt.NDArray[np.void]:
        """``u8[n, size]`` as ``n`` records; no copy when the rows are contiguous."""
        if rows.ndim != 2 or rows.shape[1] != self.record.size:
            raise ValueError(f"rows: need {self.record.size} bytes each (got {rows.shape})")
        return np.ascontiguousarray(rows).reshape(-1).view(self.dtype)

    def columns(self, rows: U8) -> dict[str, Column]:
        """A column per field, by its path; of fields in arrays one with more dimensions."""
        found: dict[str, Column] = {}
        _collect(self.record, self.view(rows), "", found)
        return found


def _collect(
    record: Type, view: npt.NDArray[np.void], prefix: str, found: dict[str, Column]
) -> None:
    for field in record.fields:
        path = prefix + field.name
        inner = field.type.innermost
        if inner.is_record:
            path += "[]" * len(field.type.dimensions)
            _collect(inner, view[field.name], f"{path}.", found)
        else:
            found[path] = numbers_of(field, view)


def numbers_of(field: Field, view: npt.NDArray[np.void]) -> Column:
    """The column of one field that is no struct; booleans as ``bool``."""
    held: Column = view[field.name]
    if field.bits:
        held = _bit_field(field, held)
    return held != 0 if field.type.innermost.kind is Kind.BOOL else held


def _bit_field(field: Field, touched: Column) -> Column:
    """``u8[..., bytes]`` → the number in the bits. At most 9 bytes are touched by 64 bits."""
    shift, bits = field.bit_offset % 8, field.bits
    count = field.size
    number: U64 = np.zeros(touched.shape[:-1], np.uint64)
    for index in range(min(count, 8)):
        byte = touched[..., index].astype(np.uint64)
        place = index if sys.byteorder == "little" else min(count, 8) - 1 - index
        number |= byte << np.uint64(8 * place)
    if sys.byteorder == "little":
        number >>= np.uint64(shift)
        if count > 8:
            number |= touched[..., 8].astype(np.uint64) << np.uint64(64 - shift)
    elif count <= 8:
        number >>= np.uint64(8 * count - shift - bits)
    else:
        number <<= np.uint64(shift + bits - 64)
        number |= touched[..., 8].astype(np.uint64) >> np.uint64(72 - shift - bits)
    if bits < 64:
        number &= np.uint64((1 << bits) - 1)
    if not field.type.signed:
        return number
    spare = np.int64(64 - bits)
    signed: Column = number.view(np.int64) << spare >> spare
    return signed

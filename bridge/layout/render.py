"""Keys and values as people and JSON have them. Costs Python per row: for rows that are printed.

Numbers stay numbers; addresses, MACs and enumerators become text, pointers and bytes without a
meaning hexadecimal. A struct is a dictionary, an array a list.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bridge.layout.columns import Decoder, numbers_of
from bridge.layout.forms import Form, Shape, is_filler, shape_of
from bridge.layout.types import Field, Kind, Type
from bridge.model import U8

Shown: TypeAlias = "int | float | bool | str | list[Shown] | dict[str, Shown]"

_FAMILY = "family"
_IPV4_FAMILIES = (2, 4)  # AF_INET, and the version number that programs use as well


class Renderer:
    """Shows the keys, or the values, of one layout."""

    def __init__(self, found: Type, name: str) -> None:
        self._decoder = Decoder(found, name)
        self._name = name

    def rows(self, rows: U8) -> Iterator[Shown]:
        """One for each row of ``u8[n, size]``, made when it is asked for."""
        view = self._decoder.view(rows)
        for index in range(len(view)):
            shown = _record(self._decoder.record, view[index : index + 1])
            yield shown[self._name] if self._decoder.wrapped else shown


def _record(record: Type, one: npt.NDArray[np.void]) -> dict[str, Shown]:
    return {field.name: _field(field, record, one) for field in record.fields}


def _field(field: Field, holder: Type, one: npt.NDArray[np.void]) -> Shown:
    """``one`` has one record."""
    shape = shape_of(field)
    if shape.form is not Form.PLAIN:
        raw = np.ascontiguousarray(one[field.name]).tobytes()
        short = shape.form is Form.ADDRESS and shape.size == 16 and _says_ipv4(holder, one)
        return _shaped(raw, shape, shape.dimensions, short)
    inner = field.type.innermost
    if inner.is_record:
        return _nested(inner, one[field.name][0], field.type.dimensions)
    if inner.kind is Kind.BYTES:
        return np.ascontiguousarray(one[field.name]).tobytes().hex()
    return _named(inner, numbers_of(field, one)[0].tolist())


def _nested(record: Type, view: npt.NDArray[np.void], dimensions: tuple[int, ...]) -> Shown:
    if not dimensions:
        return _record(record, np.asarray(view).reshape(1))
    return [_nested(record, view[index], dimensions[1:]) for index in range(dimensions[0])]


def _named(found: Type, number: object) -> Shown:
    """A number of numpy's as it is shown, lists of them by element."""
    if isinstance(number, list):
        return [_named(found, each) for each in number]
    if isinstance(number, bytes):
        return number.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    assert isinstance(number, int | float), f"{found.label} gives {type(number)}"
    if found.kind is Kind.ENUM:
        return next((name for name, value in found.enumerators if value == number), number)
    return hex(int(number)) if found.kind is Kind.POINTER else number


def _says_ipv4(holder: Type, one: npt.NDArray[np.void]) -> bool:
    """Whether a field ``family`` beside an address says that only its first 4 bytes count."""
    for field in holder.fields:
        if field.name.lower() == _FAMILY and field.type.kind in (Kind.INT, Kind.ENUM):
            return int(numbers_of(field, one)[0].tolist()) in _IPV4_FAMILIES
    return False


def _shaped(raw: bytes, shape: Shape, dimensions: tuple[int, ...], short: bool) -> Shown:
    if dimensions:
        step = len(raw) // dimensions[0]
        parts = (raw[at : at + step] for at in range(0, len(raw), step))
        return [_shaped(part, shape, dimensions[1:], short) for part in parts]
    if shape.form is Form.MAC:
        return raw.hex(":")
    if short and not any(raw[4:]):
        raw = raw[:4]
    return str(ipaddress.ip_address(raw))


def line_of(shown: Shown) -> str:
    """One line for people; fields that fill a gap and are zero are left out."""
    if isinstance(shown, dict):
        return " ".join(f"{name}={_inner(value)}" for name, value in _worth_it(shown))
    return _inner(shown)


def _inner(shown: Shown) -> str:
    if isinstance(shown, dict):
        return f"{{{line_of(shown)}}}"
    if isinstance(shown, list):
        return f"[{', '.join(_inner(each) for each in shown)}]"
    if isinstance(shown, str) and not shown.isprintable():
        return shown.encode("unicode_escape").decode()  # whatever a map holds, to a terminal
    return str(shown).lower() if isinstance(shown, bool) else str(shown)


def _worth_it(shown: Mapping[str, Shown]) -> Iterator[tuple[str, Shown]]:
    for name, value in shown.items():
        if not (is_filler(name) and _is_zero(value)):
            yield name, value


def _is_zero(shown: Shown) -> bool:
    if isinstance(shown, list):
        return all(_is_zero(each) for each in shown)
    return not shown if not isinstance(shown, str) else not shown.strip("0")

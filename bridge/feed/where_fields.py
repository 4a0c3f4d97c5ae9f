"""Conditions on one field of a key or value, for all rows of a batch at once."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bridge.errors import BridgeError
from bridge.layout.columns import Column, Decoder, numbers_of
from bridge.layout.forms import MAC_BYTES, Form, Shape, shape_of
from bridge.layout.types import Field, Kind, Type
from bridge.model import U8

Literal = int | float | str | bool
Condition = Callable[[U8], npt.NDArray[np.bool_]]
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_ANY = "*"
_IPV4_BYTES = 4


class FieldError(BridgeError):
    """A field that is not there, or a value that it cannot have."""


def condition_on(
    found: Type,
    role: str,
    path: Sequence[str | int],
    operator: str,
    wanted: Sequence[Literal],
) -> Condition:
    """Rows of ``u8[n, size]`` → which of them meet ``path operator wanted``."""
    decoder = Decoder(found, role)
    steps = list(path)
    if decoder.wrapped:
        steps.insert(0, role)
    names, field, indexes = _resolve(decoder.record, steps, role)
    places = (slice(None), *(i if isinstance(i, int) else slice(None) for i in indexes))
    test = _test_of(field, shape_of(field), operator, list(wanted))

    def condition(rows: U8) -> npt.NDArray[np.bool_]:
        view = decoder.view(rows)
        for name in names:
            view = view[name]
        met: npt.NDArray[np.bool_] = test(view)[places]
        found: npt.NDArray[np.bool_]
        found = np.logical_or.reduce(met, axis=tuple(range(1, met.ndim)))
        return found

    return condition


def _resolve(
    record: Type, steps: Sequence[str | int], role: str
) -> tuple[list[str], Field, list[int | str]]:
    """Names of the holders, the field, and the indexes of all arrays on the way."""
    names: list[str] = []
    indexes: list[int | str] = []
    field: Field | None = None
    said, left = role, list(steps)
    while left:
        step = left.pop(0)
        if field is not None:
            names.append(field.name)
            record = field.type.innermost
        if isinstance(step, int) or step == _ANY:
            raise FieldError(f"{said} is no array")
        if not record.is_record:
            raise FieldError(f"{said} has no fields (it is {record.label})")
        known = {each.name: each for each in record.fields}
        if step not in known:
            close = difflib.get_close_matches(step, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise FieldError(
                f"{said} has no field {step!r}", hint=f"{hint}it has: {', '.join(known)}"
            )
        field = known[step]
        said = f"{said}.{step}"
        indexes += [_index(said, count, left) for count in _dimensions(field)]
    if field is None or field.type.innermost.is_record:
        inner = record if field is None else field.type.innermost
        listed = ", ".join(each.name for each in inner.fields)
        raise FieldError(f"{said} is a struct: name one of its fields", hint=f"it has: {listed}")
    return names, field, indexes


def _index(said: str, count: int, left: list[str | int]) -> int | str:
    """The next step, which must be an element of an array of ``count``."""
    index = left.pop(0) if left else None
    if index == _ANY:
        return _ANY
    if not isinstance(index, int):
        raise FieldError(f'{said} is an array of {count}: name an element, [0], or any, ["*"]')
    if not 0 <= index < count:
        raise FieldError(f"{said} has no element {index} (it has {count})")
    return index


def _dimensions(field: Field) -> tuple[int, ...]:
    """Those that a condition names elements of: an address or a MAC is one element."""
    shape = shape_of(field)
    return field.type.dimensions if shape.form is Form.PLAIN else shape.dimensions


def _test_of(
    field: Field, shape: Shape, operator: str, wanted: list[Literal]
) -> Callable[[npt.NDArray[np.void]], npt.NDArray[np.bool_]]:
    inner = field.type.innermost
    is_number = shape.form is Form.PLAIN and inner.kind not in (Kind.TEXT, Kind.BYTES)
    if not is_number and operator not in ("==", "!=", "in", "not in"):
        raise FieldError(f"{field.name} has no order: use ==, != or in")
    if shape.form is Form.ADDRESS:
        networks = [_network(each, shape.size, operator) for each in wanted]
        return lambda view: _in_networks(_bytes(view, field, shape.size), networks, operator)
    if shape.form is Form.MAC:
        macs = [_hexadecimal(each, MAC_BYTES, "a MAC address") for each in wanted]
        return lambda view: _one_of(_bytes(view, field, MAC_BYTES), macs, operator)
    if inner.kind is Kind.TEXT:
        texts = [_text(each, inner.size) for each in wanted]
        return lambda view: _texts(_bytes(view, field, inner.size), texts, operator)
    if inner.kind is Kind.BYTES:
        raw = [_hexadecimal(each, inner.size, f"{inner.size} bytes") for each in wanted]
        return lambda view: _one_of(_bytes(view, field, inner.size), raw, operator)
    numbers = [_number(inner, each, operator) for each in wanted]
    return lambda view: compare_numbers(numbers_of(field, view), operator, numbers)


def compare_numbers(
    column: Column, operator: str, wanted: Sequence[Literal]
) -> npt.NDArray[np.bool_]:
    """A column of numbers against numbers; of the shape of the column."""
    small = column.dtype.kind in "bu" and column.dtype.itemsize < 8
    if small or column.dtype.kind == "i":
        column = column.astype(np.int64)
    first = wanted[0] if wanted else 0
    found: npt.NDArray[np.bool_]
    match operator:
        case "<":
            found = np.less(column, first)
        case "<=":
            found = np.less_equal(column, first)
        case ">":
            found = np.greater(column, first)
        case ">=":
            found = np.greater_equal(column, first)
        case _:
            found = np.zeros(column.shape, np.bool_)
            for each in wanted:
                found |= np.equal(column, each)
            return found if operator in ("==", "in") else ~found
    return found


def _number(inner: Type, wanted: Literal, operator: str) -> Literal:
    if isinstance(wanted, str):
        if inner.kind is not Kind.ENUM:
            raise FieldError(f"is a number ({inner.label}), not a text (got {wanted!r})")
        if operator in ("<", "<=", ">", ">="):
            raise FieldError("names of an enum have no order: use ==, != or in")
        return _enumerator(inner, wanted)
    return wanted


def _enumerator(inner: Type, wanted: str) -> int:
    """By its name, or by the end of it: ``ESTABLISHED`` for ``CT_ESTABLISHED``."""
    values = dict(inner.enumerators)
    if wanted in values:
        return values[wanted]
    ends = {value for name, value in values.items() if name.endswith(f"_{wanted}")}
    if len(ends) == 1:
        return ends.pop()
    what = "several of that ending" if ends else "no such name"
    raise FieldError(
        f"{inner.label} has {what} (got {wanted!r})", hint=f"it has: {', '.join(values)}"
    )


def _network(wanted: Literal, size: int, operator: str) -> _Network:
    try:
        if not isinstance(wanted, str):
            raise ValueError("must be text")
        network = ipaddress.ip_network(wanted, strict=True)
    except ValueError as error:
        raise FieldError(f"is an address: {error}") from error
    if network.num_addresses > 1 and operator not in ("in", "not in"):
        raise FieldError("a network is compared with `in`")
    if isinstance(network, ipaddress.IPv6Network) and size == _IPV4_BYTES:
        raise FieldError("is an IPv4 address")
    return network


def _in_networks(raw: U8, networks: Sequence[_Network], operator: str) -> npt.NDArray[np.bool_]:
    """``u8[..., size]``; an IPv4 address in 16 bytes stands in the first 4, the others zero."""
    found = np.zeros(raw.shape[:-1], np.bool_)
    for network in networks:
        start = np.frombuffer(network.network_address.packed, np.uint8)
        mask = np.frombuffer(network.netmask.packed, np.uint8)
        met = ((raw[..., : len(start)] & mask) == start).all(axis=-1)
        found |= met & ~raw[..., len(start) :].any(axis=-1)
    return found if operator in ("==", "in") else ~found


def _one_of(raw: U8, wanted: Sequence[bytes], operator: str) -> npt.NDArray[np.bool_]:
    found = np.zeros(raw.shape[:-1], np.bool_)
    for each in wanted:
        found |= (raw == np.frombuffer(each, np.uint8)).all(axis=-1)
    return found if operator in ("==", "in") else ~found


def _texts(raw: U8, wanted: Sequence[bytes], operator: str) -> npt.NDArray[np.bool_]:
    """Texts end at their first zero; what stands behind it does not count."""
    found = np.zeros(raw.shape[:-1], np.bool_)
    for each in wanted:
        met = (raw[..., : len(each)] == np.frombuffer(each, np.uint8)).all(axis=-1)
        if len(each) < raw.shape[-1]:
            met &= raw[..., len(each)] == 0
        found |= met
    return found if operator in ("==", "in") else ~found


def _text(wanted: Literal, size: int) -> bytes:
    if not isinstance(wanted, str):
        raise FieldError(f"is a text: write it in quotes (got {wanted!r})")
    raw = wanted.encode()
    if len(raw) > size or b"\0" in raw:
        raise FieldError(f"is a text of at most {size} bytes (got {wanted!r})")
    return raw


def _hexadecimal(wanted: Literal, size: int, what: str) -> bytes:
    try:
        raw = bytes.fromhex(wanted.replace(":", "")) if isinstance(wanted, str) else b""
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise FieldError(f"is {what}, written in hexadecimal (got {wanted!r})")
    return raw


def _bytes(view: npt.NDArray[np.void], field: Field, size: int) -> U8:
    """A field as ``u8[..., size]``."""
    held = np.ascontiguousarray(view[field.name])
    return held.reshape(-1).view(np.uint8).reshape(*view.shape, *_dimensions(field), size)

"""A layout as a document of plain dictionaries, and back: for JSON, and for other machines.

What is read back is not trusted: a document either gives a layout in which every size, place and
bound holds, or raises ``DocumentError``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bridge.errors import BridgeError
from bridge.layout.types import Field, Kind, Layout, Type
from bridge.model import KEY_SIZE_MAX, VALUE_SIZE_MAX

DEPTH_MAX = 32
FIELDS_MAX = 10_000
_ENUMERATORS_MAX = 10_000
_NAME = re.compile(r"[A-Za-z0-9_.$]{1,255}")
_NUMBER_BYTES = {
    Kind.INT: (1, 2, 4, 8),
    Kind.ENUM: (1, 2, 4, 8),
    Kind.FLOAT: (4, 8),
    Kind.BOOL: (1, 2, 4, 8),
    Kind.POINTER: (4, 8),
}


class DocumentError(BridgeError):
    """A document that describes no layout."""


def to_document(layout: Layout) -> dict[str, object]:
    """``{"key": type, "value": type}``; what has its usual value is left out."""
    return {"key": _type(layout.key), "value": _type(layout.value)}


def from_document(document: object) -> Layout:
    """The layout that a document describes. Raises ``DocumentError``."""
    if not isinstance(document, Mapping):
        raise DocumentError("layout: must be an object")
    reader = _Reader()
    key = reader.type_of(document.get("key"), 0)
    value = reader.type_of(document.get("value"), 0)
    if not (0 < key.size <= KEY_SIZE_MAX and 0 < value.size <= VALUE_SIZE_MAX):
        raise DocumentError(f"layout: no such sizes of a map (got {key.size} and {value.size})")
    return Layout(key, value)


def _type(found: Type) -> dict[str, object]:
    document: dict[str, object] = {"kind": found.kind.value, "size": found.size}
    if found.name:
        document["name"] = found.name
    if found.typedefs:
        document["typedefs"] = list(found.typedefs)
    if found.signed:
        document["signed"] = True
    if found.enumerators:
        document["enumerators"] = [list(pair) for pair in found.enumerators]
    if found.element is not None:
        document |= {"element": _type(found.element), "count": found.count}
    if found.fields:
        document["fields"] = [_field(field) for field in found.fields]
    return document


def _field(field: Field) -> dict[str, object]:
    document: dict[str, object] = {"name": field.name, "bit_offset": field.bit_offset}
    if field.bits:
        document["bits"] = field.bits
    return document | {"type": _type(field.type)}


class _Reader:
    def __init__(self) -> None:
        self._fields = 0

    def type_of(self, document: object, depth: int) -> Type:
        if not isinstance(document, Mapping) or depth > DEPTH_MAX:
            raise DocumentError("layout: a type must be an object, and not nested too deep")
        try:
            kind = Kind(_text(document, "kind"))
        except ValueError as error:
            raise DocumentError(f"layout: no such kind (got {document.get('kind')!r})") from error
        size = _number(document, "size", 0, VALUE_SIZE_MAX)
        if size not in _NUMBER_BYTES.get(kind, (size,)):
            raise DocumentError(f"layout: no {kind} has {size} bytes")
        typedefs = tuple(_texts(document.get("typedefs", [])))
        name, signed = _text(document, "name"), document.get("signed") is True
        if kind is Kind.ARRAY:
            element = self.type_of(document.get("element"), depth + 1)
            count = _number(document, "count", 0, VALUE_SIZE_MAX)
            if count * element.size != size:
                raise DocumentError(f"layout: {count} times {element.size} bytes are not {size}")
            return Type(kind, size, name, typedefs, element=element, count=count)
        fields = tuple(self._fields_of(document.get("fields", []), size, depth))
        if fields and kind not in (Kind.STRUCT, Kind.UNION):
            raise DocumentError(f"layout: {kind} has no fields")
        values = tuple(_enumerators(document.get("enumerators", [])))
        return Type(kind, size, name, typedefs, signed, values, fields=fields)

    def _fields_of(self, listed: object, size: int, depth: int) -> list[Field]:
        found: list[Field] = []
        for one in listed if isinstance(listed, list) else ():
            self._fields += 1
            if not isinstance(one, Mapping) or self._fields > FIELDS_MAX:
                raise DocumentError("layout: a field must be an object, and not one of too many")
            held = self.type_of(one.get("type"), depth + 1)
            at, bits = _number(one, "bit_offset", 0, 8 * size), _number(one, "bits", 0, 64)
            whole = held.kind in (Kind.INT, Kind.ENUM, Kind.BOOL)
            if (bits and not (whole and bits <= 8 * held.size)) or (not bits and at % 8):
                raise DocumentError(f"layout: no bit field of {held.label} (got {bits} at {at})")
            if at + (bits or 8 * held.size) > 8 * size:
                raise DocumentError(f"layout: a field ends behind its holder (got bit {at})")
            found.append(Field(_name(one), at, held, bits))
        names = [field.name for field in found]
        if len(set(names)) < len(names) or "" in names:
            raise DocumentError("layout: fields must have names of their own")
        return found


def _text(document: Mapping[str, object], key: str) -> str:
    found = document.get(key, "")
    if not isinstance(found, str):
        raise DocumentError(f"layout: {key} must be text")
    return found


def _name(document: Mapping[str, object]) -> str:
    """A field's name, which ends up in texts of other languages."""
    found = _text(document, "name")
    if _NAME.fullmatch(found) is None:
        raise DocumentError(f"layout: no name of a field (got {found[:80]!r})")
    return found


def _texts(found: object) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise DocumentError("layout: typedefs must be texts")
    return found


def _number(document: Mapping[str, object], key: str, least: int, most: int) -> int:
    found = document.get(key, 0)
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise DocumentError(f"layout: {key} must be {least} to {most} (got {found!r})")
    return found


def _enumerators(listed: object) -> list[tuple[str, int]]:
    if not isinstance(listed, list) or len(listed) > _ENUMERATORS_MAX:
        raise DocumentError("layout: enumerators must be a list, not too long")
    found = []
    for pair in listed:
        match pair:
            case [str(name), int(value)] if abs(value) < 1 << 64 and _NAME.fullmatch(name):
                found.append((name, value))
            case _:
                raise DocumentError("layout: an enumerator is a name and a number")
    return found

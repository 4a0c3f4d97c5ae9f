"""A map's layout as protobuf messages: names, numbers and types, apart from how they are written.

The number of a field follows from its name alone, so that it is the same in every version of the
program, wherever the field stands in its struct: the first 8 bytes of SHA-256 of the name as a
big-endian number, modulo 262,128, plus 16; without the range that protobuf reserves, in which case,
as when an earlier field of the struct has the number, the name with an apostrophe is tried, and so
on. Such a number costs 3 bytes on the wire. Structs are messages in the message that holds them, so
a field is known by its path. The numbers of ``Change`` are fixed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from bridge.layout.forms import Form, shape_of
from bridge.layout.types import Field, Kind, Layout, Type, as_record

_NUMBER_FIRST, _NUMBER_LAST = 16, (1 << 18) - 1
_RESERVED = range(19_000, 20_000)
_ENUM_VALUES = range(-(1 << 31), 1 << 31)


@dataclass(frozen=True, slots=True)
class EnumModel:
    """An enum; the first value is 0, as proto3 wants it."""

    name: str
    values: tuple[tuple[str, int], ...]

    @property
    def aliases(self) -> bool:
        """Whether two names have one value."""
        return len({value for _, value in self.values}) < len(self.values)


@dataclass(frozen=True, slots=True)
class FieldModel:
    """A field. ``type`` is a scalar of protobuf, or the name of ``nested``."""

    name: str
    number: int
    type: str
    repeated: bool = False
    nested: MessageModel | EnumModel | None = None
    source: Field | None = None  # of the map; none for the fields of a change itself
    comment: str = ""


@dataclass(frozen=True, slots=True)
class MessageModel:
    """A message, with the ones that are declared in it in the order of their use."""

    name: str
    fields: tuple[FieldModel, ...]
    nested: tuple[MessageModel | EnumModel, ...] = ()
    is_union: bool = False


def field_number(name: str, taken: set[int]) -> int:
    """The number of a field, see above; it is added to ``taken``."""
    while True:
        digest = hashlib.sha256(name.encode()).digest()
        span = _NUMBER_LAST - _NUMBER_FIRST + 1
        number = int.from_bytes(digest[:8], "big") % span + _NUMBER_FIRST
        if number not in _RESERVED and number not in taken:
            taken.add(number)
            return number
        name += "'"


def package_of(map_name: str) -> str:
    """The package of a map's messages: other characters than letters and digits become ``_``."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", map_name).lower()
    return f"mapbridge.maps.{plain if plain[:1].isalpha() else 'map_' + plain}"


def messages_of(layout: Layout) -> tuple[MessageModel, MessageModel, MessageModel, MessageModel]:
    """``Key``, ``Value``, ``Change`` and ``Changes``."""
    key, value = (
        _Builder(name, as_record(found, name.lower())).message()
        for name, found in (("Key", layout.key), ("Value", layout.value))
    )
    operation = EnumModel(
        "Operation", (("OPERATION_UNSPECIFIED", 0), ("UPDATE", 1), ("DELETE", 2), ("EVICT", 3))
    )
    change = MessageModel(
        "Change",
        (
            FieldModel("operation", 1, "Operation", nested=operation),
            FieldModel("key", 2, "Key", nested=key),
            FieldModel("value", 3, "Value", nested=value, comment="of updates only"),
            FieldModel(
                "time_ns", 4, "int64", comment="since 1970, by the clock of the node that wrote"
            ),
            FieldModel("node", 5, "string"),
            FieldModel("writer", 6, "uint32", comment="thread id; 0: not known"),
            FieldModel("sequence", 7, "uint64", comment="counts one node's changes, without holes"),
            FieldModel("stream_sequence", 8, "uint64", comment="of the message in the log"),
        ),
        (operation,),
    )
    changes = MessageModel(
        "Changes", (FieldModel("change", 1, "Change", repeated=True, nested=change),)
    )
    return key, value, change, changes


class _Builder:
    """One message and all that is declared in it."""

    def __init__(self, name: str, record: Type) -> None:
        self._name = name
        self._record = record
        self._taken = {field.name for field in record.fields}  # names in this scope
        self._nested: list[MessageModel | EnumModel] = []
        self._enums: dict[Type, EnumModel] = {}
        self._json_names: set[str] = set()

    def message(self) -> MessageModel:
        numbers: set[int] = set()
        fields = tuple(self._field(field, numbers) for field in self._record.fields)
        is_union = self._record.kind is Kind.UNION
        return MessageModel(self._name, fields, tuple(self._nested), is_union)

    def _field(self, field: Field, numbers: set[int]) -> FieldModel:
        kind, repeated, nested, comment = self._declared(field)
        number = field_number(field.name, numbers)
        return FieldModel(self._name_of(field.name), number, kind, repeated, nested, field, comment)

    def _declared(self, field: Field) -> tuple[str, bool, MessageModel | EnumModel | None, str]:
        """Type, whether it is repeated, what it names, and the comment behind the field."""
        shape = shape_of(field)
        found, inner = field.type, field.type.innermost
        if shape.form is not Form.PLAIN:
            what = "MAC address" if shape.form is Form.MAC else "IPv4 (4 bytes) or IPv6 address"
            comment = f"{what}, in network order{_rows(shape.dimensions)}"
            return "bytes", bool(shape.dimensions), None, comment
        dimensions = found.dimensions
        if inner.kind is Kind.INT and inner.size == 1 and not inner.signed and dimensions:
            return "bytes", len(dimensions) > 1, None, _comment(found, field, dimensions[:-1])
        name, nested = self._type(field.name, inner)
        return name, bool(dimensions), nested, _comment(found, field, dimensions)

    def _type(self, name: str, found: Type) -> tuple[str, MessageModel | EnumModel | None]:
        match found.kind:
            case Kind.INT:
                return _integer(found), None
            case Kind.BOOL:
                return "bool", None
            case Kind.FLOAT:
                return "double" if found.size == 8 else "float", None
            case Kind.POINTER:
                return "fixed64", None
            case Kind.TEXT:
                return "string", None
            case Kind.STRUCT | Kind.UNION:
                nested = _Builder(self._free_name(_camel(name)), found).message()
                self._nested.append(nested)
                return nested.name, nested
            case Kind.ENUM:
                return self._enum(name, found)
        return "bytes", None

    def _enum(self, name: str, found: Type) -> tuple[str, EnumModel | None]:
        """An enum, written once where several fields have the same."""
        known = found.enumerators
        if not known or not all(value in _ENUM_VALUES for _, value in known):
            return _integer(found), None
        if found not in self._enums:
            made = self._enum_model(self._free_name(_camel(name)), list(known))
            self._nested.append(made)
            self._enums[found] = made
        return self._enums[found].name, self._enums[found]

    def _enum_model(self, title: str, values: list[tuple[str, int]]) -> EnumModel:
        prefix = f"{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', title).upper()}_"
        named = []
        # proto3 begins with a zero, and enumerators live in the scope of the enum, not in it.
        if not any(value == 0 for _, value in values):
            named.append((self._free_name(prefix + "UNSPECIFIED"), 0))
        values.sort(key=lambda pair: pair[1] != 0)
        for label, value in values:
            own = label if label not in self._taken else prefix + label
            named.append((self._free_name(own), value))
        return EnumModel(title, tuple(named))

    def _free_name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def _name_of(self, name: str) -> str:
        """A field's own name, unless another's is the same in camel case, which proto3 refuses."""
        free = name
        while (usual := json_name(free)) in self._json_names:
            free = self._free_name(f"{free}_2")
        self._json_names.add(usual)
        return free


def json_name(name: str) -> str:
    """As protoc makes it: without underscores, the letter behind each in upper case."""
    first, *others = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in others)


def _integer(found: Type) -> str:
    return f"{'sint' if found.signed else 'uint'}{64 if found.size == 8 else 32}"


def _camel(name: str) -> str:
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return camel if camel[:1].isalpha() else f"T{camel}"


def _rows(dimensions: tuple[int, ...]) -> str:
    if len(dimensions) < 2:
        return ""
    return f"; {''.join(f'[{count}]' for count in dimensions)}, row by row"


def _comment(found: Type, field: Field, dimensions: tuple[int, ...]) -> str:
    bits = f" : {field.bits}" if field.bits else ""
    return f"{found.label}{bits}{_rows(dimensions)}"

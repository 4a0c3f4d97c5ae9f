"""A map's layout as a ``.proto``: typed messages for its keys, values and changes.

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

from bridge.layout.forms import Form, shape_of
from bridge.layout.types import Field, Kind, Layout, Type, as_record

_NUMBER_FIRST, _NUMBER_LAST = 16, (1 << 18) - 1
_RESERVED = range(19_000, 20_000)
_ENUM_VALUES = range(-(1 << 31), 1 << 31)
_INDENT = "  "

_CHANGE = """\
// One change of the map.
message Change {
  enum Operation {
    OPERATION_UNSPECIFIED = 0;
    UPDATE = 1;
    DELETE = 2;
    EVICT = 3;  // the kernel made room
  }
  Operation operation = 1;
  Key key = 2;
  Value value = 3;  // of updates only
  int64 time_ns = 4;  // since 1970, by the clock of the node that made the change
  string node = 5;
  uint32 writer = 6;  // thread id; 0: not known
  uint64 sequence = 7;  // counts the changes of one node's map, without holes
  uint64 stream_sequence = 8;  // of the message in the log
}
"""


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


def proto_text(map_name: str, layout: Layout, number: int) -> str:
    """The file. ``number`` is the layout's fingerprint."""
    title = "".join(letter if letter.isprintable() else "?" for letter in map_name)
    lines = [
        f"// Keys, values and changes of the map {title}, layout {number:#018x}.",
        "// Generated from the map's own type information by `mapbridge schema proto`.",
        'syntax = "proto3";',
        "",
        f"package {package_of(map_name)};",
        "",
    ]
    for name, found in (("Key", layout.key), ("Value", layout.value)):
        lines += [*_Message(name, as_record(found, name.lower())).lines(), ""]
    return "\n".join(lines) + "\n" + _CHANGE


class _Message:
    """A message; nested ones go before the fields."""

    def __init__(self, name: str, record: Type) -> None:
        self._name = name
        self._record = record
        self._taken = {field.name for field in record.fields}  # names in this scope
        self._nested: list[str] = []
        self._enums: dict[Type, str] = {}
        self._json_names: set[str] = set()

    def lines(self) -> list[str]:
        """The message's text."""
        numbers: set[int] = set()
        fields = []
        for field in self._record.fields:
            kind, comment = self._declared(field)
            number = field_number(field.name, numbers)
            fields.append(f"{kind} {self._name_of(field.name)} = {number};{comment}")
        head = f"message {self._name} {{"
        if self._record.kind is Kind.UNION:
            head += "  // a union: every field shows the same bytes in its own way"
        inner = [*self._nested, *fields]
        return [head, *(_INDENT + line if line else "" for line in inner), "}"]

    def _declared(self, field: Field) -> tuple[str, str]:
        """What stands before a field's name, and the comment behind it."""
        shape = shape_of(field)
        found, inner = field.type, field.type.innermost
        if shape.form is not Form.PLAIN:
            what = "MAC address" if shape.form is Form.MAC else "IPv4 (4 bytes) or IPv6 address"
            repeated = "repeated " if shape.dimensions else ""
            return f"{repeated}bytes", f"  // {what}, in network order{_rows(shape.dimensions)}"
        dimensions = found.dimensions
        if inner.kind is Kind.INT and inner.size == 1 and not inner.signed and dimensions:
            repeated = "repeated " if dimensions[:-1] else ""
            return f"{repeated}bytes", _comment(found, field, dimensions[:-1])
        repeated = "repeated " if dimensions else ""
        return f"{repeated}{self._type_name(field.name, inner)}", _comment(found, field, dimensions)

    def _type_name(self, name: str, found: Type) -> str:
        match found.kind:
            case Kind.INT:
                width = 64 if found.size == 8 else 32
                return f"{'sint' if found.signed else 'uint'}{width}"
            case Kind.BOOL:
                return "bool"
            case Kind.FLOAT:
                return "double" if found.size == 8 else "float"
            case Kind.POINTER:
                return "fixed64"
            case Kind.TEXT:
                return "string"
            case Kind.STRUCT | Kind.UNION:
                nested = self._free_name(_camel(name))
                self._nested += _Message(nested, found).lines()
                return nested
            case Kind.ENUM:
                return self._enum(name, found)
        return "bytes"

    def _enum(self, name: str, found: Type) -> str:
        """An enum, written once where several fields have the same."""
        known = found.enumerators
        if not known or not all(value in _ENUM_VALUES for _, value in known):
            return f"{'sint' if found.signed else 'uint'}{64 if found.size == 8 else 32}"
        if found in self._enums:
            return self._enums[found]
        title = self._free_name(_camel(name))
        prefix = f"{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', title).upper()}_"
        values = list(found.enumerators)
        lines = []
        # proto3 begins with a zero, and enumerators live in the scope of the enum, not in it.
        if not any(value == 0 for _, value in values):
            lines.append(f"{self._free_name(prefix + 'UNSPECIFIED')} = 0;")
        values.sort(key=lambda pair: pair[1] != 0)
        for label, value in values:
            own = label if label not in self._taken else prefix + label
            lines.append(f"{self._free_name(own)} = {value};")
        if len({value for _, value in values}) < len(values):
            lines.insert(0, "option allow_alias = true;")
        self._nested += [f"enum {title} {{", *(_INDENT + line for line in lines), "}"]
        self._enums[found] = title
        return title

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
        while (usual := _json_name(free)) in self._json_names:
            free = self._free_name(f"{free}_2")
        self._json_names.add(usual)
        return free


def _json_name(name: str) -> str:
    """As protoc makes it: without underscores, the letter behind each in upper case."""
    first, *others = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in others)


def _camel(name: str) -> str:
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return camel if camel[:1].isalpha() else f"T{camel}"


def _rows(dimensions: tuple[int, ...]) -> str:
    if len(dimensions) < 2:
        return ""
    return f"; {''.join(f'[{count}]' for count in dimensions)}, row by row"


def _comment(found: Type, field: Field, dimensions: tuple[int, ...]) -> str:
    bits = f" : {field.bits}" if field.bits else ""
    return f"  // {found.label}{bits}{_rows(dimensions)}"

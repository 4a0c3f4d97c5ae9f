"""A map's BTF as a ``Layout``. The only module here that knows the kernel."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.errors import BridgeError, Exit, UnavailableError
from bridge.kernel.btf import DEPTH_MAX, Btf, BtfError
from bridge.kernel.btf_types import Kind as Btfs
from bridge.kernel.handle import KernelMap
from bridge.kernel.map_btf import map_types
from bridge.layout.rules import FieldRule, presented
from bridge.layout.types import Field, Kind, Layout, Type

FIELDS_MAX = 10_000  # of one key or value, arrays counted once
_WRAPPERS = (Btfs.TYPEDEF, Btfs.VOLATILE, Btfs.CONST, Btfs.RESTRICT, Btfs.TYPE_TAG)
_NUMBER_BYTES = (1, 2, 4, 8)


class NoLayoutError(UnavailableError):
    """The map was made without a description of its types."""


class LayoutSizeError(BridgeError):
    """The layout that the configuration declares is not that of the map."""

    exit_code = Exit.CONFIG


def read_layout(opened: KernelMap) -> Layout:
    """The layout of an open map.

    Raises ``NoLayoutError`` when it has none, ``BtfError`` when it cannot be read or does not fit
    the map's sizes, ``KernelError`` when the kernel refuses.
    """
    info = opened.info
    types = map_types(opened)
    if types is None:
        raise NoLayoutError(
            f"map {info.name} (id {info.id}): has no BTF, so its fields are not known",
            hint="compile its program with -g, and name the map's types with __type(key, ...)",
        )
    key = read_type(types.btf, types.key_id, info.key_size)
    if info.cpus:
        return Layout(key, _of_each_cpu(types.btf, types.value_id, info.cpus, info.value_size))
    return Layout(key, read_type(types.btf, types.value_id, info.value_size))


def _of_each_cpu(btf: Btf, type_id: int, cpus: int, size: int) -> Type:
    """What bpf(2) gives of a per-CPU map: a value for each CPU, padded to 8 bytes."""
    if type_id == 0:
        return Type(Kind.BYTES, size)
    one, stride = _Reader(btf).type_of(type_id), size // cpus
    if one.size > stride:
        raise BtfError(f"BTF: {one.label} has {one.size} bytes (got a map with {stride} a CPU)")
    if one.size < stride:
        one = Type(Kind.STRUCT, stride, "cpu", fields=(Field("value", 0, one),))
    return Type(Kind.ARRAY, size, element=one, count=cpus)


def map_layout(
    opened: KernelMap, declared: Layout | None, rules: Sequence[FieldRule] = ()
) -> Layout:
    """What the configuration declares, which must fit the map's sizes; else the map's own BTF.

    ``rules`` say how fields are to be read. Raises as ``read_layout`` does, ``LayoutSizeError``,
    ``RuleError``.
    """
    if declared is None:
        return presented(read_layout(opened), rules)
    info = opened.info
    for role, found, size in (
        ("key", declared.key, info.key_size),
        ("value", declared.value, info.value_size),
    ):
        if found.size != size:
            raise LayoutSizeError(
                f"map {info.name} (id {info.id}): its {role} has {size} bytes "
                f"(got a layout of {found.size}, {found.label})",
                hint="correct the map's layout in the configuration; padding counts",
            )
    return presented(declared, rules)


def read_type(btf: Btf, type_id: int, size: int) -> Type:
    """The type of that id, whose size must be ``size``; id 0 is bytes without a meaning."""
    if type_id == 0:
        return Type(Kind.BYTES, size)
    found = _Reader(btf).type_of(type_id)
    if found.size != size:
        raise BtfError(f"BTF: {found.label} has {found.size} bytes (got a map with {size})")
    return found


class _Reader:
    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._fields = 0

    def type_of(self, type_id: int, depth: int = 0) -> Type:
        """One type with all that is in it."""
        if depth > DEPTH_MAX:
            raise BtfError(f"BTF: type {type_id} is nested too deep (got more than {DEPTH_MAX})")
        btf = self._btf
        typedefs: list[str] = []
        for _ in range(DEPTH_MAX):
            record = btf.record(type_id)
            if record.kind not in _WRAPPERS:
                break
            if record.kind is Btfs.TYPEDEF:
                typedefs.append(record.name)
            type_id = record.extent
        else:
            raise BtfError(f"BTF: type {type_id} is a circle")
        names = tuple(typedefs)
        match record.kind:
            case Btfs.INT:
                return self._integer(type_id, names)
            case Btfs.ENUM | Btfs.ENUM64:
                values = tuple(btf.enumerators(type_id))
                signed = record.has_bitfields
                return Type(Kind.ENUM, record.extent, record.name, names, signed, values)
            case Btfs.FLOAT:
                kind = Kind.FLOAT if record.extent in (4, 8) else Kind.BYTES
                return Type(kind, record.extent, record.name, names)
            case Btfs.PTR:
                return Type(Kind.POINTER, btf.size_of(type_id), "", names)
            case Btfs.ARRAY:
                return self._array(type_id, names, depth)
            case Btfs.STRUCT | Btfs.UNION | Btfs.DATASEC:
                kind = Kind.UNION if record.kind is Btfs.UNION else Kind.STRUCT
                fields = tuple(self._fields_of(type_id, 0, depth))
                return Type(kind, record.extent, record.name, names, fields=fields)
        return Type(Kind.BYTES, btf.size_of(type_id), record.name, names)

    def _integer(self, type_id: int, typedefs: tuple[str, ...]) -> Type:
        record, coding = self._btf.record(type_id), self._btf.int_coding(type_id)
        if coding.is_bool:
            return Type(Kind.BOOL, record.extent, record.name, typedefs)
        kind = Kind.INT if record.extent in _NUMBER_BYTES else Kind.BYTES
        return Type(kind, record.extent, record.name, typedefs, coding.is_signed)

    def _array(self, type_id: int, typedefs: tuple[str, ...], depth: int) -> Type:
        element_id, count = self._btf.array_of(type_id)
        element = self.type_of(element_id, depth + 1)
        size = count * element.size
        if element.kind is Kind.INT and element.name == "char":
            return Type(Kind.TEXT, size, "char", typedefs)
        return Type(Kind.ARRAY, size, "", typedefs, element=element, count=count)

    def _fields_of(self, type_id: int, bit_base: int, depth: int) -> list[Field]:
        """The members, those of anonymous structs and unions in place of these."""
        btf = self._btf
        is_section = btf.record(type_id).kind is Btfs.DATASEC
        members = btf.variables(type_id) if is_section else btf.members(type_id)
        found: list[Field] = []
        for member in members:
            self._fields += 1
            if self._fields > FIELDS_MAX:
                raise BtfError(f"BTF: type {type_id} has too many fields (got {self._fields})")
            at = bit_base + member.bit_offset
            inner = btf.strip(member.type_id)
            kind = btf.record(inner).kind
            if not member.name and kind in (Btfs.STRUCT, Btfs.UNION):
                if depth >= DEPTH_MAX:
                    raise BtfError(f"BTF: type {type_id} is a circle")
                found += self._fields_of(inner, at, depth + 1)
                continue
            bits = member.bits
            if kind is Btfs.INT and not bits:
                # Before Linux 4.20 and pahole 1.13 a bit field was an integer of fewer bits.
                coding = btf.int_coding(inner)
                if coding.bit_offset or coding.bits < 8 * btf.record(inner).extent:
                    at, bits = at + coding.bit_offset, coding.bits
            held = self.type_of(member.type_id, depth + 1)
            if member.name and held.size:  # padding without a name, flexible arrays
                name = member.name
                if is_section and any(field.name == name for field in found):
                    name = f"{name}_{at // 8}"  # static variables of two functions
                found.append(Field(name, at, held, bits))
        return found

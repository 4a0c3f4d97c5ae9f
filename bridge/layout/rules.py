"""Field rules: what the configuration says of single fields, checked against a layout.

Two kinds. Some say how bytes are to be read (``network_order``, ``address``, ``mac``, ``enum``,
``plain``): they become part of the layout, as does that a field is a ``ktime``. The others say what
a field means on another host:

ktime   nanoseconds of CLOCK_MONOTONIC, rebased to the receiver's clock; 0 stays 0
local   the receiver keeps its own; zero in entries that it did not have
ignore  does not count as a difference when a map is compared with the stream

None of the three counts as a difference: on every host their bytes are others by rule.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bridge.errors import BridgeError, Exit
from bridge.layout.columns import Decoder
from bridge.layout.forms import ADDRESS_MARK, KTIME_MARK, MAC_BYTES, PLAIN_MARK, Form, shape_of
from bridge.layout.mapping import put_bits
from bridge.layout.types import Field, Kind, Layout, Type
from bridge.model import U8

_KTIME_BYTES = 8


class RuleError(BridgeError):
    """A rule for a field that is not there, or not of that kind."""

    exit_code = Exit.CONFIG


class Rule(enum.StrEnum):
    """What is said of a field."""

    KTIME = "ktime"
    LOCAL = "local"
    IGNORE = "ignore"
    NETWORK_ORDER = "network_order"
    ADDRESS = "address"
    MAC = "mac"
    PLAIN = "plain"
    ENUM = "enum"


HOST_RULES = frozenset({Rule.KTIME, Rule.LOCAL, Rule.IGNORE})


@dataclass(frozen=True, slots=True)
class FieldRule:
    """``path`` begins with ``key`` or ``value``; arrays on it are meant with all their elements."""

    path: str
    rule: Rule
    enumerators: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    holders: tuple[str, ...]
    field: Field


class HostRules:
    """What becomes of values on the way to another host's map. Rows are ``u8[n, value_size]``."""

    def __init__(self, layout: Layout, rules: Sequence[FieldRule]) -> None:
        """Raises ``RuleError``."""
        self._decoder = Decoder(layout.value, "value")
        places = [(rule.rule, self._place(rule)) for rule in rules if rule.rule in HOST_RULES]
        self._ktimes = [place for rule, place in places if rule is Rule.KTIME]
        locals_ = [place for rule, place in places if rule is Rule.LOCAL]
        self._local = self._mask(locals_) if locals_ else None
        # Bits that count when values are compared; None: all of them.
        self.compared: U8 | None = ~self._mask([p for _, p in places]) if places else None

    @property
    def keeps_local(self) -> bool:
        return self._local is not None

    @property
    def rebases(self) -> bool:
        return bool(self._ktimes)

    def rebased(self, values: U8, offset_ns: int) -> U8:
        """A copy with kernel times moved by ``offset_ns``; 0 means "never" and stays."""
        moved = values.copy()
        view = self._decoder.view(moved)
        for place in self._ktimes:
            here = _walk(view, place.holders)
            times = here[place.field.name]
            shifted = times.astype(np.int64) + np.int64(offset_ns)
            here[place.field.name] = np.where(times == 0, 0, np.maximum(shifted, 1))
        return moved

    def with_local(self, values: U8, current: U8) -> U8:
        """Values with the local fields of ``current``, whose rows are zero for new entries."""
        assert self._local is not None, "no field is local"
        kept: U8 = (values & ~self._local) | (current & self._local)
        return kept

    def _place(self, rule: FieldRule) -> _Place:
        role, *names = rule.path.split(".")
        if role != "value":
            raise _error(rule, "only fields of values have meaning on one host only")
        if self._decoder.wrapped and not names:
            names = ["value"]
        holders, record, field = [], self._decoder.record, None
        for name in names:
            if field is not None:
                holders.append(field.name)
                record = field.type.innermost
            field = _field(rule, record, name)
        if field is None:
            raise _error(rule, "needs a field of the value")
        if rule.rule is Rule.KTIME:
            inner = field.type.innermost
            plain = inner.kind is Kind.INT and not inner.network_order and not field.bits
            if not plain or inner.size != _KTIME_BYTES:
                raise _error(rule, f"needs an integer of 8 bytes (got {field.type.label})")
        return _Place(tuple(holders), field)

    def _mask(self, places: Sequence[_Place]) -> U8:
        """``u8[value_size]`` with the bits of these fields set."""
        mask = np.zeros((1, self._decoder.record.size), np.uint8)
        view = self._decoder.view(mask)
        for place in places:
            here, field = _walk(view, place.holders), place.field
            if field.bits:
                touched = here[field.name]
                ones = np.full(touched.shape[:-1], -1, np.int64)
                put_bits(field, touched, ones)
            else:
                size, flat = field.type.size, np.full(field.type.size, 0xFF, np.uint8)
                whole = flat.view(here.dtype[field.name].base) if size else flat
                here[field.name] = whole.reshape(here.dtype[field.name].shape)
        made: U8 = mask[0]
        return made


def presented(layout: Layout, rules: Sequence[FieldRule]) -> Layout:
    """The layout as the rules say it is to be read. Raises ``RuleError``."""
    for rule in rules:
        if rule.rule in (Rule.LOCAL, Rule.IGNORE):
            continue
        role, *names = rule.path.split(".")
        found = layout.key if role == "key" else layout.value
        if not names:
            field = _changed(Field(role, 0, found), rule)
            changed = field.type
        else:
            changed = _within(found, names, rule)
        layout = replace(layout, **{role: changed})
    return layout


def _within(found: Type, names: Sequence[str], rule: FieldRule) -> Type:
    """A type with one of its fields changed, behind any arrays."""
    if found.element is not None:
        return replace(found, element=_within(found.element, names, rule))
    wanted = _field(rule, found, names[0])
    if len(names) > 1:
        made = replace(wanted, type=_within(wanted.type, names[1:], rule))
    else:
        made = _changed(wanted, rule)
    return replace(found, fields=tuple(made if f is wanted else f for f in found.fields))


def _changed(field: Field, rule: FieldRule) -> Field:
    """The field as the rule says."""
    inner = field.type.innermost
    if rule.rule is Rule.NETWORK_ORDER:
        if inner.kind is not Kind.INT or inner.size < 2 or field.bits:
            raise _error(rule, f"needs integers of 2, 4 or 8 bytes (got {field.type.label})")
        bits = 8 * inner.size
        return _retyped(field, lambda t: replace(t, typedefs=(*t.typedefs, f"__be{bits}")))
    if rule.rule is Rule.ENUM:
        if inner.kind is not Kind.INT:
            raise _error(rule, f"needs an integer (got {field.type.label})")
        return _retyped(field, lambda t: replace(t, kind=Kind.ENUM, enumerators=rule.enumerators))
    if rule.rule in (Rule.PLAIN, Rule.KTIME):
        mark = PLAIN_MARK if rule.rule is Rule.PLAIN else KTIME_MARK
        return _retyped(field, lambda t: replace(t, typedefs=(*t.typedefs, mark)))
    if rule.rule is Rule.MAC and inner.kind is Kind.TEXT and inner.size == MAC_BYTES:
        byte = Type(Kind.INT, 1, "unsigned char")
        field = _retyped(
            field, lambda t: Type(Kind.ARRAY, MAC_BYTES, element=byte, count=MAC_BYTES)
        )
    wanted = Form.MAC if rule.rule is Rule.MAC else Form.ADDRESS
    if wanted is Form.ADDRESS:
        field = _retyped(field, lambda t: replace(t, typedefs=(*t.typedefs, ADDRESS_MARK)))
    if shape_of(field).form is not wanted:
        needs = "6 bytes" if wanted is Form.MAC else "4 or 16 unsigned bytes"
        raise _error(rule, f"needs {needs} (got {field.type.label})")
    return field


def _retyped(field: Field, change: Callable[[Type], Type]) -> Field:
    def deep(found: Type) -> Type:
        if found.element is not None:
            return replace(found, element=deep(found.element))
        return change(found)

    return replace(field, type=deep(field.type))


def _field(rule: FieldRule, record: Type, name: str) -> Field:
    inner = record.innermost
    for field in inner.fields:
        if field.name == name:
            return field
    known = ", ".join(field.name for field in inner.fields) or "no fields"
    raise _error(rule, f"there is no field {name!r}", hint=f"{inner.label} has: {known}")


def _walk(view: npt.NDArray[np.void], holders: Sequence[str]) -> npt.NDArray[np.void]:
    for name in holders:
        view = view[name]
    return view


def _error(rule: FieldRule, reason: str, *, hint: str = "") -> RuleError:
    return RuleError(f"rule {rule.rule} of {rule.path}: {reason}", hint=hint)

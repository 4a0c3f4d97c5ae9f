"""How people want to see a field: by its name and type where these are well known.

An address is a field whose name says so (``addr``, ``saddr``, ``src_ip``, ``address`` ...) with 4
or 16 bytes, or a ``struct in_addr``/``in6_addr``; its bytes stand in network order, as packets have
them. A MAC address is a field of six unsigned bytes. Arrays of these are seen one by one.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from bridge.layout.types import Field, Kind, Type

_ADDRESS = re.compile(
    r"(?:.*_)?(?:addr|address|addrs|addresses|[sd]addr|ip|ips|ip4|ip6|ipv4|ipv6|[sd]ip|vip|nexthop)"
    r"(?:_?(?:v?[46]|be|be32))?"
)
_FILLER = re.compile(r"_*(?:pad|padding|zero|reserved|unused|fill|filler|rsvd)_?\d*")
# Typedefs that rules of the configuration add to a field.
MARK = "mapbridge_"
ADDRESS_MARK, PLAIN_MARK, KTIME_MARK = f"{MARK}address", f"{MARK}plain", f"{MARK}ktime"
_ADDRESS_BYTES = (4, 16)
_ADDRESS_TAGS = ("in_addr", "in6_addr")
MAC_BYTES = 6


class Form(enum.StrEnum):
    """What the bytes of a field are to a person."""

    PLAIN = "plain"
    ADDRESS = "address"
    MAC = "mac"


@dataclass(frozen=True, slots=True)
class Shape:
    """A form, the bytes that one such thing takes, and the dimensions of their array."""

    form: Form
    size: int = 0
    dimensions: tuple[int, ...] = ()


_PLAIN = Shape(Form.PLAIN)


def shape_of(field: Field) -> Shape:
    """The form of a field."""
    found = field.type
    inner = found.innermost
    if field.bits or (is_filler(field.name) and ADDRESS_MARK not in inner.typedefs):
        return _PLAIN
    if PLAIN_MARK in inner.typedefs:
        return _PLAIN
    if inner.kind is Kind.STRUCT and inner.name in _ADDRESS_TAGS and inner.size in _ADDRESS_BYTES:
        return Shape(Form.ADDRESS, inner.size, found.dimensions)
    if inner.kind is not Kind.INT or inner.signed:
        return _PLAIN
    if inner.size == 1 and found.dimensions[-1:] == (MAC_BYTES,):
        return Shape(Form.MAC, MAC_BYTES, found.dimensions[:-1])
    if ADDRESS_MARK in inner.typedefs or _ADDRESS.fullmatch(field.name.lower()):
        return _address(inner, found.dimensions)
    return _PLAIN


def is_filler(name: str) -> bool:
    """Whether a name says that the field only fills a gap."""
    return _FILLER.fullmatch(name.lower()) is not None


def _address(element: Type, dimensions: tuple[int, ...]) -> Shape:
    """The innermost dimension is one address when it has 4 or 16 bytes; else each 4-byte number."""
    if dimensions:
        size = element.size * dimensions[-1]
        whole = size == 16 if element.size > 1 else size in _ADDRESS_BYTES
        if whole:
            return Shape(Form.ADDRESS, size, dimensions[:-1])
    if element.size == 4:
        return Shape(Form.ADDRESS, 4, dimensions)
    return _PLAIN

"""A number that names a layout: equal on all nodes whose maps mean the same by the same bytes.

Names of fields, places, kinds, widths, signs, byte order and enumerators count. Names of structs
and typedefs do not (``__u32`` in one header is ``u32`` in another), unless they say the order, or
are marks of the configuration's rules.
"""

from __future__ import annotations

import hashlib
import sys

from bridge.layout.forms import MARK
from bridge.layout.types import Kind, Layout, Type


def fingerprint(layout: Layout) -> int:
    """64 bits, never 0: that stands for "no layout" in a message."""
    text = f"1 {sys.byteorder} key {describe(layout.key)} value {describe(layout.value)}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def describe(found: Type) -> str:
    """All that counts of a type, as text."""
    if found.kind is Kind.ARRAY:
        assert found.element is not None
        return f"[{found.count} {describe(found.element)}]"
    if found.is_record:
        fields = " ".join(
            f"{field.name}@{field.bit_offset}:{field.bits} {describe(field.type)}"
            for field in found.fields
        )
        return f"{found.kind}{found.size}{{{fields}}}"
    order = " network" if found.network_order else ""
    order += "".join(f" {name}" for name in found.typedefs if name.startswith(MARK))
    values = " ".join(f"{name}={value}" for name, value in found.enumerators)
    return f"{found.kind}{found.size} {'signed' if found.signed else 'plain'}{order} {values}"

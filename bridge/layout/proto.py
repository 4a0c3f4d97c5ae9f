"""A map's layout as the text of a ``.proto``: typed messages for its keys, values and changes.

Which fields, numbers and names these have is said in ``messages``.
"""

from __future__ import annotations

from bridge.layout.messages import EnumModel, MessageModel, messages_of, package_of
from bridge.layout.types import Layout

_INDENT = "  "
_TITLES = {"Change": "One change of the map.", "Changes": "What a message of the typed feed holds."}


def proto_text(map_name: str, layout: Layout, number: int) -> str:
    """The file. ``number`` is the layout's fingerprint."""
    title = "".join(letter if letter.isprintable() else "?" for letter in map_name)
    lines = [
        f"// Keys, values and changes of the map {title}, layout {number:#018x}.",
        "// Generated from the map's own type information by `mapbridge schema proto`.",
        'syntax = "proto3";',
        "",
        f"package {package_of(map_name)};",
    ]
    for message in messages_of(layout):
        lines.append("")
        if message.name in _TITLES:
            lines.append(f"// {_TITLES[message.name]}")
        lines += _message(message)
    return "\n".join(lines) + "\n"


def _message(model: MessageModel) -> list[str]:
    head = f"message {model.name} {{"
    if model.is_union:
        head += "  // a union: every field shows the same bytes in its own way"
    inner: list[str] = []
    for nested in model.nested:
        inner += _message(nested) if isinstance(nested, MessageModel) else _enum(nested)
    for field in model.fields:
        kind = f"repeated {field.type}" if field.repeated else field.type
        comment = f"  // {field.comment}" if field.comment else ""
        inner.append(f"{kind} {field.name} = {field.number};{comment}")
    return [head, *(_INDENT + line for line in inner), "}"]


def _enum(model: EnumModel) -> list[str]:
    lines = ["option allow_alias = true;"] if model.aliases else []
    lines += [f"{name} = {value};" for name, value in model.values]
    return [f"enum {model.name} {{", *(_INDENT + line for line in lines), "}"]

"""``mapbridge schema``: what the bytes of a map mean, by the type information that it carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from bridge.cli import output
from bridge.cli.names import MAP
from bridge.cli.options import optional_config_option
from bridge.cli.schema_compare import check, diff
from bridge.config import load
from bridge.kernel.maps import open_map
from bridge.kernel.maptypes import type_name
from bridge.layout.fingerprint import fingerprint
from bridge.layout.forms import shape_of
from bridge.layout.proto import proto_text
from bridge.layout.reader import map_layout
from bridge.layout.rules import FieldRule
from bridge.layout.types import Layout, Leaf, Type, as_record, leaves
from bridge.model import MapInfo, MapSelector

_COLUMNS = ("field", "offset", "size", "type", "seen as")

Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Described:
    """A map of this kernel with its layout. ``name`` is the one in the stream, if it has one."""

    name: str
    info: MapInfo
    layout: Layout


@click.group("schema")
def command() -> None:
    """Show the fields of a map, write them down as protobuf messages, compare them.

    \b
    Examples:
      mapbridge schema show conntrack -c node-a.toml
      mapbridge schema proto --pin /sys/fs/bpf/conntrack > conntrack.proto
    """


command.add_command(diff)
command.add_command(check)


def map_options(decorated: Command) -> Command:
    """MAP with ``-c``, or one of ``--pin``, ``--id`` and ``--name``."""
    for option in (
        click.option("--name", "kernel_name", metavar="NAME", help="A map by its kernel name."),
        click.option("--id", "map_id", type=click.IntRange(min=1), help="A map by its id."),
        click.option("--pin", metavar="PATH", help="A map by the path of its pin."),
        optional_config_option,
        click.argument("name", metavar="[MAP]", required=False, type=MAP),
    ):
        decorated = option(decorated)
    return decorated


@command.command("show")
@map_options
@output.json_option
def show(
    name: str | None,
    config_path: Path | None,
    pin: str | None,
    map_id: int | None,
    kernel_name: str | None,
    as_json: bool,
) -> None:
    """Print the fields of a map's keys and values: offsets, sizes, types.

    MAP is the map's name in the stream, which the configuration file says where to find.

    \b
    Examples:
      mapbridge schema show conntrack -c node-a.toml
      mapbridge schema show --pin /sys/fs/bpf/conntrack --json
    """
    described = _describe(name, config_path, pin, map_id, kernel_name)
    if as_json:
        output.print_json(_document(described))
        return
    info, layout = described.info, described.layout
    output.line(
        f"map {described.name} (id {info.id}): {type_name(info.type)}, "
        f"layout {fingerprint(layout):#018x}"
    )
    for role, found in (("key", layout.key), ("value", layout.value)):
        output.line()
        output.line(f"{role}: {found.label}, {found.size} bytes")
        output.print_table(_COLUMNS, [_row(leaf) for leaf in leaves(as_record(found, role))])


@command.command("proto")
@map_options
def proto(
    name: str | None,
    config_path: Path | None,
    pin: str | None,
    map_id: int | None,
    kernel_name: str | None,
) -> None:
    """Print a .proto with typed messages for a map's keys, values and changes.

    The number of a field follows from its name, so it is the same in every version of the program.

    \b
    Examples:
      mapbridge schema proto conntrack -c node-a.toml > conntrack.proto
      mapbridge schema proto --id 42
    """
    described = _describe(name, config_path, pin, map_id, kernel_name)
    layout = described.layout
    click.echo(proto_text(described.name, layout, fingerprint(layout)), nl=False)


def _describe(
    name: str | None,
    config_path: Path | None,
    pin: str | None,
    map_id: int | None,
    kernel_name: str | None,
) -> Described:
    given = [x for x in (name, pin, map_id, kernel_name) if x is not None]
    if len(given) != 1:
        raise click.UsageError("name one map: MAP with -c FILE, --pin, --id or --name")
    if name is None:
        selector = MapSelector(pin=pin, id=map_id, name=kernel_name)
        declared: Layout | None = None
        rules: tuple[FieldRule, ...] = ()
    else:
        if config_path is None:
            raise click.UsageError("MAP is a name of a configuration: give its file with -c")
        config = load(config_path)
        try:
            entry = config.map(name)
        except KeyError:
            known = ", ".join(entry.name for entry in config.maps) or "none"
            raise click.BadParameter(
                f"{name!r} is not in {config_path} (it has: {known})"
            ) from None
        selector = entry.selector
        declared = None if entry.declared is None else entry.declared.layout
        rules = entry.rules
    with open_map(selector) as opened:
        layout = map_layout(opened, declared, rules)
        return Described(name or opened.info.name, opened.info, layout)


def _row(leaf: Leaf) -> tuple[str, ...]:
    field = leaf.field
    at, bit = divmod(leaf.bit_offset, 8)
    offset = f"{at}.{bit}" if field.bits else str(at)
    size = f"{field.bits} bits" if field.bits else str(field.size)
    form = shape_of(field).form
    values = ", ".join(label for label, _ in field.type.innermost.enumerators)
    seen = values if form == "plain" else form.value
    order = "network order" if field.type.innermost.network_order and form == "plain" else ""
    return leaf.path, offset, size, field.type.label, seen or order


def _document(described: Described) -> dict[str, object]:
    info, layout = described.info, described.layout
    return {
        "map": described.name,
        "id": info.id,
        "type": type_name(info.type),
        "fingerprint": f"{fingerprint(layout):016x}",
        "key": _type_document(layout.key, "key"),
        "value": _type_document(layout.value, "value"),
    }


def _type_document(found: Type, role: str) -> dict[str, object]:
    fields = [_field_document(leaf) for leaf in leaves(as_record(found, role))]
    return {"type": found.label, "size": found.size, "fields": fields}


def _field_document(leaf: Leaf) -> dict[str, object]:
    field = leaf.field
    inner = field.type.innermost
    return {
        "path": leaf.path,
        "offset": leaf.bit_offset // 8,
        "size": field.size,
        "bit_offset": leaf.bit_offset,
        "bits": field.bits,
        "type": field.type.label,
        "kind": inner.kind.value,
        "dimensions": field.type.dimensions,
        "typedefs": inner.typedefs,
        "signed": inner.signed,
        "network_order": inner.network_order,
        "enumerators": dict(inner.enumerators),
        "form": shape_of(field).form.value,
    }

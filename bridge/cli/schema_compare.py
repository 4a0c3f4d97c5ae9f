"""``mapbridge schema diff`` and ``check``: two layouts, and a layout against the cluster's."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.cli import output
from bridge.cli.names import MAP
from bridge.cli.options import config_option, optional_config_option
from bridge.config import load
from bridge.errors import BridgeError
from bridge.layout.compare import Compatibility, Fit, compatibility, differences
from bridge.layout.fingerprint import fingerprint
from bridge.layout.types import Layout

_MEANING = {
    Fit.SAME: "the same layout",
    Fit.MAPPED: "applied field by field",
    Fit.PARKED: "NOT applied",
}


class NotCompatibleError(BridgeError):
    """Changes of some nodes cannot be applied to this machine's map, or the other way round."""


@click.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@optional_config_option
@output.json_option
def diff(first: str, second: str, config_path: Path | None, as_json: bool) -> None:
    """Print what differs between two layouts, and whether changes go from one to the other.

    A and B are a map's name in the stream (with -c), MAP@FINGERPRINT (a layout stored beside the
    log; the first digits do), the path of a pin, id:N or name:NAME.

    \b
    Examples:
      mapbridge schema diff /sys/fs/bpf/ct /sys/fs/bpf/ct_new
      mapbridge schema diff ct@6687 ct -c node-a.toml
    """
    from bridge.cli.layouts import find_layout

    a, b = find_layout(first, config_path), find_layout(second, config_path)
    found = differences(a.layout, b.layout)
    there, back = compatibility(a.layout, b.layout), compatibility(b.layout, a.layout)
    if as_json:
        output.print_json(
            {
                "a": f"{a.fingerprint:016x}",
                "b": f"{b.fingerprint:016x}",
                "differences": found,
                "a_to_b": _document(there),
                "b_to_a": _document(back),
            }
        )
        return
    if not found and there.fit is Fit.SAME:
        output.line(f"{first} and {second}: the same layout {a.fingerprint:#018x}")
        return
    rows = [(each.path, each.change, each.before, each.after) for each in found]
    output.print_table(("field", "change", first, second), rows)
    output.line()
    _tell(f"changes from {first} to {second}", there)
    _tell(f"changes from {second} to {first}", back)


@click.command("check")
@click.argument("name", metavar="MAP", type=MAP)
@config_option
@output.json_option
def check(name: str, config_path: Path, as_json: bool) -> None:
    """Tell whether this machine's layout of MAP goes together with the cluster's.

    Every layout that a node has published changes in is compared with that of this machine's map,
    in both directions. Exit code 1 when changes cannot be applied in one of them.

    \b
    Examples:
      mapbridge schema check ct -c node-a.toml
      mapbridge schema check ct --json
    """
    from bridge.cli.layouts import configured, layout_here, stored_layouts

    config = load(config_path)
    own = layout_here(configured(config, name, config_path))
    stored = [
        (schema.fingerprint, _both_ways(schema.layout, own))
        for schema in stored_layouts(config, name)
    ]
    parked = [f"{number:016x}" for number, ways in stored if Fit.PARKED in (w.fit for w in ways)]
    if as_json:
        output.print_json(
            {
                "map": name,
                "layout": f"{fingerprint(own):016x}",
                "compatible": not parked,
                "cluster": [
                    {
                        "layout": f"{number:016x}",
                        "to_here": _document(ways[0]),
                        "from_here": _document(ways[1]),
                    }
                    for number, ways in stored
                ],
            }
        )
    else:
        output.line(f"map {name}: layout {fingerprint(own):#018x} here")
        if not stored:
            output.line("the cluster has no layout of this map yet")
        for number, ways in stored:
            _tell(f"changes in layout {number:#018x}, here", ways[0])
            _tell(f"changes from here, in layout {number:#018x}", ways[1])
    if parked:
        raise NotCompatibleError(
            f"map {name}: its layout does not go together with {', '.join(parked)}",
            hint=f"`mapbridge schema diff {name}@{parked[0]} {name}` shows what differs",
        )


def _both_ways(stored: Layout, own: Layout) -> tuple[Compatibility, Compatibility]:
    return compatibility(stored, own), compatibility(own, stored)


def _tell(what: str, found: Compatibility) -> None:
    output.line(f"{what}: {_MEANING[found.fit]}")
    for obstacle in found.obstacles:
        output.line(f"  {obstacle}")


def _document(found: Compatibility) -> dict[str, object]:
    return {"fit": found.fit, "obstacles": [str(obstacle) for obstacle in found.obstacles]}

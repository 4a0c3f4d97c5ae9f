"""``mapbridge maps``: what there is in this kernel that could be bridged."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from bridge.cli import output
from bridge.kernel.errors import KernelError
from bridge.kernel.maps import all_maps, open_pin
from bridge.kernel.maptypes import type_name
from bridge.kernel.support import Support, judge
from bridge.model import MapInfo

BPF_FILE_SYSTEM = Path("/sys/fs/bpf")
PINS_MAX = 100_000  # files looked at; a bpf file system can be large and is not ours
_COLUMNS = ("id", "name", "type", "key", "value", "max", "bridge", "pin")


@dataclass(frozen=True, slots=True)
class MapRow:
    """One map, as ``--json`` gives it. ``supported`` is ``yes``, ``sweep`` or ``no``."""

    id: int
    name: str
    type: str
    key_size: int
    value_size: int  # of a per-CPU map: of all its CPUs
    cpus: int
    max_entries: int
    pins: tuple[str, ...]
    supported: str
    reason: str


@click.command("maps")
@click.option("-a", "--all", "show_all", is_flag=True, help="Also maps that cannot be bridged.")
@output.json_option
def command(show_all: bool, as_json: bool) -> None:
    """List the maps of this kernel and whether they can be bridged.

    The column BRIDGE says yes or no, and why. JSON always lists all maps.

    \b
    Examples:
      mapbridge maps
      mapbridge maps --all
      mapbridge maps --json
    """
    rows = list_maps()
    if as_json:
        output.print_json({"maps": rows})
        return
    shown = [row for row in rows if show_all or row.supported != Support.NO]
    cells = [
        (
            row.id,
            row.name or "-",
            row.type,
            row.key_size,
            f"{row.cpus}x{row.value_size // row.cpus}" if row.cpus else row.value_size,
            row.max_entries,
            row.supported if not row.reason else f"{row.supported}: {row.reason}",
            " ".join(row.pins) or "-",
        )
        for row in shown
    ]
    if cells:
        output.print_table(_COLUMNS, cells)
    hidden = len(rows) - len(shown)
    if hidden:
        output.line(f"{hidden} more that cannot be bridged: mapbridge maps --all")
    elif not rows:
        output.line("no maps in this kernel")


def list_maps(root: Path = BPF_FILE_SYSTEM) -> list[MapRow]:
    """All maps by id with their pins below ``root``. Raises ``KernelPrivilegeError``."""
    infos = all_maps()
    pins = find_pins(root)
    return [_row(info, tuple(sorted(pins.get(info.id, ())))) for info in infos]


def find_pins(root: Path) -> dict[int, list[str]]:
    """Map id → paths. What is no map, or cannot be opened, is left out."""
    found: dict[int, list[str]] = {}
    for path in _files(root):
        try:
            with open_pin(path) as pinned:
                found.setdefault(pinned.info.id, []).append(path)
        except KernelError as error:
            if error.errno == errno.EMFILE:
                raise
    return found


def _files(root: Path) -> Iterator[str]:
    looked = 0
    for folder, _, names in os.walk(root):
        for name in names:
            looked += 1
            if looked > PINS_MAX:
                return
            yield str(Path(folder, name))


def _row(info: MapInfo, pins: tuple[str, ...]) -> MapRow:
    verdict = judge(info)
    return MapRow(
        info.id,
        info.name,
        type_name(info.type),
        info.key_size,
        info.value_size,
        info.cpus,
        info.max_entries,
        pins,
        verdict.support,
        verdict.reason,
    )

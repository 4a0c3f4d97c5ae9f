"""``mapbridge bench plot``."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.bench.plots import DRAWINGS, plot as draw
from bridge.cli import output
from bridge.cli.output import json_option
from bridge.errors import UnavailableError

FORMATS = ("svg", "png")


@click.command("plot")
@click.argument(
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="build/bench",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="svg",
    show_default=True,
    help="Of files.",
)
@json_option
def plot(directory: Path, form: str, as_json: bool) -> None:
    """Draw what the other commands of `bench` have measured.

    DIRECTORY holds answers with --json, each in a file of its name (sync-rate.json); what stands
    behind a point is free (overhead.6.1.json). The pictures are written beside them.

    \b
    Examples:
      mapbridge bench scan --json > build/bench/scan.json
      mapbridge bench plot build/bench --format png
    """
    written = []
    for source in sorted(directory.glob("*.json")):
        name = source.name.split(".")[0]
        if name in DRAWINGS:
            target = source.with_suffix(f".{form}")
            draw(name, source, target)
            written.append(str(target))
    if not written:
        raise UnavailableError(
            f"{directory}: nothing to draw (got no file such as sync-rate.json)",
            hint=f"mapbridge bench scan --json > {directory}/scan.json",
        )
    if as_json:
        output.print_json({"written": written})
        return
    for path in written:
        output.line(path)

"""``mapbridge check``: everything wrong with a configuration and with what it names, at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from bridge.cli import output
from bridge.cli.options import config_option
from bridge.config import Config, ConfigError, MapConfig, Problem, load
from bridge.errors import BridgeError


@click.command("check")
@config_option
@click.option(
    "--no-environment", is_flag=True, help="Look at the file only, not at maps and broker."
)
@output.json_option
def command(config_path: Path, no_environment: bool, as_json: bool) -> None:
    """Check a configuration file, the maps and the broker it names.

    All problems are told at once, each with its place in the file and the value found there. Exit
    code 78 when there is one.

    \b
    Examples:
      mapbridge check -c mapbridge.toml
      mapbridge check -c mapbridge.toml --no-environment
    """
    config = load(config_path)
    if not no_environment:
        problems = [*_maps(config), *_broker(config)]
        if problems:
            hint = "" if len(problems) > 1 else problems[0].hint
            raise ConfigError(str(config_path), problems, hint=hint)
    if as_json:
        output.print_json({"ok": True, "file": str(config_path), "maps": len(config.maps)})
        return
    looked = "the file only" if no_environment else "maps and broker too"
    output.line(f"{config_path}: good ({len(config.maps)} maps; {looked})")


def _maps(config: Config) -> Iterator[Problem]:
    for index, entry in enumerate(config.maps):
        yield from _map(f"maps[{index}]", entry)


def _map(path: str, entry: MapConfig) -> Iterator[Problem]:
    """The map is there, of a type that the bridge takes; so is the ring of an emitting program."""
    from bridge.capture.emit import open_counter, open_ring
    from bridge.kernel.maps import open_map
    from bridge.kernel.maptypes import type_name
    from bridge.kernel.support import Support, judge
    from bridge.layout.reader import map_layout
    from bridge.layout.rules import HostRules

    if entry.selector.is_pattern:
        return  # nothing need be there yet
    try:
        with open_map(entry.selector) as found:
            verdict = judge(found.info)
            if verdict.support is Support.NO:
                yield Problem(
                    path, f"cannot be bridged: {verdict.reason}", type_name(found.info.type)
                )
            if entry.declared is not None or entry.rules:
                declared = None if entry.declared is None else entry.declared.layout
                HostRules(map_layout(found, declared, entry.rules), entry.rules)
    except BridgeError as error:
        yield _told(path, error)
    yield from _metrics(path, entry)
    parts = (("emit", entry.emit, open_ring), ("emit_losses", entry.emit_losses, open_counter))
    for key, selector, opener in parts:
        if selector is None:
            continue
        try:
            opener(selector).close()
        except BridgeError as error:
            yield _told(f"{path}.{key}", error)


def _metrics(path: str, entry: MapConfig) -> Iterator[Problem]:
    """Filters that can be read, and that name fields of the map where it can be looked at."""
    from bridge.cli.layouts import layout_here
    from bridge.feed.where import Where

    for index, metric in enumerate(entry.metrics):
        if metric.where is None:
            continue
        try:
            where = Where(metric.where)
        except BridgeError as error:
            yield _told(f"{path}.metrics[{index}].where", error)
            continue
        try:
            layout = layout_here(entry)
        except BridgeError:  # told above, or nobody knows the fields
            continue
        try:
            where.check(layout)
        except BridgeError as error:
            yield _told(f"{path}.metrics[{index}].where", error)


def _broker(config: Config) -> Iterator[Problem]:
    from bridge.cli.broker import look_at_broker

    try:
        look_at_broker(config)
    except BridgeError as error:
        yield Problem("broker", str(error).removeprefix("broker "), hint=error.hint)


def _told(path: str, error: BridgeError) -> Problem:
    return Problem(path, str(error), hint=error.hint)

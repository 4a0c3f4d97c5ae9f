"""``mapbridge check``: everything wrong with a configuration and with what it names, at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from bridge.cli import output
from bridge.cli.options import config_option, set_option
from bridge.config import Config, ConfigError, Problem, read
from bridge.errors import BridgeError


@click.command("check")
@config_option
@click.option(
    "--no-environment", is_flag=True, help="Look at the file only, not at maps and broker."
)
@set_option
@output.json_option
def command(
    config_path: Path, no_environment: bool, settings: tuple[str, ...], as_json: bool
) -> None:
    """Check a configuration file, the maps and the broker it names.

    All problems are told at once, each with its place in the file and the value found there. Exit
    code 78 when there is one.

    \b
    Examples:
      mapbridge check -c mapbridge.toml
      mapbridge check -c mapbridge.toml --no-environment
    """
    loaded = read(config_path, settings)
    config = loaded.config
    if not no_environment:
        problems = [*_maps(config), *_broker(config)]
        if problems:
            hint = "" if len(problems) > 1 else problems[0].hint
            placed = [loaded.layers.placed(one) for one in problems]
            raise ConfigError(str(config_path), placed, hint=hint)
    if as_json:
        output.print_json(
            {
                "ok": True,
                "file": str(config_path),
                "files": [str(one) for one in loaded.layers.files],
                "maps": len(config.maps),
                "warnings": loaded.warnings,
            }
        )
        return
    for warning in loaded.warnings:
        click.echo(f"Warning: {warning}", err=True)
    looked = "the file only" if no_environment else "maps and broker too"
    output.line(f"{config_path}: good ({len(config.maps)} maps; {looked})")


def _maps(config: Config) -> Iterator[Problem]:
    from bridge.node.judging import map_problems

    for index, entry in enumerate(config.maps):
        yield from map_problems(f"maps[{index}]", entry, absent=True)


def _broker(config: Config) -> Iterator[Problem]:
    from bridge.cli.broker import look_at_broker

    try:
        look_at_broker(config)
    except BridgeError as error:
        yield Problem("broker", str(error).removeprefix("broker "), hint=error.hint)

"""``mapbridge config``: what may stand in a configuration file, and what one says in full."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from bridge.cli import output
from bridge.cli.options import config_option, set_option
from bridge.config import Loaded, read, sample, without_password
from bridge.errors import BridgeError

VALUE_LENGTH_MAX = 60


@click.group("config")
def command() -> None:
    """Print a sample configuration, or the one in force."""


@command.command()
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to a new file instead of standard output.",
)
def init(target: Path | None) -> None:
    """Print a configuration file with every key, its default and its meaning.

    \b
    Examples:
      mapbridge config init
      mapbridge config init -o /etc/mapbridge/mapbridge.toml
    """
    if target is None:
        click.echo(sample(), nl=False)
        return
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(sample())
    except FileExistsError as error:
        raise BridgeError(
            f"{target}: is there already", hint="name another file, or remove this one"
        ) from error
    except OSError as error:
        raise BridgeError(f"{target}: cannot be written: {error.strerror}") from error
    output.line(f"wrote {target}")


@command.command()
@config_option
@set_option
@click.option("--origin", "with_origin", is_flag=True, help="Tell where each value is from.")
@output.json_option
def show(config_path: Path, settings: tuple[str, ...], with_origin: bool, as_json: bool) -> None:
    """Print the configuration in force: what was given, and the defaults of all others.

    With --origin each key stands as in a file, with where its value is from: a file and line, a
    variable of the environment, --set, or the default.

    \b
    Examples:
      mapbridge config show -c mapbridge.toml
      mapbridge config show -c mapbridge.toml --json
      MAPBRIDGE_NODE_NAME=lb-2 mapbridge config show --origin
    """
    loaded = read(config_path, settings)
    for warning in loaded.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if with_origin:
        _print_origins(loaded, as_json=as_json)
        return
    config = loaded.config
    urls = tuple(without_password(url) for url in config.broker.urls)
    config = dataclasses.replace(config, broker=dataclasses.replace(config.broker, urls=urls))
    if as_json:
        output.print_json(config)
        return
    rows = [
        (f"{table}.{field.name}", _shown(getattr(getattr(config, table), field.name)))
        for table in ("node", "broker", "capture", "limits", "snapshots", "http", "security")
        for field in dataclasses.fields(getattr(config, table))
    ]
    rows += [
        (f"maps[{index}].{field.name}", _shown(getattr(entry, field.name)))
        for index, entry in enumerate(config.maps)
        for field in dataclasses.fields(entry)
    ]
    output.print_table(("key", "value"), rows)


def _print_origins(loaded: Loaded, *, as_json: bool) -> None:
    rows = list(loaded.values())
    if as_json:
        output.print_json(
            {"values": [{"key": k, "value": value, "origin": origin} for k, value, origin in rows]}
        )
        return
    output.print_table(
        ("key", "value", "origin"), [(k, _one_line(value), origin) for k, value, origin in rows]
    )


def _one_line(value: object) -> str:
    text = " ".join(_shown(value).split())
    return text if len(text) <= VALUE_LENGTH_MAX else f"{text[: VALUE_LENGTH_MAX - 1]}…"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)

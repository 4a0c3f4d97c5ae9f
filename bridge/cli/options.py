"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from bridge.config.units import parse_duration

Command = TypeVar("Command", bound=Callable[..., object])

CONFIG_FILE = Path("/etc/mapbridge/mapbridge.toml")
_NUMBER = re.compile(r"\d+(\.\d*)?")
RATE_MAX = 10_000_000  # changes per second that a measurement may ask for


class Duration(click.ParamType[float]):
    """``30s``, ``24h``, or a plain number of seconds; the command gets seconds."""

    name = "DURATION"

    def __init__(self, seconds_min: float = 0.0) -> None:
        self.seconds_min = seconds_min

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value)
        try:
            seconds = float(text) if _NUMBER.fullmatch(text) else parse_duration(text)
            if seconds < self.seconds_min:
                raise ValueError(f"must be at least {self.seconds_min:g}s")
        except ValueError as error:
            self.fail(f"{error} (got {text!r})", param, ctx)
        return seconds


def config_option(command: Command) -> Command:
    """``-c/--config FILE``; the command gets it as ``config_path``."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        default=CONFIG_FILE,
        show_default=True,
        envvar="MAPBRIDGE_CONFIG",
        help="The configuration file.",
    )(command)


def set_option(command: Command) -> Command:
    """``--set KEY=VALUE``, any number of times; the command gets them as ``settings``."""
    return click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="A key of the configuration, such as broker.url=nats://host; goes before all others.",
    )(command)


def optional_config_option(command: Command) -> Command:
    """The same for a command that works without one; it gets ``None`` when none is named."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        default=None,
        envvar="MAPBRIDGE_CONFIG",
        help="A configuration file, to look at what it names as well.",
    )(command)

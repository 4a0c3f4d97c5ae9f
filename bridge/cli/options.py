"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])

CONFIG_FILE = Path("/etc/mapbridge/mapbridge.toml")
RATE_MAX = 10_000_000  # changes per second that a measurement may ask for


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

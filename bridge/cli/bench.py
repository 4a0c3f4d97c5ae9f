"""``mapbridge bench``: measurements of this machine, to size a deployment."""

from __future__ import annotations

import importlib

import click

_MEASUREMENTS = (
    *("sync-rate", "late-join", "drops", "overhead", "codecs", "transports", "memory", "scan"),
    "plot",
)


class _Measurements(click.Group):
    """Loads the module of a measurement when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MEASUREMENTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MEASUREMENTS:
            return None
        name = cmd_name.replace("-", "_")
        found = getattr(importlib.import_module(f"bridge.cli.benches.{name}"), name)
        assert isinstance(found, click.Command)
        return found


@click.group("bench", cls=_Measurements)
def command() -> None:
    """Measure this machine. Needs root; removes everything it makes."""

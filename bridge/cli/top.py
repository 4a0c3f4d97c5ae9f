"""``mapbridge top``: the nodes and maps of a cluster, live, in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.live import Live

from bridge.bus.control import Answer
from bridge.bus.micro import ask_nodes
from bridge.cli import output
from bridge.cli.broker import reader_bus
from bridge.cli.options import config_option
from bridge.cli.top_view import SORTS, Screen, view
from bridge.config import Config, load
from bridge.errors import BridgeError

GATHER_SECONDS = 0.4
EVERY_SECONDS_MIN = 0.5
KEY_SECONDS = 0.05
CONNECT_SECONDS = 5.0


@click.command("top")
@config_option
@click.option(
    "--every",
    type=click.FloatRange(EVERY_SECONDS_MIN, 60),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print one look, with rates, and end.")
@output.json_option
def command(config_path: Path, every: float, once: bool, as_json: bool) -> None:
    """Show the nodes and maps of a cluster live: what is synced, rates, losses, troubles.

    The nodes tell it themselves, through the broker, so it runs on any machine that reaches that.
    Keys: q ends, p holds the picture, s sorts by another column. With --json one object per look
    and line, until it is interrupted.

    \b
    Examples:
      mapbridge top
      mapbridge top --once
      mapbridge top --json | jq '.nodes[] | {node, maps: (.maps | keys)}'
    """
    config = load(config_path)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if not (once or as_json or interactive):
        raise BridgeError(
            "top: needs a terminal to draw in, and standard output or input is none",
            hint="`mapbridge top --once` prints one look, --json one object per look",
        )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_top(config, every, once=once, as_json=as_json))


async def _top(config: Config, every: float, *, once: bool, as_json: bool) -> None:
    async with reader_bus(config, "top", seconds_max=CONNECT_SECONDS) as bus:
        cluster = config.node.cluster

        async def ask() -> list[Answer]:
            return await ask_nodes(await bus.link(), cluster, GATHER_SECONDS)

        if as_json:
            while True:
                found = await ask()
                click.echo(orjson.dumps({"cluster": cluster, "nodes": found}))
                if once:
                    return
                await asyncio.sleep(max(every - GATHER_SECONDS, 0.0))
        screen = Screen(cluster)
        screen.learn(await ask(), time.monotonic())
        if once:
            await asyncio.sleep(every)
            screen.learn(await ask(), time.monotonic())
            Console(width=None if sys.stdout.isatty() else 120).print(view(screen))
            return
        await _live(screen, ask_every=every, ask=ask)


async def _live(
    screen: Screen, *, ask_every: float, ask: Callable[[], Awaitable[list[Answer]]]
) -> None:
    console = Console()
    with (
        _keys() as pressed,
        Live(view(screen), console=console, screen=True, auto_refresh=False) as live,
    ):
        asked_at = time.monotonic()
        while True:
            for key in pressed():
                if key in ("q", "\x03", "\x1b"):
                    return
                if key == "p":
                    screen.paused = not screen.paused
                if key == "s":
                    screen.sort = SORTS[(SORTS.index(screen.sort) + 1) % len(SORTS)]
                live.update(view(screen, console.height), refresh=True)
            if time.monotonic() - asked_at >= ask_every:
                asked_at = time.monotonic()
                try:
                    screen.learn(await ask(), time.monotonic())
                except BridgeError as error:
                    screen.trouble = str(error)
                live.update(view(screen, console.height), refresh=True)
            await asyncio.sleep(KEY_SECONDS)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """Keys as they are pressed, none echoed; the terminal is as before at the end."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> str:
        found = ""
        while select.select([descriptor], [], [], 0)[0]:
            part = os.read(descriptor, 64).decode(errors="replace")
            if not part:
                return found + "q"  # the terminal is gone
            found += part
        return found

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

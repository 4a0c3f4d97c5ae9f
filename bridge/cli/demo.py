"""``mapbridge demo``: what mapbridge does, shown on this machine with real connections."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from bridge.cli import output
from bridge.cli.output import json_option
from bridge.config import CaptureMode
from bridge.demo.story import NotEqualError, Outcome, Scene, Story
from bridge.demo.traffic import SESSIONS_DEFAULT, SESSIONS_MAX

LINE_SECONDS = 1.0  # between two lines of progress where there is no terminal


@click.command("demo")
@click.option(
    "--sessions",
    type=click.IntRange(1, SESSIONS_MAX),
    default=SESSIONS_DEFAULT,
    show_default=True,
    help="TCP connections to open.",
)
@click.option(
    "--capture",
    type=click.Choice([str(mode) for mode in CaptureMode]),
    default="auto",
    show_default=True,
    help="How node a sees the changes of its map.",
)
@json_option
def command(sessions: int, capture: str, as_json: bool) -> None:
    """Track real TCP connections on node a and see them arrive in node b's map.

    Starts a nats-server and two bridges, opens connections between two network namespaces, starts
    a third bridge late, compares the three maps entry by entry, and closes the connections again.
    Needs root. Removes everything it made. With --json, progress goes to standard error and the
    last line of standard output is one object.

    \b
    Examples:
      mapbridge demo
      mapbridge demo --sessions 5000 --json
    """
    display = Display(err=as_json)
    outcome = Story(sessions, capture, display.show).run()
    display.end()
    if as_json:
        output.print_json(asdict(outcome))
    else:
        _print(outcome)
    if not outcome.equal:
        raise NotEqualError(
            f"maps differ: {outcome.missing} missing, {outcome.wrong} wrong, {outcome.extra} extra,"
            f" {outcome.left} left after closing",
            hint="this is a fault of mapbridge: please report it with the output above",
        )


class Display:
    """One line that is written over on a terminal, a line per second elsewhere."""

    def __init__(self, *, err: bool) -> None:
        self._err = err
        self._live = (sys.stderr if err else sys.stdout).isatty()
        self._step = ""
        self._shown = -LINE_SECONDS

    def show(self, scene: Scene) -> None:
        new = scene.step != self._step
        if not new and not self._live and scene.seconds - self._shown < LINE_SECONDS:
            return
        if self._live and new and self._step:
            click.echo(err=self._err)
        self._step, self._shown = scene.step, scene.seconds
        text = _describe(scene)
        click.echo(f"\r\033[K{text}" if self._live else text, nl=not self._live, err=self._err)

    def end(self) -> None:
        if self._live:
            click.echo(err=self._err)


def _describe(scene: Scene) -> str:
    text = f"{scene.seconds:6.1f} s  {scene.step}"
    if not scene.entries:
        return text
    names = "abc"
    entries = "  ".join(f"{names[i]} {count:,}" for i, count in enumerate(scene.entries))
    return (
        f"{text}: {scene.sessions:,} of {scene.wanted:,} open | entries {entries} | "
        f"{scene.changes_per_second:,.0f} changes/s, lag {scene.lag_seconds * 1000:,.0f} ms"
    )


def _print(outcome: Outcome) -> None:
    output.line()
    output.print_table(
        ["node", "entries", "what it did"],
        [
            ["a", outcome.source_entries, f"tracked the connections, capture: {outcome.capture}"],
            ["b", outcome.replica_entries, "applied every change"],
            ["c", outcome.late_entries, "started late, caught up from the stream"],
        ],
    )
    output.line()
    output.line(
        f"{outcome.sessions:,} sessions in {outcome.seconds:.0f} s: {outcome.missing} missing, "
        f"{outcome.wrong} wrong, {outcome.extra} extra; {outcome.left} left after closing them"
    )

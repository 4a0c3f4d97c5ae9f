"""``mapbridge demo``: what mapbridge does, shown on this machine with real connections."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict

import click

from bridge.cli import output
from bridge.cli.output import json_option
from bridge.config import CaptureMode
from bridge.config.values import listen as listen_address
from bridge.demo.failover import Failover, FailoverOutcome, Failure
from bridge.demo.story import NotEqualError, Outcome, Story
from bridge.demo.telling import Scene
from bridge.demo.traffic import SESSIONS_DEFAULT, SESSIONS_MAX

LINE_SECONDS = 1.0  # between two lines of progress where there is no terminal


def _listen(_: click.Context, __: click.Parameter, value: str | None) -> str:
    """Checked here, or a bridge with a configuration that nobody has seen would tell of it."""
    try:
        return "" if value is None else str(listen_address(value))
    except ValueError as error:
        raise click.BadParameter(f"{error} (got {value!r})") from error


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
@click.option(
    "--fail",
    type=click.Choice([str(failure) for failure in Failure]),
    help="Lose node a with its sessions: the whole `host`, or all but its disk by a `reboot`.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=_listen,
    help="Where node b serves its page meanwhile, such as 127.0.0.1:9475.",
)
@json_option
def command(sessions: int, capture: str, fail: str | None, listen: str, as_json: bool) -> None:
    """Track real TCP connections on node a and see them arrive in node b's map.

    Starts a nats-server and two bridges, opens connections between two network namespaces, starts
    a third bridge late, compares the three maps entry by entry, and closes the connections again.

    With --fail, the nodes are routers that drop what they have no entry for, and keepalived moves
    the gateway's address. Node a is lost, node b takes over; node a comes back with an empty map
    and takes over again when the check script says that it is synced.

    Needs root. Removes everything it made. With --json, progress goes to standard error and the
    last line of standard output is one object.

    \b
    Examples:
      mapbridge demo
      mapbridge demo --sessions 5000 --json
      mapbridge demo --listen 127.0.0.1:9475
      mapbridge demo --fail host
    """
    if fail is not None and listen:
        raise click.UsageError("--listen: the nodes of --fail have networks of their own")
    # What was made is removed on the way out, and what was started ended.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    display = Display(err=as_json)
    if fail is not None:
        failed = Failover(sessions, capture, Failure(fail), display.show).run()
        display.end()
        _report_failover(failed, as_json=as_json)
        return
    outcome = Story(sessions, capture, display.show, listen=listen).run()
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
    entries = "  ".join(f"{name} {count:,}" for name, count in scene.entries.items())
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


def _report_failover(outcome: FailoverOutcome, *, as_json: bool) -> None:
    if as_json:
        output.print_json(asdict(outcome))
    else:
        _print_failover(outcome)
    if not outcome.equal:
        raise NotEqualError(
            f"maps differ: {outcome.missing} missing, {outcome.wrong} wrong, {outcome.extra} extra,"
            f" {outcome.left} left after closing; at the takeover {outcome.at_takeover_missing} "
            f"missing, {outcome.at_takeover_wrong} wrong, {outcome.at_takeover_extra} extra",
            hint="this is a fault of mapbridge: please report it with the output above",
        )


def _print_failover(outcome: FailoverOutcome) -> None:
    output.line()
    output.print_table(
        ["after s", "exit code", "entries of the new node a"],
        [[f"{one.seconds:.1f}", one.exit_code, one.entries] for one in outcome.answers],
    )
    output.line()
    output.line(
        f"node a lost: node b had the addresses after {outcome.takeover_seconds:.1f} s, "
        f"{outcome.answered_by_b:,} of {outcome.sessions_lost_with_a:,} sessions answered"
    )
    output.line(
        f"node a back: it had the addresses after {outcome.return_seconds:.1f} s, then lacking "
        f"{outcome.at_takeover_missing}; {outcome.answered_by_a:,} of {outcome.sessions:,} answered"
    )
    output.line(
        f"{outcome.sessions:,} sessions in {outcome.seconds:.0f} s: {outcome.missing} missing, "
        f"{outcome.wrong} wrong, {outcome.extra} extra; {outcome.left} left after closing them"
    )

"""``mapbridge feed``: changes decoded and published beside the log, for readers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Protocol

import click
import orjson
from click.core import ParameterSource

from bridge.bus.feeds import FeedPublisher, FeedSettings, SourcePlace
from bridge.bus.nats_bus import NatsBus
from bridge.bus.streams import LogSettings
from bridge.cli import output
from bridge.cli.broker import reader_bus
from bridge.cli.layouts import layout_here
from bridge.cli.names import MAP
from bridge.cli.options import Duration, config_option
from bridge.cli.places import PLACE, Place
from bridge.config import Config, Storage, load
from bridge.errors import BridgeError
from bridge.feed.encoders import Kind
from bridge.feed.feeding import Feeder
from bridge.feed.layouts import LayoutBook
from bridge.feed.otlp import Collector, OtlpFeeder
from bridge.feed.pouring import FeedCounters
from bridge.layout.types import Layout

FILE = "feeds.json"
SAVE_SECONDS = 1.0
MAX_AGE_SECONDS_MIN = 60.0


class Running(Protocol):
    """One feed, whatever it feeds."""

    name: str
    counters: FeedCounters
    published: SourcePlace | None

    async def run(self, begin: SourcePlace, until: int | None) -> None: ...


@click.command("feed")
@click.argument("names", metavar="[MAP...]", nargs=-1, type=MAP)
@config_option
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([kind.value for kind in Kind]),
    multiple=True,
    default=[kind.value for kind in Kind],
    show_default=True,
    help="What to publish (repeatable).",
)
@click.option("--otlp", metavar="URL", help="Send to this OpenTelemetry collector instead.")
@click.option("--from", "start", type=PLACE, help="Where a feed begins that has never run: start.")
@click.option(
    "--max-age",
    type=Duration(MAX_AGE_SECONDS_MIN),
    default="24h",
    show_default=True,
    help="How long the feeds keep a message, when their stream has to be made.",
)
@click.option("--once", is_flag=True, help="Stop at what is the end of the log now.")
@output.json_option
@click.pass_context
def command(
    context: click.Context,
    names: tuple[str, ...],
    config_path: Path,
    kinds: tuple[str, ...],
    otlp: str | None,
    start: Place | None,
    max_age: float,
    once: bool,
    as_json: bool,
) -> None:
    """Publish the changes of MAPs (default: all of the configuration), decoded, for readers.

    Reads the log like any consumer, so that capture never waits. Messages go to
    mapbridge.CLUSTER.feed.KIND.MAP of the stream MAPBRIDGE_CLUSTER_FEED: json has one object per
    line, typed a Changes message of the map's own .proto. A feed that is started again goes on
    where it was, on any machine; run one per cluster. Until SIGTERM, or with --once to the end.

    With --otlp changes go to a collector of OpenTelemetry, as log records, by OTLP over HTTP. How
    far it has them is kept in the state directory.

    \b
    Examples:
      mapbridge feed -c node-a.toml
      mapbridge feed conntrack --kind json --from 1h
      nats sub 'mapbridge.default.feed.json.conntrack'
      mapbridge feed conntrack --otlp http://127.0.0.1:4318
    """
    if otlp is not None and context.get_parameter_source("kinds") is not ParameterSource.DEFAULT:
        raise click.UsageError("--kind and --otlp: choose one")
    config = load(config_path)
    known = [entry.name for entry in config.maps]
    for name in names:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise click.BadParameter(f"{name!r} is not in {config_path} (it has: {listed})")
    gc.set_threshold(50_000, 20, 20)  # objects made here are trees, which need no collector
    collector = None if otlp is None else Collector(otlp, config.node.cluster)
    sinks = [Kind(kind) for kind in kinds] if collector is None else collector
    feeders = asyncio.run(_feed(config, names or tuple(known), sinks, start, max_age, once))
    if as_json:
        output.print_json({"feeds": {f.name: asdict(f.counters) for f in feeders}})
    else:
        output.print_table(
            ["feed", "changes", "messages", "MiB", "position"],
            [
                [
                    f.name,
                    f.counters.changes,
                    f.counters.messages,
                    f"{f.counters.bytes / (1 << 20):.1f}",
                    f.counters.position,
                ]
                for f in feeders
            ],
        )


async def _feed(
    config: Config,
    names: tuple[str, ...],
    sinks: list[Kind] | Collector,
    start: Place | None,
    max_age: float,
    once: bool,
) -> Sequence[Running]:
    saved = _Saved(config.node.state_directory / FILE, config.node.cluster)
    storage: Literal["file", "memory"]
    storage = "memory" if config.broker.storage is Storage.MEMORY else "file"
    log_settings = LogSettings(storage=storage, replicas=config.broker.replicas)
    settings = FeedSettings(int(max_age), log_settings)
    async with reader_bus(config, "feed") as bus:
        cluster = config.node.cluster
        book = LayoutBook(bus, cluster, _own_layouts(config, names), _say)
        feeders = _feeders(bus, cluster, names, sinks, settings, book)
        log = await bus.log_state(cluster)
        begin = await _begin(bus, cluster, start, log.id)
        until = log.last if once else None
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        tasks = [
            asyncio.create_task(feeder.run(saved.of(feeder.name, log.id) or begin, until))
            for feeder in feeders
        ]
        try:
            await _until_over(tasks, stop, saved, feeders)
        finally:
            if isinstance(sinks, Collector):
                sinks.close()
    return feeders


def _feeders(
    bus: NatsBus,
    cluster: str,
    names: tuple[str, ...],
    sinks: list[Kind] | Collector,
    settings: FeedSettings,
    book: LayoutBook,
) -> Sequence[Running]:
    if isinstance(sinks, Collector):
        return [OtlpFeeder(bus, cluster, name, sinks, book=book, report=_say) for name in names]
    return [
        Feeder(
            bus,
            cluster,
            name,
            kind,
            publisher=FeedPublisher(bus, cluster, kind, name, settings),
            book=book,
            report=_say,
        )
        for name in names
        for kind in sinks
    ]


async def _until_over(
    tasks: list[asyncio.Task[None]], stop: asyncio.Event, saved: _Saved, feeders: Sequence[Running]
) -> None:
    """Until all have ended, one has failed, or a signal came; positions are saved meanwhile."""
    stopping = asyncio.create_task(stop.wait())
    running = set(tasks)
    try:
        while running and not stop.is_set():
            await asyncio.wait(
                [*running, stopping], timeout=SAVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            saved.save(feeders)
            for task in [task for task in running if task.done()]:
                task.result()
                running.discard(task)
    finally:
        stopping.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
        saved.save(feeders)


async def _begin(bus: NatsBus, cluster: str, start: Place | None, log: str) -> SourcePlace:
    if start is None:
        return SourcePlace(log, 0)
    last = (await bus.log_state(cluster)).last
    return SourcePlace(log, min(await start.first(bus, cluster) - 1, last))


def _own_layouts(config: Config, names: tuple[str, ...]) -> dict[str, Layout]:
    """For changes that name no layout; where there is none, they are told by their bytes."""
    found: dict[str, Layout] = {}
    for name in names:
        with contextlib.suppress(BridgeError):
            found[name] = layout_here(config.map(name))
    return found


class _Saved:
    """Positions in a file, for feeds whose last message has expired."""

    def __init__(self, path: Path, cluster: str) -> None:
        self._path = path
        self._cluster = cluster
        self._told = False
        try:
            content = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            content = {}
        held = content.get(cluster) if isinstance(content, dict) else None
        self._known: dict[str, str] = held if isinstance(held, dict) else {}

    def of(self, name: str, log: str) -> SourcePlace | None:
        """Where a feed was in that log; ``None``: nothing is known of that."""
        place = SourcePlace.parse(str(self._known.get(name, "")))
        return place if place is not None and place.log == log else None

    def save(self, feeders: Sequence[Running]) -> None:
        fresh = {f.name: str(f.published) for f in feeders if f.published is not None}
        if self._known | fresh == self._known:
            return
        self._known |= fresh
        draft = self._path.with_name(f".{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_bytes(orjson.dumps({self._cluster: self._known}))
            draft.replace(self._path)
        except OSError as error:
            if not self._told:
                _say(f"positions are kept in the feeds alone: {error}")
            self._told = True


def _say(text: str) -> None:
    click.echo(text, err=True)

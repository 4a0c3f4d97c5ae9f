"""``mapbridge export``: metrics out of the entries of maps, for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import click
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import start_http_server
from prometheus_client.metrics_core import Metric as Family

from bridge.bus.protocol import Gap, Received
from bridge.cli import output
from bridge.cli.broker import reader_bus
from bridge.cli.layouts import layout_here
from bridge.cli.options import config_option
from bridge.config import Config, MapConfig, load
from bridge.config.settings import MetricType
from bridge.errors import BridgeError, Exit
from bridge.feed.fold import Fold
from bridge.feed.layouts import LayoutBook
from bridge.feed.metrics import Metric
from bridge.feed.rows import Fields, FieldsOf
from bridge.layout.types import Layout
from bridge.model import Position

PORT = 9435


class NothingToExportError(BridgeError):
    """No map of the configuration has metrics."""

    exit_code = Exit.CONFIG


@click.command("export")
@config_option
@click.option("--listen", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, help="0: a free one."
)
@output.json_option
def command(config_path: Path, listen: str, port: int, as_json: bool) -> None:
    """Serve metrics out of the entries of maps, as the configuration's [[maps.metrics]] say.

    The entries are those of the whole cluster, folded from the log: this machine needs neither the
    map nor privileges. Until SIGTERM.

    \b
    Examples:
      mapbridge export -c metrics.toml
      curl http://127.0.0.1:9435/metrics
    """
    config = load(config_path)
    watched = [_Watched(entry) for entry in config.maps if entry.metrics]
    if not watched:
        raise NothingToExportError(
            f"{config_path}: no map has metrics", hint="give one a [[maps.metrics]] table"
        )
    registry = CollectorRegistry()
    registry.register(_Collector(watched))
    try:
        server, thread = start_http_server(port, listen, registry)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BridgeError(f"{listen}:{port}: cannot listen there ({reason})") from error
    url = f"http://{listen}:{server.server_port}/metrics"
    if as_json:
        output.print_json({"url": url})
    else:
        output.line(f"metrics at {url}")
    try:
        asyncio.run(_export(config, watched))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Watched:
    """One map's fold, filled by the event loop and read by the server's threads."""

    def __init__(self, entry: MapConfig) -> None:
        self.name = entry.name
        self.metrics = [Metric(each) for each in entry.metrics]
        self._fold = Fold()
        self._layouts: dict[int, Fields | None] = {}
        self._lock = threading.Lock()
        self._position = 0

    def add(self, item: Received, fields: Fields | None) -> None:
        with self._lock:
            self._fold.add(item)
            self._layouts[item.delta.layout] = fields
            self._position = item.sequence

    def families(self) -> Iterator[Family]:
        with self._lock:
            entries, layouts = dict(self._fold.entries), dict(self._layouts)
            position = self._position
        labels = ["map"]
        held = GaugeMetricFamily("mapbridge_export_entries", "entries of the map", labels=labels)
        held.add_metric([self.name], len(entries))
        yield held
        read = GaugeMetricFamily(
            "mapbridge_export_position", "last message of the log that counts", labels=labels
        )
        read.add_metric([self.name], position)
        yield read
        dropped = GaugeMetricFamily(
            "mapbridge_export_series_dropped",
            "combinations of labels left out",
            labels=["map", "metric"],
        )
        skipped = GaugeMetricFamily(
            "mapbridge_export_entries_skipped",
            "entries without the metric's fields",
            labels=["map", "metric"],
        )
        for metric in self.metrics:
            config, found = metric.config, metric.series(entries, layouts)
            kind = CounterMetricFamily if config.type is MetricType.COUNTER else GaugeMetricFamily
            family = kind(config.name, config.help, labels=[name for name, _ in config.labels])
            for values, amount in found.values.items():
                family.add_metric(list(values), amount)
            yield family
            dropped.add_metric([self.name, config.name], found.dropped)
            skipped.add_metric([self.name, config.name], found.skipped)
        yield dropped
        yield skipped


class _Collector:
    """Implements prometheus_client's collector."""

    def __init__(self, watched: list[_Watched]) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Family]:
        merged: dict[str, Family] = {}
        for one in self._watched:
            for family in one.families():
                if family.name in merged:
                    merged[family.name].samples += family.samples
                else:
                    merged[family.name] = family
        yield from merged.values()


async def _export(config: Config, watched: list[_Watched]) -> None:
    own: dict[str, Layout] = {}
    for one in watched:
        with contextlib.suppress(BridgeError):
            own[one.name] = layout_here(config.map(one.name))
    by_name = {one.name: one for one in watched}
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with reader_bus(config, "export") as bus:
        cluster = config.node.cluster
        book, fields_of = LayoutBook(bus, cluster, own, _say), FieldsOf()
        subscription = bus.subscribe(cluster, list(by_name), Position(0))

        async def read() -> None:
            async for item in subscription:
                if isinstance(item, Received):
                    fields = fields_of(await book.of(item.delta))
                    by_name[item.delta.origin.map].add(item, fields)
                elif isinstance(item, Gap):
                    _say(f"the log begins at {item.last_missing + 1}: older entries are not known")
                else:
                    _say(f"skipped: {item}")

        reading, stopping = asyncio.create_task(read()), asyncio.create_task(stop.wait())
        await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not reading.done():
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        else:
            reading.result()


def _say(text: str) -> None:
    click.echo(text, err=True)

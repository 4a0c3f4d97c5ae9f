"""``mapbridge replay``: history of a map, printed, published or written to another map."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import click

from bridge.apply.writer import MapWriter
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import MESSAGE_OVERHEAD_BYTES, Gap, Item, Received
from bridge.cli.at import last_of
from bridge.cli.broker import reader_bus
from bridge.cli.layouts import configured, layout_here
from bridge.cli.names import MAP
from bridge.cli.options import config_option
from bridge.cli.places import PLACE, PLACE_OR_SNAPSHOT, Place
from bridge.config import Config, load
from bridge.core.keys import last_rows
from bridge.errors import BridgeError, Exit
from bridge.feed.encoders import JsonEncoder, Kind, encoder_of
from bridge.feed.layouts import LayoutBook
from bridge.feed.parquet import ParquetFiles
from bridge.feed.past import Past, forgotten, needed_past, newest_past
from bridge.feed.replay import history
from bridge.kernel.errors import MapNotFoundError
from bridge.kernel.maps import KernelMap, create_map, open_map, open_pin
from bridge.kernel.maptypes import MapType
from bridge.layout.types import Layout
from bridge.model import MapSelector, Op
from bridge.wire.subjects import HEADER_LAYOUT, HEADER_SOURCE, ROOT

SCRATCH_NAME = "replayed"
CONFIRM_SECONDS_MAX = 5.0
FORMATS = ("json", "parquet")
_LINES_BYTES_MAX = 1 << 20


class ReplayError(BridgeError):
    """History cannot go where it was told to."""

    exit_code = Exit.USAGE


class Target(Protocol):
    """Where history goes."""

    async def take(self, item: Received, layout: Layout | None) -> None: ...


@click.command("replay")
@click.argument("name", metavar="MAP", type=MAP)
@config_option
@click.option(
    "--from",
    "start",
    type=PLACE_OR_SNAPSHOT,
    help="Where to begin; without it: start, or snapshot where the log has forgotten its start.",
)
@click.option("--to", "end", type=PLACE, help="Where to stop; without it: what is the end now.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Times as fast as it happened: 1, 10, 0.5; 0 (default): at once.",
)
@click.option("-o", "--output", "file", type=click.File("wb"), help="A file instead.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Of the file; without it: parquet if its name ends so, else json lines.",
)
@click.option("--subject", help="Publish to this subject of NATS instead.")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in Kind]),
    default=Kind.JSON.value,
    show_default=True,
    help="What to publish, as `mapbridge feed` does.",
)
@click.option(
    "--into", "pin", type=click.Path(path_type=Path), help="Write to the map pinned here."
)
@click.option(
    "--entries",
    type=click.IntRange(min=1),
    help="Make that map, a hash map of so many entries, when nothing is pinned there.",
)
def command(
    name: str,
    config_path: Path,
    start: Place | None,
    end: Place | None,
    speed: float,
    file: BinaryIO | None,
    form: str | None,
    subject: str | None,
    kind: str,
    pin: Path | None,
    entries: int | None,
) -> None:
    """Take the history of MAP out of the log again: to standard output, or somewhere else.

    Goes to standard output as JSON lines, like those of the json feed, or to a file of these or of
    Parquet, to another subject, or into a scratch map, which must be none that the configuration
    names.

    \b
    Examples:
      mapbridge replay conntrack -c node-a.toml --from 1h -o hour.jsonl
      mapbridge replay conntrack -o all.parquet
      mapbridge replay conntrack --from 1h --to 30m --speed 10 --subject test.conntrack
      mapbridge replay conntrack --to 12345 --into /sys/fs/bpf/then --entries 65536
    """
    if sum(target is not None for target in (file, subject, pin)) > 1:
        raise click.UsageError("--output, --subject and --into: choose one")
    parquet = None
    if form == "parquet" or (form is None and file is not None and file.name.endswith(".parquet")):
        if file is None or file.name in ("-", "<stdout>"):
            raise click.UsageError("--format parquet: needs a file, -o NAME.parquet")
        parquet = ParquetFiles(Path(file.name))
    config = load(config_path)
    configured(config, name, config_path)
    with contextlib.ExitStack() as stack:
        scratch = None
        if pin is not None:
            scratch = stack.enter_context(_scratch(config, name, pin, entries))
        if parquet is not None:
            stack.callback(parquet.close)
        output = file if parquet is None else parquet
        asyncio.run(
            _replay(config, name, start, end, speed, output, (subject, Kind(kind)), scratch)
        )


async def _replay(
    config: Config,
    name: str,
    start: Place | None,
    end: Place | None,
    speed: float,
    file: BinaryIO | ParquetFiles | None,
    subject: tuple[str | None, Kind],
    scratch: KernelMap | None,
) -> None:
    cluster = config.node.cluster
    own: dict[str, Layout] = {}
    with contextlib.suppress(BridgeError):
        own[name] = layout_here(config.map(name))
    async with reader_bus(config, "replay") as bus:
        target: Target
        if subject[0] is not None:
            target = _Subject(bus, subject[0], subject[1])
        elif isinstance(file, ParquetFiles):
            target = _Parquet(file)
        else:
            target = _File(file) if scratch is None else _Scratch(scratch)
        book = LayoutBook(bus, cluster, own, _say)
        state = await bus.log_state(cluster)
        last = state.last if end is None else await last_of(bus, cluster, end)
        past = await _past(bus, cluster, name, start, last)
        if past is not None:
            first = past.position + 1
            _say(f"begins with the entries of the snapshot at message {past.position}")
        else:
            first = max(await (start or Place()).first(bus, cluster), 1)
        messages = changes = 0
        async for item in _items(bus, cluster, name, past, first, last, speed):
            if isinstance(item, Received):
                await target.take(item, await book.of(item.delta))
                messages += 1
                changes += len(item.delta.batch)
            elif isinstance(item, Gap) and item.last_missing >= first:
                _say(f"the log begins at {item.last_missing + 1}: what came before is gone")
            else:
                _say(f"skipped: {item}")
    _say(f"{changes} changes in {messages} messages")


async def _past(
    bus: NatsBus, cluster: str, name: str, start: Place | None, last: int
) -> Past | None:
    """The snapshot to begin with, if one is asked for, or nothing is and the log needs it."""
    if start is not None:
        return await needed_past(bus, cluster, name, last, _say) if start.snapshot else None
    if not await forgotten(bus, cluster):
        return None
    return await newest_past(bus, cluster, name, last, _say)


async def _items(
    bus: NatsBus, cluster: str, name: str, past: Past | None, first: int, last: int, speed: float
) -> AsyncIterator[Item]:
    if past is not None:
        async for entries in past.entries():
            yield entries
    async for item in history(bus, cluster, name, first, last, speed=speed):
        yield item


class _File:
    """JSON lines; without a file to standard output."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self._encoder = JsonEncoder()

    async def take(self, item: Received, layout: Layout | None) -> None:
        parts = self._encoder.pieces(item.delta, layout, item.sequence, 0, _LINES_BYTES_MAX)
        for _, data in parts:
            if self._file is None:
                click.echo(data, nl=False)
            else:
                self._file.write(data)


class _Parquet:
    """Files of Parquet, one for each layout."""

    def __init__(self, files: ParquetFiles) -> None:
        self._files = files

    async def take(self, item: Received, layout: Layout | None) -> None:
        before = len(self._files.paths)
        self._files.add(item, layout)
        if before and len(self._files.paths) > before:
            _say(f"another layout from message {item.sequence} on: to {self._files.paths[-1]}")


class _Subject:
    """Another subject, published and confirmed by the connection; nobody stores it for us."""

    def __init__(self, bus: NatsBus, subject: str, kind: Kind) -> None:
        tokens = subject.split(".")
        if tokens[0] in (ROOT, "$JS", "$SYS", "$KV") or not all(
            token and not set(token) & set("*> \t\r\n") for token in tokens
        ):
            raise ReplayError(
                f"subject: must be one of your own, without wildcards (got {subject!r})",
                hint=f"subjects that begin with {ROOT}. belong to the bridge",
            )
        self._bus = bus
        self._subject = subject
        self._encoder = encoder_of(kind)

    async def take(self, item: Received, layout: Layout | None) -> None:
        if not self._encoder.takes(layout):
            _say(f"message {item.sequence}: has no known layout, left out")
            return
        size_max = self._bus.state.max_payload - MESSAGE_OVERHEAD_BYTES
        headers = {
            HEADER_SOURCE: str(item.sequence),
            HEADER_LAYOUT: f"{item.delta.layout:016x}",
        }
        link = await self._bus.link()
        for _, data in self._encoder.pieces(item.delta, layout, item.sequence, 0, size_max):
            await link.send(self._subject, data, headers=headers)
        if not await link.pulse(CONFIRM_SECONDS_MAX):
            raise ReplayError(
                f"subject {self._subject}: the broker went while message {item.sequence} was sent",
                hint=f"go on with --from {item.sequence}",
            )
        link.check_allowed(self._subject)


class _Scratch:
    """A map that no bridge knows. Evictions are left out, as nodes do."""

    def __init__(self, scratch: KernelMap) -> None:
        self._writer = MapWriter(scratch)

    async def take(self, item: Received, layout: Layout | None) -> None:
        del layout
        batch = item.delta.batch
        self._writer.check_sizes("the log", batch.key_size, batch.value_size)
        batch = batch.take(batch.ops != Op.EVICT)
        if not len(batch):
            return
        rows = last_rows(batch.keys)
        written = self._writer.write(batch if rows is None else batch.take(rows))
        if written.error is not None:
            raise written.error
        if written.full is not None:
            raise ReplayError(
                f"map: full (got max_entries {self._writer.entries_max})",
                hint="make it larger with --entries",
            )


@contextlib.contextmanager
def _scratch(config: Config, name: str, pin: Path, entries: int | None) -> Iterator[KernelMap]:
    """The map at ``pin``, made when ``entries`` says so. Raises ``ReplayError``."""
    try:
        opened = open_pin(pin)
    except MapNotFoundError:
        if entries is None:
            raise
        with open_map(config.map(name).selector) as like:
            info = like.info
        opened = create_map(
            MapType.HASH, info.key_size, info.value_size, entries, name=SCRATCH_NAME
        )
        opened.pin(pin)
    with opened:
        for entry in config.maps:
            if _id_of(entry.selector) == opened.info.id:
                raise ReplayError(
                    f"{pin}: is map {entry.name}, which is bridged",
                    hint="replay into a map of its own: name a new pin, with --entries",
                )
        yield opened


def _id_of(selector: MapSelector) -> int | None:
    with contextlib.suppress(BridgeError), open_map(selector) as found:
        return found.info.id
    return None


def _say(text: str) -> None:
    click.echo(text, err=True)

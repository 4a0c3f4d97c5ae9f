"""What a cluster costs per node: `python -m tests.scale` measures units, and adds them up.

Units are measured against a real nats-server with the production code of both sides: bytes and
processor time per message and per change, at the sender, the server and a reader. The sums are a
model: every node reads what every node publishes, so it is products of the units.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.streams import LogSettings
from bridge.bus.subscription import NatsSubscription
from bridge.core.fingerprints import Fingerprints
from bridge.core.origins import OriginTracker
from bridge.core.replica import Replica
from bridge.model import Delta, DeltaBatch, Op, Origin, Position
from bridge.wire.codec import encode

CLUSTER, MAP = "scale", "m"
KEY, VALUE = 16, 24
READERS = 4
SMALL, LARGE = 1, 4_096  # changes in a message
SIZES = (10, 100, 1_000)
IDLE_SECONDS = 10.0
IDLE_READERS = 64
STANDINGS = 0.1  # a second and map
CHECKS, CHECKS_MAX = 0.2, 50.0  # a second: of one reader, of all together; two requests each
LOOKS, LOOKS_MAX = 0.2, 4.0  # for due snapshots: the same, three requests each


@dataclass(frozen=True, slots=True)
class Units:
    """Microseconds of processor time and bytes."""

    message_bytes: float  # beside its changes, as stored
    change_bytes: float
    send_us: float
    store_us: float  # at the server, per message
    deliver_us: float  # at the server, per message and reader
    deliver_change_us: float
    read_us: float  # per message: received, decoded and judged
    read_change_us: float
    idle_server_us: float  # per reader and second
    origin_bytes: float  # of memory, per node and map whose changes were seen
    entry_bytes: float  # of memory, per entry of a map that is compared with the stream


@dataclass(frozen=True, slots=True)
class Sum:
    """Per second. ``cores``: processors."""

    nodes: int
    messages_out: float
    messages_in: float
    bytes_in: float
    asked: float  # requests of a node that has nothing to do
    node_cores: float
    server_cores: float
    server_bytes_out: float
    memory_bytes: float


def delta(origin: Origin, first: int, rows: int) -> Delta:
    numbers = np.arange(first, first + rows, dtype=np.uint64)
    keys = np.zeros((rows, KEY), np.uint8)
    keys[:, :8] = numbers.view(np.uint8).reshape(-1, 8)
    values = np.full((rows, VALUE), first % 251, np.uint8)
    batch = DeltaBatch.of_entries(Op.UPDATE, keys, values, time.monotonic_ns())
    return Delta(origin, first, batch)


async def read(subscription: NatsSubscription, judge: Replica, messages: int) -> None:
    left = messages
    async for item in subscription:
        judge.judge([item.delta])  # type: ignore[union-attr]
        left -= 1
        if not left:
            return


async def exchange(
    bus: NatsBus, server: EmbeddedServer, rows: int, messages: int, readers: int
) -> dict[str, float]:
    """Microseconds per message of one sender, the server, and one reader."""
    origin = Origin(CLUSTER, MAP, f"n{rows}-{readers}", 1)
    head = (await bus.log_state(CLUSTER)).last
    publisher = await bus.publisher(origin)
    sent_out = [delta(origin, 1 + at * rows, rows) for at in range(messages)]
    served, began = cpu_seconds(server.pid), time.process_time()
    for message in sent_out:
        await publisher.publish(message)
    sent, stored = time.process_time() - began, cpu_seconds(server.pid) - served
    subscriptions = [bus.subscribe(CLUSTER, [MAP], Position(head)) for _ in range(readers)]
    judges = [
        Replica(Origin(CLUSTER, MAP, f"r{n}", 1), publishes=False, applies=True)
        for n in range(readers)
    ]
    served, began = cpu_seconds(server.pid), time.process_time()
    await asyncio.gather(*(read(*one, messages) for one in zip(subscriptions, judges, strict=True)))
    taken, delivered = time.process_time() - began, cpu_seconds(server.pid) - served
    for one in subscriptions:
        await one.close()
    times = {"send": sent, "store": stored, "read": taken / readers, "deliver": delivered / readers}
    return {name: seconds * 1e6 / messages for name, seconds in times.items()}


async def idle(bus: NatsBus, server: EmbeddedServer) -> float:
    """Microseconds of the server per reader and second in which nothing comes."""
    head = (await bus.log_state(CLUSTER)).last
    used = []
    for readers in (0, IDLE_READERS):
        quiet = [bus.subscribe(CLUSTER, [MAP], Position(head)) for _ in range(readers)]
        while any(one.pending for one in quiet):  # noqa: ASYNC110 - until all are there
            await asyncio.sleep(0.1)
        before = cpu_seconds(server.pid)
        await asyncio.sleep(IDLE_SECONDS)
        used.append(cpu_seconds(server.pid) - before)
        for one in quiet:
            await one.close()
    return max(used[1] - used[0], 0.0) * 1e6 / IDLE_SECONDS / IDLE_READERS


def cpu_seconds(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory() -> tuple[float, float]:
    """Bytes per origin, bytes per entry."""
    tracemalloc.start()
    origins = OriginTracker()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(10_000):
        origins.admit(delta(Origin(CLUSTER, MAP, f"n{number}", number), 1, 1))
    origin = (tracemalloc.get_traced_memory()[0] - before) / 10_000
    fold = Fingerprints(KEY)
    before = tracemalloc.get_traced_memory()[0]
    for at in range(0, 262_144, LARGE):
        fold.note(delta(Origin(CLUSTER, MAP, "n", 1), 1 + at, LARGE).batch)
    held = len(fold)
    entry = (tracemalloc.get_traced_memory()[0] - before) / held
    tracemalloc.stop()
    return origin, entry


async def measure(directory: Path) -> Units:
    origin = Origin(CLUSTER, MAP, "n", 1)
    small, large = (len(encode(delta(origin, 1, rows))) for rows in (SMALL, LARGE))
    change = (large - small) / (LARGE - SMALL)
    async with EmbeddedServer(directory) as server:
        bus = await open_bus(BusSettings("scale", (server.url,)))
        await bus.ensure_log(CLUSTER, LogSettings())
        one = await exchange(bus, server, SMALL, 3_001, READERS)
        state = await bus.log_state(CLUSTER)
        stored = state.bytes / state.messages
        many = await exchange(bus, server, LARGE, 211, READERS)
        quiet = await idle(bus, server)
        await bus.close()

    def per_change(name: str) -> float:
        return max(many[name] - one[name], 0.0) / (LARGE - SMALL)

    origin_bytes, entry_bytes = memory()
    return Units(
        message_bytes=stored - change * SMALL,
        change_bytes=change,
        send_us=one["send"],
        store_us=one["store"],
        deliver_us=one["deliver"],
        deliver_change_us=per_change("deliver"),
        read_us=one["read"],
        read_change_us=per_change("read"),
        idle_server_us=quiet,
        origin_bytes=origin_bytes,
        entry_bytes=entry_bytes,
    )


def total(units: Units, nodes: int, changes: float, batches: float, entries: int) -> Sum:
    """``changes`` and ``batches`` (at most one per change) that each node publishes a second."""
    out = min(batches, changes)
    came, rows = nodes * out, nodes * changes
    size = units.message_bytes * out + units.change_bytes * changes
    checks, looks = min(CHECKS, CHECKS_MAX / nodes), min(LOOKS, LOOKS_MAX / nodes)
    served = nodes * (came * units.deliver_us + rows * units.deliver_change_us)
    return Sum(
        nodes=nodes,
        messages_out=out,
        messages_in=came,
        bytes_in=nodes * size,
        asked=2 * checks + 3 * looks + STANDINGS,
        node_cores=(out * units.send_us + came * units.read_us + rows * units.read_change_us) / 1e6,
        server_cores=(served + came * units.store_us + nodes * units.idle_server_us) / 1e6,
        server_bytes_out=nodes * nodes * size,
        memory_bytes=nodes * units.origin_bytes + entries * units.entry_bytes,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scale")
    parser.add_argument("--changes", type=float, default=100.0, help="a second, by each node")
    parser.add_argument("--batches", type=float, default=20.0, help="messages of them, at most")
    parser.add_argument("--entries", type=int, default=100_000, help="of the map")
    parser.add_argument("--nodes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mapbridge-scale-") as directory:
        units = asyncio.run(measure(Path(directory)))
    sums = [
        total(units, nodes, options.changes, options.batches, options.entries)
        for nodes in options.nodes
    ]
    if options.json:
        print(json.dumps({"units": asdict(units), "sums": [asdict(one) for one in sums]}))
        return 0
    for name, value in asdict(units).items():
        print(f"{name:<20}{value:>10.2f}")
    for one in sums:
        print("  ".join(f"{name} {value:,.4g}" for name, value in asdict(one).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

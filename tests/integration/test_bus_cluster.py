"""What servers of a cluster say of the log, and that it is not believed where it is not so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.link import RequestError
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.protocol import Received
from bridge.bus.streams import LogSettings, is_led
from bridge.bus.subscription import NatsSubscription
from bridge.model import Position
from bridge.wire.subjects import stream_name
from tests.bus_kit import (
    CLUSTER,
    DEADLINE_SECONDS,
    eventually,
    numbered_delta,
    origin,
)
from tests.chaos.servers import Server, ServerCluster

ROWS, VALUE_SIZE = 13, 65_536  # 0.85 MB a message
MISSED, MEANWHILE = 151, 61  # messages while the server is away, and after it came back
SECONDS = 2.0
READERS = 5  # at a time; the broker puts each on one of the three servers
KILLS_MAX = 7
TRIES_MAX = 500
ALONE_SECONDS = 15.0  # longer than it takes to believe that a log has lost its end


@asynccontextmanager
async def connected(servers: Sequence[Server]) -> AsyncIterator[NatsBus]:
    bus = await open_bus(BusSettings("n1", tuple(server.url for server in servers)))
    try:
        await bus.ensure_log(CLUSTER, LogSettings(replicas=3))
        yield bus
    finally:
        await bus.close()


@pytest.mark.timeout(300)
async def test_the_end_of_the_log_is_what_its_leader_says(cluster: ServerCluster) -> None:
    """A server that was killed comes back. For a while consumers are made there, which have nothing
    pending and send nothing, though the log goes on behind what they were asked for.
    """
    *stay, late = cluster.servers
    numbers = itertools.count()
    async with connected(stay) as bus:
        publisher = await bus.publisher(origin())

        async def publish(messages: int) -> None:
            for _ in range(messages):
                first = next(numbers) * ROWS + 1
                await publisher.publish(numbered_delta(first, ROWS, value_size=VALUE_SIZE))

        misled = 0
        for _ in range(KILLS_MAX):
            late.send(signal.SIGKILL)
            await publish(MISSED)
            late.start()
            meanwhile = asyncio.create_task(publish(MEANWHILE))
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                misled += sum(
                    await asyncio.gather(*(reads_it_all(bus, late) for _ in range(READERS)))
                )
            await meanwhile
            if misled:
                return
        pytest.fail("no consumer was made on the server while it lacked the log's end")


async def reads_it_all(bus: NatsBus, late: Server) -> bool:
    """Read to the end as far as the reader can tell, which must be the end indeed.

    The answer is whether its consumer was on the server that comes late, and that lacked the end.
    """
    wanted = (await bus.log_state(CLUSTER)).last
    after = read = wanted - 3
    subscription = bus.subscribe(CLUSTER, ["flows"], Position(after))
    try:
        await eventually(lambda: subscription._consumer is not None)
        on_late = await place_of(bus, subscription) == late.name
        lacking = stored(late) < wanted
        while subscription.pending:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    item = await anext(subscription)
                    assert isinstance(item, Received)
                    read = item.sequence
        assert read >= wanted, f"read up to {read}, the log held {wanted}"
        return on_late and lacking
    finally:
        await subscription.close()


async def place_of(bus: NatsBus, subscription: NatsSubscription) -> str:
    """The server of its consumer; empty: not told in time."""
    link = await bus.link()
    path = f"{stream_name(CLUSTER)}.{subscription.name}"
    try:
        return (await link.call(f"$JS.API.CONSUMER.INFO.{path}")).text("cluster", "leader")
    except RequestError:
        return ""


def stored(server: Server) -> int:
    """The last message that a server has itself."""
    found = server.stream(stream_name(CLUSTER))
    return int(found["state"]["last_seq"]) if found else 0


async def test_a_server_without_the_others_does_not_say_what_the_log_has_lost(
    cluster: ServerCluster,
) -> None:
    """It answers with what it holds, which may be less than was read of another one."""
    async with connected(cluster.servers[:1]) as bus:
        publisher = await bus.publisher(origin())
        for number in range(1, 8):
            await publisher.publish(numbered_delta(number, 1))
        cluster.part(apart=True)
        link = await bus.link()
        info = f"$JS.API.STREAM.INFO.{stream_name(CLUSTER)}"

        async def answers_without_leader() -> bool:
            with contextlib.suppress(RequestError):
                reply = await link.call(info)
                return not reply.error_code and not is_led(reply)
            return False

        for _ in range(TRIES_MAX):
            if await answers_without_leader():
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the servers have a leader, though none can reach another one")
        # As if these had been read of a server that is out of reach now.
        subscription = bus.subscribe(CLUSTER, ["flows"], Position(9))
        reading = asyncio.ensure_future(anext(subscription))
        await asyncio.wait({reading}, timeout=ALONE_SECONDS)
        assert not reading.done(), reading
        assert subscription.pending
        assert bus.state.connected
        cluster.part(apart=False)
        for number in range(8, 11):
            await publisher.publish(numbered_delta(number, 1))
        async with asyncio.timeout(DEADLINE_SECONDS):
            item = await reading
        assert isinstance(item, Received)
        assert item.sequence == 10

"""What every bus promises, run against the one in memory and against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.memory import MemoryBus
from bridge.bus.memory_log import MemoryLog
from bridge.bus.nats_bus import open_bus
from bridge.bus.protocol import (
    Broken,
    Bus,
    BusClosedError,
    DuplicateAckError,
    FencedError,
    Gap,
    LogReplacedError,
    MessageTooLargeError,
)
from bridge.bus.streams import LogSettings
from bridge.model import Position
from bridge.wire.codec import encode
from bridge.wire.subjects import delta_subject, message_id, stream_name
from tests.bus_kit import (
    CLUSTER,
    DEADLINE_SECONDS,
    assert_contiguous,
    eventually,
    numbered_delta,
    origin,
    read_deltas,
    read_items,
    same_changes,
)

START = Position(0)


@dataclass(slots=True)
class World:
    """A log, and ways to reach it: as a node, as a stranger, as the one who keeps it."""

    connect: Callable[[str], Awaitable[Bus]]
    inject: Callable[[str, bytes, str], Awaitable[None]]
    truncate: Callable[[int], Awaitable[None]]
    replace: Callable[[], Awaitable[None]]


def memory_world(stack: AsyncExitStack) -> World:
    log = MemoryLog(CLUSTER)

    async def connect(node: str) -> Bus:
        del node
        bus = MemoryBus(log)
        stack.push_async_callback(bus.close)
        return bus

    async def inject(subject: str, data: bytes, message_id: str) -> None:
        log.append(subject, data, message_id)

    async def truncate(first: int) -> None:
        log.truncate(first)

    async def replace_log() -> None:
        log.replace()

    return World(connect, inject, truncate, replace_log)


async def nats_world(stack: AsyncExitStack, directory: Path) -> World:
    server = await stack.enter_async_context(EmbeddedServer(directory))
    stream = stream_name(CLUSTER)

    async def connect(node: str) -> Bus:
        bus = await open_bus(BusSettings(node, (server.url,)))
        stack.push_async_callback(bus.close)
        await bus.ensure_log(CLUSTER, LogSettings())
        return bus

    keeper = await open_bus(BusSettings("keeper", (server.url,)))
    stack.push_async_callback(keeper.close)
    await keeper.ensure_log(CLUSTER, LogSettings())
    link = await keeper.link()

    async def inject(subject: str, data: bytes, message_id: str) -> None:
        headers = {"Nats-Msg-Id": message_id} if message_id else None
        await link.request(subject, data, headers)

    async def truncate(first: int) -> None:
        reply = await link.call(f"$JS.API.STREAM.PURGE.{stream}", {"seq": first})
        assert not reply.error, reply.error

    async def replace_log() -> None:
        reply = await link.call(f"$JS.API.STREAM.DELETE.{stream}", {})
        assert not reply.error, reply.error
        await keeper.ensure_log(CLUSTER, LogSettings())

    return World(connect, inject, truncate, replace_log)


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield memory_world(stack)
        else:
            yield await nats_world(stack, tmp_path / "nats")


async def test_what_is_published_is_received_once_and_in_order(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    subscription = bus.subscribe(CLUSTER, ["flows"], START)
    first = 1
    stored = []
    for rows in (3, 1, 7, 11):
        stored.append(await publisher.publish(numbered_delta(first, rows)))
        first += rows
    received = await read_deltas(subscription, 4)
    assert assert_contiguous(received) == first
    assert [item.sequence for item in received] == stored
    assert same_changes(received[2].delta.batch, numbered_delta(5, 7).batch)
    assert all(item.stored_at_ns > 1_600_000_000 * 10**9 for item in received)
    assert publisher.counters.published == 4
    await eventually(lambda: subscription.pending == 0)


async def test_one_order_for_all_readers(world: World) -> None:
    buses = [await world.connect(node) for node in ("n1", "n2", "n3")]
    origins = [origin(node) for node in ("n1", "n2", "n3")]
    publishers = [await b.publisher(of) for b, of in zip(buses, origins, strict=True)]

    async def publish(index: int) -> None:
        for number in range(1, 18):
            await publishers[index].publish(numbered_delta(number, 1, origins[index]))

    await asyncio.gather(*(publish(index) for index in range(3)))
    orders = []
    for bus in buses:
        received = await read_deltas(bus.subscribe(CLUSTER, ["flows"], START), 51)
        for of in origins:
            assert_contiguous([item for item in received if item.delta.origin == of])
        orders.append([(i.sequence, i.delta.origin, i.delta.first_sequence) for i in received])
    assert orders[0] == orders[1] == orders[2]


async def test_reading_starts_behind_a_position(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    stored = [await publisher.publish(numbered_delta(number, 1)) for number in range(1, 8)]
    subscription = bus.subscribe(CLUSTER, ["flows"], Position(stored[3]))
    received = await read_deltas(subscription, 3)
    assert [item.delta.first_sequence for item in received] == [5, 6, 7]


async def test_only_the_maps_asked_for(world: World) -> None:
    bus = await world.connect("n1")
    names = ["a.b", "a_b", "flows"]
    publishers = {name: await bus.publisher(origin(map_name=name)) for name in names}
    for number in range(1, 4):
        for name in names:
            await publishers[name].publish(numbered_delta(number, 1, origin(map_name=name)))

    async def maps_of(maps: list[str], count: int) -> list[str]:
        received = await read_deltas(bus.subscribe(CLUSTER, maps, START), count)
        return [item.delta.origin.map for item in received]

    assert await maps_of(["a.b"], 3) == ["a.b"] * 3
    assert await maps_of(["flows", "a_b"], 6) == ["a_b", "flows"] * 3
    assert await maps_of([], 9) == names * 3


async def test_head_is_the_end_of_the_log_over_all_maps(world: World) -> None:
    bus = await world.connect("n1")
    subscription = bus.subscribe(CLUSTER, ["flows"], START)
    assert await subscription.head() == 0
    publisher = await bus.publisher(origin(map_name="other"))
    last = 0
    for number in range(1, 4):
        last = await publisher.publish(numbered_delta(number, 1, origin(map_name="other")))
    assert await subscription.head() == last == 3
    state = await bus.log_state(CLUSTER)
    assert (state.first, state.last, state.messages) == (1, 3, 3)


async def test_a_second_instance_fences_the_first(world: World) -> None:
    first_bus, second_bus = await world.connect("n1"), await world.connect("n1")
    first = await first_bus.publisher(origin(incarnation=1))
    await first.publish(numbered_delta(1, 3, origin(incarnation=1)))
    second = await second_bus.publisher(origin(incarnation=2))
    # The first goes on until the second has stored something: that does not stop the second.
    await first.publish(numbered_delta(4, 1, origin(incarnation=1)))
    await second.publish(numbered_delta(1, 5, origin(incarnation=2)))
    for _ in range(2):
        with pytest.raises(FencedError) as caught:
            await first.publish(numbered_delta(5, 1, origin(incarnation=1)))
    assert "another instance" in str(caught.value)
    assert caught.value.hint
    await second.publish(numbered_delta(6, 1, origin(incarnation=2)))
    received = await read_deltas(first_bus.subscribe(CLUSTER, [], START), 4)
    assert [(i.delta.origin.incarnation, i.delta.first_sequence) for i in received] == [
        (1, 1),
        (1, 4),
        (2, 1),
        (2, 6),
    ]


async def test_a_foreign_duplicate_of_our_id_is_an_alarm(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    delta = numbered_delta(1, 3)
    await world.inject(delta_subject(origin("thief")), encode(delta), message_id(delta))
    with pytest.raises((DuplicateAckError, FencedError)):
        await publisher.publish(delta)
    assert publisher.counters.duplicates == 1
    assert publisher.counters.published == 0


async def test_a_cancelled_publish_can_be_called_again(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    for number in range(1, 14):
        delta = numbered_delta(number, 1)
        task = asyncio.create_task(publisher.publish(delta))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await publisher.publish(delta)
    received = await read_deltas(bus.subscribe(CLUSTER, [], START), 13)
    assert assert_contiguous(received) == 14
    assert (await bus.log_state(CLUSTER)).messages == 13


async def test_broken_messages_are_reported_and_skipped(world: World) -> None:
    bus = await world.connect("n1")
    subject = delta_subject(origin("n2"))
    await world.inject(subject, b"not a message", "")
    await world.inject(subject, encode(numbered_delta(1, 3, origin("n3"))), "")
    await world.inject("mapbridge.testing.delta._zz.n2", encode(numbered_delta(1, 3)), "")
    await world.inject(subject, encode(numbered_delta(1, 3, origin("n2"))), "")
    subscription = bus.subscribe(CLUSTER, [], START)
    items = await read_items(subscription, 4)
    reasons = [item.reason for item in items if isinstance(item, Broken)]
    assert len(reasons) == 3
    assert "is no DeltaBatch" in reasons[0] or "encoding" in reasons[0]
    assert "n3" in reasons[1]
    assert "escaped" in reasons[2]
    assert subscription.counters.broken == 3
    assert [item.sequence for item in items if isinstance(item, Broken)] == [1, 2, 3]
    assert not isinstance(items[3], Broken | Gap)


async def test_what_retention_took_is_a_gap(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    for number in range(1, 12):
        await publisher.publish(numbered_delta(number, 1))
    await world.truncate(8)
    subscription = bus.subscribe(CLUSTER, ["flows"], Position(2))
    items = await read_items(subscription, 5)
    assert items[0] == Gap(3, 7)
    assert [item.sequence for item in items[1:] if not isinstance(item, Gap)] == [8, 9, 10, 11]
    assert subscription.counters.gaps == 1


async def test_a_publisher_outlives_the_loss_of_its_last_message(world: World) -> None:
    bus = await world.connect("n1")
    mine = await bus.publisher(origin())
    other = await bus.publisher(origin("n2"))
    await mine.publish(numbered_delta(1, 1))
    await other.publish(numbered_delta(1, 1, origin("n2")))
    await world.truncate(3)
    assert await mine.publish(numbered_delta(2, 1)) == 3


async def test_a_log_made_anew_is_noticed(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    for number in range(1, 4):
        await publisher.publish(numbered_delta(number, 1))
    subscription = bus.subscribe(CLUSTER, ["flows"], START)
    await read_deltas(subscription, 3)
    saved = subscription.log_id
    assert saved
    await world.replace()
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(LogReplacedError):
            await anext(subscription)
        with pytest.raises(LogReplacedError):
            await publisher.publish(numbered_delta(4, 1))
        with pytest.raises(LogReplacedError):
            await anext(bus.subscribe(CLUSTER, ["flows"], Position(1)))
        with pytest.raises(LogReplacedError):
            await anext(bus.subscribe(CLUSTER, ["flows"], START, log_id=saved))
    again = await bus.publisher(origin(incarnation=8))
    assert await again.publish(numbered_delta(1, 1, origin(incarnation=8))) == 1


async def test_a_message_too_large_is_refused_and_nothing_breaks(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    with pytest.raises(MessageTooLargeError):
        await publisher.publish(numbered_delta(1, 17, value_size=65_536))
    await publisher.publish(numbered_delta(1, 15, value_size=65_536))
    (received,) = await read_deltas(bus.subscribe(CLUSTER, [], START), 1)
    assert same_changes(received.delta.batch, numbered_delta(1, 15, value_size=65_536).batch)
    assert bus.state.connected
    assert bus.state.reconnects == 0


async def test_closing_ends_iterations_and_publishers(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    ended, closed = bus.subscribe(CLUSTER, [], START), bus.subscribe(CLUSTER, [], START)
    reader = asyncio.create_task(anext(ended, None))
    await asyncio.sleep(0)
    await closed.close()
    assert await anext(closed, None) is None
    await bus.close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await reader is None
    with pytest.raises(BusClosedError):
        await publisher.publish(numbered_delta(1, 1))
    with pytest.raises(BusClosedError):
        bus.subscribe(CLUSTER, [], START)
    assert not bus.state.connected


async def test_clock_and_layout_travel(world: World) -> None:
    bus = await world.connect("n1")
    publisher = await bus.publisher(origin())
    sent = replace(numbered_delta(1, 2), clock_offset=-7, layout=2**63)
    await publisher.publish(sent)
    (received,) = await read_deltas(bus.subscribe(CLUSTER, [], START), 1)
    assert (received.delta.clock_offset, received.delta.layout) == (-7, 2**63)

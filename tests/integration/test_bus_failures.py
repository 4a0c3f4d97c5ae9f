"""The bus over a real server that is killed, stopped, away at first, or tampered with."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.protocol import (
    PublisherCounters,
    Received,
    Subscription,
)
from bridge.bus.server_binary import find_server
from bridge.bus.streams import LogSettings
from bridge.model import Position
from bridge.wire.codec import encode
from bridge.wire.subjects import delta_subject, stream_name
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
STREAM = stream_name(CLUSTER)


@asynccontextmanager
async def connected(
    server: EmbeddedServer, node: str = "n1", reports: list[str] | None = None
) -> AsyncIterator[NatsBus]:
    report = reports.append if reports is not None else (lambda text: None)
    bus = await open_bus(BusSettings(node, (server.url,)), report)
    try:
        await bus.ensure_log(CLUSTER, LogSettings())
        yield bus
    finally:
        await bus.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(tmp_path / "nats") as server:
        yield server


async def publish_all(bus: NatsBus, count: int, rows: int = 3) -> PublisherCounters:
    publisher = await bus.publisher(origin())
    for number in range(count):
        await publisher.publish(numbered_delta(1 + number * rows, rows))
    return publisher.counters


async def freeze(server: EmbeddedServer) -> int:
    """Stop the server's process as it stands; its pid, to let it go on."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")

    def stopped() -> bool:
        states = [
            (task / "stat").read_text("ascii").rpartition(") ")[2] for task in tasks.iterdir()
        ]
        return all(state.startswith("T") for state in states)

    await eventually(stopped)
    return pid


def _recreated_at_least(subscription: Subscription, times: int) -> bool:
    return subscription.counters.recreated >= times


async def test_every_batch_once_over_server_kills(server: EmbeddedServer) -> None:
    batches, kills = 997, 3
    async with connected(server, "n1") as writer, connected(server, "n2") as reader:
        subscription = reader.subscribe(CLUSTER, ["flows"], START)
        publishing = asyncio.create_task(publish_all(writer, batches))
        received: list[Received] = []
        for kill in range(kills):
            goal = batches * (kill + 1) // (kills + 2)
            received += await read_deltas(subscription, goal - len(received))
            server.kill()
        received += await read_deltas(subscription, batches - len(received))
        async with asyncio.timeout(DEADLINE_SECONDS):
            counters = await publishing
        assert counters.published == batches
        assert counters.errors >= kills, "each kill hit a publish"
        assert assert_contiguous(received) == 1 + batches * 3
        state = await reader.log_state(CLUSTER)
        assert (state.messages, state.last) == (batches, batches)
        assert server.restarts == kills
        assert writer.state.reconnects == kills
        assert 1 <= subscription.counters.recreated <= kills * 3


async def test_a_kill_while_the_reader_is_idle_loses_nothing(server: EmbeddedServer) -> None:
    async with connected(server) as bus:
        publisher = await bus.publisher(origin())
        subscription = bus.subscribe(CLUSTER, ["flows"], START)
        for number in range(1, 4):
            await publisher.publish(numbered_delta(number, 1))
        received = await read_deltas(subscription, 3)
        waiting = asyncio.create_task(anext(subscription))
        server.kill()
        await eventually(lambda: server.restarts == 1 and bus.state.connected)
        await publisher.publish(numbered_delta(4, 1))
        async with asyncio.timeout(DEADLINE_SECONDS):
            item = await waiting
        assert isinstance(item, Received)
        assert assert_contiguous([*received, item]) == 5


async def test_a_hung_server_is_noticed_and_its_late_work_does_no_harm(
    server: EmbeddedServer,
) -> None:
    settings = BusSettings("n1", (server.url,), request_timeout_seconds=0.3)
    bus = await open_bus(settings)
    try:
        await bus.ensure_log(CLUSTER, LogSettings())
        publisher = await bus.publisher(origin())
        await publisher.publish(numbered_delta(1, 1))
        pid = await freeze(server)
        try:
            publishing = asyncio.create_task(publisher.publish(numbered_delta(2, 1)))
            await eventually(lambda: publisher.counters.errors >= 2)
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await publishing == 2
            assert await publisher.publish(numbered_delta(3, 1)) == 3
        received = await read_deltas(bus.subscribe(CLUSTER, [], START), 3)
        assert assert_contiguous(received) == 4
        assert (await bus.log_state(CLUSTER)).messages == 3
    finally:
        await bus.close()


async def test_a_server_that_hangs_for_good_is_given_up(tmp_path: Path) -> None:
    reports: list[str] = []
    async with EmbeddedServer(tmp_path / "nats") as server:
        settings = BusSettings(
            "n1", (server.url,), ping_interval_seconds=1, pings_outstanding_max=1
        )
        bus = await open_bus(settings, reports.append)
        pid = await freeze(server)
        try:
            await eventually(lambda: not bus.state.connected)
        finally:
            os.kill(pid, signal.SIGCONT)
        await eventually(lambda: bus.state.connected)
        await bus.close()
    assert any("connection lost" in text for text in reports)


async def test_a_server_that_is_down_at_the_start_is_waited_for(tmp_path: Path) -> None:
    reports: list[str] = []
    server = EmbeddedServer(tmp_path / "nats")
    await server.start()
    await server.stop()
    opening = asyncio.create_task(open_bus(BusSettings("n1", (server.url,)), reports.append))
    await eventually(lambda: bool(reports))
    assert "cannot connect" in reports[0]
    assert server.url in reports[0]
    assert not opening.done()
    await server.start()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            bus = await opening
        assert bus.state.connected
        assert bus.state.max_payload == 1 << 20
        assert "connected" in reports[-1]
        await bus.close()
    finally:
        await server.stop()


async def test_opening_can_be_cancelled() -> None:
    opening = asyncio.create_task(open_bus(BusSettings("n1", ("nats://127.0.0.1:1",))))
    await asyncio.sleep(0.05)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(DEADLINE_SECONDS):
            await opening


async def test_the_next_server_of_the_list_is_tried(server: EmbeddedServer) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        bus = await open_bus(BusSettings("n1", ("nats://127.0.0.1:1", server.url)))
    assert bus.state.url == server.url
    await bus.close()


async def test_a_consumer_deleted_under_the_reader(server: EmbeddedServer) -> None:
    async with connected(server) as bus:
        publisher = await bus.publisher(origin())
        subscription = bus.subscribe(CLUSTER, ["flows"], START)
        link = await bus.link()
        received: list[Received] = []
        for round_number in range(3):
            await publisher.publish(numbered_delta(1 + round_number, 1))
            received += await read_deltas(subscription, 1)
            gone = await link.call(f"$JS.API.CONSUMER.DELETE.{STREAM}.{subscription.name}")
            assert not gone.error, gone.error
            await eventually(partial(_recreated_at_least, subscription, round_number + 1))
        await publisher.publish(numbered_delta(4, 1))
        received += await read_deltas(subscription, 1)
        assert assert_contiguous(received) == 5


async def test_no_consumer_is_left_behind(server: EmbeddedServer) -> None:
    async with connected(server) as bus, connected(server, "keeper") as keeper:
        subscriptions = [bus.subscribe(CLUSTER, [], START) for _ in range(3)]
        await publish_all(bus, 3)
        for subscription in subscriptions:
            await read_deltas(subscription, 3)
        link = await keeper.link()
        names = await link.call(f"$JS.API.CONSUMER.NAMES.{STREAM}", {})
        assert names.body["consumers"] == sorted(each.name for each in subscriptions)
        assert subscriptions[0].name.startswith("mapbridge-n1-")
        await bus.close()
        names = await link.call(f"$JS.API.CONSUMER.NAMES.{STREAM}", {})
        assert not names.body["consumers"]


async def test_a_slow_reader_is_waited_for(server: EmbeddedServer) -> None:
    messages, rows = 101, 13
    limit = 8 << 20
    async with connected(server) as bus:
        publisher = await bus.publisher(origin())
        for number in range(messages):
            await publisher.publish(numbered_delta(1 + number * rows, rows, value_size=65_536))
        stored = (await bus.log_state(CLUSTER)).bytes
        assert stored > 80 << 20
        subscription = bus.subscribe(CLUSTER, ["flows"], START, buffer_bytes_max=limit)
        await read_deltas(subscription, 1)
        # Nothing is taken now; the buffer fills, and stays within its bound over several checks.
        await eventually(lambda: subscription.counters.buffered_bytes_peak > limit // 2)
        assert subscription.pending == messages - 1
        expected = 1 + rows
        for _ in range(messages - 1):
            (item,) = await read_deltas(subscription, 1)
            assert item.delta.first_sequence == expected
            expected += rows
        assert subscription.counters.buffered_bytes_peak <= limit
        assert subscription.counters.recreated == 0
        assert subscription.counters.received == messages


async def test_largest_values_travel(server: EmbeddedServer) -> None:
    async with connected(server) as bus:
        publisher = await bus.publisher(origin())
        sent = numbered_delta(1, 15, key_size=512, value_size=65_536)
        await publisher.publish(sent)
        (received,) = await read_deltas(bus.subscribe(CLUSTER, [], START), 1)
        assert same_changes(received.delta.batch, sent.batch)


async def test_unparsable_headers_do_not_deafen_the_reader(server: EmbeddedServer) -> None:
    async with connected(server) as bus:
        host, port = server.url.removeprefix("nats://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        payload = encode(numbered_delta(1, 1, origin("n2")))
        subject = delta_subject(origin("n2")).encode()
        headers = b"NATS/1.0"  # no end of line: nothing that a client expects
        total = len(headers) + len(payload)
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        writer.write(
            b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, len(headers), total, headers, payload)
        )
        writer.write(b"PING\r\n")
        while b"PONG" not in await reader.readline():
            pass
        writer.close()
        await writer.wait_closed()
        stored = (await bus.log_state(CLUSTER)).messages
        publisher = await bus.publisher(origin())
        await publisher.publish(numbered_delta(1, 1))
        subscription = bus.subscribe(CLUSTER, [], START)
        await read_items(subscription, stored + 1)
        assert bus.state.reconnects == 0


async def test_messages_skipped_by_retention_are_reported_to_a_slow_reader(
    server: EmbeddedServer,
) -> None:
    async with connected(server) as bus:
        publisher = await bus.publisher(origin())
        for number in range(41):
            await publisher.publish(numbered_delta(1 + number * 13, 13, value_size=65_536))
        subscription = bus.subscribe(CLUSTER, ["flows"], START, buffer_bytes_max=8 << 20)
        await read_deltas(subscription, 1)
        await eventually(lambda: subscription.counters.received >= 5)
        link = await bus.link()
        assert not (await link.call(f"$JS.API.STREAM.PURGE.{STREAM}", {"seq": 40})).error
        sequences: list[int] = []
        while not sequences or sequences[-1] < 41:
            (item,) = await read_items(subscription, 1)
            if isinstance(item, Received):
                sequences.append(item.sequence)
        assert sequences[-2:] == [40, 41]
        assert len(sequences) < 40, "the purge came too late to take anything"
        await eventually(lambda: subscription.counters.gaps == 1)


async def test_the_longer_form_of_acknowledgement_subjects(tmp_path: Path) -> None:
    if find_server().version < (2, 14, 0):
        pytest.skip("nats-server older than 2.14: has no js_ack_fc_v2")
    flags = "feature_flags { js_ack_fc_v2: true }"
    async with (
        EmbeddedServer(tmp_path / "nats", extra_config=flags) as server,
        connected(server) as bus,
    ):
        await publish_all(bus, 13)
        subscription = bus.subscribe(CLUSTER, [], START)
        received = await read_deltas(subscription, 13)
        assert assert_contiguous(received) == 40
        assert subscription.counters.recreated == 0

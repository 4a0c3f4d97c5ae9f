"""The outbox: bounds, merging, sequences, waking; and the loop that empties it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bridge.bus.memory import MemoryBus
from bridge.bus.memory_log import MemoryLog
from bridge.bus.outbox import Outbox
from bridge.bus.protocol import MessageTooLargeError
from bridge.bus.publish_loop import Acked, PublishLoop, rows_per_message
from bridge.model import Cause, DeltaBatch, Position
from tests.bus_kit import (
    CLUSTER,
    DEADLINE_SECONDS,
    assert_contiguous,
    eventually,
    numbered_batch,
    origin,
    read_deltas,
    same_changes,
)

ROW_BYTES = numbered_batch(1, 1).nbytes


def outbox(rows: int = 1000) -> Outbox:
    return Outbox(16, 24, capacity_bytes=rows * ROW_BYTES)


def take_all(box: Outbox, rows_max: int) -> list[tuple[int, DeltaBatch]]:
    taken = []
    while (one := box.take(rows_max)) is not None:
        taken.append(one)
    return taken


def test_small_batches_are_merged_and_large_ones_cut() -> None:
    box = outbox()
    first = 1
    for rows in (1, 2, 31, 5, 7):
        assert box.put(numbered_batch(first, rows))
        first += rows
    taken = take_all(box, 10)
    assert [(sequence, len(batch)) for sequence, batch in taken] == [
        (1, 10),
        (11, 10),
        (21, 10),
        (31, 10),
        (41, 6),
    ]
    whole = DeltaBatch.concatenate([batch for _, batch in taken])
    assert np.array_equal(whole.keys, numbered_batch(1, 46).keys)


def test_causes_are_not_mixed() -> None:
    box = outbox()
    for number, cause in enumerate([Cause.SCAN, Cause.SCAN, Cause.CHANGE, Cause.REPAIR], 1):
        box.put(numbered_batch(number, 1, cause=cause))
    taken = take_all(box, 100)
    assert [(sequence, len(batch), batch.cause) for sequence, batch in taken] == [
        (1, 2, Cause.SCAN),
        (3, 1, Cause.CHANGE),
        (4, 1, Cause.REPAIR),
    ]


def test_a_batch_taken_whole_is_not_copied() -> None:
    box = outbox()
    batch = numbered_batch(1, 5)
    box.put(batch)
    taken = box.take(5)
    assert taken is not None
    assert taken[1] is batch


def test_a_full_outbox_refuses_and_loses_nothing() -> None:
    box = outbox(rows=10)
    assert box.put(numbered_batch(1, 7))
    assert not box.put(numbered_batch(8, 4))
    assert box.put(numbered_batch(8, 3))
    statistics = box.statistics()
    assert (statistics.rows, statistics.bytes) == (10, 10 * ROW_BYTES)
    assert statistics.batches_refused == 1
    assert box.take(6) is not None
    assert not box.put(numbered_batch(11, 1)), "a slice keeps its batch's memory"
    assert box.take(1) is not None
    assert box.put(numbered_batch(11, 7))
    assert [sequence for sequence, _ in take_all(box, 100)] == [8]
    statistics = box.statistics()
    assert (statistics.rows, statistics.bytes) == (0, 0)
    assert statistics.bytes_peak == 10 * ROW_BYTES
    assert statistics.rows_accepted == statistics.rows_taken == 17


def test_an_empty_outbox_takes_any_batch() -> None:
    box = outbox(rows=3)
    assert box.put(numbered_batch(1, 100))
    assert not box.put(numbered_batch(101, 1))


def test_a_closed_outbox_refuses_and_can_be_emptied() -> None:
    box = outbox()
    box.put(numbered_batch(1, 3))
    box.close()
    assert not box.put(numbered_batch(4, 1))
    assert box.take(10) is not None


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes"):
        outbox().put(numbered_batch(1, 1, key_size=8))
    with pytest.raises(ValueError, match="rows_max"):
        outbox().take(0)


async def test_a_sleeping_waiter_is_woken_from_another_thread() -> None:
    box = outbox()
    waiting = asyncio.create_task(box.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    thread = threading.Thread(target=box.put, args=(numbered_batch(1, 1),))
    thread.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await waiting
    thread.join()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await box.wait()  # at once: there is something
    box.take(1)
    closing = asyncio.create_task(box.wait())
    await asyncio.sleep(0)
    box.close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await closing


async def test_a_waiter_can_be_cancelled_and_wait_again() -> None:
    box = outbox()
    for _ in range(3):
        waiting = asyncio.create_task(box.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    again = asyncio.create_task(box.wait())
    await asyncio.sleep(0)
    box.put(numbered_batch(1, 1))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await again


async def test_everything_put_by_a_thread_arrives_in_order() -> None:
    batches = 1009
    log = MemoryLog(CLUSTER)
    bus = MemoryBus(log)
    box = Outbox(16, 24, capacity_bytes=50 * ROW_BYTES)
    acks: list[Acked] = []
    loop = PublishLoop(
        origin(),
        box,
        await bus.publisher(origin()),
        lambda: bus.state.max_payload,
        on_ack=acks.append,
    )

    def produce() -> None:
        for number in range(batches):
            while not box.put(numbered_batch(1 + number * 3, 3)):
                pass

    running = asyncio.create_task(loop.run())
    thread = threading.Thread(target=produce)
    thread.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.to_thread(thread.join)
        assert await loop.drain(DEADLINE_SECONDS) == 0
        await running
    received = await read_deltas(bus.subscribe(CLUSTER, [], Position(0)), log.last_sequence)
    assert assert_contiguous(received) == 1 + batches * 3
    whole = DeltaBatch.concatenate([item.delta.batch for item in received])
    assert np.array_equal(whole.keys, numbered_batch(1, batches * 3).keys)
    assert loop.counters.changes == batches * 3
    assert [ack.first_sequence for ack in acks] == [i.delta.first_sequence for i in received]
    assert [ack.sequence for ack in acks] == [item.sequence for item in received]
    assert len(acks) < batches, "waiting batches were merged"
    await bus.close()


async def test_a_drain_that_cannot_finish_tells_what_is_left() -> None:
    bus = MemoryBus(MemoryLog(CLUSTER))
    box = outbox()
    loop = PublishLoop(origin(), box, await bus.publisher(origin()), lambda: bus.state.max_payload)
    bus.disconnect()
    box.put(numbered_batch(1, 5))
    running = asyncio.create_task(loop.run())
    await eventually(lambda: loop.in_flight == 5)
    assert box.put(numbered_batch(6, 2))
    assert await loop.drain(0.01) == 7
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    bus.connect()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await loop.run()  # goes on with the message in flight
    received = await read_deltas(bus.subscribe(CLUSTER, [], Position(0)), 2)
    assert assert_contiguous(received) == 8
    assert same_changes(received[0].delta.batch, numbered_batch(1, 5))
    await bus.close()


def _are(acks: list[Acked], number: int) -> bool:
    return len(acks) == number


async def test_messages_of_a_busy_map_wait_for_company_and_others_do_not() -> None:
    log = MemoryLog(CLUSTER)
    bus = MemoryBus(log)
    box = outbox(200_000)
    acks: list[Acked] = []
    loop = PublishLoop(
        origin(),
        box,
        await bus.publisher(origin()),
        lambda: bus.state.max_payload,
        on_ack=acks.append,
    )
    running = asyncio.create_task(loop.run())
    first = 1
    for number in range(1, 4):  # each after a pause
        box.put(numbered_batch(first, 1))
        first += 1
        await eventually(partial(_are, acks, number))
        await asyncio.sleep(0.01)
    assert loop.counters.held == 0
    for _ in range(50):
        box.put(numbered_batch(first, 2_000))
        first += 2_000
        await asyncio.sleep(0)
    assert await loop.drain(DEADLINE_SECONDS) == 0
    await running
    assert loop.counters.held > 0
    assert loop.counters.changes == first - 1
    assert loop.counters.messages < 3 + 50
    await bus.close()


async def test_a_map_whose_row_cannot_fit_is_refused_by_name() -> None:
    bus = MemoryBus(MemoryLog(CLUSTER), max_payload=65_536)
    publisher = await bus.publisher(origin())
    with pytest.raises(MessageTooLargeError, match="map flows") as caught:
        PublishLoop(origin(), Outbox(4, 65_536), publisher, lambda: bus.state.max_payload)
    assert caught.value.hint
    await bus.close()


def test_rows_per_message_fill_but_never_burst_a_message() -> None:
    assert rows_per_message("m", 512, 65_536, 1 << 20) == 15
    assert rows_per_message("m", 16, 24, 1 << 20) == (2**20 - 4096) // 49


def test_the_outbox_counts_from_where_it_is_told() -> None:
    box = Outbox(16, 24, first_sequence=101)
    box.put(replace(numbered_batch(1, 2)))
    taken = box.take(10)
    assert taken is not None
    assert taken[0] == 101

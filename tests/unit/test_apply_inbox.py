"""The way from the event loop to the writer thread: bounds, order, fairness, the end."""

from __future__ import annotations

import asyncio

import numpy as np

from bridge.apply.inbox import TAKE_BYTES_MAX, Arrival, Inbox
from bridge.model import Delta, DeltaBatch, Op, Origin

ROW_BYTES = 8 + 8 + 1 + 8 + 8 + 4


def arrival(sequence: int, *, name: str = "m", rows: int = 1, value_size: int = 8) -> Arrival:
    batch = DeltaBatch.of_entries(
        Op.UPDATE, np.zeros((rows, 8), np.uint8), np.zeros((rows, value_size), np.uint8), 1
    )
    return Arrival(sequence, Delta(Origin("c", name, "n", 1), sequence, batch))


def sequences(taken: tuple[str, list[Arrival]] | None) -> list[int]:
    assert taken is not None
    return [a.sequence for a in taken[1]]


def test_what_goes_in_comes_out_by_map_in_order() -> None:
    async def scenario() -> None:
        inbox = Inbox(1 << 20, asyncio.get_running_loop())
        for sequence, name in enumerate(["a", "b", "a", "b", "a"], start=1):
            await inbox.put(arrival(sequence, name=name))
        assert inbox.statistics().waiting == 5
        assert sequences(inbox.take(0)) == [1, 3, 5]
        assert sequences(inbox.take(0)) == [2, 4]
        assert inbox.take(0) is None
        assert (inbox.statistics().waiting, inbox.statistics().waiting_bytes) == (0, 0)

    asyncio.run(scenario())


def test_the_loop_waits_for_room_and_the_bound_holds() -> None:
    async def scenario() -> None:
        inbox = Inbox(2 * ROW_BYTES, asyncio.get_running_loop())
        await inbox.put(arrival(1))
        await inbox.put(arrival(2))
        third = asyncio.create_task(inbox.put(arrival(3)))
        fourth = asyncio.create_task(inbox.put(arrival(4, name="other")))
        await asyncio.sleep(0)
        assert not third.done()
        assert not fourth.done()
        assert sequences(await asyncio.to_thread(inbox.take, 0)) == [1, 2]
        await asyncio.wait_for(asyncio.gather(third, fourth), 10)
        statistics = inbox.statistics()
        assert (statistics.waiting, statistics.peak_bytes) == (2, 2 * ROW_BYTES)
        assert statistics.waits >= 2

    asyncio.run(scenario())


def test_a_message_larger_than_the_bound_passes_alone() -> None:
    async def scenario() -> None:
        inbox = Inbox(100, asyncio.get_running_loop())
        await inbox.put(arrival(1))
        huge = asyncio.create_task(inbox.put(arrival(2, value_size=65_536)))
        await asyncio.sleep(0)
        assert not huge.done()
        assert sequences(await asyncio.to_thread(inbox.take, 0)) == [1]
        await asyncio.wait_for(huge, 10)
        assert sequences(inbox.take(0)) == [2]

    asyncio.run(scenario())


def test_a_busy_map_goes_behind_the_others_after_each_turn() -> None:
    async def scenario() -> None:
        inbox = Inbox(1 << 30, asyncio.get_running_loop())
        half = TAKE_BYTES_MAX // 2
        for sequence in (1, 2, 3):
            await inbox.put(arrival(sequence, name="busy", value_size=half))
        await inbox.put(arrival(4, name="quiet"))
        assert sequences(inbox.take(0)) == [1, 2]
        assert sequences(inbox.take(0)) == [4]
        assert sequences(inbox.take(0)) == [3]

    asyncio.run(scenario())


def test_after_the_end_what_is_inside_can_be_taken() -> None:
    async def scenario() -> None:
        inbox = Inbox(1 << 20, asyncio.get_running_loop())
        await inbox.put(arrival(1))
        inbox.close()
        assert sequences(inbox.take(60)) == [1]
        assert inbox.take(60) is None
        assert inbox.closed

    asyncio.run(scenario())


def test_what_waits_for_a_map_that_went_is_dropped_and_room_is_told() -> None:
    async def scenario() -> None:
        inbox = Inbox(3 * ROW_BYTES, asyncio.get_running_loop())
        for sequence in range(1, 4):
            await inbox.put(arrival(sequence, name="gone"))
        waiting = asyncio.create_task(inbox.put(arrival(4, name="other")))
        await asyncio.sleep(0)
        inbox.discard("gone")
        async with asyncio.timeout(5):
            await waiting
        taken = inbox.take(0)
        assert taken is not None
        assert (taken[0], sequences(taken)) == ("other", [4])
        assert (inbox.statistics().waiting, inbox.statistics().waiting_bytes) == (0, 0)

    asyncio.run(scenario())


def test_what_is_in_hand_when_its_map_goes_holds_good_no_more() -> None:
    async def scenario() -> None:
        inbox = Inbox(1 << 20, asyncio.get_running_loop())
        await inbox.put(arrival(1, name="a"))
        inbox.take(0)
        inbox.discard("b")
        assert inbox.holds_good("a")
        inbox.discard("a")
        assert not inbox.holds_good("a")
        await inbox.put(arrival(2, name="a"))  # of the map that took its place
        inbox.take(0)
        assert inbox.holds_good("a")

    asyncio.run(scenario())

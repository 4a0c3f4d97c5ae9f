"""The publisher's rules against any sequence of lost, late and unanswered attempts."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings, strategies as st

from bridge.bus import strict
from bridge.bus.memory import MemoryBus
from bridge.bus.memory_log import Fault, MemoryLog
from bridge.bus.protocol import FencedError
from bridge.bus.strict import Ack, Last
from bridge.model import Position
from bridge.wire.subjects import message_id
from tests.bus_kit import CLUSTER, assert_contiguous, numbered_delta, origin, read_deltas

FAULTS = st.lists(st.one_of(st.none(), st.sampled_from(Fault)), max_size=24)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "_PAUSE_SECONDS_MIN", 0.0)


@settings(deadline=None)
@given(
    faults=FAULTS,
    ids_first=st.booleans(),
    cancelled=st.sets(st.integers(1, 13)),
    ticks=st.integers(0, 9),
)
def test_each_message_is_stored_once_and_in_order(
    faults: list[Fault | None], ids_first: bool, cancelled: set[int], ticks: int
) -> None:
    async def scenario() -> None:
        log = MemoryLog(CLUSTER, ids_first=ids_first)
        log.faults.extend(faults)
        bus = MemoryBus(log)
        publisher = await bus.publisher(origin())
        stored = []
        for number in range(1, 14):
            delta = numbered_delta(number, 1)
            if number in cancelled:
                task = asyncio.create_task(publisher.publish(delta))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            stored.append(await publisher.publish(delta))
        received = await read_deltas(bus.subscribe(CLUSTER, [], Position(0)), 13)
        assert log.last_sequence == 13
        assert assert_contiguous(received) == 14
        assert stored == [item.sequence for item in received]
        assert publisher.counters.duplicates == 0
        await bus.close()

    asyncio.run(scenario())


class ForgetfulLog(MemoryLog):
    """Loses all that it holds before some requests; ``stored``: the ids of what it took."""

    def __init__(self, before: set[int], *, ids_first: bool) -> None:
        super().__init__(CLUSTER, ids_first=ids_first)
        self.stored: list[str] = []
        self._requests = itertools.count(1)
        self._before = before

    def append(
        self, subject: str, data: bytes, message_id: str = "", expected: int | None = None
    ) -> Ack:
        ack = super().append(subject, data, message_id, expected)
        if not ack.duplicate:
            self.stored.append(message_id)
        return ack

    def attempt(self, subject: str, data: bytes, message_id: str, expected: int) -> Ack:
        self._maybe_forget()
        return super().attempt(subject, data, message_id, expected)

    def last(self, subject: str) -> Last | None:
        self._maybe_forget()
        return super().last(subject)

    def _maybe_forget(self) -> None:
        if next(self._requests) in self._before:
            self.truncate(self.last_sequence + 1)


@settings(deadline=None)
@given(faults=FAULTS, ids_first=st.booleans(), forgets=st.sets(st.integers(1, 30)))
def test_what_the_log_forgets_before_it_is_acknowledged_was_stored_once(
    faults: list[Fault | None], ids_first: bool, forgets: set[int]
) -> None:
    async def scenario() -> None:
        log = ForgetfulLog(forgets, ids_first=ids_first)
        log.faults.extend(faults)
        bus = MemoryBus(log)
        publisher = await bus.publisher(origin())
        deltas = [numbered_delta(number, 1) for number in range(1, 14)]
        places = [await publisher.publish(delta) for delta in deltas]
        assert log.stored == [message_id(delta) for delta in deltas]
        assert places == sorted(set(places))
        assert publisher.counters.duplicates == 0
        await bus.close()

    asyncio.run(scenario())


@settings(deadline=None)
@given(faults=FAULTS, turns=st.lists(st.booleans(), min_size=5, max_size=31))
def test_of_two_instances_one_is_fenced_and_the_log_shows_the_change(
    faults: list[Fault | None], turns: list[bool]
) -> None:
    async def scenario() -> None:
        log = MemoryLog(CLUSTER)
        bus = MemoryBus(log)
        origins = [origin(incarnation=1), origin(incarnation=2)]
        publishers = [await bus.publisher(of) for of in origins]
        log.faults.extend(faults)
        alive = [True, True]
        sent = [0, 0]
        for turn in map(int, turns):
            if not alive[turn]:
                continue
            try:
                await publishers[turn].publish(numbered_delta(sent[turn] + 1, 1, origins[turn]))
                sent[turn] += 1
            except FencedError:
                alive[turn] = False
        received = await read_deltas(bus.subscribe(CLUSTER, [], Position(0)), log.last_sequence)
        for of, count in zip(origins, sent, strict=True):
            mine = [item for item in received if item.delta.origin == of]
            # A message that arrives late may be stored after its sender was fenced.
            assert count <= len(mine) <= count + 1
            assert_contiguous(mine)
        assert any(alive)
        await bus.close()

    asyncio.run(scenario())

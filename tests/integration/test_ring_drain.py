"""The thread that drains: real rings filled by test runs, sinks that refuse, sources that fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.bench.churn import OPERATIONS_MAX, Writer
from bridge.capture.drain import DrainThread
from bridge.capture.emit import EmitSource
from bridge.capture.source import ChangeSource, Losses
from bridge.errors import InvariantError
from bridge.kernel.features import Capability
from bridge.model import DeltaBatch, MapSelector
from tests.integration.churn_twin import TwinChurn, keeper, loaded_churn, rows
from tests.integration.kernel_support import needs, no_descriptor_leaks

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN)
RING_BYTES = 1 << 16
DEADLINE_SECONDS = 30.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.002)


def open_source(churn: TwinChurn) -> EmitSource:
    return EmitSource(
        churn.loaded.map("churn"),
        MapSelector(pin=str(churn.loaded.map_pin("churn_ring"))),
        MapSelector(pin=str(churn.loaded.map_pin("churn_lost"))),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def churn(cache: Path) -> Iterator[TwinChurn]:
    with no_descriptor_leaks(), loaded_churn(cache, "EMIT", f"RING_BYTES={RING_BYTES}") as churn:
        churn.set_writer(0, Writer(0, 199, OPERATIONS_MAX, 128))
        yield churn


@pytest.fixture
def other(cache: Path) -> Iterator[TwinChurn]:
    with loaded_churn(cache, "EMIT", f"RING_BYTES={RING_BYTES}") as churn:
        churn.set_writer(0, Writer(0, 199, 1))
        yield churn


@pytest.fixture
def source(churn: TwinChurn) -> Iterator[EmitSource]:
    source = open_source(churn)
    yield source
    source.close()


class Troubled:
    """A source that is always ready and always fails, or hands out what it is given."""

    interval = 3600.0

    def __init__(self, batches: list[DeltaBatch] | None = None) -> None:
        self.fd = os.eventfd(1)
        self.asked = 0
        self.batches = batches

    def fileno(self) -> int | None:
        return self.fd

    def drain(self) -> list[DeltaBatch]:
        self.asked += 1
        if self.batches is None:
            raise RuntimeError("as always")
        taken, self.batches = self.batches, []
        return taken

    def losses(self) -> Losses:
        return Losses()

    def close(self) -> None:
        os.close(self.fd)


class Timed(Troubled):
    """A source that wants to be asked every 3 ms."""

    interval = 0.003

    def fileno(self) -> int | None:
        return None

    def drain(self) -> list[DeltaBatch]:
        self.asked += 1
        return []


def test_wakes_for_each_change_and_hands_all_over(churn: TwinChurn, source: EmitSource) -> None:
    got: list[DeltaBatch] = []
    thread = DrainThread()
    thread.start()
    thread.add(source, keeper(got))
    for run in range(1, 14):
        churn.run(0, 1)
        wait_until(lambda: rows(got) == churn.writer(0).changes, f"the changes of run {run}")
    said = thread.statistics(source)
    assert said.rows == churn.writer(0).changes
    assert said.batches == len(got) <= said.drains
    assert said.bytes == sum(batch.nbytes for batch in got)
    assert (said.refusals, said.errors, said.held_rows) == (0, 0, 0)
    assert thread.stop()
    assert not thread.is_alive()


def test_a_full_sink_is_asked_again_and_the_ring_counts(
    churn: TwinChurn, source: EmitSource
) -> None:
    got: list[DeltaBatch] = []
    full = threading.Event()
    full.set()
    thread = DrainThread(retry_seconds=0.001)
    thread.start()
    keep = keeper(got)
    thread.add(source, lambda batch: not full.is_set() and keep(batch))
    churn.run(0, 1)
    wait_until(lambda: thread.statistics(source).refusals > 7, "a few refusals")
    drains = thread.statistics(source).drains
    churn.run(0, 199)  # more than the ring can hold: the thread must not read on
    refusals = thread.statistics(source).refusals
    wait_until(lambda: thread.statistics(source).refusals > refusals + 7, "more refusals")
    said = thread.statistics(source)
    assert said.drains == drains
    assert 0 < said.held_rows <= OPERATIONS_MAX
    lost = source.losses().ring_full
    assert lost > 0
    full.clear()
    wait_until(lambda: source.waiting_bytes() == 0, "the ring to be emptied")
    assert thread.stop()
    assert rows(got) + lost == churn.writer(0).changes
    assert source.losses().total == lost


def test_a_failing_source_is_contained(churn: TwinChurn, source: EmitSource) -> None:
    reported: list[tuple[ChangeSource, Exception]] = []

    def report(source: ChangeSource, error: Exception) -> None:
        reported.append((source, error))
        raise ValueError("a report that fails too")

    got: list[DeltaBatch] = []
    troubled = Troubled()
    thread = DrainThread(report)
    thread.add(troubled, lambda _: True)
    thread.add(source, keeper(got))
    thread.start()
    wait_until(lambda: troubled.asked >= 3, "three attempts")
    churn.run(0, 13)
    wait_until(lambda: rows(got) == churn.writer(0).changes, "the good source's changes")
    said = thread.statistics(troubled)
    assert said.errors == troubled.asked == len(reported)
    assert troubled.asked < 10, "asked later and later"
    assert all(s is troubled and str(e) == "as always" for s, e in reported)
    assert thread.is_alive()
    assert not thread.stop(), "one source could not be emptied"
    assert thread.statistics(source).errors == 0
    troubled.close()


def test_a_failing_sink_gets_the_batch_again(churn: TwinChurn, source: EmitSource) -> None:
    got: list[DeltaBatch] = []
    attempts: list[int] = []

    def sink(batch: DeltaBatch) -> bool:
        attempts.append(len(batch))
        if len(attempts) <= 2:
            raise RuntimeError("not yet")
        got.append(batch)
        return True

    thread = DrainThread()
    thread.add(source, sink)
    thread.start()
    churn.run(0, 1)
    wait_until(lambda: bool(got), "the batch")
    assert attempts[:3] == [attempts[0]] * 3
    assert thread.statistics(source).errors == 2
    assert thread.stop()
    assert rows(got) == churn.writer(0).changes


def test_stop_empties_the_rings_and_says_when_it_cannot(
    churn: TwinChurn, source: EmitSource
) -> None:
    got: list[DeltaBatch] = []
    refusing = Troubled([DeltaBatch.empty(4, 4)])
    thread = DrainThread(retry_seconds=0.001)
    thread.add(source, keeper(got))
    thread.add(refusing, lambda _: False)
    churn.run(0, 7)
    thread.start()
    began = time.monotonic()
    assert not thread.stop(deadline_seconds=0.2)
    assert time.monotonic() - began < DEADLINE_SECONDS
    assert rows(got) == churn.writer(0).changes
    refusing.close()


def test_a_removed_source_is_left_alone(churn: TwinChurn, source: EmitSource) -> None:
    got: list[DeltaBatch] = []
    thread = DrainThread()
    thread.start()
    thread.add(source, keeper(got))
    with pytest.raises(InvariantError):
        thread.add(source, lambda _: True)
    churn.run(0, 3)
    assert thread.remove(source, drain=True)
    assert thread.remove(source)
    received = rows(got)
    assert received == churn.writer(0).changes
    timed = Timed()
    thread.add(timed, lambda _: True)
    churn.run(0, 3)
    wait_until(lambda: timed.asked > 13, "the thread to go on")
    assert rows(got) == received
    assert thread.statistics(source).drains == 0
    thread.add(source, keeper(got))
    assert thread.stop()
    assert rows(got) == churn.writer(0).changes
    timed.close()


def test_a_sink_may_remove_its_source(churn: TwinChurn, source: EmitSource) -> None:
    thread = DrainThread()
    got: list[DeltaBatch] = []

    def sink(batch: DeltaBatch) -> bool:
        got.append(batch)
        thread.remove(source)
        return True

    thread.add(source, sink)
    thread.start()
    churn.run(0, 1)
    wait_until(lambda: bool(got), "the batch")
    timed = Timed()
    thread.add(timed, lambda _: True)
    wait_until(lambda: timed.asked > 3, "the thread to go on")
    assert thread.stop()
    assert len(got) == 1
    timed.close()


def test_a_busy_map_does_not_starve_another(
    churn: TwinChurn, other: TwinChurn, source: EmitSource
) -> None:
    """While one ring is filled without a pause, each change of the other one comes through."""
    quiet = open_source(other)
    busy_got: list[DeltaBatch] = []
    quiet_got: list[DeltaBatch] = []
    thread = DrainThread()
    thread.add(source, keeper(busy_got))
    thread.add(quiet, keeper(quiet_got))
    thread.start()
    enough = threading.Event()

    def keep_busy() -> None:
        while not enough.is_set():
            churn.run(0, 997)

    writer = threading.Thread(target=keep_busy)
    writer.start()
    try:
        wait_until(lambda: rows(busy_got) > 10_007, "the busy ring to be busy")
        for change in range(1, 32):
            other.run(0, 1)
            wait_until(lambda c=change: rows(quiet_got) == c, f"change {change}")  # type: ignore[misc]
    finally:
        enough.set()
        writer.join()
    assert thread.stop()
    assert rows(quiet_got) == 31
    assert rows(busy_got) + source.losses().ring_full == churn.writer(0).changes
    quiet.close()

"""A program that emits, and its source: nothing missing, nothing twice, the state of the map."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bridge.bench.churn import Writer
from bridge.capture.drain import DrainThread
from bridge.capture.emit import EmitError, EmitSource
from bridge.capture.source import Losses
from bridge.errors import Exit
from bridge.kernel.clock import ktime_ns
from bridge.kernel.errors import MapNotFoundError
from bridge.kernel.features import Capability
from bridge.model import DeltaBatch, MapSelector, Op
from tests.integration.churn_twin import (
    IN_PLACE,
    KEY_SIZE,
    VALUE_SIZE,
    TwinChurn,
    fold,
    foretold,
    keeper,
    loaded_churn,
    rows,
)
from tests.integration.kernel_support import needs, no_descriptor_leaks

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def churn(cache: Path) -> Iterator[TwinChurn]:
    with no_descriptor_leaks(), loaded_churn(cache, "EMIT") as churn:
        yield churn


@pytest.fixture
def tight(cache: Path) -> Iterator[TwinChurn]:
    """With the smallest ring that the probes use."""
    with no_descriptor_leaks(), loaded_churn(cache, "EMIT", "RING_BYTES=65536") as churn:
        yield churn


def pin(churn: TwinChurn, name: str) -> MapSelector:
    return MapSelector(pin=str(churn.loaded.map_pin(name)))


def open_source(churn: TwinChurn) -> EmitSource:
    return EmitSource(churn.loaded.map("churn"), pin(churn, "churn_ring"), pin(churn, "churn_lost"))


def drained(source: EmitSource) -> list[DeltaBatch]:
    batches: list[DeltaBatch] = []
    while taken := source.drain():
        batches += taken
    return batches


def content(churn: TwinChurn) -> dict[bytes, bytes]:
    return {
        key.tobytes(): value.tobytes()
        for keys, values in churn.loaded.map("churn").scan()
        for key, value in zip(keys, values, strict=True)
    }


@pytest.mark.parametrize("flags", [0, IN_PLACE], ids=["helper", "in-place"])
def test_every_change_once_and_the_map_as_foretold(churn: TwinChurn, flags: int) -> None:
    writer = Writer(first_key=1000, keys=499, operations=13, deletes=300, flags=flags)
    churn.set_writer(5, writer)
    source = open_source(churn)
    began = ktime_ns()
    churn.run(5, 1_009)
    ended = ktime_ns()
    batches = drained(source)
    counted, entries = foretold(writer, 13 * 1_009)
    assert churn.writer(5) == counted
    assert churn.entries() == entries
    merged = DeltaBatch.concatenate(batches)
    assert len(merged) == counted.changes
    assert int((merged.ops == Op.UPDATE).sum()) == counted.updates
    assert int((merged.ops == Op.DELETE).sum()) == counted.deletions
    assert fold(batches) == content(churn)
    updates = merged.take(merged.ops == Op.UPDATE)
    sequences = updates.values.view(np.uint64)[:, 2]
    assert (np.diff(sequences.astype(np.int64)) > 0).all(), "the writer's order"
    assert (merged.entered <= merged.left).all()
    assert began <= int(merged.entered.min())
    assert int(merged.left.max()) <= ended
    # The program takes the time that it puts into the value as the beginning of the change.
    assert (updates.values.view(np.uint64)[:, 1] == updates.entered).all()
    assert source.losses() == Losses()
    source.close()


def test_writers_of_two_threads_and_another_process(churn: TwinChurn) -> None:
    runs, writers = 4_001, [Writer(i << 32, 997, 17, 200) for i in range(3)]
    for number, writer in enumerate(writers):
        churn.set_writer(number, writer)
    source = open_source(churn)
    batches: list[DeltaBatch] = []
    thread = DrainThread()
    thread.add(source, keeper(batches))
    thread.start()
    script = (
        "import sys; from bridge.kernel.programs import open_pinned_program;"
        "answer = open_pinned_program(sys.argv[1]).test_run("
        "int(sys.argv[2]).to_bytes(64, 'little'), repeat=int(sys.argv[3]));"
        "sys.exit(answer.retval + answer.interrupted)"
    )
    program = str(churn.loaded.directory / "churn_run")
    with subprocess.Popen(
        [sys.executable, "-c", script, program, "2", str(runs)], cwd=ROOT
    ) as process:
        threads = [threading.Thread(target=churn.run, args=(i, runs)) for i in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert process.wait(60) == 0
    assert thread.stop()
    expected = {}
    changes = 0
    for number, writer in enumerate(writers):
        counted, entries = foretold(writer, 17 * runs)
        assert churn.writer(number) == counted
        expected.update(entries)
        changes += counted.changes
    assert source.losses() == Losses()
    assert rows(batches) == changes
    assert churn.entries() == expected
    assert fold(batches) == content(churn)
    source.close()


def test_a_full_ring_loses_exactly_what_it_counts(tight: TwinChurn) -> None:
    tight.set_writer(0, Writer(0, 4_999, 11, 100))
    source = open_source(tight)
    tight.run(0, 997)
    received = rows(drained(source))
    assert received == 65_536 // (8 + 24 + KEY_SIZE + VALUE_SIZE)
    assert received + source.losses().ring_full == tight.writer(0).changes
    losses = source.losses()
    assert losses.total == losses.ring_full > 0
    source.close()
    assert source.losses() == losses


def test_two_writers_and_a_reader_that_falls_behind(tight: TwinChurn) -> None:
    """Loss and reading at the same time: every change is either received or counted."""
    for number in range(2):
        tight.set_writer(number, Writer(number << 32, 4_999, 32, 100))
    source = open_source(tight)
    received: list[DeltaBatch] = []
    thread = DrainThread()
    thread.add(source, keeper(received))
    thread.start()
    threads = [threading.Thread(target=tight.run, args=(i, 20_011)) for i in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert thread.stop()
    changes = tight.writer(0).changes + tight.writer(1).changes
    losses = source.losses()
    assert rows(received) + losses.ring_full == changes
    assert losses.total == losses.ring_full
    assert source.ring_statistics().corrupt == source.ring_statistics().disturbed == 0
    source.close()


def test_what_was_emitted_before_the_opening_is_skipped(tight: TwinChurn) -> None:
    tight.set_writer(0, Writer(0, 997, 1, 0))
    tight.run(0, 2_003)  # and the losses of that time are not this source's
    source = open_source(tight)
    assert source.skipped > 0
    assert source.losses() == Losses()
    tight.run(0, 7)
    assert rows(drained(source)) == 7
    source.close()


def test_records_for_another_layout_are_counted(churn: TwinChurn) -> None:
    churn.set_writer(0, Writer(0, 997, 1, 0))
    source = EmitSource(churn.loaded.map("churn_writers"), pin(churn, "churn_ring"))
    churn.run(0, 31)
    assert source.drain() == []
    assert source.losses() == Losses(fault=31)
    source.close()


def test_maps_of_another_kind_are_refused(churn: TwinChurn) -> None:
    target = churn.loaded.map("churn")
    with pytest.raises(EmitError, match="not a ring buffer") as caught:
        EmitSource(target, pin(churn, "churn"))
    assert caught.value.exit_code is Exit.CONFIG
    with pytest.raises(EmitError, match="not an array of 8-byte counters"):
        EmitSource(target, pin(churn, "churn_ring"), pin(churn, "churn"))
    with pytest.raises(EmitError, match="not an array of 8-byte counters"):
        EmitSource(target, pin(churn, "churn_ring"), pin(churn, "churn_writers"))
    with pytest.raises(MapNotFoundError):
        EmitSource(target, pin(churn, "nothing"))
    with pytest.raises(MapNotFoundError):
        EmitSource(target, pin(churn, "nothing"), pin(churn, "churn_lost"))

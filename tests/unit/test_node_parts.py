"""Parts of a node that need no kernel: the lane of a map, the state directory, the report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from bridge.bus.outbox import Outbox
from bridge.core.replica import Replica
from bridge.core.touches import GRACE_NANOSECONDS
from bridge.model import Cause, Delta, DeltaBatch, Op, Origin
from bridge.node.instance import AlreadyRunningError, StateDirectory, read_status
from bridge.node.lane import Lane
from bridge.node.report import REMEMBERED_MAX, LogReport

OWN, OTHER = Origin("c", "m", "own", 1), Origin("c", "m", "other", 2)
SECOND = 1_000_000_000


def batch(number: int, value: int, began: int, cause: Cause = Cause.CHANGE) -> DeltaBatch:
    key = np.array([[number]], np.uint8)
    values = np.array([[value]], np.uint8)
    return DeltaBatch.of_entries(Op.UPDATE, key, values, began + 1, began=began, cause=cause)


def lane(capacity_bytes: int = 1 << 20) -> Lane:
    return Lane(Replica(OWN, publishes=True, applies=True), Outbox(1, 1, capacity_bytes))


def test_a_change_is_pending_only_when_the_outbox_took_it() -> None:
    made = lane(capacity_bytes=1)
    assert made.sink(batch(1, 1, 10))
    assert not made.sink(batch(2, 1, 20))
    assert made.replica.captured == made.replica.pending_rows == 1
    assert (made.counters.changes, made.counters.refused) == (1, 1)
    assert made.outbox is not None
    assert made.outbox.take(10) is not None
    assert made.sink(batch(2, 1, 20, Cause.SCAN))
    assert made.replica.captured == 2
    assert (made.counters.changes, made.counters.scanned) == (2, 1)


def test_a_change_that_waited_long_for_room_is_in_doubt() -> None:
    """Written over by the bridge meanwhile, it still comes last in the stream."""
    made = lane(capacity_bytes=1)
    assert made.sink(batch(1, 1, 100 * SECOND))
    waiting = batch(2, 7, 101 * SECOND)
    assert not made.sink(waiting)
    verdict = made.replica.judge([Delta(OTHER, 1, batch(2, 8, 1))])
    assert verdict.touch is not None
    verdict.touch.end = 102 * SECOND
    made.replica.forget(200 * SECOND)  # another write, much later
    assert made.outbox is not None
    assert made.outbox.take(10) is not None
    assert made.sink(waiting)
    assert made.replica.dirty_keys == 1


def test_writes_are_forgotten_once_the_source_is_empty() -> None:
    made = lane()
    verdict = made.replica.judge([Delta(OTHER, 1, batch(2, 8, 1))])
    assert verdict.touch is not None
    verdict.touch.end = 100 * SECOND
    made.drained(100 * SECOND + GRACE_NANOSECONDS)
    made.replica.forget(200 * SECOND)
    assert made.sink(batch(2, 7, 99 * SECOND))
    assert made.replica.dirty_keys == 0


def test_one_process_at_a_time_holds_a_state_directory(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from bridge.node.instance import StateDirectory\n"
        f"with StateDirectory(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunningError, match=f"process {holder.pid}"):
            StateDirectory(tmp_path).__enter__()
        holder.kill()
        holder.wait()
    with StateDirectory(tmp_path):
        pass


def test_the_last_word_of_a_killed_bridge_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(orjson.dumps({"state": "running"}))
    with StateDirectory(tmp_path) as state:
        assert read_status(tmp_path) is None
        state.write("status.json", {"n": np.int64(7)})
        assert read_status(tmp_path) == {"n": 7}
        assert (tmp_path / "status.json").stat().st_mode & 0o777 == 0o600
    assert read_status(tmp_path) is None


def test_a_status_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        state.write("status.json", {"n": 1})
        (tmp_path / ".status.json.new").mkdir()  # what is in the way of the next one
        with pytest.raises(OSError, match="directory"):
            state.write("status.json", {"n": 2})
        assert read_status(tmp_path) == {"n": 1}
        (tmp_path / ".status.json.new").rmdir()


def test_each_trouble_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = LogReport(json=True, node="a")
    for text in ("one", "two", "one"):
        report.warn_once(text, map="m")
    report.say("fine")
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(x["event"], x["level"], x["node"]) for x in lines] == [
        ("one", "warning", "a"),
        ("two", "warning", "a"),
        ("fine", "info", "a"),
    ]
    assert report.suppressed == 1
    for number in range(REMEMBERED_MAX + 7):
        report.warn_once(f"trouble {number}")
    assert len(capsys.readouterr().err.splitlines()) == REMEMBERED_MAX - 2
    assert report.suppressed == 10

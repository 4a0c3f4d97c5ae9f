"""Fills the kernel matrix on the running kernel: ``python -m tests.vm.matrix.suite ANSWER.json``.

Each cell writes a watched map and compares, change by change, what was reported with what was done.
Where a mode is known to be blind the cell goes on: the map is compared with the fold of what was
reported, as after a loss, and that comparison must find exactly what was done.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bridge.capture.loader import ProbeError
from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.capture.tables import UnwatchableError
from bridge.kernel.headers import use_headers
from bridge.kernel.maps import KernelMap
from bridge.kernel.objects import compile_object, default_cache
from bridge.kernel.support import Support, judge
from bridge.model import Op
from tests.vm.features import kernel_version
from tests.vm.matrix.orders import Targets
from tests.vm.matrix.plan import (
    KEYS_MAX,
    KINDS,
    MODES,
    PROGRAMS,
    UNTRACED,
    Action,
    Cell,
    Kind,
    Place,
    State,
    Step,
    Table,
    Writer,
    is_traced,
    since,
    steps,
    unseen,
)
from tests.vm.matrix.watchers import Change, Probed, Swept, Watcher
from tests.vm.matrix.writers import BrokenError, MissingError, Writers, keys_of, values_of

TIMER = Path(__file__).with_name("timer.bpf.c")
LATE_SECONDS = 2.0  # for reports of what another processor does
SLOTS = 16
_ELSEWHERE = frozenset((Writer.SOFTIRQ, Writer.TIMER))
_bases = itertools.count(1 << 32, 1 << 32)  # values of two steps never meet, in arrays either


@dataclass(frozen=True, slots=True)
class Bench:
    """What the cells of one mode are tried on; ``capture`` is ``None`` in mode sweep."""

    mode: Mode
    writers: Writers
    targets: Targets
    capture: ProbeCapture | None

    def watch(self, kind: Kind, target: KernelMap) -> Watcher:
        """Raises ``UnwatchableError`` with the reason why this kind is not taken."""
        if self.capture is not None:
            try:
                self.capture.cover(kind.type)
            except ProbeError as error:
                if is_traced(kind, kernel_version()):
                    raise
                raise UnwatchableError(f"{UNTRACED}; such maps are swept") from error
            return Probed(self.capture, target)
        verdict = judge(target.info)
        if verdict.support is Support.NO:
            raise UnwatchableError(verdict.reason)
        return Swept(target)


def run_mode(bench: Bench) -> Iterator[Cell]:
    """All cells of a mode."""
    for kind in KINDS:
        for writer in Writer:
            yield from run_writer(bench, kind, writer)


def run_writer(bench: Bench, kind: Kind, writer: Writer) -> Iterator[Cell]:
    """What one writer does to one map, step after step, and to one that is too small."""
    every = steps(kind, writer)
    for part in (
        [step for step in every if step.action is not Action.EVICT],
        [step for step in every if step.action is Action.EVICT],
    ):
        if part:
            yield from run_steps(bench, kind, writer, part)


def run_steps(bench: Bench, kind: Kind, writer: Writer, part: list[Step]) -> Iterator[Cell]:
    """Steps on one map, which is watched meanwhile."""
    places = [Place(bench.mode, kind, writer, step) for step in part]
    target = target_of(bench, kind, writer, part[0])
    if target is None:
        yield from map(missing, places)
        return
    with target:
        clear(kind, target)
        try:
            watcher = bench.watch(kind, target)
        except UnwatchableError as error:
            reason = str(error).split("): ", 1)[-1]
            yield from (cell(p, State.REFUSED, p.step.changes, reason=reason) for p in places)
            return
        for place in places:
            yield run_step(bench, watcher, target, place, base=next(_bases))
        watcher.close()


def target_of(bench: Bench, kind: Kind, writer: Writer, step: Step) -> KernelMap | None:
    """The map of a step, to be closed; ``None``: the kernel has no such writer."""
    if writer is not Writer.TIMER:
        number = bench.targets.number(kind, small=step.action is Action.EVICT)
        return bench.targets.map(number)
    if bench.writers.timer is None:
        return None
    timed = bench.writers.timer.map("timed")
    return KernelMap(os.dup(timed.fileno()), timed.info)


def clear(kind: Kind, target: KernelMap) -> None:
    """Empty the map, whatever it is; an array keeps its slots."""
    if kind.is_array:
        return
    whole = keys_of(kind, Step(Action.DELETE, 0, KEYS_MAX))
    for key in whole:
        target.delete(key.tobytes())


def missing(place: Place) -> Cell:
    """The kernel refused: rightly so only before the version that brought the operation."""
    first = since(place)
    if first is None or kernel_version() >= first:
        return cell(place, State.FAILED, reason="the kernel should have this operation")
    reason = f"since Linux {first[0]}.{first[1]}"
    return cell(place, State.UNSUPPORTED, reason=reason)


def cell(
    place: Place,
    state: State,
    expected: int = 0,
    *,
    seen: int = 0,
    repaired: int | None = None,
    reason: str = "",
) -> Cell:
    return Cell(
        str(place.mode),
        place.kind.name,
        str(place.writer),
        str(place.step.action),
        expected,
        seen,
        state,
        repaired,
        reason,
    )


def run_step(bench: Bench, watcher: Watcher, target: KernelMap, place: Place, base: int) -> Cell:
    """Write, and compare what is reported."""
    kind, writer, step = place.kind, place.writer, place.step
    watcher.take(0, 0)
    lost = watcher.lost()
    try:
        bench.writers.act(kind, target, writer, step, base)
    except MissingError:
        return missing(place)
    except BrokenError as error:
        return cell(place, State.FAILED, reason=str(error))
    blind = unseen(place, kernel_version())
    expected = expectation(kind, step, base)
    seconds = LATE_SECONDS if writer in _ELSEWHERE and blind is None else 0.0
    found = watcher.take(len(expected), seconds)
    if step.action is Action.EVICT:
        return judge_evictions(place, found, target.count(), blind)
    wrong = differing(kind, found, expected)
    if blind is None and wrong and watcher.lost() > lost:
        # A softirq that interrupts map work is not seen by kprobes: counted, and to be found.
        wrong = differing(kind, [*found, *(watcher.repair() or [])], expected)
    if blind is None:
        state = State.FAILED if wrong else State.COMPLETE
        return cell(place, state, expected=len(expected), seen=len(found), reason=wrong)
    repaired, to_find = watcher.repair(), expected
    if kind.is_lru and step.action in (Action.DELETE, Action.TAKE):
        to_find, blind = [], f"{blind}; and to a comparison the key may have been evicted"
    if found and expected:
        wrong = "visible, although the plan says that it is not"
    elif repaired is None:
        wrong = ""  # a sweep is a comparison
    else:
        wrong = differing(kind, repaired, to_find)
    return cell(
        place,
        State.FAILED if wrong else State.UNSEEN,
        expected=len(expected),
        seen=len(found),
        repaired=None if repaired is None else len(repaired),
        reason=wrong or blind,
    )


def expectation(kind: Kind, step: Step, base: int) -> list[Change]:
    """The changes of a step, in any order."""
    if not step.changes:
        return []
    gone = step.action in (Action.DELETE, Action.TAKE)
    keys, values = keys_of(kind, step), values_of(step, base)
    return [
        (int(Op.DELETE if gone else Op.UPDATE), k.tobytes(), bytes(8) if gone else v.tobytes())
        for k, v in zip(keys, values, strict=True)
    ]


def differing(kind: Kind, found: list[Change], expected: list[Change]) -> str:
    """What is wrong; empty: nothing. Of per-CPU values only the keys are compared."""
    if kind.is_per_cpu:
        found, expected = ([(op, key, b"") for op, key, _ in part] for part in (found, expected))
    if sorted(found) == sorted(expected):
        return ""
    if len(found) == len(expected):
        return "other changes were reported than were made"
    return f"{len(found)} reported, {len(expected)} done"


def judge_evictions(place: Place, found: list[Change], live: int, blind: str | None) -> Cell:
    """Each insert is an update, and what is not there any more was evicted."""
    updates = sum(op == Op.UPDATE for op, _, _ in found)
    evictions = sum(op == Op.EVICT for op, _, _ in found)
    count = place.step.count
    gone = count - live
    # Values of all CPUs are read when a record arrives; of a key that has gone there is none.
    count = live if place.kind.is_per_cpu else count
    wanted = (count, gone)
    if place.mode is Mode.SWEEP:
        wanted = (live, 0)  # what it came to in the end
    elif blind is not None:
        wanted = (0 if place.mode is Mode.SYSCALL and place.writer in PROGRAMS else count, 0)
    whole = (updates, evictions) == wanted and updates + evictions == len(found)
    reason = "" if whole else f"{updates} updates and {evictions} evictions, {live} entries left"
    state = State.FAILED if not whole else State.COMPLETE if blind is None else State.UNSEEN
    return cell(place, state, expected=count + gone, seen=len(found), reason=reason or blind or "")


def run_all() -> Table:
    """Every mode on this kernel."""
    began = time.monotonic()
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        use_headers(Path(folder))
        timer = compile_object(TIMER, cache=default_cache())
        targets = Targets()
        writers = Writers(targets, timer)
        for mode in MODES:
            started = time.monotonic()
            capture = None
            if mode is not Mode.SWEEP:
                capture = ProbeCapture.start(mode, slots=SLOTS, cache=Path(folder))
            cells += run_mode(Bench(mode, writers, targets, capture))
            if capture is not None:
                capture.close()
            print(f"matrix: {mode}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        writers.close()
        targets.close()
    version = ".".join(map(str, kernel_version()))
    seconds = round(time.monotonic() - began, 1)
    return Table(version, os.uname().release, seconds, tuple(cells))


def main() -> None:
    try:
        table = run_all()
    except ProbeError as error:
        sys.exit(f"matrix: {error}; {error.hint}")
    Path(sys.argv[1]).write_text(json.dumps(asdict(table)))
    sys.exit(1 if table.failures else 0)


if __name__ == "__main__":
    main()

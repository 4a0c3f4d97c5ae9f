"""The writer thread: messages from the inbox are judged, folded and written, map by map.

It is a thread of its own that makes no network calls, so that whoever captures can tell its writes
from everybody else's. Judgement happens here, at the last moment before the writes, under the lock
that capture of the same map takes.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from bridge.apply.inbox import Arrival, Inbox
from bridge.apply.loading import Load
from bridge.apply.target import ApplyTarget
from bridge.apply.writer import SizesDifferError, Written
from bridge.core.replica import Verdict
from bridge.core.touches import GRACE_NANOSECONDS, Touch
from bridge.errors import BridgeError
from bridge.model import Delta, DeltaBatch

RETRY_SECONDS = 1.0  # until writes that the kernel did not take are tried again
RETRY_ROWS = 256  # at first; as long as all of them are taken, more follow
REPORTED_MAX = 1_000
_IDLE_SECONDS = 0.5


class Applier:
    """Owns the writer thread. ``report`` gets each distinct trouble of a map once."""

    def __init__(
        self,
        inbox: Inbox,
        *,
        report: Callable[[str, BridgeError], None],
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._inbox = inbox
        self._report = report
        self._on_start = on_start
        self._targets: dict[str, ApplyTarget] = {}
        self._reported: set[tuple[str, str]] = set()
        self._failure: BaseException | None = None
        self._turn = threading.RLock()  # held while maps are judged and written
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="applier", daemon=True)

    def add(self, target: ApplyTarget) -> None:
        self._targets[target.name] = target

    def remove(self, name: str) -> None:
        """When this returns, the thread uses the map no more. May wait: call it off the event loop.

        What waits in the inbox for the map is dropped: a map that takes its name begins anew.
        """
        with self._turn:
            self._targets.pop(name, None)
            self._inbox.discard(name)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """While this lasts no map is used. May wait for the end of a write."""
        with self._turn:
            yield

    def start(self, timeout: float = 30.0) -> None:
        """Returns when ``on_start`` has run in the thread; raises what it raised."""
        self._thread.start()
        if not self._started.wait(timeout):
            raise BridgeError("writer thread: did not start in time")
        if self._failure is not None:
            raise self._failure

    def stop(self, timeout: float) -> bool:
        """Finish what the inbox holds; whether it was finished in ``timeout`` seconds."""
        self._inbox.close()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread, if anything did."""
        return self._failure

    def _run(self) -> None:
        try:
            self._on_start()
            self._started.set()
            while True:
                taken = self._inbox.take(_IDLE_SECONDS)
                if taken is None and self._inbox.closed:
                    return
                with self._turn:
                    self._work(taken)
        except BaseException as failure:  # noqa: BLE001 - handed to the owner
            self._failure = failure
            self._started.set()

    def _work(self, taken: tuple[str, list[Arrival]] | None) -> None:
        if taken is not None and self._inbox.holds_good(taken[0]):
            self._apply(*taken)
        now = time.monotonic()
        for target in list(self._targets.values()):
            if target.gate is not None and (released := target.gate.released()):
                self._apply(target.name, released)
            if target.rejoining and target.caught_up:
                self._rejoin(target)
            if target.retry_at <= now:
                self._retry(target)

    def _apply(self, name: str, arrivals: Sequence[Arrival]) -> None:
        target = self._targets.get(name)
        if target is None:  # the map went away while its messages waited
            return
        for load, some in itertools.groupby(arrivals, key=lambda arrival: arrival.load):
            if load is None:
                self._judge(target, list(some))
            else:
                self._load(target, load, list(some))

    def _load(self, target: ApplyTarget, load: Load, parts: Sequence[Arrival]) -> None:
        """Parts of a snapshot, written like changes of others; a map that rejoins only learns.

        No part counts as a change for the gate, since what the map holds already is not told from
        what is new. That keys are swept out does, unless the map is new to the bridge.
        """
        if not target.passes(parts, ()):
            return
        if not load.begun:
            load.begin()
            with target.lock:
                load.settles(target.replica.jump(load.stored, learns=load.learns))
            target.rejoining &= load.learns
        for part in parts:
            batch = part.delta.batch
            if len(batch):
                batch = self._as_here(target, part)
                target.counters.loaded += len(batch)
                self._load_rows(target, batch)
                load.wrote(batch)
                continue
            strangers = load.strangers()
            if strangers is not None and len(strangers):
                if load.guarded and not target.passes([part], [strangers], joining=True):
                    return
                target.counters.swept_out += self._load_rows(target, strangers)
            target.counters.sequence = load.position
            load.finish()

    def _as_here(self, target: ApplyTarget, part: Arrival) -> DeltaBatch:
        """Only snapshots of the map's own layout are loaded; what is left are kernel times."""
        fitter = target.fitter
        if fitter is None:
            return part.delta.batch
        fitted = fitter.fit(part.sequence, part.delta, target.replica.origin)
        return part.delta.batch if fitted is None else fitted.batch

    def _load_rows(self, target: ApplyTarget, batch: DeltaBatch) -> int:
        """How many of the rows were written, or tried to be."""
        with target.lock:
            verdict = target.replica.load(batch)
        target.counters.superseded += verdict.superseded
        if verdict.writes is None:
            return 0
        written = self._write(target, verdict.writes, verdict.touch)
        target.counters.refused += len(written.full or ())
        return len(verdict.writes)

    def _judge(self, target: ApplyTarget, arrivals: Sequence[Arrival]) -> None:
        if not target.passes(arrivals):
            return
        fitting = self._fitting(target, arrivals)
        deltas = [arrival.delta for arrival in fitting]
        with target.lock:
            verdict = target.replica.judge(deltas, [arrival.sequence for arrival in fitting])
        if verdict.writes is not None:
            written = self._write(target, verdict.writes, verdict.touch)
            target.counters.refused += len(written.full or ())
        self._count(target, arrivals, verdict)
        if deltas:
            target.measure(deltas)

    def _rejoin(self, target: ApplyTarget) -> None:
        with target.lock:
            verdict = target.replica.rejoined()
        if verdict.writes is not None:
            self._write(target, verdict.writes, verdict.touch)
        target.rejoining = False

    def _fitting(self, target: ApplyTarget, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Messages in the map's layout and sizes; the others are counted and named once."""
        fitting = []
        for given in arrivals:
            arrival = given
            if target.fitter is not None:
                fitted = target.fitter.fit(given.sequence, given.delta, target.replica.origin)
                if fitted is None:
                    self._report_once(target.name, _parked(target, given.delta))
                    continue
                arrival = replace(given, delta=fitted)
            delta = arrival.delta
            try:
                target.writer.check_sizes(
                    f"node {delta.origin.node}", delta.batch.key_size, delta.batch.value_size
                )
            except SizesDifferError as error:
                target.counters.rejected += 1
                self._report_once(target.name, error)
            else:
                fitting.append(arrival)
        return fitting

    def _retry(self, target: ApplyTarget) -> None:
        """Try again what the kernel did not take, until it does not take it again."""
        target.retry_at = math.inf
        while target.retry_at == math.inf:
            with target.lock:
                verdict = target.replica.retry(RETRY_ROWS)
            if verdict.writes is None:
                return
            self._write(target, verdict.writes, verdict.touch)

    def _write(self, target: ApplyTarget, writes: DeltaBatch, touch: Touch | None) -> Written:
        counters, replica = target.counters, target.replica
        written = Written()
        try:
            if target.fitter is not None:
                writes = target.fitter.local(writes, target.writer.current)
            written = target.writer.write(writes)
        finally:
            counters.written_at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            with target.lock:
                if touch is not None:
                    touch.end = counters.written_at
                    replica.forget(counters.written_at - GRACE_NANOSECONDS)
                if written.full is not None:
                    replica.refuse(written.full, full=True)
                if written.blocked is not None:
                    replica.refuse(written.blocked, full=False)
                counters.unwritten = replica.unwritten_rows
                counters.forgotten = replica.forgotten_rows
        counters.updated += written.updated
        counters.deleted += written.deleted
        counters.absent += written.absent
        counters.retries += written.retries
        if written.error is not None:
            counters.failed += 1
            self._report_once(target.name, written.error)
        if written.full is not None:
            self._report_once(target.name, _full(target))
        if written.full is not None or written.blocked is not None:
            target.retry_at = time.monotonic() + RETRY_SECONDS
        return written

    def _count(self, target: ApplyTarget, arrivals: Sequence[Arrival], verdict: Verdict) -> None:
        counters = target.counters
        counters.messages += len(arrivals)
        counters.changes += verdict.changes
        counters.superseded += verdict.superseded
        counters.duplicates += verdict.duplicates
        counters.missed += verdict.missed
        counters.sequence = arrivals[-1].sequence

    def _report_once(self, name: str, error: BridgeError) -> None:
        known = (name, str(error)) in self._reported
        if not known and len(self._reported) < REPORTED_MAX:
            self._reported.add((name, str(error)))
            self._report(name, error)


def _parked(target: ApplyTarget, delta: Delta) -> BridgeError:
    return BridgeError(
        f"map {target.name}: changes of node {delta.origin.node} are parked, their layout "
        f"{delta.layout:016x} does not go together with this map's",
        hint=f"`mapbridge schema check {target.name}` says why; they are taken when layouts agree",
    )


def _full(target: ApplyTarget) -> BridgeError:
    return BridgeError(
        f"map {target.name}: full, updates of other nodes were refused and will be tried again "
        f"(got max_entries {target.writer.entries_max})",
        hint="give the map at least the max_entries that it has on the other nodes",
    )

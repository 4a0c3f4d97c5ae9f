"""Which snapshot a map loads, and how long it waits for one that somebody else has to take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from bridge.bus.protocol import Bus, LogState
from bridge.bus.snapshots import Snapshots, SnapshotStoreError
from bridge.core.joining import Plan, Way
from bridge.core.snapshots import Log, usable
from bridge.model import Manifest, MapInfo
from bridge.node.report import Report

RETRY_SECONDS = 0.5
AWAIT_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan, the log's end when it was made, and whether something stays missing."""

    plan: Plan
    head: int
    unmended: bool = False


@dataclass(frozen=True, slots=True)
class Chooser:
    """For one map. ``info``: what the kernel tells of it; ``layout``: its number, 0: not known.

    ``loads``: it can use snapshots. One whose conflict policy folds the log cannot: a snapshot
    holds no owners and no parts, nor what the policy was about to make of an entry it saw.
    """

    name: str
    cluster: str
    bus: Bus
    snapshots: Snapshots
    report: Report
    info: MapInfo
    layout: int = 0
    loads: bool = True

    async def choose(self, plan: Callable[[Log, Manifest | None], Plan], behind: int) -> Choice:
        """The plan now; waits, within bounds, for a snapshot without which something is missing.

        ``behind``: an older snapshot does not help.
        """
        deadline = time.monotonic() + (AWAIT_SECONDS_MAX if self.loads else 0.0)
        waiting = False
        while True:
            state = await self.bus.log_state(self.cluster)
            made = plan(log_of(state), await self._usable(state, behind))
            if made.way is not Way.AWAIT:
                return Choice(made, state.last)
            if time.monotonic() >= deadline:
                self.report.warn(
                    "the log has forgotten what no snapshot holds: going on with what is left",
                    map=self.name,
                    first=made.after + 1,
                )
                return Choice(made, state.last, unmended=True)
            if not waiting:
                self.report.say("waiting for a snapshot: the log begins too late", map=self.name)
            waiting = True
            await asyncio.sleep(RETRY_SECONDS)

    async def _usable(self, state: LogState, behind: int) -> Manifest | None:
        if not self.loads:
            return None
        info = self.info
        try:
            found = await self.snapshots.manifests(self.name)
        except SnapshotStoreError as error:
            self.report.warn_once(f"snapshots cannot be read: {error}", map=self.name)
            return None
        shape = (info.key_size, info.value_size)
        fitting = [
            m
            for m in found
            if (m.key_size, m.value_size) == shape and m.layout in (0, self.layout or m.layout)
        ]
        chosen = usable(fitting, log_of(state), behind=behind)
        if chosen is None or chosen.anchor is None:
            return chosen
        stored = await self.bus.stored_at(self.cluster, chosen.anchor.sequence)
        if stored is not None and stored != chosen.anchor.stored_at_ns:
            self.report.warn_once("a snapshot is of a log that was made anew", map=self.name)
            return None
        return chosen


def log_of(state: LogState) -> Log:
    """What the rules of snapshots need to know of the log."""
    return Log(
        state.id,
        max(state.first, 1),
        state.last,
        state.bytes,
        state.bytes_max,
        state.age_seconds_max,
    )

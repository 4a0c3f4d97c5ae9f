"""What a person sees while a demonstration runs, and waiting that shows how far things are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from bridge.demo.traffic import Progress, Traffic
from bridge.kernel.maps import KernelMap
from bridge.rig.compare import compare
from bridge.rig.nodes import NodeProcess

SYNC_SECONDS_MAX = 120.0
RATE_SECONDS = 0.9  # over which a rate is taken
LOOK_SECONDS = 0.25  # between two looks at the maps and at what the nodes say of themselves


@dataclass(frozen=True, slots=True)
class Scene:
    """What a person sees of the demonstration at one moment."""

    step: str
    capture: str = ""
    wanted: int = 0
    sessions: int = 0
    entries: Mapping[str, int] = field(default_factory=dict)  # by node
    changes_per_second: float = 0.0  # applied by the node that is looked at
    lag_seconds: float = 0.0  # from a write elsewhere until it is in that node's map
    seconds: float = 0.0


class Telling:
    """One demonstration's scenes. ``show`` gets every new one."""

    def __init__(self, show: Callable[[Scene], None]) -> None:
        self._show = show
        self._scene = Scene("starting")
        self._began = time.monotonic()
        self._looked = 0.0
        self._word: tuple[int, float, float] = (0, 0.0, 0.0)
        self._rate = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def step(self, step: str, **facts: object) -> None:
        self._scene = replace(self._scene, step=step, **facts)  # type: ignore[arg-type]
        self._tell()

    def look(self, progress: Progress, node: NodeProcess, maps: Mapping[str, KernelMap]) -> None:
        """Take stock, at most every ``LOOK_SECONDS``."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._scene = replace(
            self._scene,
            wanted=progress.asked,
            sessions=progress.open,
            entries={name: one.count() for name, one in maps.items()},
            changes_per_second=self._rate_of(node),
            lag_seconds=node.applied("lag_seconds"),
        )
        self._looked = now
        self._tell()

    def await_equal(
        self, traffic: Traffic, node: NodeProcess, maps: Mapping[str, KernelMap]
    ) -> None:
        """Wait until the last map equals the first; what is wrong when time is up, compare says."""
        deadline = time.monotonic() + SYNC_SECONDS_MAX
        first, *_, last = maps.values()
        while not compare(first, last).equal and time.monotonic() < deadline:
            self.look(traffic.progress(), node, maps)
            time.sleep(LOOK_SECONDS)
        self._looked = 0.0
        self.look(traffic.progress(), node, maps)

    def _tell(self) -> None:
        self._scene = replace(self._scene, seconds=self.seconds)
        self._show(self._scene)

    def _rate_of(self, node: NodeProcess) -> float:
        """Changes per second that the node applied between its last two words about itself."""
        written, changes = node.status_written, node.applied("changes")
        process, since, before = self._word
        if process != node.process.pid or written - since >= RATE_SECONDS:
            known = since and process == node.process.pid
            self._rate = (changes - before) / (written - since) if known else 0.0
            self._word = (node.process.pid, written, changes)
        return self._rate

"""What bridges use while they run, sampled, and whether that grows.

A curve belongs to one process. A bridge that was killed and started again has a new one.
"""

from __future__ import annotations

import csv
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bridge.rig.nodes import NodeFailedError, NodeProcess

WARM_UP_SHARE = 0.2  # of the run at least: caches, histories and pools fill; not judged
WARM_UP_SECONDS_MAX = 300.0
FULL_SHARE_MAX = 0.4  # of the run at most, while the log is not full yet


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process. ``seconds`` count from the run's start; memory is resident."""

    seconds: float
    node: str
    process: int
    memory_mb: float
    descriptors: int
    threads: int
    lag_seconds: float  # age of the newest change from elsewhere when it was written


@dataclass(frozen=True, slots=True)
class Bound:
    """What a curve may grow by: a share of where it began, and an amount."""

    share: float
    amount: float

    def allows(self, early: float, late: float) -> bool:
        return late <= early * (1.0 + self.share) + self.amount


BOUNDS = {
    "memory_mb": Bound(0.05, 8.0),
    "descriptors": Bound(0.0, 8.0),  # a map takes five, and one comes and goes
    "threads": Bound(0.0, 2.0),
}


@dataclass(frozen=True, slots=True)
class Growth:
    """``early``, ``late``: the lowest in the first and in the last third behind the warm-up."""

    node: str
    process: int
    of: str
    early: float
    late: float
    highest: float
    good: bool


def look(seconds: float, node: NodeProcess) -> Sample | None:
    """A sample of the node's process; ``None`` while it is not there."""
    process = node.process.pid
    try:
        lag = node.applied("lag_seconds")
        return sample_process(seconds, node.name, process, lag)
    except (OSError, NodeFailedError):
        return None


def sample_process(seconds: float, node: str, process: int, lag_seconds: float) -> Sample | None:
    """What proc(5) says; ``None`` for a process that has ended. Raises ``OSError``."""
    directory = Path(f"/proc/{process}")
    lines = (directory / "status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in found:
        return None
    return Sample(
        seconds=round(seconds, 2),
        node=node,
        process=process,
        memory_mb=round(int(found["VmRSS"].split()[0]) / 1024, 2),
        descriptors=len(os.listdir(directory / "fd")),  # noqa: PTH208 - only their number
        threads=int(found["Threads"]),
        lag_seconds=round(lag_seconds, 4),
    )


class Sampler:
    """A thread that looks at ``nodes()`` every ``interval`` seconds between enter and exit."""

    def __init__(
        self,
        nodes: Callable[[], Sequence[NodeProcess]],
        clock: Callable[[], float],
        interval: float,
    ) -> None:
        self.samples: list[Sample] = []
        self._nodes, self._clock, self._interval = nodes, clock, interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            found = (look(self._clock(), node) for node in list(self._nodes()))
            self.samples += [sample for sample in found if sample is not None]


def lives_of(samples: Sequence[Sample]) -> dict[tuple[str, int], list[Sample]]:
    """The samples of each process, in time's order."""
    lives: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        lives[sample.node, sample.process].append(sample)
    return dict(lives)


def warm_up(seconds: float, full_at: float) -> float:
    """How much of a run of ``seconds`` is not judged; ``full_at``: when the log was full.

    Until then nothing is steady: only afterwards does a node that comes back need a snapshot, and
    does a bridge meet holes.
    """
    least = min(seconds * WARM_UP_SHARE, WARM_UP_SECONDS_MAX)
    return max(least, min(full_at, seconds * FULL_SHARE_MAX))


def judge_growth(
    samples: Sequence[Sample], seconds: float, warm: float, bounds: Mapping[str, Bound]
) -> list[Growth]:
    """Every bound of every process that lived from the warm-up to the end of a run of ``seconds``.

    The least that a process used in the first third behind the warm-up is held against the least
    in the last. What backlogs took, and what the allocator keeps of it for a while (up to 64 MB),
    comes and goes; a leak lifts the floor.
    """
    third = (seconds - warm) / 3
    found = []
    for (node, process), life in lives_of(samples).items():
        early = [s for s in life if warm <= s.seconds < warm + third]
        late = [s for s in life if s.seconds >= seconds - third]
        if life[0].seconds > warm or not early or not late:
            continue
        for name, bound in bounds.items():
            before, after = _lowest(early, name), _lowest(late, name)
            highest = max(getattr(s, name) for s in life)
            good = bound.allows(before, after)
            found.append(Growth(node, process, name, before, after, highest, good))
    return found


def write_csv(samples: Sequence[Sample], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)])
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)


def _lowest(samples: Sequence[Sample], name: str) -> float:
    return min(float(getattr(sample, name)) for sample in samples)

"""Real TCP connections, tens of thousands of them, opened through the topology and kept open.

The work is done by lanes (``traffic_worker.py``), processes that hold both ends of their share. A
process may hold only so many descriptors (``ulimit -n``), which sets the number of lanes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import bridge
from bridge.demo.traffic_worker import LaneConfig, LaneReport
from bridge.errors import BridgeError

SESSIONS_DEFAULT = 50_000
SESSIONS_MAX = 500_000
IPV6_EVERY = 10
FIRST_PORT = 8000
WINDOW = 128  # connections on their way per lane; all lanes' stay under net.core.netdev_max_backlog
DESCRIPTORS_SPARE = 256
LANE_SESSIONS_MAX = 100_000
LANES_MIN = 2
STOP_SECONDS_MAX = 20.0


class TrafficError(BridgeError):
    """Connections that could not be opened, kept or closed; the message counts the reasons."""


@dataclass(frozen=True, slots=True)
class Progress:
    """All lanes together. ``open`` counts sessions of which both ends are open."""

    asked: int  # to be open, in the end
    asked_closed: int  # to be closed, in the end
    open: int
    closed: int
    failed: int
    lost: int
    asked_answers: int = 0
    answers: int = 0  # to what clients said
    errors: tuple[tuple[str, int], ...] = ()

    @property
    def finished(self) -> bool:
        """Whether just what was asked for is open, the rest has ended, and all is answered."""
        settled = self.open == self.asked and self.closed == self.asked_closed
        return settled and self.answers == self.asked_answers

    @property
    def problem(self) -> str:
        """The reasons of all failures in words, empty when there are none."""
        words = [f"{reason} ({count} times)" for reason, count in self.errors]
        if self.lost:
            words.append(f"{self.lost} ended by themselves")
        return ", ".join(words)


def lanes_needed(sessions: int, descriptors_max: int) -> int:
    """How many processes hold ``sessions``, two descriptors each, within the limit."""
    per_lane = min((descriptors_max - DESCRIPTORS_SPARE) // 2, LANE_SESSIONS_MAX)
    if per_lane < 1:
        raise TrafficError(
            f"traffic: too few descriptors per process (got {descriptors_max})",
            hint=f"raise ulimit -n above {DESCRIPTORS_SPARE + 2}",
        )
    return max(math.ceil(sessions / per_lane), LANES_MIN)


class _LaneProcess:
    """The parent's end of one lane."""

    def __init__(self, config: LaneConfig, changed: threading.Condition) -> None:
        self.capacity = config.capacity
        self.asked = 0
        self.asked_closed = 0
        self.asked_answers = 0
        self.report = LaneReport()
        self.ended = False
        self._changed = changed
        # closed by ``finish``: what the lane says on stderr, should it fail
        self._words = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        root = str(Path(bridge.__file__).parents[1])
        search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bridge.demo.traffic_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, "PYTHONPATH": search},
        )
        self.send(asdict(config))
        self._reader = threading.Thread(target=self._read, name="traffic-lane", daemon=True)
        self._reader.start()

    def send(self, message: dict[str, object]) -> None:
        assert self.process.stdin is not None
        # a lane that has ended says why in its last report; ``ended`` tells
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def last_words(self) -> str:
        if self.report.fatal:
            return self.report.fatal
        self._words.seek(0)
        lines = self._words.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"

    def finish(self, seconds_max: float) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self._words.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report = LaneReport(**json.loads(line))
            with self._changed:
                self.report = report
                self._changed.notify_all()
        self.process.wait()
        with self._changed:
            self.ended = True
            self._changed.notify_all()


class Ends(Protocol):
    """What traffic needs to know of a topology."""

    client_namespace: str
    server_namespace: str
    client_ipv4: tuple[str, ...]
    client_ipv6: tuple[str, ...]
    server_ipv4: str
    server_ipv6: str
    ipv6: bool


class Traffic:
    """Opens, keeps and closes sessions. All methods belong to one thread of the caller's.

    ``progress`` may be called by any thread, at any time, and never waits.
    """

    def __init__(
        self,
        topology: Ends,
        sessions_max: int = SESSIONS_DEFAULT,
        *,
        ipv6_every: int = IPV6_EVERY,
        first_port: int = FIRST_PORT,
    ) -> None:
        if not 1 <= sessions_max <= SESSIONS_MAX:
            raise ValueError(f"sessions: must be 1 to {SESSIONS_MAX} (got {sessions_max})")
        self._topology = topology
        self.sessions_max = sessions_max
        self._ipv6_every = ipv6_every if topology.ipv6 else 0
        self._first_port = first_port
        self._changed = threading.Condition()
        self._lanes: list[_LaneProcess] = []

    @property
    def process_ids(self) -> tuple[int, ...]:
        return tuple(lane.process.pid for lane in self._lanes)

    def start(self) -> None:
        """Starts the lanes; nothing is opened yet."""
        assert not self._lanes, "started twice"
        _, descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)
        count = lanes_needed(self.sessions_max, descriptors_max)
        shares = _shares(self.sessions_max, [self.sessions_max] * count)
        topology = self._topology
        for index, capacity in enumerate(shares):
            config = LaneConfig(
                client_namespace=topology.client_namespace,
                server_namespace=topology.server_namespace,
                port=self._first_port + index,
                server_ipv4=topology.server_ipv4,
                server_ipv6=topology.server_ipv6,
                client_ipv4=list(topology.client_ipv4),
                client_ipv6=list(topology.client_ipv6),
                ipv6_every=self._ipv6_every,
                capacity=capacity,
                window=WINDOW,
            )
            self._lanes.append(_LaneProcess(config, self._changed))

    def open(self, count: int | None = None) -> None:
        """Asks for ``count`` more sessions (all that fit, if None) and returns at once."""
        spare = [lane.capacity - lane.asked for lane in self._lanes]
        wanted = sum(spare) if count is None else count
        if not 0 <= wanted <= sum(spare):
            raise ValueError(f"open: at most {sum(spare)} more sessions (got {wanted})")
        for lane, share in zip(self._lanes, _shares(wanted, spare), strict=True):
            lane.asked += share
            lane.send({"open": share})

    def close(self, count: int | None = None, *, reset: bool = False) -> None:
        """Asks to end the ``count`` oldest sessions (all, if None) and returns at once.

        They end by FIN from both ends or, with ``reset``, by RST from the client.
        """
        held = [lane.asked for lane in self._lanes]
        wanted = sum(held) if count is None else count
        if not 0 <= wanted <= sum(held):
            raise ValueError(f"close: at most {sum(held)} sessions (got {wanted})")
        for lane, share in zip(self._lanes, _shares(wanted, held), strict=True):
            lane.asked -= share
            lane.asked_closed += share
            lane.send({"close": share, "reset": reset})

    def talk(self) -> None:
        """Asks for a byte to and fro in every session and returns at once.

        Nothing may be on its way: a session that opens or ends meanwhile may count or not.
        """
        for lane in self._lanes:
            lane.asked_answers += lane.report.open
            lane.send({"talk": True})

    def progress(self) -> Progress:
        with self._changed:
            reports = [lane.report for lane in self._lanes]
        errors: dict[str, int] = {}
        for report in reports:
            for reason, count in report.errors.items():
                errors[reason] = errors.get(reason, 0) + count
        return Progress(
            asked=sum(lane.asked for lane in self._lanes),
            asked_closed=sum(lane.asked_closed for lane in self._lanes),
            open=sum(report.open for report in reports),
            closed=sum(report.closed for report in reports),
            failed=sum(report.failed for report in reports),
            lost=sum(report.lost for report in reports),
            asked_answers=sum(lane.asked_answers for lane in self._lanes),
            answers=sum(report.answers for report in reports),
            errors=tuple(sorted(errors.items())),
        )

    def wait(self, seconds_max: float, watch: Callable[[Progress], None] | None = None) -> Progress:
        """Waits until what was asked for is done; ``watch`` is shown each step.

        Raises TrafficError when a session failed or was lost, a lane ended, or time is up.
        """
        deadline = time.monotonic() + seconds_max
        while True:
            with self._changed:
                progress = self.progress()
                if not progress.finished and not self._trouble(progress):
                    self._changed.wait(max(deadline - time.monotonic(), 0.0))
                    progress = self.progress()
                trouble = self._trouble(progress)
            if watch is not None:
                watch(progress)
            if trouble:
                raise TrafficError(f"traffic: {trouble}", hint="see what the kernel log says")
            if progress.finished:
                return progress
            if time.monotonic() >= deadline:
                raise TrafficError(
                    f"traffic: {progress.open} sessions open, {progress.closed} closed, wanted "
                    f"{progress.asked} and {progress.asked_closed}; {progress.answers} of "
                    f"{progress.asked_answers} answers (got {seconds_max:g} s)",
                    hint="allow more time, or ask for fewer sessions",
                )

    def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Ends the lanes; the kernel closes what was open. ``close`` and ``wait`` for more care."""
        deadline = time.monotonic() + seconds_max
        for lane in self._lanes:
            assert lane.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                lane.process.stdin.close()
        for lane in self._lanes:
            lane.finish(max(deadline - time.monotonic(), 0.1))
        self._lanes.clear()

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _trouble(self, progress: Progress) -> str:
        for lane in self._lanes:
            if lane.ended:
                return f"a lane ended ({lane.last_words()})"
        if progress.failed or progress.lost:
            return f"{progress.failed + progress.lost} sessions failed ({progress.problem})"
        return ""


def _shares(total: int, room: list[int]) -> list[int]:
    """``total`` cut into parts as even as the room of each allows."""
    shares = [0] * len(room)
    order = sorted(range(len(room)), key=lambda i: room[i])
    for done, index in enumerate(order):
        fair = math.ceil((total - sum(shares)) / (len(room) - done))
        shares[index] = min(fair, room[index])
    return shares

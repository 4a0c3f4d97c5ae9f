"""How fast a node that starts late holds a large map that goes on changing.

Everything runs on this machine: the program that changes the map, the node that has it, the server
and the node that joins. Plain BPF_MAP_UPDATE_BATCH of the same entries is measured in the same run,
under the same load, directly before and after; the better of the two is what the joiner is
compared with. The joining is timed by the joiner, from the moment it has the map and the broker
until all that was the log's end is written; ``start_seconds`` is the time before that.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge.bench.churn import LOSSES, MAP, RING, Churn, loaded_churn
from bridge.bench.generator import Generator
from bridge.bench.sync_rate import twin
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap
from bridge.kernel.objects import default_cache
from bridge.model import U8, Role
from bridge.node.requests import ask
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.compare import Comparison, compare
from bridge.rig.nodes import MapEntry, NodeProcess

ROOM = 1.25  # capacity of the map per entry
BATCH_ENTRIES = 16_384
WAIT_SECONDS_MAX = 300.0
SETTLE_SECONDS_MAX = 30.0
RUN_SECONDS_MAX = 3600.0
POLL_SECONDS = 0.05
PUBLISHED = ("published", "changes")


@dataclass(frozen=True, slots=True)
class Joined:
    """One measurement."""

    entries: int  # of the snapshot
    seconds: float  # from the begin of the joining until the map is synced
    load_seconds: float  # of these, until the snapshot was written
    update_batch_seconds: float  # for as many entries by plain BPF_MAP_UPDATE_BATCH
    share: float  # of that rate
    rss_mb: float  # most memory that the joining bridge held, 2**20 bytes
    start_seconds: float  # from the start of the process until the joining began
    snapshot_seconds: float  # from the begin of its scan to its manifest
    tail_changes: int  # that were made since the snapshot, and read behind it
    changes_per_second: int  # made meanwhile
    missing: int  # entries that differ between the two maps at the end


class LateJoinError(BridgeError):
    """A part of the measurement did not get ready."""


@dataclass(slots=True)
class LateJoin:
    """One run. ``rate``: changes per second that go on meanwhile, 0 for none."""

    entries: int
    rate: int
    report: Callable[[str], None]

    def run(self) -> Joined:
        reap_leftovers()
        with ExitStack() as stack:
            return self._measure(stack)

    def _measure(self, stack: ExitStack) -> Joined:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
        claim = stack.enter_context(Claim.take())
        claim.pin_directory.mkdir(parents=True)
        defines = ["EMIT", f"MAP_ENTRIES={int(self.entries * ROOM)}"]
        churn = stack.enter_context(
            loaded_churn(default_cache(), claim.pin_directory / "a", defines)
        )
        source = churn.loaded.map(MAP)
        replica = stack.enter_context(twin(source, claim.pin_directory / "b"))
        keys, values = _entries(self.entries)
        _write(source, keys, values)
        server = stack.enter_context(ServerThread(directory / "nats"))
        a = stack.enter_context(self._owner(directory, server.url, churn))
        self._await(lambda: _counter(a, *PUBLISHED) >= self.entries, "the first entries", a)
        with _changing(churn, self.entries, self.rate) as generator:
            plain = self._plain(source, keys, values)
            self.report("taking a snapshot")
            taken = ask(a.state_directory, "snapshot", MAP, WAIT_SECONDS_MAX)
            self.report("a node joins")
            started = time.monotonic()
            b = stack.enter_context(
                NodeProcess(
                    "b",
                    directory,
                    broker_url=server.url,
                    maps=[MapEntry(MAP, claim.pin_directory / "b" / MAP, Role.APPLY)],
                )
            )
            b.await_running()
            joined, memory = _joined(b), _memory_peak(b)
            plain = min(plain, self._plain(source, keys, values))
        changes = generator.changes
        found = self._settled(source, replica)
        seconds, entries = float(joined["seconds"]), int(joined["entries"])
        plain = plain * entries / len(keys)
        return Joined(
            entries=entries,
            seconds=round(seconds, 3),
            load_seconds=round(float(joined["load_seconds"]), 3),
            update_batch_seconds=round(plain, 3),
            share=round(plain / seconds, 3),
            rss_mb=round(memory, 1),
            start_seconds=round(float(joined["began"]) - started, 3),
            snapshot_seconds=float(str(taken["seconds"])),
            tail_changes=int(joined["tail_changes"]),
            changes_per_second=round(changes / generator.seconds),
            missing=found.missing + found.wrong + found.extra,
        )

    def _owner(self, directory: Path, url: str, churn: Churn) -> NodeProcess:
        loaded = churn.loaded
        emit = (loaded.map_pin(RING), loaded.map_pin(LOSSES))
        return NodeProcess(
            "a",
            directory,
            broker_url=url,
            maps=[MapEntry(MAP, loaded.map_pin(MAP), Role.REPLICATE, emit)],
        )

    def _settled(self, source: KernelMap, replica: KernelMap) -> Comparison:
        """The comparison when the last changes have arrived, or do not come any more."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while not (found := compare(source, replica)).equal and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return found

    def _plain(self, source: KernelMap, keys: U8, values: U8) -> float:
        """Seconds for the same entries into an empty map of the same shape."""
        with tempfile.TemporaryDirectory(prefix="mapbridge-", dir="/sys/fs/bpf") as folder:
            empty = twin(source, Path(folder) / "plain")
            try:
                began = time.monotonic()
                _write(empty, keys, values)
                return time.monotonic() - began
            finally:
                empty.close()
                (Path(folder) / "plain" / MAP).unlink()

    def _await(self, condition: Callable[[], bool], what: str, node: NodeProcess) -> None:
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not condition():
            if time.monotonic() > deadline:
                raise LateJoinError(
                    f"node {node.name}: {what} did not come in {WAIT_SECONDS_MAX:.0f} s",
                    hint="see how busy this machine is",
                )
            time.sleep(POLL_SECONDS)


@dataclass(slots=True)
class _Changes:
    changes: int = 0
    seconds: float = 0.0


@contextmanager
def _changing(churn: Churn, keys: int, rate: int) -> Iterator[_Changes]:
    """Change the map at ``rate`` as long as the body runs."""
    done = _Changes(seconds=1.0)
    if not rate:
        yield done
        return
    generator = Generator(churn, keys)

    def work() -> None:
        generated = generator.run(RUN_SECONDS_MAX, rate)
        done.changes, done.seconds = generated.changes, generated.seconds

    thread = threading.Thread(target=work, name="generator", daemon=True)
    thread.start()
    try:
        yield done
    finally:
        generator.stop()
        thread.join()


def _entries(count: int) -> tuple[U8, U8]:
    """Keys as the program makes them (a number and its complement), and values."""
    numbers = np.arange(1, count + 1, dtype=np.uint64)
    keys = np.stack([numbers, ~numbers], axis=1).view(np.uint8)
    values = np.stack([np.ones_like(numbers), numbers, numbers], axis=1).view(np.uint8)
    return keys, values


def _write(target: KernelMap, keys: U8, values: U8) -> None:
    for at in range(0, len(keys), BATCH_ENTRIES):
        end = at + BATCH_ENTRIES
        outcome = target.update_batch(keys[at:end], values[at:end])
        if outcome.errno:
            raise LateJoinError(f"map {MAP}: a batch was refused (errno {outcome.errno})")


def _counter(node: NodeProcess, section: str, name: str) -> float:
    found = node.map_status().get(section)
    return float(found.get(name) or 0) if isinstance(found, dict) else 0.0


def _joined(node: NodeProcess) -> dict[str, float]:
    found = node.map_status().get("joined")
    if not isinstance(found, dict) or found.get("way") != "load":
        raise LateJoinError(f"node {node.name}: loaded no snapshot (got {found})")
    return {name: float(value) for name, value in found.items() if name != "way"}


def _memory_peak(node: NodeProcess) -> float:
    """The most that the process had in memory so far, in MiB."""
    text = Path(f"/proc/{node.process.pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024

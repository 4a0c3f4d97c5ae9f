"""Rounds on a stage of three nodes and three servers: load, a fault, rest, and the verdict.

After each round the writers rest, and all maps must become equal, and hold what was written.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.bench.churn import MAP, loaded_churn
from bridge.kernel.objects import default_cache
from bridge.rig.claim import Claim
from bridge.rig.compare import compare
from tests.chaos.faults import FAULTS, SETTLE_SECONDS_MAX, Stage
from tests.chaos.load import Load, Verdict, judge, lost_by_writer
from tests.chaos.servers import ServerCluster

NODES = 3
BEFORE_SECONDS = 1.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Round:
    """``resync_seconds``: from the end of the fault, with its backlog, until all maps are equal."""

    number: int
    fault: str
    whom: str
    fault_seconds: float
    changes: int
    resync_seconds: float
    lost: int
    drift: int
    verified: bool  # `mapbridge verify` says the same


@contextlib.contextmanager
def open_stage(
    *, keep: bool = False, mortal: Sequence[int] = range(NODES), spare: bool = False
) -> Iterator[Stage]:
    """Everything runs on entering, and is removed on leaving; ``spare``: with a second map."""
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="mapbridge-chaos-"))
        if keep:
            print(f"directories: {directory}", file=sys.stderr)
        else:
            temporary = tempfile.TemporaryDirectory(prefix="mapbridge-chaos-")
            directory.rmdir()
            directory = Path(stack.enter_context(temporary))
        claim = stack.enter_context(Claim.take())
        claim.pin_directory.mkdir(parents=True)
        loads = _load_programs(stack, claim.pin_directory, "n")
        spares = _load_programs(stack, claim.pin_directory, "spare") if spare else []
        cluster = stack.enter_context(ServerCluster(claim, directory))
        stage = Stage(directory, cluster, loads, mortal, spares)
        stage.until_equal = lambda: _settle(stage).good
        stack.callback(_stop_nodes, stage)
        for number in range(NODES):
            stage.nodes.append(stage.start_node(number))
        for node in stage.nodes:
            node.await_running()
        yield stage


def _load_programs(stack: contextlib.ExitStack, pins: Path, prefix: str) -> list[Load]:
    loads = []
    for number in range(NODES):
        churn = loaded_churn(default_cache(), pins / f"{prefix}{number + 1}", ["EMIT"])
        loads.append(Load(stack.enter_context(churn), number))
    return loads


def _stop_nodes(stage: Stage) -> None:
    for node in stage.nodes:
        node.stop()


def play(
    stage: Stage,
    number: int,
    name: str,
    chance: random.Random,
    beside: contextlib.AbstractContextManager[object] | None = None,
) -> Round:
    """One round; ``beside``: what is so from before the fault until behind it."""
    before = sum(load.changes for load in stage.all_writers)
    for load in stage.all_writers:
        load.start()
    time.sleep(BEFORE_SECONDS)
    seconds = chance.uniform(1.0, 6.0)
    with beside or contextlib.nullcontext(), FAULTS[name](stage, chance, seconds) as whom:
        time.sleep(seconds)
    ended = time.monotonic()
    for load in stage.all_writers:
        load.stop()
    verdict = _settle(stage)
    resync = time.monotonic() - ended
    if not verdict.good:
        _explain(stage)
    stage.cluster.await_healthy()
    for node in stage.nodes:
        node.status()  # raises when it has ended
    return Round(
        number=number,
        fault=name,
        whom=whom,
        fault_seconds=round(seconds, 1),
        changes=sum(load.changes for load in stage.all_writers) - before,
        resync_seconds=round(resync, 2),
        lost=verdict.lost,
        drift=verdict.drift,
        verified=_verified(stage) == (not verdict.drift),
    )


def _verified(stage: Stage) -> bool:
    """Whether the nodes say of themselves that their maps are equal."""
    command = [sys.executable, "-m", "bridge.cli.main", "verify", MAP, "--json"]
    config = ["-c", str(stage.nodes[0].config_path)]
    done = subprocess.run([*command, *config], capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode == 0


def _settle(stage: Stage) -> Verdict:
    """The verdict as soon as it is good; the last one when it is not in time."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while not (verdict := _judge_all(stage)).good and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return verdict


def _judge_all(stage: Stage) -> Verdict:
    found = [judge(loads) for loads in (stage.loads, stage.spares) if loads]
    return Verdict(sum(one.lost for one in found), sum(one.drift for one in found))


def _explain(stage: Stage) -> None:
    """Which keys differ, and what the nodes say of themselves."""
    maps = [load.churn.loaded.map(MAP) for load in stage.loads]
    keys = {e.key for other in maps[1:] for e in compare(maps[0], other).examples}
    for key in sorted(keys):
        held = [kernel_map.lookup(key) for kernel_map in maps]
        print(f"differs: {key.hex()}: {[v and v.hex() for v in held]}", file=sys.stderr)
    for what, loads in (("maps", stage.loads), ("spare maps", stage.spares)):
        if loads:
            print(f"lost in {what}, by writer: {lost_by_writer(loads)}", file=sys.stderr)
    for node in stage.nodes:
        print(json.dumps({node.name: node.status()}), file=sys.stderr)


def line_of(done: Round) -> str:
    return (
        f"{done.number:4} {done.fault:<22}{done.whom:<8}{done.fault_seconds:>5.1f} s "
        f"{done.changes:>9,} changes  equal after {done.resync_seconds:>6.2f} s  "
        f"{done.lost} lost, {done.drift} drift{'' if done.verified else ', VERIFY SAYS OTHERWISE'}"
    )

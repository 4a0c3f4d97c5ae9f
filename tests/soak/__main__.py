"""Hours of random load, faults and reloads; nothing may grow: `python -m tests.soak --minutes 30`.

Three nodes and three servers as in `tests.chaos`, one random fault a round, and in half of them a
bridge whose configuration loses a map and gets it back. Two of the bridges are
never killed: what they use is judged over the whole run. The log is bounded as operators bound it,
so that its beginning goes, and nodes that come back need snapshots. Writes `samples.csv`,
`report.json` and `curves.png` to build/soak/. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import nats

from bridge.errors import BridgeError
from bridge.rig.claim import reap_leftovers
from bridge.rig.nodes import CLUSTER
from bridge.wire.subjects import stream_name
from tests.chaos.faults import FAULTS, Stage
from tests.chaos.rounds import Round, line_of, open_stage, play
from tests.soak.curves import BOUNDS, Growth, Sampler, judge_growth, warm_up, write_csv
from tests.soak.plot import draw
from tests.soak.reloads import without_spare

# More than is written while a bridge lacks a map, on a slow machine too: what programs wrote to it
# meanwhile is lost when the history of that time is gone.
LOG_BYTES = 512 << 20
STORED_MB_MAX = 2 * (LOG_BYTES >> 20)  # the log, snapshots, and what the servers keep of both
PACES = (1, 2, 4, 8)  # runs of a writer in a step
INTERVALS = 1800  # samples of a process in a run, at most one a second, at least one in ten
RELOADS = 0.5  # share of rounds in which a bridge's configuration changes, twice
MORTAL = (2,)  # the node whose bridge may be killed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--memory-mb",
        type=float,
        default=BOUNDS["memory_mb"].amount,
        help="what resident memory may grow by, beside 5 %% (default %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error("--minutes: must be more than 0")
    options.out.mkdir(parents=True, exist_ok=True)
    reap_leftovers()
    chance = random.Random(options.seed)
    rounds: list[tuple[float, Round]] = []
    stored: list[int] = []  # most that a server had on its disk after each round, MiB
    reloads, broken = 0, ""
    wanted = options.minutes * 60.0
    with open_stage(mortal=MORTAL, spare=True) as stage:
        asyncio.run(_bound_log(stage.cluster.url.split(",")))
        began = time.monotonic()
        interval = min(max(wanted / INTERVALS, 0.1), 10.0)
        with Sampler(lambda: stage.nodes, lambda: time.monotonic() - began, interval) as sampler:
            while not broken and (at := time.monotonic() - began) < wanted:
                try:
                    done, reloaded = _round(stage, len(rounds), chance)
                except BridgeError as error:
                    broken = f"round {len(rounds)}: {error}"
                    print(broken, flush=True)
                    continue
                rounds.append((at, done))
                reloads += 2 * reloaded
                stored.append(max(server.stored_bytes() for server in stage.cluster.servers) >> 20)
                beside = f"  {stored[-1]} MB" + (", reloaded" if reloaded else "")
                print(line_of(done) + beside, flush=True)
                write_csv(sampler.samples, options.out / "samples.csv")
            seconds = time.monotonic() - began
    memory = replace(BOUNDS["memory_mb"], amount=options.memory_mb)
    warm = warm_up(seconds, _full_at(rounds, stored))
    growth = judge_growth(sampler.samples, seconds, warm, {**BOUNDS, "memory_mb": memory})
    draw(sampler.samples, rounds, options.out / "curves.png")
    bounded = all(found <= STORED_MB_MAX for found in stored)
    good = _good([done for _, done in rounds], growth) and bounded and not broken
    report = {
        "seconds": round(seconds, 1),
        "seed": options.seed,
        "reloads": reloads,
        "warm_up_seconds": round(warm, 1),
        "good": good,
        "broken": broken,
        "growth": [asdict(found) for found in growth],
        "rounds": [
            {"began": round(at, 2), "stored_mb": mb, **asdict(done)}
            for (at, done), mb in zip(rounds, stored, strict=True)
        ],
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=1))
    _print([done for _, done in rounds], growth)
    print(f"curves: {options.out / 'curves.png'}")
    print(_verdict([done for _, done in rounds], reloads, seconds, good=good))
    return 0 if good else 1


def _round(stage: Stage, number: int, chance: random.Random) -> tuple[Round, bool]:
    """What came of it, and whether a configuration was changed meanwhile."""
    for load in stage.all_writers:
        load.pace = chance.choice(PACES)
    fault = chance.choice(list(FAULTS))
    # A node is wiped when all maps are equal, which a map that one node does not have cannot be.
    reloads = fault != "node wiped" and chance.random() < RELOADS
    beside = without_spare(stage, chance) if reloads else None
    return play(stage, number, fault, chance, beside), beside is not None


async def _bound_log(urls: list[str]) -> None:
    """As an operator does it, from the outside; the bridges leave such limits as they are."""
    connection = await nats.connect(urls)
    try:
        stream = connection.jetstream()
        info = await stream.stream_info(stream_name(CLUSTER))
        info.config.max_bytes = LOG_BYTES
        await stream.update_stream(info.config)
    finally:
        await connection.close()


def _full_at(rounds: Sequence[tuple[float, Round]], stored: Sequence[int]) -> float:
    """When the servers had as much on their disks as the log may hold; 0: never."""
    found = zip(rounds, stored, strict=True)
    return next((at for (at, _), mb in found if mb >= LOG_BYTES >> 20), 0.0)


def _good(rounds: Sequence[Round], growth: Sequence[Growth]) -> bool:
    """A run in which no process lived long enough to be judged has shown nothing."""
    equal = all(not done.lost and not done.drift and done.verified for done in rounds)
    return bool(rounds) and equal and bool(growth) and all(found.good for found in growth)


def _print(rounds: Sequence[Round], growth: Sequence[Growth]) -> None:
    for found in growth:
        print(
            f"{found.node} {found.of:<12} early {found.early:>8g}  late {found.late:>8g}  "
            f"highest {found.highest:>8g}  {'flat' if found.good else 'GROWS'}"
        )
    if not growth:
        print("no bridge lived from the warm-up to the end: nothing is shown")
    for fault, times in Counter(done.fault for done in rounds).most_common():
        longest = max(done.resync_seconds for done in rounds if done.fault == fault)
        print(f"{times:4} x {fault:<22} longest until equal {longest:.2f} s")


def _verdict(rounds: Sequence[Round], reloads: int, seconds: float, *, good: bool) -> str:
    lost, drift = sum(done.lost for done in rounds), sum(done.drift for done in rounds)
    changes = sum(done.changes for done in rounds)
    return (
        f"soak: {seconds / 60:.1f} minutes, {len(rounds)} faults, {reloads} reloads, {changes:,} "
        f"changes: {lost} lost, {drift} drift, {'flat' if good else 'NOT GOOD'}"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BridgeError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))

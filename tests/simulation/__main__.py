"""Runs seeds of the simulation: `python -m tests.simulation --seeds 500`, `--seed 17 --trace`.

`--rules` takes one rule of the core away after the other and tells which seeds find that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence

from tests.simulation.rules import RULES
from tests.simulation.world import World

CHUNK = 16
ENOUGH = 7  # failing seeds, and a rule counts as found missing


def wrong_in(seed: int) -> tuple[int, list[str]]:
    """What is wrong at the end of one seed's run; a run that breaks off is wrong too."""
    try:
        return seed, World(seed).run()
    except (TypeError, AttributeError, NameError):
        raise  # a rule that was taken away clumsily has proved nothing
    except Exception as error:  # noqa: BLE001 - told with its seed
        return seed, [f"broke off: {error!r}"]


def failing(rule: str, seeds: Sequence[int], jobs: int, enough: int) -> tuple[int, list[int]]:
    """How many seeds that it concerns were tried without this rule, and those that failed."""
    found: list[int] = []
    tried = 0
    seeds = [seed for seed in seeds if RULES[rule].concerns(seed)]
    with RULES[rule].applied(), multiprocessing.get_context("fork").Pool(jobs) as pool:
        for seed, wrong in pool.imap(wrong_in, seeds, chunksize=CHUNK):
            tried += 1
            if wrong:
                found.append(seed)
            if len(found) >= enough:
                break
    return tried, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--rules", action="store_true", help="take each rule away in turn")
    parser.add_argument("--without", choices=list(RULES), help="with --seed: without this rule")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        return _one(options.seed, options.without, trace=options.trace)
    if options.rules:
        return _without_each(seeds, options.jobs)
    failed = 0
    with multiprocessing.Pool(options.jobs) as pool:
        for seed, wrong in pool.imap(wrong_in, seeds, chunksize=CHUNK):
            if wrong:
                failed += 1
                print(f"seed {seed}: {'; '.join(wrong)}", flush=True)
    print(f"{options.seeds - failed} passed, {failed} failed")
    return 1 if failed else 0


def _one(seed: int, without: str | None, *, trace: bool) -> int:
    world = World(seed, trace=trace)
    if without is None:
        wrong = world.run()
    else:
        with RULES[without].applied():
            wrong = World(seed, trace=trace).run()
    print(world.profile, *wrong, sep="\n")
    return 1 if wrong else 0


def _without_each(seeds: range, jobs: int) -> int:
    unseen = 0
    for name, rule in RULES.items():
        tried, found = failing(name, seeds, jobs, enough=ENOUGH)
        unseen += not found
        first = f"first {found[0]}" if found else "NOT FOUND"
        print(f"{name:<28}{tried:>7}{len(found):>7}  {first:<14}{rule.without}", flush=True)
    print(f"{len(RULES) - unseen} rules found missing, {unseen} not")
    return 1 if unseen else 0


if __name__ == "__main__":
    if "PYTHONHASHSEED" not in os.environ:
        # Sets of keys are walked in the order of their hashes: a seed must do the same everywhere.
        arguments = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | {"PYTHONHASHSEED": "0"})
    sys.exit(main())

"""Runs seeds of the simulation: `python -m tests.simulation --seeds 500`, `--seed 17 --trace`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys

from tests.simulation.world import World


def wrong_in(seed: int) -> tuple[int, list[str]]:
    """What is wrong at the end of one seed's run; a run that breaks off is wrong too."""
    try:
        return seed, World(seed).run()
    except Exception as error:  # noqa: BLE001 - told with its seed
        return seed, [f"broke off: {error!r}"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    if options.seed is not None:
        world = World(options.seed, trace=options.trace)
        wrong = world.run()
        print(world.profile, *wrong, sep="\n")
        return 1 if wrong else 0
    failed = 0
    seeds = range(options.first, options.first + options.seeds)
    with multiprocessing.Pool(options.jobs) as pool:
        for seed, wrong in pool.imap(wrong_in, seeds, chunksize=16):
            if wrong:
                failed += 1
                print(f"seed {seed}: {'; '.join(wrong)}")
    print(f"{options.seeds - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

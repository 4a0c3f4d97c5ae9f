"""Three nodes and three servers under load, one fault a round: `python -m tests.chaos --rounds 9`.

Needs root, `ip`, clang, and a nats-server; maps, programs, bridges and servers are real.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from dataclasses import asdict

from bridge.errors import BridgeError
from bridge.rig.claim import reap_leftovers
from tests.chaos.faults import FAULTS
from tests.chaos.rounds import Round, line_of, open_stage, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--rounds", type=int, default=len(FAULTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=list(FAULTS), help="only this one")
    parser.add_argument("--json", action="store_true", help="one object per round")
    parser.add_argument("--keep", action="store_true", help="leave the nodes' directories")
    options = parser.parse_args()
    reap_leftovers()
    rounds: list[Round] = []
    with open_stage(keep=options.keep) as stage:
        for number in range(options.rounds):
            fault = options.fault or list(FAULTS)[number % len(FAULTS)]
            done = play(stage, number, fault, random.Random(f"{options.seed}/{number}"))
            rounds.append(done)
            print(json.dumps(asdict(done)) if options.json else line_of(done), flush=True)
    return _summary(rounds)


def _summary(rounds: list[Round]) -> int:
    longest: dict[str, float] = defaultdict(float)
    for done in rounds:
        longest[done.fault] = max(longest[done.fault], done.resync_seconds)
    for fault, seconds in longest.items():
        print(f"longest until equal, {fault}: {seconds:.2f} s")
    lost, drift = sum(r.lost for r in rounds), sum(r.drift for r in rounds)
    changes = sum(r.changes for r in rounds)
    print(f"{len(rounds)} rounds, {changes:,} changes: {lost} lost, {drift} drift")
    return 1 if lost or drift or not all(r.verified for r in rounds) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BridgeError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))

"""``python -m tests.fuzz --seconds N``: every reader of others' bytes against inputs that grow.

Prints how many inputs each target took. A crash leaves its input in ``build/fuzz/NAME-crash-...``;
``--replay FILE`` runs one again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS

FOLDER = Path("build/fuzz")
INPUT_BYTES_MAX = 4096
INPUT_SECONDS_MAX = 10
_RUNS = re.compile(rb"#(\d+)\s")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a target's run came to."""

    inputs: int
    seconds: float
    failed: bool
    said: str


def fuzz(name: str, seconds: int) -> Outcome:
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    began = time.monotonic()
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        "-rss_limit_mb=1500",
        f"-artifact_prefix={FOLDER}/{name}-",
    ]
    command = [sys.executable, "-m", "tests.fuzz.child", name, *options, str(corpus)]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=seconds + 120)
    (FOLDER / f"{name}.log").write_bytes(ended.stdout + ended.stderr)
    runs = [int(number) for number in _RUNS.findall(ended.stderr)]
    said = [line for line in ended.stdout.decode(errors="replace").splitlines() if line.strip()]
    return Outcome(
        max(runs, default=0),
        time.monotonic() - began,
        ended.returncode != 0,
        said[-1] if said else "",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="for each target")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--replay", type=Path, help="run one target on one file")
    chosen = parser.parse_args()
    names = chosen.target or list(TARGETS)
    if chosen.replay is not None:
        for name in names:
            TARGETS[name].run(chosen.replay.read_bytes())
        return 0
    outcomes = {}
    for name in names:
        found = outcomes[name] = fuzz(name, chosen.seconds)
        verdict = f"FAILED: {found.said} (see {FOLDER}/{name}.log)" if found.failed else "ok"
        print(f"{name:10} {found.inputs:12,} inputs {found.seconds:7.1f} s  {verdict}", flush=True)
    failed = sum(each.failed for each in outcomes.values())
    total = sum(each.inputs for each in outcomes.values())
    print(f"{total:,} inputs, {len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

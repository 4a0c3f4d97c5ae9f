"""A short run of ``make soak``, and a process that leaks, which its judgement must find."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.soak.curves import BOUNDS, Sample, judge_growth, sample_process

RUN_SECONDS = 2.0
LEAK = "rows.append(b'x' * (1 << 20)); files.append(open('/dev/null'))"
FLAT = "len(rows); open('/dev/null').close()"
THREAD = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"


@pytest.mark.parametrize(
    ("step", "growing"),
    [(LEAK, {"memory_mb", "descriptors"}), (THREAD, {"threads"}), (FLAT, set())],
)
def test_what_leaks_is_found(step: str, growing: set[str]) -> None:
    program = f"import threading, time\nrows, files = [], []\nwhile True: {step}; time.sleep(0.05)"
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        samples = _watch(child.pid)
    finally:
        child.kill()
        child.wait()
    found = judge_growth(samples, RUN_SECONDS, RUN_SECONDS / 5, BOUNDS)
    assert {growth.of for growth in found} == BOUNDS.keys()
    assert {growth.of for growth in found if not growth.good} == growing


def _watch(process: int) -> list[Sample]:
    began = time.monotonic()
    samples = []
    while (at := time.monotonic() - began) < RUN_SECONDS:
        sample = sample_process(at, "n1", process, 0.0)
        assert sample is not None
        samples.append(sample)
        time.sleep(0.05)
    return samples


@pytest.mark.timeout(240)
def test_a_short_soak_is_flat_and_without_drift(tmp_path: Path) -> None:
    """Memory is still warming up in so short a time, so it may grow here."""
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.12", "--seed", "7"]
    done = subprocess.run(
        [*command, "--memory-mb", "100", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 drift, flat" in done.stdout.splitlines()[-1]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["good"] is True
    assert {found["node"] for found in report["growth"]} >= {"n1", "n2"}
    with (tmp_path / "samples.csv").open() as file:
        assert {row["node"] for row in csv.DictReader(file)} == {"n1", "n2", "n3"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

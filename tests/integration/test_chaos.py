"""A few rounds of ``make chaos``: real maps, programs, bridges and a cluster of three servers."""

from __future__ import annotations

import subprocess
import sys

import pytest

SECONDS_MAX = 300.0


@pytest.mark.parametrize("fault", ["bridge killed", "node wiped", "stream leader killed"])
def test_nothing_is_lost_and_all_maps_are_equal(fault: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--rounds", "2", "--fault", fault],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("0 lost, 0 drift"), done.stdout

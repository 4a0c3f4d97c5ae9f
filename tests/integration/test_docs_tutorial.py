"""The tutorial, run as it stands: every block of shell in it, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from bridge.kernel.features import Capability
from tests.integration.kernel_support import needs

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_SYS_ADMIN, Capability.CAP_PERFMON)

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "two-nodes.md"
SECONDS_MAX = 90
PINS = Path("/sys/fs/bpf/node-b")
STATE = Path("/tmp/mapbridge-tutorial")
# What a failure in the middle leaves behind; else the tutorial's own last block ends everything.
SAFE = f"""set -eu -o pipefail
trap '[ $? = 0 ] || {{ kill $(jobs -p) || true; wait; rm -rf {PINS} {STATE}; }}' EXIT
"""


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)


def test_the_tutorial_works(tmp_path: Path) -> None:
    parts = blocks()
    assert len(parts) >= 10
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    ended = subprocess.run(
        ["bash", "-c", SAFE + "\n".join(parts)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    told = f"{ended.stdout}\n{ended.stderr}"
    logs = [
        (tmp_path / f"{node}.log").read_text()
        for node in "ab"
        if (tmp_path / f"{node}.log").exists()
    ]
    assert ended.returncode == 0, told + "\n".join(logs)
    assert "comm=python3" in ended.stdout
    assert ended.stdout.count("\nequal\n") == 2, told
    assert not PINS.exists()
    assert not STATE.exists()

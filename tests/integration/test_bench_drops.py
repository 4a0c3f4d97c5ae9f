"""``mapbridge bench drops``: every change is delivered or counted, through both transports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from bridge.cli.main import cli
from bridge.kernel.features import Capability
from bridge.kernel.perf import online_cpus
from tests.integration.kernel_support import needs, no_descriptor_leaks

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_PERFMON, Capability.CAP_NET_ADMIN)
OPTIONS = ("--seconds", "0.2", "--size", "8KiB", "--size", "64MiB", "--writers", "3")


def test_every_change_is_delivered_or_counted() -> None:
    with no_descriptor_leaks():
        done = CliRunner().invoke(cli, ["bench", "drops", *OPTIONS, "--json"])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["cpus"] == len(online_cpus())
    assert [r["transport"] for r in report["sizes"]] == ["ring", "perf", "ring", "perf"]
    assert [r["writers"] for r in report["writers"]] == [3, 3]
    for result in (*report["sizes"], *report["writers"]):
        assert result["changes"] > 0
        assert result["delivered"] + result["dropped"] == result["changes"]
        assert result["unaccounted"] == 0
    tight, ample = report["sizes"][:2], report["sizes"][2:]
    assert all(r["dropped"] > 0 for r in tight)
    assert [r["dropped"] for r in ample] == [0, 0]
    assert [r["buffer_bytes"] for r in ample if r["transport"] == "ring"] == [64 << 20]


@pytest.mark.parametrize(("size", "reason"), [("63KiB", "power of two"), ("64", "must end in one")])
def test_sizes_that_no_buffer_has_are_refused(size: str, reason: str) -> None:
    done = CliRunner().invoke(cli, ["bench", "drops", "--size", size])
    assert done.exit_code == 2
    assert reason in done.output

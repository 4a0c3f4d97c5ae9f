"""The commands that show and measure, as a user calls them."""

from __future__ import annotations

import subprocess
import sys

import orjson

from bridge.kernel.features import Capability
from tests.integration.kernel_support import needs

pytestmark = needs(Capability.CAP_SYS_ADMIN)


def last_line(*arguments: str, seconds_max: float = 110) -> dict[str, object]:
    ended = subprocess.run(
        [sys.executable, "-m", "bridge.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    answer = orjson.loads(ended.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def test_the_demo_ends_with_equal_maps() -> None:
    answer = last_line("demo", "--sessions", "1009", "--json")
    entries = ("sessions", "source_entries", "replica_entries", "late_entries")
    assert [answer[key] for key in entries] == [1009] * 4
    differences = ("missing", "wrong", "extra", "left")
    assert [answer[key] for key in differences] == [0] * 4
    assert answer["capture"] in ("fentry", "kprobe", "sweep")
    assert isinstance(answer["seconds"], float)


def test_the_bench_counts_every_change() -> None:
    answer = last_line("bench", "sync-rate", "--seconds", "1", "--rate", "10000", "--json")
    rates = answer.pop("rates")
    assert isinstance(rates, list)
    assert [rate["rate"] for rate in rates] == [10_000]
    for rate in (answer, *rates):
        assert rate["changes"] > 1000
        assert (rate["missing"], rate["dropped"]) == (0, 0)
        assert 0 < rate["p50_ms"] <= rate["p99_ms"]
        assert rate["cpu_us"].keys() == {"publisher", "server", "replicas", "generator"}


def test_the_bench_brings_changes_to_several_replicas_through_a_cluster() -> None:
    setup = ["--saturation-only", "--replicas", "2", "--copies", "3", "--storage", "memory"]
    answer = last_line("bench", "sync-rate", "--seconds", "1", *setup, "--json")
    assert int(str(answer["changes"])) > 1000
    assert (answer["missing"], answer["dropped"], answer["rates"]) == (0, 0, [])


def test_the_bench_tells_what_capture_costs() -> None:
    answer = last_line("bench", "overhead", "--rounds", "1", "--repeat", "2003", "--json")
    costs, unavailable = answer["costs"], answer["unavailable"]
    assert isinstance(costs, list)
    assert isinstance(unavailable, dict)
    by_mode = {cost["mode"] for cost in costs}
    assert by_mode | unavailable.keys() == {"fentry", "kprobe", "syscall", "emit"}
    assert {"emit", "syscall"} <= by_mode
    for cost in costs:
        assert min(cost["bare"], cost["watched"]) > 0
        assert (cost["unwatched"] is None) == (cost["mode"] == "emit")
        assert cost["lost"] == 0
    emitted = [cost for cost in costs if cost["mode"] == "emit"]
    assert [(c["key_bytes"], c["value_bytes"]) for c in emitted] == [(8, 8), (16, 24), (40, 120)]
    assert all(cost["watched"] > cost["bare"] for cost in emitted)


def test_the_late_joiner_of_the_bench_misses_nothing() -> None:
    answer = last_line("bench", "late-join", "--entries", "20011", "--rate", "5003", "--json")
    assert answer["missing"] == 0
    entries, tail = answer["entries"], answer["tail_changes"]
    assert isinstance(entries, int)
    assert isinstance(tail, int)
    assert 15_000 < entries <= 20_011
    assert tail > 1000
    for field in ("seconds", "load_seconds", "update_batch_seconds", "share", "rss_mb"):
        value = answer[field]
        assert isinstance(value, float)
        assert value > 0

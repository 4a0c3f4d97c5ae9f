"""The table of metrics: names, units, help, and the page that is written out of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bridge.health.families import Facts, Kind, Spec
from bridge.health.metrics import SPECS, NodeCollector
from bridge.health.page import render

ROOT = Path(__file__).resolve().parents[2]
UNITS = ("seconds", "bytes")
NOT_BASE = re.compile(
    r"_(?:ms|us|ns|milliseconds|microseconds|minutes|hours|kb|mb|kib|mib|percent|bits)(?:_|$)"
)
LABELS = {
    *("map", "node", "cluster", "version", "capture", "state", "cause", "stage", "queue"),
    *("result", "quantile", "code"),
}
DOCUMENT: dict[str, object] = {
    "node": "a",
    "cluster": "c",
    "version": "1",
    "capture": {"mode": "sweep"},
    "broker": {"connected": True, "reconnects": 3},
    "inbox": {"waiting": 2, "waiting_bytes": 11, "peak_bytes": 13, "waits": 5},
    "maps": {
        'odd"name': {
            "state": "running",
            "synced": True,
            "behind_seconds": 0.5,
            "lives": 1,
            "trouble": "disk full",
            "parked": {"b": {}},
            "capture": {"changes": 101, "scanned": 31, "repaired": 7, "losses": {"fault": 17}},
            "published": {"seconds": 0.75, "durations": {"0.5": 2, "1.0": 3, "+Inf": 1}},
            "apply": {"updated": 53, "p99_seconds": None, "written_at": 0},
            "verified": {"at": 1_700_000_000.5, "drift": 19, "nodes": 3},
        },
        "waiting": {
            "state": "waiting",
            "synced": False,
            "behind_seconds": None,
            "verified": None,
        },
    },
}


def exposed(document: dict[str, object]) -> str:
    registry = CollectorRegistry()
    facts = Facts(document, 0.25, {"answers": {"200": 7}, "turned_away": 2}, 1 << 20)
    registry.register(NodeCollector(lambda: facts))
    return generate_latest(registry).decode()


def samples(document: dict[str, object]) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(exposed(document)):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def test_the_page_is_what_the_table_gives() -> None:
    page = ROOT / "docs" / "reference" / "metrics.md"
    assert page.read_text() == render(), "run `make pages`"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_each_metric_is_named_as_prometheus_asks(spec: Spec) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", spec.name)
    assert len(spec.help) > 8
    assert spec.help == spec.help.strip(" .")
    counter = spec.kind is Kind.COUNTER
    assert spec.name.endswith("_total") == counter
    stem = spec.name.removesuffix("_total")
    assert spec.unit in ("", "info", *UNITS)
    if spec.unit:
        assert stem.endswith(f"_{spec.unit}")
    else:
        assert not stem.endswith(UNITS), "has a unit that its row does not name"
    assert NOT_BASE.search(spec.name) is None
    assert set(spec.labels) <= LABELS, "a label that nobody has judged; never keys of a map"


def test_no_name_stands_twice() -> None:
    assert len({spec.name for spec in SPECS}) == len(SPECS)


def test_numbers_are_those_of_the_document() -> None:
    found = {(name, *sorted(labels.values())): value for name, labels, value in samples(DOCUMENT)}
    odd = 'odd"name'
    assert found["mapbridge_capture_events_total", "change", odd] == 101 - 31 - 7
    assert found["mapbridge_capture_lost_total", "fault", odd] == 17
    assert found["mapbridge_map_trouble", odd] == 1
    assert found["mapbridge_map_parked_nodes", odd] == 1
    assert found["mapbridge_apply_deltas_total", odd, "updated"] == 53
    assert found["mapbridge_queue_bytes", "", "inbox"] == 11
    assert found["mapbridge_queue_capacity_bytes", "", "inbox"] == 1 << 20
    assert found["mapbridge_publish_duration_seconds_bucket", "1.0", odd] == 5
    assert found["mapbridge_publish_duration_seconds_count", odd] == 6
    assert found["mapbridge_publish_duration_seconds_sum", odd] == 0.75
    assert found["mapbridge_verify_drift_keys", odd] == 19
    assert found["mapbridge_verify_timestamp_seconds", odd] == 1_700_000_000.5
    assert ("mapbridge_verify_drift_keys", "waiting") not in found
    assert ("mapbridge_verify_timestamp_seconds", "waiting") not in found
    assert found["mapbridge_map_synced", "waiting"] == 0
    assert ("mapbridge_map_behind_seconds", "waiting") not in found
    assert ("mapbridge_last_applied_timestamp_seconds", odd) not in found


def test_a_node_that_knows_nothing_yet_has_metrics() -> None:
    names = {name for name, _, _ in samples({})}
    assert names == {
        "mapbridge_status_age_seconds",
        "mapbridge_http_answers_total",
        "mapbridge_http_turned_away_total",
    }


def test_promtool_has_no_complaint() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("promtool"), "check", "metrics"],
        input=exposed(DOCUMENT),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")

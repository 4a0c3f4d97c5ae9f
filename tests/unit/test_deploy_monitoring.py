"""Alert rules and dashboard: only metrics that exist, expressions that Prometheus reads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bridge.health.families import Kind
from bridge.health.metrics import SPECS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "mapbridge.rules.yml"
BOARD = DEPLOY / "grafana" / "mapbridge.json"
NAME = re.compile(r"\bmapbridge_\w+")
PROMTOOL = Path(sys.executable).with_name("promtool")  # `make setup` puts it there


def served() -> set[str]:
    """Names of series, as they are scraped."""
    names = {spec.full_name for spec in SPECS}
    parts = ("bucket", "sum", "count")
    of_histograms = {spec.full_name for spec in SPECS if spec.kind is Kind.HISTOGRAM}
    return names | {f"{name}_{part}" for name in of_histograms for part in parts}


def panels() -> Iterator[dict[str, object]]:
    for panel in json.loads(BOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def expressions() -> list[str]:
    found = []
    for panel in panels():
        targets = panel["targets"]
        assert isinstance(targets, list)
        found += [str(target["expr"]) for target in targets]
    return found


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    for path in (RULES, BOARD):
        named = set(NAME.findall(path.read_text()))
        assert named, path
        assert named - served() == set(), path


def test_every_alert_says_what_and_what_to_do() -> None:
    alerts = RULES.read_text().split("- alert: ")[1:]
    assert len(alerts) > 7
    for alert in alerts:
        for wanted in ("severity: ", "summary: ", "description: "):
            assert wanted in alert, alert.splitlines()[0]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        assert isinstance(at, dict)
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert all(x < 24 for x, _ in cells)
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_rules_hold_their_tests() -> None:
    folder = RULES.parent
    for arguments in (
        ("check", "rules", str(RULES)),
        ("check", "config", str(folder / "prometheus.yml")),
        ("test", "rules", str(folder / "mapbridge.rules.test.yml")),
    ):
        done = check(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_what_the_dashboard_asks(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": one.replace("$__rate_interval", "1m")}
        for number, one in enumerate(expressions())
    ]
    file = tmp_path / "rules.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    done = check("check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr

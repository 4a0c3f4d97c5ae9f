"""The exporter, asked over HTTP, on the log of a real server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from bridge.config import ConfigError, parse
from tests.bus_kit import eventually
from tests.integration.test_cli_schema import SECONDS_MAX
from tests.integration.test_cli_watch import MESSAGES, ROWS, log

METRICS = """
[[maps.metrics]]
name = "flows"
labels = { state = "value.state", node = "node" }
[[maps.metrics]]
name = "flow_packets"
type = "counter"
value = "value.packets"
where = 'key.saddr in "10.0.0.0/28"'
[[maps.metrics]]
name = "flows_by_address"
labels = { address = "key.saddr" }
value = "value.packets"
series = 3
[[maps.metrics]]
name = "wrong"
value = "value.nothing"
"""
HEAD = '[node]\nname = "r"\ncluster = "c"\n[broker]\nurl = "nats://127.0.0.1:1"\n'
MAP = '[[maps]]\nname = "flows"\npin = "/sys/fs/bpf/is_not_here"\n'


def fetched(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=SECONDS_MAX) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(number) for name, number in pairs}


async def test_metrics_of_a_map(tmp_path: Path) -> None:
    numbers = [n for n in range(MESSAGES * ROWS) if n % ROWS != ROWS - 1]
    async with log(tmp_path) as (url, _):
        path = tmp_path / "node.toml"
        path.write_text(HEAD.replace("nats://127.0.0.1:1", url) + MAP + METRICS)
        command = [sys.executable, "-m", "bridge.cli.main", "export", "-c", str(path)]
        process = await asyncio.create_subprocess_exec(
            *command, "--port", "0", "--json", stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            where = json.loads(await process.stdout.readline())["url"]
            seen: dict[str, float] = {}

            async def complete() -> bool:
                seen.clear()
                seen.update(await asyncio.to_thread(fetched, where))
                return seen.get('mapbridge_export_position{map="flows"}') == MESSAGES

            await eventually(complete)
        finally:
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    states = {
        (node, state): sum(
            1
            for n in numbers
            if "ab"[n // ROWS % 2] == node and (n % 3 == 0) == (state != "CT_NEW")
        )
        for node in "ab"
        for state in ("CT_NEW", "CT_ESTABLISHED")
    }
    for (node, state), count in states.items():
        assert seen[f'flows{{node="{node}",state="{state}"}}'] == count
    assert seen["flow_packets_total"] == sum(n for n in numbers if n < 16)
    by_address = {name: value for name, value in seen.items() if name.startswith("flows_by")}
    assert by_address == {f'flows_by_address{{address="10.0.0.{n}"}}': n for n in numbers[-3:]}
    place = 'map="flows",metric='
    dropped = seen[f'mapbridge_export_series_dropped{{{place}"flows_by_address"}}']
    assert dropped == len(numbers) - 3
    assert seen[f'mapbridge_export_entries_skipped{{{place}"wrong"}}'] == len(numbers)
    assert seen['mapbridge_export_entries{map="flows"}'] == len(numbers)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('name = "9"', "must be a metric's name"),
        ('name = "a"\nvalue = "packets"', "must be a field such as"),
        ('name = "a"\nlabels = { "b c" = "node" }', "in the names of labels"),
        ('name = "a"\nlabels = { b = "other.x" }', "must be a field such as"),
        ('name = "a"\nseries = 0', "must be 1 to 100000"),
        ('name = "a"\ntype = "histogram"', "must be one of gauge, counter"),
        ('name = "a"\nlabel = {}', "did you mean 'labels'"),
    ],
)
def test_what_a_metric_may_not_be(lines: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(f"{HEAD}{MAP}[[maps.metrics]]\n{lines}\n")

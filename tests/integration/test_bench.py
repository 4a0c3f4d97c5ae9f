"""Each measurement of ``mapbridge bench``, as short as it can be: what it answers, not how fast."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bridge.bench.peers import GO_PATH
from bridge.cli.main import cli
from bridge.kernel.features import Capability
from bridge.rig.claim import BPFFS, NETNS_DIRECTORY
from tests.integration.kernel_support import needs
from tests.integration.test_demo import last_line

pytestmark = needs(Capability.CAP_SYS_ADMIN)
GO = shutil.which("go") is not None
GO_GRPC = GO and (Path(GO_PATH) / "src/google.golang.org/grpc").is_dir()
CONNTRACKD = shutil.which("conntrackd") is not None and shutil.which("nft") is not None
IN_GO = ("netrpc-entry", "netrpc-block", "netrpc-raw-block", "grpc-go-any-stream")
IN_PYTHON = ("grpc-python-any-entry", "grpc-python-typed-stream", "nats-json")


def rows_of(answer: dict[str, object], name: str) -> list[dict[str, Any]]:
    rows = answer[name]
    assert isinstance(rows, list)
    return rows


def by_name(rows: object) -> dict[str, dict[str, Any]]:
    assert isinstance(rows, list)
    return {row["name"]: row for row in rows}


@pytest.mark.timeout(300)  # builds programs in Go
def test_every_transport_leaves_the_map_as_it_must_be() -> None:
    names = (*IN_GO, *IN_PYTHON)
    only = [word for name in (*names, "conntrackd") for word in ("--only", name)]
    words = ("--seconds", "0.3", "--rounds", "1", "--sessions", "1009")
    answer = last_line("bench", "transports", *words, *only, "--json", seconds_max=280)
    found, kept = by_name(answer["transports"]), by_name(answer["sessions"])
    unavailable = answer["unavailable"]
    assert isinstance(unavailable, dict)
    missing = {name for name in names if name not in found}
    assert missing == {name for name in IN_GO if not (GO_GRPC if "grpc" in name else GO)}
    assert unavailable.keys() == missing | ({"conntrackd"} if not kept else set())
    assert all("apt install" in reason for reason in unavailable.values())
    for name, row in found.items():
        assert row["missing"] == 0, name
        assert row["changes"] > 0
        assert (row["mapbridge_ratio"] is None) == (name == "mapbridge")
    assert [name for name, row in found.items() if row["cpu_us_broker"] is not None] == [
        "mapbridge",
        "nats-json",
    ]
    assert bool(kept) == CONNTRACKD
    for row in kept.values():
        assert (row["sessions"], row["missing"]) == (1009, 0)
        assert row["changes"] >= 3 * 1009
        assert 0 < row["delay_p50_ms"] <= row["delay_p99_ms"]


def test_connections_are_opened_with_and_without_the_bridge() -> None:
    words = ("--part", "connections", "--mode", "emit", "--mode", "sweep", "--rounds", "1")
    answer = last_line("bench", "overhead", *words, "--seconds", "0.3", "--json")
    assert (answer["costs"], answer["unavailable"]) == ([], {})
    rows = rows_of(answer, "connections")
    assert [row["mode"] for row in rows] == ["emit", "sweep"]
    for row in rows:
        assert row["unwatched"] is None
        assert min(row["bare"], row["watched"], row["watched_per_second"]) > 0
        assert row["dropped"] == 0


def test_memory_is_told_for_both_bridges() -> None:
    answer = last_line("bench", "memory", "--entries", "10007", "--maps", "2", "--json")
    (emitted, entries), (maps,) = rows_of(answer, "entries"), rows_of(answer, "maps")
    assert (entries["entries"], entries["maps"]) == (10_007, 1)
    assert (emitted["capture"], emitted["entries"]) == ("emit", 10_007)
    assert maps["maps"] == 2
    for row in (emitted, entries, maps):
        assert 20 < row["publisher_rss_mb"] <= row["publisher_peak_mb"]
        assert 20 < row["applier_rss_mb"] <= row["applier_peak_mb"]


def test_reading_the_map_is_measured_beside_events() -> None:
    words = ("--entries", "5003", "--seconds", "0.5", "--rate", "1009")
    answer = last_line("bench", "scan", *words, "--json")
    (row,) = rows_of(answer, "sizes")
    assert (row["entries"], row["changes_per_second"]) == (5003, 1009)
    assert row["walk"] > 0
    assert min(row["sweep"], row["events"]) >= 0


def test_what_was_measured_is_drawn(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["bench", "codecs", "--changes", "1009", "--json"])
    (tmp_path / "codecs.json").write_text(done.stdout)
    for form, begin in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        drawn = CliRunner().invoke(cli, ["bench", "plot", str(tmp_path), "--format", form])
        assert drawn.exit_code == 0, drawn.output
        assert (tmp_path / f"codecs.{form}").read_bytes().startswith(begin)


def test_a_file_that_is_no_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_text('{"sizes": 7}')
    done = CliRunner().invoke(cli, ["bench", "plot", str(tmp_path)])
    assert done.exit_code == 1
    assert "scan.json: not what `mapbridge bench scan --json` prints" in done.output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("transports", "--only", "pigeon"), "'pigeon' is not one of"),
        (("transports", "--seconds", "0"), "not in the range"),
        (("overhead", "--mode", "magic"), "'magic' is not one of"),
        (("memory", "--maps", "0"), "not in the range"),
        (("scan", "--entries", "7"), "not in the range"),
        (("plot", "/nowhere"), "does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: tuple[str, ...], reason: str) -> None:
    done = CliRunner().invoke(cli, ["bench", *words])
    assert done.exit_code == 2
    assert reason in done.output


def test_nothing_is_left_after_an_interrupt() -> None:
    words = [sys.executable, "-m", "bridge.cli.main", "bench", "transports", "--only", "nats-json"]
    # A shell that starts something in the background has it ignore what Ctrl-C sends.
    running = subprocess.Popen(
        ["env", "--default-signal=INT", *words], stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("nats-json"):
            break
    time.sleep(1.0)  # into the sending
    process = Path(f"/proc/{running.pid}")
    children = [
        child for thread in process.glob("task/*/children") for child in thread.read_text().split()
    ]
    assert len(children) >= 2
    locks = [fd.readlink() for fd in process.glob("fd/*") if fd.is_symlink()]
    tokens = {lock.stem for lock in locks if lock.suffix == ".lock"}
    assert tokens
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    left = [*BPFFS.glob("mapbridge-demo-*"), *NETNS_DIRECTORY.glob("mapbridge-*")]
    assert [path for path in left if any(token in path.name for token in tokens)] == []

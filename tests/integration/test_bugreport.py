"""The archive for others: what is in it with and without a bridge, and what must never be."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.redaction import redacted
from tests.integration.kernel_support import needs
from tests.node_kit import Rig, fill, map_name, mapbridge, until

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_SYS_ADMIN)


def files_of(path: Path) -> dict[str, str]:
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        folders = {member.name.partition("/")[0] for member in members}
        assert folders == {path.name.removesuffix(".tar.gz")}
        found = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read().decode()
        return found


def test_of_a_running_bridge(rig: Rig, tmp_path: Path) -> None:
    name = map_name()
    made = rig.map("a")
    node = rig.node(
        "a", rig.entry(name, "a", Role.REPLICATE), more='[http]\nlisten = "127.0.0.1:0"\n'
    )
    fill(made, range(7), 0xA5)
    until(lambda: (node.map_status()["apply"] or {}) != {}, "a status")
    path = tmp_path / "report.tar.gz"
    config = str(node.config_path)
    done = mapbridge("bugreport", "-c", config, "-o", str(path), "--no-doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = files_of(path)
    assert json.loads(found["versions.json"])["mapbridge"]
    assert json.loads(found["status.json"])["node"] == "a"
    assert f"MAPBRIDGE_{json.loads(found['status.json'])['cluster']}" in found["broker.json"]
    assert "configuration" in json.loads(found["kernel.json"])
    assert set(json.loads(done.stdout)["included"]) <= set(found)
    everything = "".join(found.values())
    assert "a5" * 24 not in everything, "values of the map"


def test_without_bridge_and_broker(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        '[node]\nname = "a"\n'
        f'state_dir = "{tmp_path}/state"\n'
        '[broker]\nurl = "nats://me:hunter2@127.0.0.1:1"\n'
        '[[maps]]\nname = "ct"\npin = "/sys/fs/bpf/is_not_here"\n'
    )
    path = tmp_path / "report.tar.gz"
    done = mapbridge("bugreport", "-c", str(config), "-o", str(path), "--no-doctor")
    assert done.returncode == 0, done.stderr
    found = files_of(path)
    left_out = json.loads(found["contents.json"])["left_out"]
    assert {"broker.json", "metrics.txt"} <= set(left_out)
    assert "left out: broker.json:" in done.stdout
    assert "no bridge runs here" in found["status.json"]
    assert "hunter2" not in "".join(found.values()) + done.stdout + done.stderr


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    done = mapbridge("bugreport", "-o", str(tmp_path / "no" / "r.tar.gz"), "--no-doctor")
    assert done.returncode == 1
    assert "cannot be written (no such file or directory)" in done.stderr


def test_what_looks_like_a_secret_is_replaced() -> None:
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    text = (
        f'urls: nats://me:hunter2@h:1,tls://t0ken@h:2 {seed} "password": "hunter2", token=hunter2\n'
        "eyJ0eXAiOiJKV1Qi.eyJqdGkiOiJYW.c2lnbmF0dXJl position=7"
    )
    shown = redacted(text)
    for secret in ("hunter2", "t0ken", seed, "eyJ0"):
        assert secret not in shown
    assert "position=7" in shown
    assert "h:1" in shown

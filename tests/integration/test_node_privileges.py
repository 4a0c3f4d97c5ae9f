"""What a running node may still do: its threads' capabilities, and whom its files belong to."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bridge.errors import Exit
from bridge.kernel.capabilities import bits_of
from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.rig.nodes import NodeProcess
from tests.integration.kernel_support import needs
from tests.node_kit import KEY, VALUE, Rig, content, fill, map_name, mapbridge, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)
DECLARED = f'[maps.layout]\nkey = "__u8[{KEY}]"\nvalue = "__u8[{VALUE}]"'
LEAST, BY_ID = {Capability.CAP_BPF}, {Capability.CAP_BPF, Capability.CAP_SYS_ADMIN}


def threads(node: NodeProcess) -> dict[str, dict[str, int]]:
    """By name of the thread: its sets of capabilities, and whether it may gain any."""
    found = {}
    for task in Path(f"/proc/{node.process.pid}/task").iterdir():
        text = (task / "status").read_text()
        name = re.search(r"^Name:\s*(.*)$", text, re.MULTILINE)
        assert name is not None
        sets = re.findall(r"^(Cap\w+|NoNewPrivs):\s*(\w+)$", text, re.MULTILINE)
        found[f"{name[1]} {task.name}"] = {which: int(value, 16) for which, value in sets}
    return found


@pytest.mark.parametrize(("more", "kept"), [("", BY_ID), (DECLARED, LEAST)], ids=["id", "pin"])
def test_no_thread_keeps_more_than_the_maps_need(
    rig: Rig, tmp_path: Path, more: str, kept: set[Capability]
) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    http = f'[http]\nlisten = "unix:{tmp_path}/http.sock"\n'
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE, more), more=http)
    rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(53), 1)
    until(lambda: content(a) == content(b), "both ways under way")
    found = threads(node)
    assert len(found) > 5
    for thread, sets in found.items():
        for which in ("CapPrm", "CapEff", "CapBnd"):
            assert sets[which] & ~bits_of(kept) == 0, f"{thread} {which}"
        assert sets["CapAmb"] == sets["CapInh"] == 0, thread
        assert sets["NoNewPrivs"] == 1, thread
    assert any(sets["CapEff"] == bits_of(kept) for sets in found.values())
    names = sorted(one.name for one in kept)
    assert node.status()["security"] == {"dropped": True, "capabilities": names, "beyond": []}
    told = mapbridge("status", "-c", str(node.config_path)).stdout
    assert f"capabilities kept: {', '.join(names)}" in told
    # A map that is made anew is followed with what is left.
    (rig.pins / "a").unlink()
    new = rig.map("a")
    fill(new, range(100, 153), 2)
    until(lambda: content(b).items() >= content(new).items(), "the new map")


def test_a_reload_does_not_bring_back_what_was_given_up(rig: Rig) -> None:
    rig.map("a")
    rig.map("c")
    node = rig.node("a", rig.entry(map_name(), "a", Role.APPLY, DECLARED))
    more = rig.entry(map_name(), "c", Role.APPLY).toml()
    node.config_path.write_text(node.config_path.read_text() + more)
    done = mapbridge("reload", "-c", str(node.config_path))
    assert done.returncode == Exit.CONFIG
    assert "maps: need CAP_SYS_ADMIN, which was given up after the start" in done.stderr
    assert "restart the bridge" in done.stderr


def test_everything_is_kept_where_it_is_asked_for(rig: Rig) -> None:
    rig.map("a")
    node = rig.node(
        "a",
        rig.entry(map_name(), "a", Role.APPLY),
        more="[security]\ndrop_capabilities = false\n",
    )
    security = node.status()["security"]
    assert isinstance(security, dict)
    assert security["dropped"] is False
    assert all(sets["CapEff"] >> Capability.CAP_SYS_ADMIN & 1 for sets in threads(node).values())


def test_what_a_node_stores_is_nobody_elses(rig: Rig, tmp_path: Path) -> None:
    fill(rig.map("a"), range(7), 1)
    directory, config = tmp_path / "state", tmp_path / "own.toml"
    name = map_name()
    entry = rig.entry(name, "a", Role.REPLICATE).toml()
    config.write_text(
        f'[node]\nname = "own"\nstate_dir = "{directory}"\n'
        f'[broker]\nlisten = "127.0.0.1:0"\n[capture]\nmode = "sweep"\n{entry}'
    )

    command = [sys.executable, "-m", "bridge.cli.main", "run", "-c", str(config)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, umask=0) as process:
        try:
            until((directory / "positions.json").exists, "its position")
            found = [directory, *directory.rglob("*")]
            loose = [p for p in found if p.lstat().st_mode & 0o077 and not p.is_symlink()]
            assert loose == []
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert stat.S_IMODE((directory / "status.json").stat().st_mode) == 0o600
            assert orjson.loads((directory / "status.json").read_bytes())["node"] == "own"
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_state_directory_that_others_may_write_is_refused(rig: Rig, mode: int) -> None:
    rig.map("a")
    folder = rig.directory / "a"
    folder.mkdir()
    folder.chmod(mode)
    node = rig.node("a", rig.entry(map_name(), "a", Role.APPLY), ready=False)
    assert node.process.wait(30) == Exit.CONFIG
    assert "others may write it" in node.log_path.read_text()
    os.chown(folder, 65534, 65534)
    folder.chmod(0o755)
    node = rig.node("a", rig.entry(map_name(), "a", Role.APPLY), ready=False)
    assert node.process.wait(30) == Exit.CONFIG
    assert "belongs to another user (got uid 65534)" in node.log_path.read_text()

"""A node whose probes are attached gives up capabilities, and still follows what comes later."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge.bench.churn import Writer
from bridge.kernel.capabilities import bits_of
from bridge.kernel.features import Capability
from bridge.kernel.maps import MapType, create_map
from bridge.model import Role
from bridge.rig.nodes import NodeProcess
from tests.integration.churn_twin import TwinChurn, loaded_churn
from tests.node_kit import KEY, VALUE, Rig, fill, map_name, published, until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]
DECLARED = f'[maps.layout]\nkey = "__u8[{KEY}]"\nvalue = "__u8[{VALUE}]"'
PROBING = {Capability.CAP_BPF, Capability.CAP_PERFMON, Capability.CAP_SYSLOG}


@pytest.mark.parametrize("rig", ["fentry", "kprobe"], indirect=True)
@pytest.mark.parametrize(
    ("more", "kept"),
    [("", Capability.CAP_SYS_ADMIN), (DECLARED, Capability.CAP_NET_ADMIN)],
    ids=["id", "pin"],
)
def test_what_is_made_anew_is_followed_after_the_drop(
    rig: Rig, tmp_path: Path, more: str, kept: Capability
) -> None:
    allowed = PROBING | {Capability.CAP_SYS_ADMIN if rig.capture == "kprobe" else kept}
    with loaded_churn(tmp_path / "cache") as one, loaded_churn(tmp_path / "cache") as two:
        pin = rig.pins / "m"
        one.loaded.map("churn").pin(pin)
        node = rig.node("a", rig.entry(map_name(), "m", Role.PUBLISH, more))
        assert no_thread_has_more(node, allowed)
        written_by_a_program(node, one)
        pin.unlink()
        two.loaded.map("churn").pin(pin)
        until(lambda: lives(node) == 2, "the map that was made anew")
        written_by_a_program(node, two)
        # Functions of this type are not probed yet: programs are loaded and attached for it.
        pin.unlink()
        with create_map(MapType.LRU_HASH, KEY, VALUE, 4_096, name="lru") as lru:
            lru.pin(pin)
            until(lambda: lives(node) == 3, "the map of another type")
            fill(lru, range(1_009), 1)
            until(lambda: published(node) == 1_009, "each change")
        capture = node.status()["capture"]
        assert isinstance(capture, dict)
        assert (capture["mode"], capture["uncovered"]) == (rig.capture, {})
        assert no_thread_has_more(node, allowed)


def written_by_a_program(node: NodeProcess, churn: TwinChurn) -> None:
    churn.set_writer(0, Writer(first_key=1, keys=1_009, operations=31, deletes=301))
    churn.run(0, 101)
    made = churn.writer(0).changes
    until(lambda: published(node) == made, "what the program wrote")


def lives(node: NodeProcess) -> int:
    found = node.map_status()
    return int(str(found.get("lives", 0))) if found.get("state") == "running" else 0


def no_thread_has_more(node: NodeProcess, kept: set[Capability]) -> bool:
    tasks = list(Path(f"/proc/{node.process.pid}/task").iterdir())
    assert len(tasks) > 3
    for task in tasks:
        text = (task / "status").read_text()
        sets = dict(re.findall(r"^(Cap\w+|NoNewPrivs):\s*(\w+)$", text, re.MULTILINE))
        for which in ("CapPrm", "CapEff", "CapBnd"):
            assert int(sets[which], 16) & ~bits_of(kept) == 0, f"{task} {which}"
        assert sets["NoNewPrivs"] == "1"
    return True

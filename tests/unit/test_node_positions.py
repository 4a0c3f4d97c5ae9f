"""Saved positions: true for one map, one boot and one log only."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.node.instance import StateDirectory
from bridge.node.positions import FILE, Positions


def test_a_position_is_known_after_a_restart_for_the_same_map_and_log(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        positions = Positions(state)
        assert positions.of("ct", 7, "log") is None
        positions.note("ct", 7, "log", 41)
        positions.save()
        again = Positions(state)
    assert again.of("ct", 7, "log") == 41
    assert again.of("ct", 8, "log") is None, "another map of that name"
    assert again.of("ct", 7, "other") is None, "another log"
    assert again.of("nat", 7, "log") is None


def test_a_position_of_an_earlier_boot_means_nothing(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        positions = Positions(state)
        positions.note("ct", 7, "log", 41)
        positions.save()
        content = (tmp_path / FILE).read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        (tmp_path / FILE).write_text(content.replace(boot, "another"))
        assert Positions(state).of("ct", 7, "log") is None


@pytest.mark.parametrize("content", ["", "[1]", '{"ct": 3}', '{"ct": {"sequence": "x"}}', "\0"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: str) -> None:
    with StateDirectory(tmp_path) as state:
        (tmp_path / FILE).write_text(content)
        assert Positions(state).of("ct", 7, "log") is None


def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        positions = Positions(state)
        positions.save()
        assert not (tmp_path / FILE).exists()

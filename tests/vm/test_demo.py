"""The demonstration on a kernel with probes: real connections, captured by probes."""

from __future__ import annotations

import pytest

from tests.integration.test_demo import last_line

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def test_the_demo_captures_by_fentry() -> None:
    answer = last_line("demo", "--sessions", "211", "--json", seconds_max=500)
    assert answer["capture"] == "fentry"
    entries = ("sessions", "source_entries", "replica_entries", "late_entries")
    assert [answer[key] for key in entries] == [211] * 4
    assert [answer[key] for key in ("missing", "wrong", "extra", "left")] == [0] * 4


def test_connections_are_opened_beside_probes() -> None:
    words = ("--part", "connections", "--mode", "fentry", "--rounds", "1", "--seconds", "0.5")
    answer = last_line("bench", "overhead", *words, "--json", seconds_max=500)
    assert answer["unavailable"] == {}
    rows = answer["connections"]
    assert isinstance(rows, list)
    (row,) = rows
    assert row["mode"] == "fentry"
    assert min(row["bare"], row["unwatched"], row["watched"]) > 0
    assert row["dropped"] == 0

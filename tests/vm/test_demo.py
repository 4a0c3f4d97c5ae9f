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

"""The walk with the production core, and proof that it finds what each rule is there for."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import failing, wrong_in
from tests.simulation.rules import RULES

SEEDS = 503
SEEDS_WITHOUT = 20_011  # at most: one seed that finds it is enough
JOBS = 2


def test_all_maps_equal_the_fold() -> None:
    assert [seed for seed in range(SEEDS) if wrong_in(seed)[1]] == []


@pytest.mark.parametrize("rule", list(RULES))
def test_it_finds_a_missing_rule(rule: str) -> None:
    _, found = failing(rule, range(SEEDS_WITHOUT), JOBS, enough=1)
    assert found

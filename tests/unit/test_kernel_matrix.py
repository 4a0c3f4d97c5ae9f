"""The committed page of the kernel matrix is one that its generator would write."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from bridge.capture.source import Mode
from tests.vm.kernels import SUITES
from tests.vm.matrix.page import PAGE, cells_of, load, render, save, table_of
from tests.vm.matrix.plan import (
    KINDS,
    MODES,
    Action,
    Cell,
    Place,
    State,
    Step,
    Table,
    Writer,
    places,
    since,
    steps,
    unseen,
)


def number_of(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def as_planned(version: str) -> Table:
    """What a kernel answers on which all goes as the plan says."""
    cells = []
    for place in places():
        first = since(place)
        changes = place.step.changes
        state, seen, repaired = State.COMPLETE, changes, None
        if first is not None and number_of(version) < first:
            state, seen = State.UNSUPPORTED, 0
        elif unseen(place, number_of(version)) is not None:
            state, seen, repaired = State.UNSEEN, 0, changes
        names = str(place.mode), place.kind.name, str(place.writer), str(place.step.action)
        cells.append(Cell(*names, changes, seen, state, repaired))
    return Table(version, f"{version}.0-test", 1.0, tuple(cells))


PLANNED = {version: as_planned(version) for version in SUITES}


def test_a_place_has_one_cell() -> None:
    every = [(p.mode, p.kind.name, p.writer, p.step.action) for p in places()]
    assert len(every) == len(set(every))
    assert {p.mode for p in places()} == set(MODES)
    assert {p.kind for p in places()} == set(KINDS)
    assert {p.writer for p in places()} == set(Writer)
    assert {p.step.action for p in places()} == set(Action)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_steps_leave_what_the_next_ones_need(kind: object) -> None:
    for place in places():
        if place.kind is not kind or place.step.action is Action.EVICT:
            continue
        if place.step.action is Action.INSERT:
            held: set[int] = set()
        keys = set(range(place.step.first, place.step.first + place.step.count))
        if place.kind.is_array:
            continue
        if place.step.action is Action.INSERT:
            held |= keys
        elif place.step.action is Action.DELETE_NONE:
            assert not held & keys
        else:
            assert keys <= held
            held -= keys if place.step.action in (Action.DELETE, Action.TAKE) else set()


def test_the_page_is_read_as_it_was_written() -> None:
    found = list(cells_of(render(PLANNED)))
    expected = [
        (c.kind, c.writer, c.operation, c.mode, table.version)
        for table in PLANNED.values()
        for c in table.cells
        if c.state is not State.UNSUPPORTED
    ]
    assert len(found) == len(set(found))
    assert set(found) == set(expected)


def test_a_failure_stands_out() -> None:
    place = Place(Mode.FENTRY, KINDS[0], Writer.TC, steps(KINDS[0], Writer.TC)[0])
    names = str(place.mode), place.kind.name, str(place.writer), str(place.step.action)
    failed = Cell(*names, 211, 210, State.FAILED, reason="210 reported, 211 done")
    table = Table("6.1", "6.1.0-test", 1.0, (failed,))
    assert table.failures == (failed,)
    assert "**210/211**" in render({"6.1": table})


def test_tables_survive_json(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("build") / "kernels.json"
    assert load(path) == {}
    save(PLANNED, path)
    assert load(path) == PLANNED
    assert table_of(asdict(PLANNED["6.1"])) == PLANNED["6.1"]


def test_the_committed_page_has_the_shape_of_the_plan() -> None:
    """Every cell of today's plan for the kinds that the page has, and no other."""
    found = set(cells_of(PAGE.read_text()))
    kinds = {kind for kind, *_ in found}
    assert kinds, "the page has no table"
    expected = {cell for cell in cells_of(render(PLANNED)) if cell[0] in kinds}
    assert found == expected, "run make test-kernels"
    assert "**" not in PAGE.read_text(), "the page was made of a run with failures"
    head = render(PLANNED).split("\n* 5.10")[0]
    assert PAGE.read_text().startswith(head)


def test_a_step_that_changes_nothing_expects_nothing() -> None:
    assert Step(Action.REFUSED, 0, 13).changes == 0
    assert Step(Action.DELETE_NONE, 0, 13).changes == 0
    assert Step(Action.DELETE, 0, 13).changes == 13

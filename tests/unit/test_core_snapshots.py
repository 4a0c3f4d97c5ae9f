"""When a snapshot is taken, sealed and thrown away, and what a joiner does with one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.core.joining import Acks, Way, plan_gap, plan_start, rejoins
from bridge.core.snapshots import (
    LEASE_SECONDS,
    RUN_SECONDS_MAX,
    Facts,
    Lease,
    Log,
    Retry,
    Run,
    Since,
    Step,
    Triggers,
    next_slot,
    unfit,
    usable,
)
from bridge.model import Manifest, Origin

CALM = Facts(
    settled=True,
    losses=3,
    repairing=False,
    replaced=5,
    unwritten=0,
    watermark=100,
    captured=41,
    stored=41,
)
LOG = Log("l", 1, 1000)


def manifest(position: int, *, log: str = "l", slot: int = 0, taken_at: float = 0.0) -> Manifest:
    origin = Origin("c", "m", "n", 1)
    return Manifest(origin, log, position, None, slot, taken_at, 0, 4, 4, 0, (), 0, 0)


def test_the_manifest_waits_for_what_the_scan_may_have_seen_to_be_captured_and_stored() -> None:
    run = Run(17, 0.0, CALM, captures=True)
    assert run.look(1.0, replace(CALM, watermark=999)) is Step.WAIT, "the scan goes on"
    run.scanned(200)
    assert run.look(2.0, replace(CALM, watermark=199)) is Step.WAIT
    # All is captured now, up to change 47: what is captured later the scan has not seen.
    assert run.look(3.0, replace(CALM, watermark=200, captured=47)) is Step.WAIT
    assert run.look(4.0, replace(CALM, watermark=300, captured=53, stored=46)) is Step.WAIT
    assert run.look(5.0, replace(CALM, watermark=300, captured=53, stored=47)) is Step.SEAL


def test_a_map_that_only_applies_has_nothing_of_its_own_to_wait_for() -> None:
    run = Run(17, 0.0, CALM, captures=False)
    assert run.look(1.0, CALM) is Step.WAIT
    run.scanned(10_000)
    assert run.look(2.0, CALM) is Step.SEAL


@pytest.mark.parametrize(
    "spoiled",
    [
        replace(CALM, losses=4),
        replace(CALM, repairing=True),
        replace(CALM, replaced=6),
        replace(CALM, unwritten=1),
        replace(CALM, settled=False),
    ],
)
def test_what_may_keep_a_value_from_the_log_voids_the_snapshot_for_good(spoiled: Facts) -> None:
    run = Run(17, 0.0, CALM, captures=True)
    run.scanned(50)
    assert run.look(1.0, spoiled) is Step.DISCARD
    assert run.reason
    assert run.look(2.0, CALM) is Step.DISCARD, "that it is over does not help"


def test_it_is_not_waited_for_for_ever() -> None:
    run = Run(17, 0.0, CALM, captures=True)
    run.scanned(500)
    assert run.look(RUN_SECONDS_MAX, CALM) is Step.WAIT
    assert run.look(RUN_SECONDS_MAX + 1, CALM) is Step.DISCARD


def test_none_is_begun_while_something_is_open() -> None:
    assert unfit(CALM) == ""
    assert unfit(replace(CALM, unwritten=1))
    assert Run(1, 0.0, replace(CALM, repairing=True), captures=False).reason


def test_the_newest_snapshot_that_the_log_continues_is_used() -> None:
    found = [manifest(400), manifest(700), manifest(900, log="other"), manifest(1001)]
    assert usable(found, LOG) == found[1]
    assert usable(found, replace(LOG, first=701)) == found[1]
    assert usable(found, replace(LOG, first=702)) is None, "message 701 is missing"
    assert usable(found, LOG, behind=701) is None
    assert usable([], LOG) is None


def test_the_newest_snapshot_is_never_written_over() -> None:
    assert next_slot([]) == 0
    assert next_slot([manifest(1, slot=0)]) == 1
    two = [manifest(1, slot=0, taken_at=5.0), manifest(9, slot=1, taken_at=4.0)]
    assert next_slot(two) == 1


def test_snapshots_are_due_by_bytes_by_time_and_before_the_log_forgets() -> None:
    triggers = Triggers(60.0, 1000)
    assert triggers.due(None, LOG, 0.0, 999) == "", "the log still holds everything"
    assert triggers.due(None, LOG, 0.0, 1000)
    assert triggers.due(None, replace(LOG, first=2), 0.0, 0)
    assert triggers.due(None, replace(LOG, bytes=50, bytes_max=100), 0.0, 0)
    newest = manifest(900, taken_at=100.0)
    assert triggers.due(newest, LOG, 159.0, 1) == ""
    assert triggers.due(newest, LOG, 160.0, 1)
    assert triggers.due(newest, LOG, 160.0, 0) == "", "nothing has changed"
    assert triggers.due(newest, LOG, 101.0, 1000)
    cut = replace(LOG, first=601)
    assert triggers.due(manifest(800, taken_at=100.0), cut, 101.0, 0) == ""
    assert triggers.due(manifest(799, taken_at=100.0), cut, 101.0, 0)
    aged = replace(LOG, age_seconds_max=40.0)
    assert triggers.due(newest, aged, 120.0, 0) == ""
    assert triggers.due(newest, aged, 121.0, 0), "an idle map too, or its snapshot falls out"


def test_a_lease_is_lost_by_silence_only() -> None:
    lease = Lease("me")
    assert lease.see(0.0, 0, "")
    assert lease.see(1.0, 5, "me")
    assert not lease.see(2.0, 6, "other")
    assert not lease.see(2.0 + LEASE_SECONDS, 6, "other")
    assert not lease.see(3.0 + LEASE_SECONDS, 7, "other"), "it was renewed"
    assert lease.see(4.0 + 2 * LEASE_SECONDS, 7, "other")
    assert lease.see(5.0, 8, ""), "it was given back"


def test_pauses_grow_and_end() -> None:
    retry = Retry()
    assert retry.may(0.0)
    retry.failed(0.0)
    assert not retry.may(9.9)
    assert retry.may(10.0)
    retry.failed(10.0)
    assert not retry.may(29.9)
    retry.done()
    assert retry.may(29.9)


CUT = replace(LOG, first=501)


@pytest.mark.parametrize(
    ("saved", "log", "position", "way", "after", "sweep_out"),
    [
        (None, LOG, None, Way.REPLAY, 0, False),
        (None, CUT, None, Way.AWAIT, 500, False),
        (None, CUT, 600, Way.LOAD, 600, False),
        (300, CUT, 600, Way.LOAD, 600, True),
        (700, CUT, 600, Way.LEARN, 600, False),
        (550, CUT, 600, Way.LEARN, 550, False),
        (700, LOG, None, Way.REPLAY, 0, False),
        (700, CUT, None, Way.AWAIT, 500, False),
    ],
)
def test_how_a_map_joins(
    saved: int | None,
    log: Log,
    position: int | None,
    way: Way,
    after: int,
    sweep_out: bool,
) -> None:
    found = None if position is None else manifest(position)
    plan = plan_start(saved, log, found, publishes=True, known=saved is not None)
    assert (plan.way, plan.after, plan.sweep_out) == (way, after, sweep_out)


def test_a_map_that_only_applies_is_loaded_each_time() -> None:
    plan = plan_start(700, CUT, manifest(600), publishes=False, known=True)
    assert (plan.way, plan.sweep_out) == (Way.LOAD, True)
    assert plan_start(None, CUT, manifest(600), publishes=False, known=False).sweep_out


def test_a_position_is_worth_something_only_while_the_log_goes_on_from_it() -> None:
    assert rejoins(500, CUT, publishes=True)
    assert not rejoins(499, CUT, publishes=True)
    assert not rejoins(1001, LOG, publishes=True)
    assert not rejoins(500, CUT, publishes=False)
    assert not rejoins(None, LOG, publishes=True)


def test_a_hole_is_closed_by_a_snapshot_or_waited_for() -> None:
    plan = plan_gap(CUT, manifest(600), 500)
    assert (plan.way, plan.after, plan.sweep_out) == (Way.LOAD, 600, True)
    plan = plan_gap(CUT, None, 480)
    assert (plan.way, plan.after) == (Way.AWAIT, 500)


def test_what_a_slow_reader_reads_up_to_a_snapshot_does_not_call_for_another() -> None:
    since = Since()
    assert since.look(None, 100, 1_000) == 1_000
    newest = manifest(500)
    assert since.look(newest, 300, 3_000) == 0, "it is new"
    assert since.look(newest, 450, 4_500) == 0, "all of that is in the snapshot"
    assert since.look(newest, 500, 5_000) == 0
    assert since.look(newest, 520, 5_200) == 200
    assert since.look(None, 530, 5_300) == 300, "it cannot be read at the moment"


def test_own_places_are_known_until_the_messages_come_back() -> None:
    acks = Acks()
    for own, at in ((3, 10), (5, 20), (8, 30)):
        acks.note(own, at, observed=3)
    assert [acks.stored_by(place) for place in (9, 19, 20, 29, 30)] == [0, 0, 5, 5, 8]

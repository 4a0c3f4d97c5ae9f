"""A reader's marks against a log that forgets, read through a server that may lag behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings, strategies as st

from bridge.bus.marks import Marks

Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ours"), st.just(0)),
        st.tuples(st.just("theirs"), st.just(0)),
        st.tuples(st.just("forget"), st.integers(1, 3)),
        st.tuples(st.just("lag"), st.integers(0, 4)),
        st.tuples(st.just("read"), st.integers(1, 3)),
        st.tuples(st.just("ask"), st.just(0)),
    ),
    max_size=60,
)


@dataclass(slots=True)
class Reading:
    """``lost``: of ours, what was skipped and not told; ``told``: what gaps cover."""

    marks: Marks = field(default_factory=lambda: Marks.behind_place(0))
    ours: list[int] = field(default_factory=list)
    end: int = 0
    first: int = 1
    lag: int = 0
    asked: int = 0  # the log's end when it was asked for last
    came: set[int] = field(default_factory=set)
    told: set[int] = field(default_factory=set)

    def do(self, what: str, count: int) -> None:
        match what:
            case "ours" | "theirs":
                self.end += 1
                if what == "ours":
                    self.ours.append(self.end)
            case "forget":
                self.first = min(self.first + count, self.end + 1)
            case "lag":
                self.lag = count
            case "read":
                self._read(count)
            case "ask":
                self._ask()

    def _read(self, count: int) -> None:
        """The server skips without a word what the log has forgotten."""
        there = range(max(self.marks.received + 1, self.first), self.end - self.lag + 1)
        for place in [place for place in there if place in self.ours][:count]:
            self.marks.came(place)
            self.came.add(place)

    def _ask(self) -> None:
        gap = self.marks.begins(self.first)
        if gap is not None:
            self.told |= set(range(gap.first_missing, gap.last_missing + 1))
        begin = self.marks.unknown_from
        held = [place for place in self.ours if place >= self.first]
        coming = any(place >= begin for place in held)
        self.marks.expect(held[-1] if coming else 0, self.end)
        self.asked = self.end


@settings(max_examples=1_500)
@given(STEPS)
def test_what_is_verified_was_read_or_is_told_as_missing(steps: list[Step]) -> None:
    reading = Reading()
    for step in steps:
        reading.do(*step)
        known = reading.came | reading.told
        assert all(n in known for n in reading.ours if n <= reading.marks.verified)


@settings(max_examples=1_500)
@given(STEPS)
def test_who_is_not_behind_has_all_that_the_leader_told_of(steps: list[Step]) -> None:
    reading = Reading()
    for step in steps:
        reading.do(*step)
        if not reading.marks.behind:
            known = reading.came | reading.told
            missing = [n for n in reading.ours if n <= reading.asked and n not in known]
            assert all(n < reading.marks.received for n in missing), "only what was forgotten"


def test_a_quiet_map_is_verified_up_to_the_end_of_the_log_at_once() -> None:
    reading = Reading()
    for what in ("ours", "read", "theirs", "theirs", "ask"):
        reading.do(what, 1)
    assert reading.marks.verified == 3


def test_a_busy_map_is_verified_at_the_next_look() -> None:
    reading = Reading()
    for what in ("ours", "theirs", "ours", "theirs", "ask", "read", "read", "ask"):
        reading.do(what, 1)
    assert reading.marks.verified == 4
    assert not reading.marks.behind

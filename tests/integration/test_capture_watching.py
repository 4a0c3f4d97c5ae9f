"""Which maps and threads probes report, and what says that they do: canary, refusals, messages.

Other modules run the same tests with perf buffers, and in a guest by kprobes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.capture.canary import Seen, Writer, prove
from bridge.capture.loader import ProbeError, ProbeObject
from bridge.capture.modes import select_mode
from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.capture.tables import UnwatchableError
from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.model import Op
from tests.capture_kit import (
    PRIME,
    SLOTS,
    in_thread,
    number,
    rows,
    watched,
)
from tests.integration.kernel_support import needs

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_PERFMON)


def test_another_descriptor_of_the_same_map(capture: ProbeCapture) -> None:
    with watched(capture) as one, KernelMap(os.dup(one.map.fileno()), one.map.info) as other:
        other.update(number(1), b"by a dup")
        assert other.fileno() != one.map.fileno()
        assert one.changes() == [(Op.UPDATE, number(1), b"by a dup")]


def test_unwatched_maps_are_silent(capture: ProbeCapture) -> None:
    with watched(capture) as one, create_map(MapType.HASH, 4, 8, 1024) as stranger:
        stranger.update(number(1), bytes(8))
        stranger.update_batch(rows(1, 1021, 4), rows(1, 1021, 8))
        assert one.changes() == []
        source = capture.watch(stranger, 1 << 16)
        stranger.update(number(2), bytes(8))
        assert [len(batch) for batch in source.drain()] == [1]
        capture.unwatch(stranger.info.id)
        stranger.update(number(3), bytes(8))
        assert source.drain() == []
        source.close()
        one.assert_whole(0)


def test_own_thread_is_not_reported_and_others_are(capture: ProbeCapture) -> None:
    with watched(capture) as one:

        def own_work() -> int:
            own = capture.own_thread()
            one.map.update(number(1), b"by self!")
            one.map.update_batch(rows(10, 11, 4), rows(10, 11, 8))
            one.map.delete(number(10))
            in_thread(lambda: one.map.update(number(2), b"by other"))
            return own

        own, native = in_thread(own_work)
        assert one.changes() == [(Op.UPDATE, number(2), b"by other")]
        assert own > 0
        capture.forget_thread(own)
        assert native > 0
        one.map.update(number(3), bytes(8))
        assert len(one.changes()) == 1


def test_a_forgotten_thread_is_reported_again(capture: ProbeCapture) -> None:
    with watched(capture) as one:
        capture.forget_thread(capture.own_thread())
        one.map.update(number(1), bytes(8))
        assert len(one.changes()) == 1


def test_slots_are_given_back(capture: ProbeCapture) -> None:
    for _ in range(2 * SLOTS):
        with watched(capture, ring_bytes=1 << 16) as one:
            one.map.update_batch(rows(1, PRIME, 4), rows(1, PRIME, 8))
            assert one.source.losses().ring_full > 0
    with watched(capture) as one:
        one.map.update(number(1), bytes(8))
        one.assert_whole(1)


def test_refusals(capture: ProbeCapture) -> None:
    queue = create_map(MapType.QUEUE, 0, 8, 4, name="a_queue")
    with queue, pytest.raises(UnwatchableError, match=r"map a_queue .*\(got queue\)"):
        capture.watch(queue, 1 << 16)
    wide = create_map(MapType.HASH, 4, 65_537, 1, name="wide")
    with wide, pytest.raises(UnwatchableError, match=r"map wide .*\(got 65537\)"):
        capture.watch(wide, 1 << 16)
    with watched(capture) as one, pytest.raises(ProbeError, match="watched already"):
        capture.watch(one.map, 1 << 16)
    maps = [create_map(MapType.HASH, 4, 8, 4) for _ in range(SLOTS)]
    sources = [capture.watch(target, 1 << 16) for target in maps[1:]]  # one slot is the canary's
    with pytest.raises(ProbeError, match=r"no slot free \(got 9 maps\)"):
        capture.watch(maps[0], 1 << 16)
    for source in sources:
        source.close()
    for target in maps:
        target.close()


def test_canary(capture: ProbeCapture) -> None:
    coverage = prove(capture)
    assert coverage.proven, coverage.table()
    seen = {(f.writer, f.operation): f.seen for f in coverage.findings}
    for writer in (Writer.SYSCALL, Writer.BATCH):
        for operation in ("update", "delete", "lookup and delete"):
            assert seen[writer, operation] is Seen.YES
    assert seen[Writer.SYSCALL, "refused update"] is Seen.QUIET
    unseen = Seen.NO if capture.mode is Mode.SYSCALL else Seen.YES
    assert seen[Writer.PROGRAM, "update"] is unseen
    assert coverage.as_dict()["hash"]["system call"]["refused update"] == "quiet"


def test_canary_finds_what_is_not_reported(capture: ProbeCapture) -> None:
    """A thread whose writes are filtered is as blind as a kernel that skips probes."""

    def blind() -> list[str]:
        own = capture.own_thread()
        with suppress(Exception):
            return [f"{f.writer} {f.operation}" for f in prove(capture).gaps()]
        capture.forget_thread(own)
        return []

    gaps, native = in_thread(blind)
    assert native > 0
    assert "system call update" in gaps
    assert "batch system call delete" in gaps


def test_compiler_messages_are_kept(
    capture: ProbeCapture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProbeError, match=r"error: .*undeclared identifier 'no_such_thing'"):
        ProbeObject("int f(void *ctx) { return no_such_thing; }", {})
    assert capfd.readouterr().err == ""


def test_verifier_messages_are_kept(
    capture: ProbeCapture, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "int f(void *ctx) { char *p = (char *)7; return *p; }"
    programs = ProbeObject(text, {})
    try:
        with pytest.raises(ProbeError, match=r"program f: refused by the kernel"):
            programs.attach_raw_tracepoint("softirq_entry", "f")
    finally:
        programs.close()
    assert capfd.readouterr().err == ""


def test_mode_that_is_not_there(tmp_path: Path) -> None:
    if Path("/sys/kernel/tracing/kprobe_events").exists():
        selection = select_mode(Mode.AUTO, slots=2, cache=tmp_path)
        selection.close()
        assert selection.mode is Mode.FENTRY, selection.rejected
        return
    with pytest.raises(ProbeError, match="no kprobes") as caught:
        select_mode(Mode.KPROBE, cache=tmp_path)
    assert "sweep" in caught.value.hint
    selection = select_mode(Mode.AUTO, cache=tmp_path)
    assert selection.mode is Mode.SWEEP
    assert selection.probes is None
    assert "no kprobes" in selection.rejected["kprobe"]
    assert set(selection.rejected) == {"fentry", "kprobe"}
    assert "use " in selection.rejected["fentry"]
    assert selection.coverage.as_dict() == {}

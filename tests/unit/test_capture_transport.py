"""Which transport a kernel gets. Kernels without ring buffers are older than any test machine."""

from __future__ import annotations

import pytest

from bridge.capture.transport import PERF_PAGES_MIN, RING_BYTES_MIN, Transport, choose_carrier
from bridge.config.values import PERF_PAGES_MAX, PERF_PAGES_MIN as CONFIGURED_PAGES_MIN
from bridge.kernel import features
from bridge.kernel.features import Answer


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        (Answer.YES, Transport.RING),
        (Answer.NO, Transport.PERF),
        (Answer.UNKNOWN, Transport.RING),  # what is hidden from this process may be there
    ],
)
def test_automatic_takes_a_ring_unless_there_is_surely_none(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, taken: Transport
) -> None:
    finding = features._Finding(answer, "made up")
    monkeypatch.setattr(features.Probes, "ring_buffer", lambda _: finding)
    assert choose_carrier(Transport.AUTO, 3).transport is taken
    assert choose_carrier(Transport.RING, 3).transport is Transport.RING
    assert choose_carrier(Transport.PERF, 3).transport is Transport.PERF


def test_only_perf_buffers_need_another_program() -> None:
    assert choose_carrier(Transport.RING, 3).defines() == {}
    assert choose_carrier(Transport.PERF, 3).defines() == {"MB_WITH_PERF": 1}


def test_a_configured_buffer_holds_the_largest_record_twice() -> None:
    assert CONFIGURED_PAGES_MIN * 4096 == RING_BYTES_MIN
    assert PERF_PAGES_MIN <= CONFIGURED_PAGES_MIN < PERF_PAGES_MAX

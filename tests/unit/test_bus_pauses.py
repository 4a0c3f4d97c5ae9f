"""How often the readers of one log ask the broker, all of them together."""

from __future__ import annotations

from statistics import fmean

from bridge.bus.protocol import shared_pause


def test_a_few_readers_ask_at_their_own_interval_and_many_share_a_rate() -> None:
    for readers, seconds in ((0, 5.0), (10, 5.0), (1_000, 250.0)):
        found = [shared_pause(5.0, readers, 4.0) for _ in range(1_009)]
        assert 0.7 * seconds <= min(found) < max(found) <= 1.3 * seconds
        assert abs(fmean(found) - seconds) < 0.05 * seconds

"""Percentiles of delays, compared with those of the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.apply.latency import SAMPLE_STRIDE, DelayHistogram

BUCKET = 2 ** (1 / 16)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_percentiles_are_right_to_a_bucket(share: float) -> None:
    delays = np.random.default_rng(7).lognormal(13.0, 2.0, 16_411).astype(np.int64)
    histogram = DelayHistogram()
    for part in np.array_split(delays, 5):
        histogram.add(np.repeat(part, SAMPLE_STRIDE))
    exact = float(np.quantile(delays, share)) / 1e9
    found = histogram.percentile(share)
    assert found is not None
    assert exact / BUCKET <= found <= exact * BUCKET
    assert sum(histogram.counts()) == len(delays)


def test_the_ends_of_the_range() -> None:
    histogram = DelayHistogram()
    assert histogram.percentile(0.5) is None
    assert histogram.counts() == []
    histogram.add(np.zeros(0, np.int64))
    assert histogram.percentile(0.5) is None
    histogram.add(np.array([-5_000_000], np.int64))  # the sender's clock is ahead
    assert histogram.percentile(0.5) == pytest.approx(1e-9, rel=BUCKET - 1)
    histogram.add(np.array([1 << 62] * 17, np.int64))  # beyond the last bucket
    assert histogram.percentile(1.0) == pytest.approx(2**40 / 1e9, rel=BUCKET - 1)

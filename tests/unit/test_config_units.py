"""Durations and sizes, read and written."""

from __future__ import annotations

import pytest

from bridge.config.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1.5s", 1.5), ("2 m", 120), ("1h", 3600), ("10us", 1e-5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["250", "ms", "-1s", "1S", "1.s", "", "1s1s"])
def test_durations_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [("16MiB", 16 << 20), ("1.5KiB", 1536), ("7 B", 7)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["16", "16MB", "MiB", "0.1B", "1kib", "-1MiB"])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_size(text)


@pytest.mark.parametrize("seconds", [0.01, 0.25, 1.0, 1.5, 90.0, 3600.0, 86_400.0])
def test_a_formatted_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize("size", [1, 1023, 1024, 4096, 1 << 20, (1 << 20) + 1, 1 << 30])
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size

"""Options that several commands share."""

from __future__ import annotations

import click
import pytest

from bridge.cli.options import Duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("30", 30), ("0", 0), ("0.2", 0.2), ("5m", 300)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1w", "soon", "nan", "inf", "0.5s"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration(1.0).convert(text, None, None)

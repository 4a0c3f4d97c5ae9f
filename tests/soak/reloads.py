"""Configuration that changes under a running bridge: its second map goes, and comes back."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

from bridge.errors import BridgeError
from tests.chaos.faults import SPARE, Stage

RELOAD_SECONDS_MAX = 60.0
POLL_SECONDS = 0.1


class ReloadError(BridgeError):
    """A bridge did not do what its new configuration says."""


@contextlib.contextmanager
def without_spare(stage: Stage, chance: random.Random) -> Iterator[None]:
    """One of the bridges that are never killed lets its second map go; programs write it on.

    When it comes back, what either side wrote meanwhile must be reconciled.
    """
    immortal = [n for n in range(len(stage.nodes)) if n not in stage.mortal]
    number = chance.choice(immortal)
    _reload(stage, number, spare=False)
    yield
    _reload(stage, number, spare=True)


def _reload(stage: Stage, number: int, *, spare: bool) -> None:
    """Waits only for what is sure to come soon: a map may not join while the broker is away."""
    node = stage.nodes[number]
    node.reload(stage.maps(number, spare=spare))
    deadline = time.monotonic() + RELOAD_SECONDS_MAX
    while spare != bool(node.map_status(SPARE)):
        if time.monotonic() > deadline:
            raise ReloadError(f"{node.name}: has not {'taken' if spare else 'let go'} {SPARE}")
        time.sleep(POLL_SECONDS)

"""Places in the log as people name them: a sequence, a time, a while ago, the start."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from bridge.bus.nats_bus import NatsBus
from bridge.bus.places import sequence_at
from bridge.config.units import parse_duration


@dataclass(frozen=True, slots=True)
class Place:
    """Exactly one is set, or none for the oldest message that is kept."""

    sequence: int | None = None
    time_ns: int | None = None
    snapshot: bool = False  # the newest snapshot of a map, and what follows it

    async def first(self, bus: NatsBus, cluster: str) -> int:
        """The sequence of the first message that is meant; it may not be there yet."""
        if self.sequence is not None:
            return self.sequence
        if self.time_ns is not None:
            return await sequence_at(bus, cluster, self.time_ns)
        return 1


class PlaceType(click.ParamType[Place]):
    """``12345``, ``2026-01-31T12:00:00Z`` (local time without a zone), ``10m`` ago, ``start``.

    With ``snapshots`` also ``snapshot``.
    """

    name = "PLACE"

    def __init__(self, *, snapshots: bool = False) -> None:
        self._snapshots = snapshots

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Place:
        if isinstance(value, Place):
            return value
        text = str(value).strip()
        if text == "start":
            return Place()
        if text == "snapshot" and self._snapshots:
            return Place(snapshot=True)
        if text.isdecimal():
            if int(text) < 1:
                self.fail("sequences begin at 1", param, ctx)
            return Place(sequence=int(text))
        try:
            return Place(time_ns=time.time_ns() - int(parse_duration(text) * 1e9))
        except ValueError:
            pass
        try:
            return Place(time_ns=parse_time(text))
        except ValueError:
            self.fail(
                f"needs a sequence, a time such as 2026-01-31T12:00:00Z, a while ago such as 10m,"
                f" or start{' or snapshot' * self._snapshots} (got {text!r})",
                param,
                ctx,
            )


def parse_time(text: str) -> int:
    """Nanoseconds since 1970. Raises ``ValueError``. Without a zone it is local time."""
    whole = text.replace(" ", "T", 1)
    found = datetime.fromisoformat(whole.replace("Z", "+00:00") if whole.endswith("Z") else whole)
    at = found if found.tzinfo is not None else found.astimezone()
    seconds = at.astimezone(UTC)
    return int(seconds.timestamp()) * 1_000_000_000 + seconds.microsecond * 1000


PLACE = PlaceType()
PLACE_OR_SNAPSHOT = PlaceType(snapshots=True)

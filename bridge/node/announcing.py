"""Tells the cluster which maps of this node are synced: at once when it changes, and now and then.

``tell`` is called often and does at most one thing at a time: a broker that does not answer delays
nothing else, and what was said before vanishes by itself.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from bridge.bus.board import VALID_SECONDS, BoardError, Standing, SyncBoard
from bridge.errors import BridgeError
from bridge.node.report import Report

RENEW_SECONDS = VALID_SECONDS / 3
RETRY_SECONDS = 2.0


@dataclass(slots=True)
class Announcer:
    """Belongs to the event loop."""

    board: SyncBoard
    report: Report
    said: int = 0
    failed: int = 0
    _last: dict[str, tuple[bool, float]] = field(default_factory=dict)  # map -> synced, when said
    _not_before: float = 0.0
    _task: asyncio.Task[None] | None = None

    def tell(self, standings: list[Standing]) -> None:
        """Say what is new or old enough to be said again."""
        now = time.monotonic()
        if (self._task is not None and not self._task.done()) or now < self._not_before:
            return
        due = [standing for standing in standings if self._due(standing, now)]
        if due:
            self._task = asyncio.create_task(self._say(due))

    def _due(self, standing: Standing, now: float) -> bool:
        last = self._last.get(standing.map)
        return last is None or last[0] != standing.synced or now - last[1] >= RENEW_SECONDS

    async def _say(self, due: list[Standing]) -> None:
        try:
            for standing in due:
                await self.board.say(standing)
                self._last[standing.map] = (standing.synced, time.monotonic())
                self.said += 1
        except BoardError as error:
            self.failed += 1
            self._not_before = time.monotonic() + RETRY_SECONDS
            self.report.warn_once(f"other nodes cannot see whether maps are synced: {error}")

    async def close(self, standings: list[Standing]) -> None:
        """The last word: nothing of this node is synced any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                for standing in standings:
                    await self.board.say(standing)
        except (BridgeError, TimeoutError):
            return  # it vanishes by itself

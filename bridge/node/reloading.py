"""A new configuration for a node that runs: judged as a whole, then taken, or nothing is changed.

Maps come and go; what the other tables say is read at the start only, and what of it differs is
named. One reading at a time: asked again meanwhile, the file is read once more afterwards.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from bridge.config.settings import Config, MapConfig
from bridge.errors import BridgeError
from bridge.node.report import Report

# Keys whose field has another name. ``sweep`` and ``ring`` hold for maps, and are compared there.
_KEYS = {
    "state_directory": "state_dir",
    "urls": "url",
    "outbox_bytes": "outbox",
    "inbox_bytes": "inbox",
    "seconds": "every",
}
_OF_MAPS = {("capture", "sweep_seconds"), ("capture", "ring_bytes")}


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two configurations: maps by name, and keys that need a restart."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, list[str]]:
        return {name: list(found) for name, found in dataclasses.asdict(self).items()}


def changes_between(old: Config, new: Config) -> Changes:
    """What has to be done for the new one."""
    before = {_identity(entry): entry for entry in old.maps}
    after = {_identity(entry): entry for entry in new.maps}
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(n for n, entry in after.items() if n in before and entry != before[n]),
        restart=tuple(_restart(old, new)),
    )


def _identity(entry: MapConfig) -> str:
    """Two patterns may give their maps the same kind of name."""
    return f"{entry.name} ({entry.selector})" if entry.selector.is_pattern else entry.name


def _restart(old: Config, new: Config) -> Iterator[str]:
    for table in (field.name for field in dataclasses.fields(Config) if field.name != "maps"):
        one, other = getattr(old, table), getattr(new, table)
        for field in dataclasses.fields(one):
            same = getattr(one, field.name) == getattr(other, field.name)
            if not same and (table, field.name) not in _OF_MAPS:
                yield f"{table}.{_KEYS.get(field.name, field.name)}"


@dataclass(slots=True)
class Counters:
    """What ``status.json`` says of the configuration. ``trouble``: why the last was refused."""

    loaded: float
    taken: int = 0
    refused: int = 0
    trouble: str | None = None
    restart_needed: tuple[str, ...] = ()


class Reloader:
    """Belongs to the event loop.

    ``read`` gives the new configuration, in a thread, or raises; ``take`` puts it in force, or
    raises when nothing was changed. ``around`` is told when a reading begins and ends.
    """

    def __init__(
        self,
        read: Callable[[], Config],
        take: Callable[[Config], Awaitable[Changes]],
        around: Callable[[bool], None],
        report: Report,
    ) -> None:
        self.counters = Counters(time.time())
        self._read = read
        self._take = take
        self._around = around
        self._report = report
        self._asked = asyncio.Event()
        self._turn = asyncio.Lock()

    def ask(self) -> None:
        """Have the configuration read again; for signal handlers of the loop."""
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self.reload()
            except BridgeError:
                continue  # it was told, and stays in the status

    async def reload(self) -> Changes:
        """Read, judge and take the configuration. Raises ``BridgeError``: nothing was changed."""
        async with self._turn:
            self._around(True)
            try:
                changes = await self._take(await asyncio.to_thread(self._read))
            except BridgeError as error:
                self.counters.refused += 1
                self.counters.trouble = str(error)
                self._report.warn(
                    "the new configuration is not taken, nothing was changed",
                    reason=str(error),
                    hint=error.hint,
                )
                raise
            finally:
                self._around(False)
        self.counters.loaded = time.time()
        self.counters.taken += 1
        self.counters.trouble = None
        self.counters.restart_needed = changes.restart
        self._tell(changes)
        return changes

    def _tell(self, changes: Changes) -> None:
        told = {name: found for name, found in changes.as_dict().items() if found}
        restart = told.pop("restart", [])
        self._report.say("configuration taken", **told)
        if restart:
            self._report.warn(
                "these keys are as before until the bridge is restarted", keys=restart
            )

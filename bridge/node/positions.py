"""How far each map had taken in the stream, kept over restarts of the bridge.

A position is true only together with the map it was applied to and the log it counts in: the map's
id is the kernel's for one boot, the log's id changes when the log is made anew. It is saved after
the writes that it stands for, and never while changes wait that the kernel has refused, so that
a position read back may be too old but never too new.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from bridge.model import Anchor
from bridge.node.instance import StateDirectory

FILE = "positions.json"
POSITIONS_MAX = 4096  # the oldest are forgotten: patterns may meet ever new names
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything up to ``sequence`` of the log ``log`` had been applied to the map ``map_id``."""

    sequence: int
    map_id: int
    boot: str
    log: str
    anchor: Anchor | None = None  # a message at or before it: the log is the same only with it


class Positions:
    """The saved positions of all maps of a node; belongs to the event loop's thread."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._boot = _BOOT_ID.read_text().strip()
        self._known = _read(state.path / FILE)
        self._written = dict(self._known)

    def of(self, name: str, map_id: int, log: str) -> int | None:
        """Where this very map stands in this very log; ``None``: nothing is known of that."""
        saved = self._known.get(name)
        if saved is None or (saved.map_id, saved.boot, saved.log) != (map_id, self._boot, log):
            return None
        return saved.sequence

    def anchor(self, name: str) -> Anchor | None:
        """The message that has to be in the log for the map's position to mean anything."""
        saved = self._known.get(name)
        return saved.anchor if saved is not None else None

    def knows(self, name: str, map_id: int) -> bool:
        """Whether this very map was bridged before, whatever became of the log since."""
        saved = self._known.get(name)
        return saved is not None and (saved.map_id, saved.boot) == (map_id, self._boot)

    def note(
        self, name: str, map_id: int, log: str, sequence: int, anchor: Anchor | None = None
    ) -> None:
        saved = Saved(sequence, map_id, self._boot, log, anchor)
        if name not in self._known and len(self._known) >= POSITIONS_MAX:
            del self._known[next(iter(self._known))]
        self._known[name] = saved

    def disown(self, name: str) -> None:
        """A map's position means nothing any more; that the map was bridged before still holds."""
        saved = self._known.get(name)
        if saved is not None:
            self._known[name] = replace(saved, sequence=0, log="", anchor=None)

    def save(self) -> None:
        """Write what was noted since the last time. Raises ``OSError``."""
        if self._known != self._written:
            self._state.write(FILE, {name: asdict(saved) for name, saved in self._known.items()})
            self._written = dict(self._known)


def _read(path: Path) -> dict[str, Saved]:
    """What the file holds; a file that is damaged counts as none: the map is then loaded anew."""
    try:
        content = orjson.loads(path.read_bytes())
        return {
            str(name): Saved(
                int(one["sequence"]),
                int(one["map_id"]),
                str(one["boot"]),
                str(one["log"]),
                _anchor(one.get("anchor")),
            )
            for name, one in content.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _anchor(found: object) -> Anchor | None:
    if not isinstance(found, dict):
        return None
    return Anchor(int(found["sequence"]), int(found["stored_at_ns"]))

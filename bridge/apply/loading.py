"""A snapshot on its way into a map: parts come by way of the inbox, ahead of the log's tail.

Invariant: strangers are keys that were in the map before the first part was written, and that no
part holds. A key that a program writes later is none, and one that it wrote shortly before is
deleted under the ordinary rules, which write it again when its own message comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bridge.core.keys import KeySet, last_rows
from bridge.model import U8, DeltaBatch, Op


@dataclass(slots=True, eq=False)
class Load:
    """Shared by the loop that hands parts over and the writer thread that takes them.

    ``stored``: own changes that the snapshot holds already. ``keys_now`` reads the keys of the map,
    in the writer thread; ``None``: nothing is swept out. ``wake`` is called after each step.
    ``guarded``: what is swept out may be a mass change, for the map was bridged before.
    ``learns``: the map lived on, and is only told what the stream says. ``complete``: a key that
    the snapshot lacks was deleted, and not dropped by another node to make room.
    """

    position: int
    stored: int
    value_size: int
    keys_now: Callable[[], U8] | None
    wake: Callable[[], None]
    guarded: bool = False
    learns: bool = False
    complete: bool = True
    begun: bool = False
    finished: bool = False
    parts: int = 0  # written so far
    _before: U8 | None = None
    _keys: list[U8] = field(default_factory=list)
    _strangers: DeltaBatch | None = None

    def begin(self) -> None:
        """Before the first write: note what the map holds."""
        self.begun = True
        if self.keys_now is not None:
            before = self.keys_now()
            self._before = before if len(before) else None

    def settles(self, keys: U8 | None) -> None:
        """Own changes of these keys are in the snapshot: what it lacks of them is deleted too."""
        if keys is not None and self.complete:
            self._before = keys if self._before is None else np.concatenate([self._before, keys])

    def wrote(self, batch: DeltaBatch) -> None:
        """A part has been judged and written."""
        self.parts += 1
        if self._before is not None:
            self._keys.append(batch.keys)
        self.wake()

    def strangers(self) -> DeltaBatch | None:
        """Deletes of what the snapshot lacks, after its last part; ``None``: there are none."""
        before, self._before = self._before, None
        if before is None:
            return self._strangers
        gone = np.ones(len(before), np.bool_)
        if self._keys:
            gone = ~KeySet(np.concatenate(self._keys)).holds(before)
        self._keys.clear()
        keys = before[gone]
        newest = last_rows(keys)
        keys = keys if newest is None else keys[newest]
        values = np.zeros((len(keys), self.value_size), np.uint8)
        self._strangers = DeltaBatch.of_entries(Op.DELETE, keys, values, 0)
        return self._strangers

    def finish(self) -> None:
        self.finished = True
        self.wake()

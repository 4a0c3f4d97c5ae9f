"""Own keys whose order with another write is open, so that nobody knows what the map holds.

Invariant: of each key the newest own change decides whether it is in doubt, until its message has
come back (``resolve``) or the key is read again (``take``).
"""

from __future__ import annotations

import numpy as np

from bridge.core.keys import KeySet, last_rows
from bridge.model import U8, Flags


class DirtyKeys:
    """Not thread-safe: the owner's lock makes it atomic with judgement and capture."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def mark(self, keys: U8, doubtful: Flags | None) -> None:
        """Own changes in their order; ``doubtful``: which of them are, ``None``: none is."""
        concerned = np.zeros(len(keys), np.bool_) if doubtful is None else doubtful.copy()
        if self._keys and not concerned.all():
            concerned |= self.holds(keys)
        rows = np.flatnonzero(concerned)
        newest = last_rows(keys[rows])
        rows = rows if newest is None else rows[newest]
        marked = np.zeros(len(rows), np.bool_) if doubtful is None else doubtful[rows]
        self._keys.difference_update(_texts(keys[rows[~marked]]))
        self._keys.update(_texts(keys[rows[marked]]))

    def holds(self, keys: U8) -> Flags:
        """``bool[n]``; costs what the smaller of the two columns costs."""
        if len(self._keys) > len(keys):
            return np.fromiter(map(self._keys.__contains__, _texts(keys)), np.bool_, len(keys))
        return KeySet(_rows(self._keys)).holds(keys)

    def resolve(self, keys: U8) -> None:
        self._keys.difference_update(_texts(keys))

    def take(self, keys_max: int) -> U8:
        """Some of the keys, which are kept no longer."""
        return _rows({self._keys.pop() for _ in range(min(keys_max, len(self._keys)))})

    def all(self) -> U8:
        """At least one key must be there."""
        return _rows(self._keys)


def _rows(keys: set[bytes]) -> U8:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)


def _texts(keys: U8) -> list[bytes]:
    """Each key as bytes."""
    whole, size = np.ascontiguousarray(keys).tobytes(), keys.shape[1]
    return [whole[at : at + size] for at in range(0, len(whole), size)]

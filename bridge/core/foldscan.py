"""A map that is read as a whole and compared with the fold, while changes go on.

The steps: ``begin``; ``chunk`` and ``sift`` for each piece as it is read; ``cut`` and ``compare``
for all that was sifted; ``end``. What is judged or captured after ``begin`` is left out: the
fingerprints remember that.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridge.core.fingerprints import Differences, Fingerprints
from bridge.core.keys import KeySet
from bridge.core.scanrows import ScanChunk, ScanSlice
from bridge.model import U8


class FoldScan:
    """At most one scan is open. Without fingerprints one can only be begun and ended.

    ``begin``, ``sift``, ``compare`` and ``end`` belong under the lock that judgement takes.
    """

    __slots__ = ("_doubtful", "_fingerprints")

    def __init__(self, fingerprints: Fingerprints | None) -> None:
        self._fingerprints = fingerprints
        self._doubtful: KeySet | None = None

    def begin(self, doubtful: KeySet | None) -> None:
        """The map is about to be read. ``doubtful``: keys of which it will say nothing."""
        self._doubtful = doubtful
        if self._fingerprints is not None:
            self._fingerprints.begin()

    def chunk(self, keys: U8, values: U8) -> ScanChunk:
        """Some of what was read, made ready for ``sift``. Needs no lock."""
        return self._compared().chunk(keys, values)

    def sift(self, chunk: ScanChunk) -> ScanChunk:
        """What of a chunk the stream does not know just so; all of them together are cut."""
        return self._compared().sift(chunk)

    def cut(self, chunks: list[ScanChunk], value_size: int) -> Iterator[ScanSlice]:
        """What was sifted, in slices for ``compare``. Needs no lock."""
        return self._compared().cut(chunks, value_size)

    def compare(self, piece: ScanSlice, *, complete: bool) -> Differences:
        """What a slice has beyond the fold; changes may be captured between slices.

        ``complete``: the scan has read the whole map, so what it lacks was deleted.
        """
        return self._compared().compare(piece, doubtful=self._doubtful, complete=complete)

    def end(self) -> None:
        """All has been compared, or the scan was given up."""
        self._doubtful = None
        if self._fingerprints is not None:
            self._fingerprints.end()

    def _compared(self) -> Fingerprints:
        assert self._fingerprints is not None, "scans are not compared for this map"
        return self._fingerprints

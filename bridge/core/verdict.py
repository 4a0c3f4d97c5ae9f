"""What the judge of a map decided about some messages."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.core.touches import Touch
from bridge.model import DeltaBatch


@dataclass(frozen=True, slots=True)
class Verdict:
    """``writes``: the last change per key, to be written now; set ``touch.end`` afterwards."""

    writes: DeltaBatch | None
    touch: Touch | None
    changes: int  # foreign changes judged
    superseded: int  # of these, skipped for a pending own change
    duplicates: int  # seen before
    missed: int  # jumped over by an origin's sequence

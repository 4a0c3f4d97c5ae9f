"""What comparisons of maps across the cluster have found, told to the nodes that took part.

A comparison (``mapbridge verify``) costs every node a read of the whole map, so a node shows what
the last one found and how long ago, and does not make one by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

MAPS_MAX = 4_096


class Verdicts:
    """Of this process's life; a map that is not compared any more keeps its last verdict."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, object]] = {}

    def take(self, question: Mapping[str, object]) -> dict[str, object]:
        """``drift``: keys that differed; ``nodes``: how many were compared. Raises ``ValueError``.

        The caller has looked whether the map is one of this node's.
        """
        drift, nodes = int(str(question["drift"])), int(str(question["nodes"]))
        if drift < 0 or nodes < 2:
            raise ValueError(f"drift of at least 2 nodes (got {drift} of {nodes})")
        if len(self._found) < MAPS_MAX or str(question["map"]) in self._found:
            self._found[str(question["map"])] = {"at": time.time(), "drift": drift, "nodes": nodes}
        return {}

    def status(self, name: str) -> dict[str, object]:
        """``verified`` of a map: ``None`` until it was compared."""
        return {"verified": self._found.get(name)}

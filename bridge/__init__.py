"""Change data capture and multi-node replication of eBPF maps over NATS JetStream.

For programs: ``subscribe`` and ``batches`` read the changes of maps out of the log, see
docs/reference/python.md. They are loaded when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.feed.api import (
        Batch as Batch,
        BusSettings as BusSettings,
        Change as Change,
        batches as batches,
        subscribe as subscribe,
    )

__version__ = "0.1.0"
_API = ("Batch", "BusSettings", "Change", "batches", "subscribe")


if not TYPE_CHECKING:  # type checkers see the imports above

    def __getattr__(name: str) -> object:
        if name not in _API:
            raise AttributeError(f"module 'bridge' has no attribute {name!r}")
        from bridge.feed import api

        return getattr(api, name)

"""What ``status.json`` says of a map that is open."""

from __future__ import annotations

import math
from dataclasses import asdict

from bridge.node.capturing import Capturing
from bridge.node.following import StreamCounters
from bridge.node.halts import halt_status
from bridge.node.parts import MapParts
from bridge.node.services import MapState
from bridge.node.synced import Sync


def describe(
    name: str,
    parts: MapParts,
    state: MapState,
    sync: Sync,
    recalled: StreamCounters,
    capturing: Capturing,
) -> dict[str, object]:
    """``recalled``: what was read of the stream for a map that is only published."""
    answer: dict[str, object] = {
        "state": str(state),
        "synced": sync.synced,
        "behind_seconds": sync.behind_seconds if math.isfinite(sync.behind_seconds) else None,
        "id": parts.map.info.id,
        "parked": {node: asdict(one) for node, one in dict(parts.fitter.parked).items()},
        "stream": asdict(recalled),
        "capture": asdict(parts.lane.counters)
        | {
            "losses": asdict(capturing.losses(name)),
            "repairs": asdict(capturing.repairs(name)),
            "sweeps": asdict(capturing.swept(name)),
            "dirty": parts.lane.replica.dirty_keys,
        },
    }
    if parts.layout is not None:
        answer["layout"] = f"{parts.layout_number:016x}"
    if parts.fitter.parked and state == MapState.RUNNING:
        answer["state"] = "parked"
    if parts.loop is not None and parts.lane.outbox is not None:
        answer["outbox"] = asdict(parts.lane.outbox.statistics())
        answer["published"] = asdict(parts.loop.counters)
        answer["trouble"] = parts.loop.trouble
    if parts.follower is not None:
        answer["stream"] = asdict(parts.follower.counters)
        answer["trouble"] = answer.get("trouble") or parts.follower.trouble
        answer["joined"] = asdict(parts.follower.joined)
    if parts.taker is not None:
        answer["snapshots"] = asdict(parts.taker.counters)
    if parts.target is not None:
        answer |= halt_status(parts.target)
        answer["apply"] = asdict(parts.target.counters) | {
            "mapped": parts.fitter.mapped,
            "parked": parts.fitter.parked_changes,
            "p50_seconds": parts.target.delays.percentile(0.50),
            "p99_seconds": parts.target.delays.percentile(0.99),
        }
    return answer

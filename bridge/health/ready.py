"""May this node take over? Answered with yes only where the synced gate of each map says so.

Invariant: age counts against readiness. To what a map said of itself the time since then is added,
so that an answer is never better than one that the map would give now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from bridge.health.latest import Phase, View, section

LAG_SECONDS_MIN, LAG_SECONDS_MAX = 1.0, 3600.0  # a document is up to half a second old


@dataclass(frozen=True, slots=True)
class MapReady:
    """One map's answer. ``reason`` is empty when it is ready."""

    ready: bool
    state: str
    synced: bool
    behind_seconds: float | None  # as of now; None: it never had everything
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """``reasons`` why not, those of single maps included."""

    ready: bool
    reasons: tuple[str, ...]
    maps: dict[str, MapReady]

    def as_dict(self, view: View) -> dict[str, object]:
        return {
            "ready": self.ready,
            "phase": str(view.phase),
            "node": view.document.get("node"),
            "reasons": list(self.reasons),
            "maps": {name: asdict(one) for name, one in self.maps.items()},
        }


def readiness(view: View, names: Iterable[str], lag_seconds: float | None) -> Ready:
    """Whether all of these maps are ready. ``lag_seconds``: a limit beside the maps' own."""
    reasons: list[str] = []
    if view.phase is not Phase.RUNNING or not view.document:
        reasons.append(f"the node is {view.phase}: {view.step}")
    elif not view.fresh:
        reasons.append(f"the bridge has said nothing for {view.age_seconds:.1f} s")
    connected = bool(section(view.document, "broker").get("connected"))
    maps = {name: _map(view, name, lag_seconds, connected=connected) for name in names}
    reasons += [f"map {name}: {one.reason}" for name, one in maps.items() if not one.ready]
    return Ready(not reasons, tuple(reasons), maps)


def _map(view: View, name: str, lag_seconds: float | None, *, connected: bool) -> MapReady:
    found = section(view.document, "maps", name)
    state, synced = str(found.get("state", "unknown")), found.get("synced") is True
    said = found.get("behind_seconds")
    behind = float(said) + view.age_seconds if isinstance(said, int | float) else None
    reason = ""
    if not synced:
        reason = _why(found, state, behind, connected=connected)
    elif lag_seconds is not None and (behind is None or behind > lag_seconds):
        told = "never had everything" if behind is None else f"{behind:.1f} s behind"
        reason = f"{told}, more than {lag_seconds:g} s"
    return MapReady(not reason, state, synced, behind, reason)


def _why(found: object, state: str, behind: float | None, *, connected: bool) -> str:
    trouble = str(section(found).get("trouble") or "")
    told = {
        "unknown": "nothing is known of it yet",
        "waiting": "the kernel has no such map yet",
        "joining": "reads the stream up to its end",
        "parked": "changes of another layout wait",
    }.get(state)
    if told is None:
        told = f"not synced, it is {state}"
        if not connected:
            told = "the broker is away"
        elif behind is not None:
            told = f"{behind:.1f} s behind"
    return f"{told} ({trouble})" if trouble else told

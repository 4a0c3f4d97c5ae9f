"""What a node says of itself in a few lines, out of ``status.json``."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.health.latest import section


def summary(document: Mapping[str, object]) -> dict[str, object]:
    """Of one node. Counters only grow; rates are for who asks twice (``written``: seconds)."""
    broker = section(document, "broker")
    return {
        "node": document.get("node"),
        "cluster": document.get("cluster"),
        "version": document.get("version"),
        "started": document.get("started"),
        "written": document.get("written"),
        "capture": section(document, "capture").get("mode", ""),
        "connected": broker.get("connected") is True,
        "trouble": str(broker.get("trouble") or ""),
        "maps": {name: _map(section(found)) for name, found in section(document, "maps").items()},
    }


def _map(found: Mapping[str, object]) -> dict[str, object]:
    capture, apply = section(found, "capture"), section(found, "apply")
    stream, repairs = section(found, "stream"), section(found, "capture", "repairs")
    return {
        "role": found.get("role"),
        "state": found.get("state"),
        "synced": found.get("synced") is True,
        "behind_seconds": found.get("behind_seconds"),
        "position": apply.get("sequence", 0),
        "published": section(found, "published").get("changes", 0),
        "applied": apply.get("changes", 0),
        "lost": _total(section(capture, "losses")) + _count(stream.get("unmended")),
        "repaired": _count(capture.get("repaired")),
        "repairs": _count(repairs.get("finished")),
        "waiting_bytes": _count(section(found, "outbox").get("bytes")),
        "verified": dict(section(found, "verified")) or None,
        "lives": _count(found.get("lives")),
        "trouble": _trouble(found),
    }


def _trouble(found: Mapping[str, object]) -> str:
    halted = found.get("halted")
    if halted:
        return f"halted: {halted if isinstance(halted, str) else 'a mass change'}"
    parked = section(found, "parked")
    if parked:
        return f"changes of {', '.join(sorted(parked))} are parked: their layout does not fit"
    return str(found.get("trouble") or "")


def _total(counts: Mapping[str, object]) -> int:
    return sum(_count(value) for value in counts.values())


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0

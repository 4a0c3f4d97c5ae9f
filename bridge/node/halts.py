"""Maps to which nothing is applied until an operator says so, kept over restarts of the bridge."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Protocol

import orjson

from bridge.apply.gate import ApplyGate
from bridge.apply.target import ApplyTarget
from bridge.config.settings import MapConfig
from bridge.core.guard import GuardLimits
from bridge.kernel.maps import KernelMap
from bridge.kernel.scan import scan_whole
from bridge.model import Origin
from bridge.node.instance import StateDirectory
from bridge.node.report import Report

POLL_SECONDS = 0.1
FILE = "halted.json"


class Halts:
    """Reasons by map. Any thread may call; each change is on disk when the call returns."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._reasons = _read(state.path / FILE)

    def reason(self, name: str) -> str:
        """Why a map was halted; empty: it was not."""
        return self._reasons.get(name, "")

    def halt(self, name: str, reason: str) -> None:
        """Raises ``OSError``; the map is halted in this process all the same."""
        with self._lock:
            self._reasons[name] = reason
            self._state.write(FILE, self._reasons)

    def resume(self, name: str) -> None:
        """Raises ``OSError``."""
        with self._lock:
            if self._reasons.pop(name, None) is not None:
                self._state.write(FILE, self._reasons)


def _read(path: Path) -> dict[str, str]:
    """What the file holds. One that is damaged halts nothing: its writing is atomic."""
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(name): str(reason) for name, reason in content.items()}


class Halting(Protocol):
    """What a gate needs of its node. Twin: ``bridge.node.services.Services``."""

    @property
    def halts(self) -> Halts: ...
    @property
    def report(self) -> Report: ...
    @property
    def dry_run(self) -> bool: ...


def gate_of(config: MapConfig, origin: Origin, kernel_map: KernelMap, node: Halting) -> ApplyGate:
    """The gate of one map, closed when the map had been halted before."""

    def on_halt(reason: str) -> None:
        node.report.warn(
            "nothing is applied any more until `mapbridge resume`", map=config.name, reason=reason
        )
        if node.dry_run:
            return
        try:
            node.halts.halt(config.name, reason)
        except OSError as error:
            node.report.warn_once(f"a halt cannot be saved: {error}", map=config.name)

    limits = GuardLimits(config.guard.deletes, config.guard.changes, config.guard.window_seconds)
    return ApplyGate(
        origin,
        limits,
        count=lambda: sum(len(keys) for keys, _ in scan_whole(kernel_map.scan)),
        on_halt=on_halt,
        halted=node.halts.reason(config.name),
    )


def is_halted(target: ApplyTarget | None) -> bool:
    """Whether what comes for a map waits for an operator's word."""
    return target is not None and target.gate is not None and bool(target.gate.halted)


def halt_status(target: ApplyTarget) -> dict[str, object]:
    """What ``status.json`` says of a map's gate."""
    gate = target.gate
    if gate is None:
        return {}
    return {"halted": gate.halted or None, "halts": gate.halts, "held_messages": gate.held}


async def until_open(target: ApplyTarget | None) -> None:
    """Wait while the map is halted: what waits for it must not fill what all maps share."""
    while is_halted(target):  # noqa: ASYNC110 - the writer thread opens it
        await asyncio.sleep(POLL_SECONDS)

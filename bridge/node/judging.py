"""Whether the maps that a configuration names can be bridged as it says, looked at all together.

What is not there yet is no fault: it is waited for. Used by `check` and before a running node takes
a new configuration. Everything here may block: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridge.capture.emit import open_counter, open_ring
from bridge.config.problems import Problem
from bridge.config.settings import MapConfig
from bridge.errors import BridgeError
from bridge.feed.where import Where
from bridge.kernel.errors import MapNotFoundError, UnsupportedError
from bridge.kernel.maps import KernelMap, open_map
from bridge.kernel.support import Support, judge
from bridge.layout.reader import map_layout
from bridge.layout.rules import HostRules
from bridge.layout.types import Layout
from bridge.model import MapInfo
from bridge.node.ignoring import counted_bytes
from bridge.node.policies import folding_of


def require_supported(config: MapConfig, info: MapInfo) -> None:
    """Raises ``UnsupportedError`` for a map of a kind that cannot be bridged in this role."""
    verdict = judge(info)
    if verdict.support is Support.NO:
        raise UnsupportedError(
            f"map {config.name}: cannot be bridged, {verdict.reason}",
            hint="`mapbridge maps --all` lists what can be",
        )
    if verdict.publish_only and config.role.applies:
        raise UnsupportedError(
            f"map {config.name}: cannot be applied to, {verdict.reason} (got role {config.role})",
            hint='set role = "publish" for this map',
        )


def map_problems(path: str, entry: MapConfig, *, absent: bool) -> Iterator[Problem]:
    """What stands against one table of ``[[maps]]``, which is at ``path``.

    ``absent``: that the map is not there is a problem as well. Of a pattern only the filters of
    its metrics are looked at.
    """
    layout = None
    if not entry.selector.is_pattern:
        try:
            with open_map(entry.selector) as opened:
                layout = _fitting(entry, opened)
        except MapNotFoundError as error:
            if absent:
                yield told(path, error)
        except BridgeError as error:
            yield told(path, error)
    yield from _metrics(path, entry, layout)
    parts = (("emit", entry.emit, open_ring), ("emit_losses", entry.emit_losses, open_counter))
    for key, selector, opener in parts:
        if selector is None:
            continue
        try:
            opener(selector).close()
        except BridgeError as error:
            yield told(f"{path}.{key}", error)


def told(path: str, error: BridgeError) -> Problem:
    """An error as a problem of the configuration."""
    return Problem(path, str(error), hint=error.hint)


def _fitting(entry: MapConfig, opened: KernelMap) -> Layout | None:
    """The map's layout, ``None`` when nothing tells it. Raises what keeps it from being bridged."""
    require_supported(entry, opened.info)
    counted_bytes(entry, opened)
    folding_of(entry, opened.info)
    declared = None if entry.declared is None else entry.declared.layout
    try:
        layout = map_layout(opened, declared, entry.rules)
    except BridgeError:
        if declared is not None or entry.rules:
            raise
        return None
    HostRules(layout, entry.rules)
    return layout


def _metrics(path: str, entry: MapConfig, layout: Layout | None) -> Iterator[Problem]:
    """Filters that can be read, and that name fields of the map where its fields are known."""
    for index, metric in enumerate(entry.metrics):
        if metric.where is None:
            continue
        try:
            where = Where(metric.where)
            if layout is not None:
                where.check(layout)
        except BridgeError as error:
            yield told(f"{path}.metrics[{index}].where", error)

"""Numbers out of a map's entries: added up by labels, with a bound on their combinations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bridge.config.settings import MetricConfig
from bridge.feed.fold import Entry
from bridge.feed.rows import Fields
from bridge.feed.where import Where, WhereError
from bridge.layout.render import Shown
from bridge.model import U8, Delta, DeltaBatch, Op, Origin

_STEP = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]")
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """A metric's values by labels. ``dropped`` combinations were too many; ``skipped`` entries
    have no such fields, or are not described at all."""

    values: Mapping[Labels, float]
    dropped: int = 0
    skipped: int = 0


class Metric:
    """One metric of one map."""

    def __init__(self, config: MetricConfig) -> None:
        self.config = config
        self._where = None if config.where is None else Where(config.where)
        self._labels = [_steps(path) for _, path in config.labels]
        self._value = None if config.value is None else _steps(config.value)

    def series(
        self, entries: Mapping[bytes, Entry], layouts: Mapping[int, Fields | None]
    ) -> Series:
        """The metric now. ``layouts`` by the number that entries name."""
        found: dict[Labels, float] = defaultdict(float)
        skipped = 0
        for (number, node), group in _groups(entries).items():
            fields = layouts.get(number)
            if fields is None:
                skipped += len(group)
                continue
            skipped += self._add(found, node, group, fields)
        most = self.config.series
        if len(found) <= most:
            return Series(found, 0, skipped)
        largest = sorted(found, key=lambda labels: (-found[labels], labels))[:most]
        return Series({labels: found[labels] for labels in largest}, len(found) - most, skipped)

    def _add(
        self,
        found: dict[Labels, float],
        node: str,
        group: Sequence[tuple[bytes, bytes]],
        fields: Fields,
    ) -> int:
        """Add a group of one layout and node; how many entries could not be."""
        keys, values = _rows([key for key, _ in group]), _rows([value for _, value in group])
        if self._where is not None:
            batch = DeltaBatch.of_entries(Op.UPDATE, keys, values, 0)
            delta = Delta(Origin("-", "-", node, 0), 1, batch)
            try:
                mask = self._where.mask(delta, fields.layout)
            except WhereError:  # this layout has no such field
                return len(group)
            keys, values = keys[mask], values[mask]
        skipped = 0
        for key, value in zip(fields.keys(keys), fields.values(values), strict=True):
            try:
                labels = tuple(_text(_walk(key, value, node, path)) for path in self._labels)
                amount = 1.0 if self._value is None else _walk(key, value, node, self._value)
                found[labels] += float(amount)  # type: ignore[arg-type]
            except (LookupError, TypeError, ValueError):
                skipped += 1
        return skipped


def _groups(entries: Mapping[bytes, Entry]) -> dict[tuple[int, str], list[tuple[bytes, bytes]]]:
    groups: dict[tuple[int, str], list[tuple[bytes, bytes]]] = defaultdict(list)
    for key, entry in entries.items():
        groups[entry.written.layout, entry.written.node].append((key, entry.value))
    return groups


def _rows(parts: Sequence[bytes]) -> U8:
    return np.frombuffer(b"".join(parts), np.uint8).reshape(len(parts), -1)


def _steps(path: str) -> list[str | int]:
    """``value.n[0].x`` as ``["value", "n", 0, "x"]``."""
    return [name or int(index) for name, index in _STEP.findall(path)]


def _walk(key: Shown, value: Shown, node: str, path: Sequence[str | int]) -> Shown:
    here: Shown = {"key": key, "value": value, "node": node}
    for step in path:
        here = here[step]  # type: ignore[index]
    return here


def _text(shown: Shown) -> str:
    if isinstance(shown, dict | list):
        raise TypeError("is no single value")
    return str(shown).lower() if isinstance(shown, bool) else str(shown)

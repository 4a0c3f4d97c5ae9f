"""Which kernel map stands at the place of each configured one: one look for all of them.

A place is a pin, a name or an id, or a pattern for many pins of a folder or many names. At a pin
stands what is pinned there. Of a name there may be two maps for a while, when a loader brings the
new generation up beside the old one: the one that is followed stays until nobody but the bridge has
it, and then the other is taken. No kernel map is taken twice, and no stream name is given twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge.config.settings import MAPS_MAX, MapConfig, is_stream_name
from bridge.errors import BridgeError, Exit
from bridge.kernel.census import Census
from bridge.kernel.errors import MapAmbiguousError
from bridge.kernel.maps import KernelMap
from bridge.kernel.support import Support, judge
from bridge.model import MapInfo, MapSelector


class SameNameError(BridgeError):
    """Two maps would get one name in the stream: two histories in one."""

    exit_code = Exit.CONFIG


@dataclass(frozen=True, slots=True)
class Sighting:
    """What stands at a place now.

    ``error``: why none of what is there can be taken. ``newer``: another map of the same name.
    """

    info: MapInfo | None = None
    error: BridgeError | None = None
    newer: MapInfo | None = None


@dataclass(slots=True)
class View:
    """What one look has found, by stream name; ``maps`` says what holds for each.

    ``left_out``: why a map that matches a pattern is not taken. ``conflicts``: those that would
    take a name or a map that another has.
    """

    maps: dict[str, MapConfig] = field(default_factory=dict)
    sightings: dict[str, Sighting] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    conflicts: list[BridgeError] = field(default_factory=list)
    taken: dict[int, str] = field(default_factory=dict)  # by id of the map

    def add(self, entry: MapConfig, sighting: Sighting) -> None:
        self.maps[entry.name], self.sightings[entry.name] = entry, sighting
        if sighting.info is not None:
            self.taken[sighting.info.id] = entry.name


class Lookout:
    """``look`` may block: call it off the event loop, once at a time.

    ``abandoned`` gets the open maps that are followed without a pin, by stream name, and answers
    which of them nobody else has any more; those it has closed.
    """

    def __init__(
        self,
        maps: Sequence[MapConfig],
        abandoned: Callable[[Mapping[str, KernelMap]], set[str]],
    ) -> None:
        self._named = [entry for entry in maps if not entry.selector.is_pattern]
        self._patterns = [entry for entry in maps if entry.selector.is_pattern]
        self._abandoned = abandoned
        self._census = Census()

    def look(self, followed: Mapping[str, tuple[MapConfig, KernelMap]]) -> View:
        """``followed``: the maps that are open now, by stream name."""
        unpinned = {n: one for n, (entry, one) in followed.items() if entry.selector.pin is None}
        gone = self._abandoned(unpinned) if unpinned else set()
        ids = {name: one.info.id for name, (_, one) in followed.items() if name not in gone}
        self._census.look()
        view = View()
        for entry in self._named:
            view.add(entry, self._sighting(entry.selector, ids.get(entry.name)))
        found = [member for entry in self._patterns for member in self._members(entry, ids)]
        # What is followed comes first: a newcomer takes nothing from it.
        for member, sighting in sorted(found, key=lambda one: one[0].name not in ids):
            admit(view, member, sighting, ids)
        return view

    def _sighting(self, selector: MapSelector, followed: int | None) -> Sighting:
        try:
            if selector.pin is not None:
                return Sighting(self._census.at_pin(selector.pin))
            if selector.id is not None:
                return Sighting(self._census.with_id(selector.id))
            assert selector.name is not None
            return choose(selector.name, self._census.named(selector.name), followed)
        except BridgeError as error:
            return Sighting(error=error)

    def _members(
        self, entry: MapConfig, ids: Mapping[str, int]
    ) -> Iterator[tuple[MapConfig, Sighting]]:
        """Each map that matches a pattern, with what holds for it."""
        if entry.selector.pin is not None:
            path = Path(entry.selector.pin)
            for own_name, info in self._census.in_folder(str(path.parent), path.name).items():
                yield entry.member(own_name), Sighting(info)
            return
        by_name: dict[str, list[MapInfo]] = {}
        for info in self._census.named(entry.selector.name or ""):
            by_name.setdefault(info.name, []).append(info)
        for own_name, found in by_name.items():
            member = entry.member(own_name)
            yield member, choose(own_name, found, ids.get(member.name))


def choose(name: str, found: Sequence[MapInfo], followed: int | None) -> Sighting:
    """Of several maps of one name: the one that is followed; without one nobody can tell."""
    stays = next((info for info in found if info.id == followed), None)
    if stays is not None:
        newer = next((info for info in found if info.id > stays.id), None)
        return Sighting(stays, newer=newer)
    if len(found) > 1:
        return Sighting(error=MapAmbiguousError(name, list(found)))
    return Sighting(found[0] if found else None)


def admit(view: View, member: MapConfig, sighting: Sighting, ids: Mapping[str, int]) -> None:
    """Take a map that matches a pattern into the view, or say why not."""
    name, info = member.name, sighting.info
    if not is_stream_name(name):
        view.left_out.append(f"{member.selector}: its name is not fit for the stream (got {name})")
        return
    if info is not None and view.taken.get(info.id) == name:
        return  # it has a table of its own, which goes before a pattern
    if name in view.maps:
        view.conflicts.append(_same_name(name, view.maps[name].selector, member.selector))
        return
    if info is not None:
        twin = view.taken.get(info.id)
        if twin is not None:
            view.left_out.append(f"{member.selector}: the same map as {view.maps[twin].selector}")
            return
        verdict = judge(info)
        if verdict.support is Support.NO and name not in ids:
            view.left_out.append(f"{member.selector}: cannot be bridged, {verdict.reason}")
            return
    if len(view.maps) >= MAPS_MAX:
        view.left_out.append(f"{member.selector}: more than {MAPS_MAX} maps")
        return
    view.add(member, sighting)


def _same_name(name: str, one: MapSelector, other: MapSelector) -> SameNameError:
    return SameNameError(
        f"map {name}: two maps would get this name in the stream (got {one} and {other})",
        hint='tell them apart with a prefix, such as name = "other-*"',
    )

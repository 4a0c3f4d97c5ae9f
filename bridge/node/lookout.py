"""Which kernel map stands at the place of each configured one: one look for all of them.

A place is a pin, a name or an id. At a pin stands what is pinned there. Of a name there may be two
maps for a while, when a loader brings the new generation up beside the old one: the one that is
followed stays until nobody but the bridge has it, and then the other is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bridge.config.settings import MapConfig
from bridge.errors import BridgeError
from bridge.kernel.census import Census
from bridge.kernel.errors import MapAmbiguousError
from bridge.kernel.maps import KernelMap
from bridge.model import MapInfo, MapSelector


@dataclass(frozen=True, slots=True)
class Sighting:
    """What stands at a place now.

    ``error``: why none of what is there can be taken. ``newer``: another map of the same name.
    """

    info: MapInfo | None = None
    error: BridgeError | None = None
    newer: MapInfo | None = None


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
        self._maps = maps
        self._abandoned = abandoned
        self._census = Census()

    def look(self, followed: Mapping[str, KernelMap]) -> dict[str, Sighting]:
        """Sightings by stream name. ``followed``: the maps that are open now."""
        unpinned = {
            entry.name: followed[entry.name]
            for entry in self._maps
            if entry.selector.pin is None and entry.name in followed
        }
        gone = self._abandoned(unpinned) if unpinned else set()
        ids = {name: one.info.id for name, one in followed.items() if name not in gone}
        self._census.look()
        return {e.name: self._sighting(e.selector, ids.get(e.name)) for e in self._maps}

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


def choose(name: str, found: Sequence[MapInfo], followed: int | None) -> Sighting:
    """Of several maps of one name: the one that is followed; without one nobody can tell."""
    stays = next((info for info in found if info.id == followed), None)
    if stays is not None:
        newer = next((info for info in found if info.id > stays.id), None)
        return Sighting(stays, newer=newer)
    if len(found) > 1:
        return Sighting(error=MapAmbiguousError(name, list(found)))
    return Sighting(found[0] if found else None)

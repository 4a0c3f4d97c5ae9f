"""Which layout a batch is in: the one stored beside the log under the fingerprint that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bridge.bus.nats_bus import NatsBus
from bridge.bus.schemas import SchemaStore
from bridge.errors import BridgeError
from bridge.feed.schema import decode_schema
from bridge.layout.fingerprint import fingerprint
from bridge.layout.types import Layout
from bridge.model import Delta

KNOWN_MAX = 256


def _ignore(text: str) -> None:
    del text


class LayoutBook:
    """Layouts by map and fingerprint, asked for once. ``own`` are those of this machine's maps.

    A batch that names no layout is read by this machine's one, when its sizes are the same. In the
    place of one that is not known stands why, which is told when it would have been needed.
    ``report`` gets a sentence, once, for a layout that cannot be had.
    """

    def __init__(
        self,
        bus: NatsBus,
        cluster: str,
        own: Mapping[str, Layout | str] | None = None,
        report: Callable[[str], None] = _ignore,
    ) -> None:
        self._store = SchemaStore(bus, cluster)
        self._own = {name: it for name, it in (own or {}).items() if isinstance(it, Layout)}
        self._reasons = {name: it for name, it in (own or {}).items() if isinstance(it, str)}
        self._report = report
        self._known: dict[tuple[str, int], Layout | None] = {}
        for name, layout in self._own.items():
            self._known[name, fingerprint(layout)] = layout

    async def of(self, delta: Delta) -> Layout | None:
        """The layout of a batch; ``None``: not known, or not of its sizes."""
        name = delta.origin.map
        if delta.layout == 0:
            found = self._own.get(name)
            reason = self._reasons.pop(name, "")
            if reason:
                self._report(f"fields of this machine are not known: {reason}")
        else:
            place = (name, delta.layout)
            if place not in self._known:
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[place] = await self._ask(*place)
            found = self._known[place]
        sizes = delta.batch.key_size, delta.batch.value_size
        return found if found is not None and (found.key.size, found.value.size) == sizes else None

    async def _ask(self, name: str, number: int) -> Layout | None:
        try:
            stored = await self._store.get(name, number)
            if stored is None:
                self._report(f"map {name}: layout {number:016x} is not stored beside the log")
                return None
            schema = decode_schema(stored.data)
        except BridgeError as error:
            self._report(f"map {name}: layout {number:016x} cannot be read: {error}")
            return None
        if (schema.map, schema.fingerprint) != (name, number):
            self._report(f"map {name}: what is stored as layout {number:016x} is another one")
            return None
        return schema.layout

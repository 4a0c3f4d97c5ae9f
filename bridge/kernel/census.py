"""Which maps there are and where, look by look, at the price of one listing for all who ask.

Ids are given out rising and not again before the kernel has counted through 2**31 of them
(``bpf_map_alloc_id``, ``idr_alloc_cyclic``), and a map keeps its name: so what was learnt of an id
stays true. A new pin has a new inode (``bpf_get_inode``), one that was put in another's place too:
only a pin whose inode changed is opened.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bridge.kernel import syscall
from bridge.kernel.errors import Asked, MapNotFoundError, UnsupportedError, check
from bridge.kernel.maps import map_info, open_pin
from bridge.kernel.syscall import Command
from bridge.model import MapInfo


@dataclass(frozen=True, slots=True)
class _Pin:
    inode: tuple[int, int]  # device, number
    info: MapInfo | None  # None: something else than a map is pinned there


class Census:
    """Belongs to one thread. ``look`` begins a new listing; the other methods answer from it."""

    def __init__(self) -> None:
        self._known: dict[int, MapInfo] = {}
        self._pins: dict[str, _Pin] = {}
        self._seen: dict[str, _Pin] = {}
        self._listed: list[MapInfo] | None = None

    def look(self) -> None:
        """Forget what was listed, not what was learnt."""
        self._pins, self._seen = self._seen, {}
        self._listed = None

    def named(self, pattern: str) -> list[MapInfo]:
        """Maps whose kernel name matches, by rising id."""
        if self._listed is None:
            self._listed = self._list()
        return [info for info in self._listed if fnmatchcase(info.name, pattern)]

    def with_id(self, map_id: int) -> MapInfo | None:
        """The map of an id, while there is one."""
        fd = syscall.descriptor_of(Command.MAP_GET_FD_BY_ID, map_id)
        if fd == -errno.ENOENT:
            return None
        check(max(-fd, 0), Asked.OPEN, f"map id {map_id}", "open")
        try:
            return map_info(fd, f"map id {map_id}")
        finally:
            os.close(fd)

    def at_pin(self, path: str) -> MapInfo | None:
        """The map that is pinned at a path; ``None``: nothing is. Raises for what is no map."""
        try:
            found = os.stat(path)  # noqa: PTH116 - many times a second
        except OSError:
            return None
        info = self._pinned(path, (found.st_dev, found.st_ino))
        if info is None and path in self._seen:
            with open_pin(path):  # raises what is told of such a pin
                pass
        return info

    def in_folder(self, folder: str, pattern: str) -> dict[str, MapInfo]:
        """Pinned maps of a folder by the name of their pin, where it matches."""
        try:
            entries = os.scandir(folder)
            device = os.stat(folder).st_dev  # noqa: PTH116
        except OSError:
            return {}
        maps = {}
        with entries:
            for entry in entries:
                if not fnmatchcase(entry.name, pattern):
                    continue
                info = self._pinned(entry.path, (device, entry.inode()))
                if info is not None:
                    maps[entry.name] = info
        return dict(sorted(maps.items()))

    def _pinned(self, path: str, inode: tuple[int, int]) -> MapInfo | None:
        pin = self._seen.get(path) or self._pins.get(path)
        if pin is None or pin.inode != inode:
            try:
                with open_pin(path) as opened:
                    pin = _Pin(inode, opened.info)
            except MapNotFoundError:
                return None
            except UnsupportedError:
                pin = _Pin(inode, None)
        self._seen[path] = pin
        return pin.info

    def _list(self) -> list[MapInfo]:
        known: dict[int, MapInfo] = {}
        after = 0
        while True:
            code, map_id = syscall.next_map_id(after)
            if code == errno.ENOENT:
                break
            check(code, Asked.OPEN, "maps", "list")
            after = map_id
            info = self._known.get(map_id) or self.with_id(map_id)
            if info is not None:
                known[map_id] = info
        self._known = known
        return list(known.values())

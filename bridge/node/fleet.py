"""All maps of a node: those that its configuration names, and those that its patterns find."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from bridge.config.settings import MapConfig
from bridge.kernel.maps import KernelMap, still_held
from bridge.node.life import MapLife
from bridge.node.lookout import Lookout, Sighting, View
from bridge.node.services import Services

LOOK_SECONDS = 1.0


class Fleet:
    """``run`` ends when cancelled, or raises what ended one of the maps; the others go on then."""

    def __init__(self, maps: Sequence[MapConfig], services: Services) -> None:
        self._services = services
        self._lookout = Lookout(maps, self._abandoned)
        self._lives: dict[str, MapLife] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._looks = 0

    @property
    def lives(self) -> list[MapLife]:
        return list(self._lives.values())

    async def run(self) -> None:
        while True:
            await self._look()
            if not self._tasks:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            done, _ = await asyncio.wait(
                self._tasks.values(), timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()

    async def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _look(self) -> None:
        """Tell the maps what stands at their places, with one look for all of them."""
        followed = {
            life.config.name: (life.config, life.followed)
            for life in self._lives.values()
            if life.followed is not None
        }
        view = await asyncio.to_thread(self._lookout.look, followed)
        self._tell(view)
        for name, entry in view.maps.items():
            if name not in self._lives:
                life = MapLife(entry, self._services, strict=self._looks == 0)
                self._lives[name] = life
                self._tasks[name] = asyncio.create_task(life.run(), name=name)
        for name, life in list(self._lives.items()):
            if name not in view.maps and life.followed is None:
                await self._forget(name)
            else:
                life.sighted(view.sightings.get(name, Sighting()))
        self._looks += 1

    def _tell(self, view: View) -> None:
        report = self._services.report
        if view.conflicts and not self._looks:
            raise view.conflicts[0]
        for error in view.conflicts:
            report.warn_once(f"{error}; the second is left out", hint=error.hint)
        for reason in view.left_out:
            report.warn_once(f"left out: {reason}")

    async def _forget(self, name: str) -> None:
        """A map that a pattern had found has gone, and was let go."""
        task = self._tasks.pop(name)
        del self._lives[name]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _abandoned(self, followed: Mapping[str, KernelMap]) -> set[str]:
        """Which of these maps nobody else has; called by the thread that looks.

        A sweep may take long: nothing else is made to wait for its end, the rings least of all.
        """
        capturing, applier = self._services.capturing, self._services.applier
        with capturing.unchanged():
            swept = {n: one for n, one in followed.items() if capturing.is_swept(n)}
            others = {n: one for n, one in followed.items() if n not in swept}
            gone: set[str] = set()
            if swept:
                with capturing.standing_still(swept=True), applier.standing_still():
                    gone |= self._let_go(swept)
            if others:
                with applier.standing_still(), capturing.standing_still(swept=False):
                    gone |= self._let_go(others)
        return gone

    def _let_go(self, followed: Mapping[str, KernelMap]) -> set[str]:
        opened = {name: one for name, one in followed.items() if one.fd >= 0}
        gone = {name for name, one in opened.items() if not still_held(one)}
        for name in gone:
            self._services.applier.remove(name)
        return gone

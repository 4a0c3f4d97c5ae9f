"""All maps of a node: those that its configuration names, and those that its patterns find."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.config.problems import Problem
from bridge.config.settings import MapConfig
from bridge.errors import Exit
from bridge.kernel.errors import KernelError
from bridge.kernel.maps import KernelMap, still_held
from bridge.node.judging import map_problems, told
from bridge.node.life import MapLife
from bridge.node.lookout import Lookout, Sighting, View
from bridge.node.services import Services

LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """Maps of a new configuration; ``done`` when they are under way."""

    maps: tuple[MapConfig, ...]
    done: asyncio.Future[None]


class Fleet:
    """``run`` ends when cancelled, or raises what ended one of the maps; the others go on then."""

    def __init__(self, maps: Sequence[MapConfig], services: Services) -> None:
        self._services = services
        self._lookout = Lookout(maps, self._abandoned)
        self._lives: dict[str, MapLife] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._looks = 0
        self._asked: _Asked | None = None
        self._wake = asyncio.Event()

    @property
    def lives(self) -> list[MapLife]:
        return list(self._lives.values())

    async def run(self) -> None:
        while True:
            await self._look()
            waking = asyncio.create_task(self._wake.wait())
            try:
                await asyncio.wait(
                    {*self._tasks.values(), waking},
                    timeout=LOOK_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                waking.cancel()
            self._reap()

    async def judge(self, maps: Sequence[MapConfig]) -> list[Problem]:
        """What keeps the maps from being bridged as another configuration says."""
        return await asyncio.to_thread(self._judge, maps, self._followed())

    async def reconfigure(self, maps: Sequence[MapConfig]) -> None:
        """Bridge these maps from now on. Returns when that is under way; one call at a time.

        Maps that are as before are not touched. One that is not wanted any more, or not like this,
        is let go: what was captured of it goes out. Then it joins anew, if it is still wanted.
        """
        assert self._asked is None, "one configuration at a time"
        self._asked = _Asked(tuple(maps), asyncio.get_running_loop().create_future())
        self._wake.set()
        await self._asked.done

    async def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _look(self) -> None:
        """Tell the maps what stands at their places, with one look for all of them."""
        asked, self._asked = self._asked, None
        self._wake.clear()
        if asked is not None:
            self._lookout = Lookout(asked.maps, self._abandoned)
        try:
            view = await asyncio.to_thread(self._lookout.look, self._followed())
        except KernelError as error:
            if not self._looks or error.exit_code is not Exit.TEMPORARY:
                raise
            self._services.report.warn_once(f"maps cannot be looked for now: {error}")
            if self._asked is None:
                self._asked = asked
            return  # the next look tries again
        self._tell(view)
        if asked is not None:
            self._refit(view, asked.maps)
        for name, entry in view.maps.items():
            if name not in self._lives:
                life = MapLife(entry, self._services, strict=self._looks == 0)
                self._lives[name] = life
                self._tasks[name] = asyncio.create_task(life.run(), name=name)
        await self._show(view)
        self._looks += 1
        if asked is not None:
            asked.done.set_result(None)

    def _followed(self) -> dict[str, tuple[MapConfig, KernelMap]]:
        return {
            life.config.name: (life.config, life.followed)
            for life in self._lives.values()
            if life.followed is not None
        }

    async def _show(self, view: View) -> None:
        """Tell each map what stands at its place."""
        held = {one.info.id: name for name, (_, one) in self._followed().items()}
        for name, life in list(self._lives.items()):
            sighting = view.sightings.get(name, Sighting())
            if life.retired:
                continue
            if name not in view.maps and life.followed is None:
                await self._forget(name)
            elif sighting.info is None or held.get(sighting.info.id, name) == name:
                life.sighted(sighting)
            # Else another one still has that map, and is about to let it go.

    def _refit(self, view: View, maps: Sequence[MapConfig]) -> None:
        """Under new maps: what is not wanted any more, or not like this, is let go."""
        patterns = [entry for entry in maps if entry.selector.is_pattern]
        for name, life in self._lives.items():
            entry = view.maps.get(name)
            if entry is not None:
                if entry != life.config and not life.adopt(entry):
                    life.retire()
                continue
            # What a pattern had found may just be away for a moment.
            found = any(one.member_named(name) == life.config for one in patterns)
            if not found or (life.followed is not None and life.followed.info.id in view.taken):
                life.retire()

    def _reap(self) -> None:
        """Forget the maps that were let go; raises what ended one."""
        for name in [name for name, task in self._tasks.items() if task.done()]:
            self._tasks[name].result()
            del self._tasks[name]
            del self._lives[name]

    def _judge(
        self, maps: Sequence[MapConfig], followed: Mapping[str, tuple[MapConfig, KernelMap]]
    ) -> list[Problem]:
        view = Lookout(maps, lambda unpinned: set()).look(followed)
        problems = [told("maps", error) for error in view.conflicts]
        running = {name: entry for name, (entry, _) in followed.items()}
        for index, entry in enumerate(maps):
            path = f"maps[{index}]"
            error = view.sightings.get(entry.name, Sighting()).error
            if running.get(entry.name) == entry:
                continue
            if error is not None and not entry.selector.is_pattern:
                problems.append(told(path, error))
            else:
                problems += map_problems(path, entry, absent=False)
        return problems

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

"""Which capabilities a node keeps once its probes are attached, and that no thread has more.

What is kept is what a map that comes later needs: one that its loader makes anew, one that a
pattern finds, one that a reload adds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from bridge.capture.source import Mode
from bridge.capture.transport import Transport
from bridge.config.settings import Config, MapConfig
from bridge.kernel.capabilities import bits_of, give_up, held, held_by_threads
from bridge.kernel.features import MEMLOCK_FREE, Capability, kernel_version

PRIVILEGED_PORT_MAX = 1023
_CHECKS, _CHECK_SECONDS = 40, 0.025


def needed_by_maps(maps: Iterable[MapConfig]) -> set[Capability]:
    """To find the maps of these tables, and the types of their fields.

    The kernel gives maps and type information by id to CAP_SYS_ADMIN only (bpf(2)). A map by pin
    whose layout is declared needs neither.
    """
    by_id = any(one.selector.pin is None or one.declared is None for one in maps)
    emitted = [s for one in maps for s in (one.emit, one.emit_losses) if s is not None]
    by_id = by_id or any(one.pin is None for one in emitted)
    return {Capability.CAP_BPF, *({Capability.CAP_SYS_ADMIN} if by_id else ())}


def needed(config: Config, mode: str, transport: str) -> set[Capability]:
    """By a node in this configuration once it has started.

    mode        of capture, that is in force
    transport   what carries the records of its probes; empty: there are none
    """
    found = needed_by_maps(config.maps)
    if transport:  # programs are attached, and more of them will be for maps of another type
        if mode == Mode.KPROBE:
            found.add(Capability.CAP_SYS_ADMIN)  # the one run without it failed (6.1)
        # The canary's classifiers count as networking; CAP_SYS_ADMIN implies that right.
        found |= {Capability.CAP_PERFMON, Capability.CAP_SYSLOG, Capability.CAP_NET_ADMIN}
        if Capability.CAP_SYS_ADMIN in found:
            found.remove(Capability.CAP_NET_ADMIN)
        if transport == Transport.PERF:
            found.add(Capability.CAP_IPC_LOCK)
    if kernel_version() < MEMLOCK_FREE:
        found.add(Capability.CAP_SYS_RESOURCE)
    if config.broker.embedded and 0 < config.broker.listen.port <= PRIVILEGED_PORT_MAX:
        found.add(Capability.CAP_NET_BIND_SERVICE)
    return found


def threads_beyond(allowed: int) -> tuple[str, ...]:
    """Threads of this process that have more than these, by name."""
    return tuple(name for name, has in held_by_threads().items() if has & ~allowed)


class Privileges:
    """Of one node; belongs to the event loop."""

    def __init__(self, *, drop: bool) -> None:
        self._drop = drop
        self._dropped = False
        self.beyond: tuple[str, ...] = ()  # threads that have kept more

    async def in_full(self, work: Callable[[], None]) -> None:
        """Do what needs all of them, in a thread that ends with it: threads keep what they have."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="start")
        try:
            await asyncio.get_running_loop().run_in_executor(pool, work)
            pool.shutdown()
        finally:
            pool.shutdown(wait=False)  # a node that is told to stop meanwhile does not wait here

    def drop_all(self) -> None:
        """For threads that only answer others: give up every one."""
        if self._drop:
            give_up(())

    def drop(self, keep: set[Capability]) -> None:
        """Keep these only, in this thread and those it makes.

        A thread that a library has made before cannot be reached from here: ``beyond`` names it.
        """
        if not self._drop:
            return
        if Capability.CAP_BPF not in held():
            keep = {*keep, Capability.CAP_SYS_ADMIN}  # stands for CAP_BPF and CAP_PERFMON
        give_up(keep)
        self._dropped = True
        for _ in range(_CHECKS):  # a thread that has just ended is seen for a moment yet
            self.beyond = threads_beyond(bits_of(held()))
            if not self.beyond:
                return
            time.sleep(_CHECK_SECONDS)

    def lacks(self, maps: Iterable[MapConfig]) -> set[Capability]:
        """What maps of another configuration need that was given up."""
        return needed_by_maps(maps) - held() if self._dropped else set()

    def status(self) -> dict[str, object]:
        """What ``status.json`` says of it."""
        names = sorted(one.name for one in held())
        return {"dropped": self._dropped, "capabilities": names, "beyond": list(self.beyond)}

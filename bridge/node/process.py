"""A node as a process: its signals, its memory, what it needs of capabilities."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from bridge.config.settings import CaptureMode, Config
from bridge.errors import PrivilegeError
from bridge.kernel.features import Answer, Capability, Probes
from bridge.node.allocator import tune_allocator
from bridge.node.instance import StateDirectory
from bridge.node.node import Node
from bridge.node.report import Report


async def run_node(
    config: Config, report: Report, reread: Callable[[], Config], *, dry_run: bool = False
) -> None:
    """Run until SIGTERM or SIGINT, then let everything captured go out.

    ``reread`` gives the configuration as it is after SIGHUP, or raises ``BridgeError``.
    ``dry_run``: capture and judge, but write to no map and publish nothing.
    A second signal ends the process at once. Raises what made going on impossible.
    """
    tune_allocator()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        report.say("stopping: what was captured goes out first; a second signal ends at once")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    os.umask(0o077)  # what the bridge and its nats-server store is nobody else's
    _require_privileges(config)
    with StateDirectory(config.node.state_directory) as state:
        node = Node(config, report, state, reread, dry_run=dry_run)
        loop.add_signal_handler(signal.SIGHUP, node.reload)
        await node.run(stop)


def _require_privileges(config: Config) -> None:
    """Raises ``PrivilegeError`` naming every capability that this configuration misses."""
    needed = [Capability.CAP_BPF]
    probes = config.capture.mode is not CaptureMode.SWEEP
    if probes and any(entry.role.publishes and entry.emit is None for entry in config.maps):
        needed.append(Capability.CAP_PERFMON)
    if any(entry.selector.pin is None for entry in config.maps):
        needed.append(Capability.CAP_SYS_ADMIN)  # maps by name and id
    here = Probes()
    missing = [c.name for c in needed if here.capability(c).answer is Answer.NO]
    if missing:
        raise PrivilegeError(
            f"process: lacks {' and '.join(missing)}",
            hint="run as root, or give the service AmbientCapabilities=" + " ".join(missing),
        )

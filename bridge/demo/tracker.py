"""The connection tracker of the demonstration: compiled, loaded and pinned, once per node.

Several nodes on one kernel each get a map ``ct`` of their own, of identical shape and with the same
type information, told apart by their pins. Only the first node's programs stay loaded: they fill
its map when attached. The other nodes' maps begin empty, as those of machines that carry no
traffic yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bridge.kernel.objects import compile_object, load_object, remove_pins
from bridge.resources import bpf_directory, bpf_source
from bridge.rig import tools
from bridge.rig.claim import Claim

SOURCE = "examples/conntrack.bpf.c"
MAP_NAME = "ct"
_PROGRAMS = ("ct_ingress", "ct_egress")
_ENTRIES_MIN = 16_384
RING_BYTES = 1 << 24


def entries_for(sessions: int) -> int:
    """The map's size: a power of two with at least a quarter of room above the sessions."""
    return max(_ENTRIES_MIN, 1 << (sessions * 5 // 4).bit_length())


@dataclass(frozen=True, slots=True)
class TrackerPins:
    """What is pinned for one node. The program pins exist for the first node only."""

    directory: Path

    @property
    def map(self) -> Path:
        return self.directory / "maps" / MAP_NAME

    @property
    def emit(self) -> tuple[Path, Path]:
        """The ring and the counter of losses of programs that emit."""
        return self.directory / "maps" / "ct_ring", self.directory / "maps" / "ct_lost"

    @property
    def ingress(self) -> Path:
        return self.directory / "ct_ingress"

    @property
    def egress(self) -> Path:
        return self.directory / "ct_egress"


class Tracker:
    """One ``ct`` map per node under ``claim.pin_directory``: ``<node>/maps/ct``.

    ``strict``: the programs drop what belongs to no connection in the map.
    ``emit``: the programs tell of their changes themselves, through a ring of ``ring_bytes``.
    """

    def __init__(
        self,
        claim: Claim,
        sessions: int,
        nodes: Sequence[str] = ("a",),
        *,
        strict: bool = False,
        emit: bool = False,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        if not nodes or len(set(nodes)) != len(nodes):
            raise ValueError(f"nodes: need one or more different names (got {list(nodes)})")
        self.entries_max = entries_for(sessions)
        self._defines = [f"CT_ENTRIES_MAX={self.entries_max}", f"CT_STRICT={int(strict)}"]
        self._defines += ["EMIT", f"RING_BYTES={ring_bytes}"] if emit else []
        self._root = claim.pin_directory
        self.pins = {node: TrackerPins(self._root / node) for node in nodes}

    @property
    def active(self) -> TrackerPins:
        """The node whose programs can be attached: the first."""
        return next(iter(self.pins.values()))

    def load(self) -> None:
        """Raises PrivilegeError, UnavailableError (a tool is missing) or ObjectError."""
        tools.require_privileges()
        tools.require_tools("clang", "bpftool")
        compiled = compile_object(
            bpf_source(SOURCE), include=[bpf_directory()], defines=self._defines
        )
        try:
            self._root.mkdir(exist_ok=True)
            for pins in self.pins.values():
                load_object(compiled, pins.directory)
            for pins in list(self.pins.values())[1:]:
                for program in _PROGRAMS:
                    (pins.directory / program).unlink()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Removes all pins; the kernel frees maps and programs when nobody uses them any more."""
        for pins in self.pins.values():
            remove_pins(pins.directory)
        if self._root.is_dir() and not any(self._root.iterdir()):
            self._root.rmdir()

    def __enter__(self) -> Tracker:
        self.load()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

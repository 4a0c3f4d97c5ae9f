"""The configuration as the program uses it: checked, converted, frozen.

Text has become numbers with their unit in the name, and every default has been filled in. Where a
map overrides a value of ``[capture]``, the map's field already holds the value in force.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from bridge.model import ConflictPolicy, MapSelector, Role

STATE_DIRECTORY = Path("/var/lib/mapbridge")
SWEEP_SECONDS = 0.25
RING_BYTES = 16 << 20
OUTBOX_BYTES = 64 << 20
INBOX_BYTES = 64 << 20
GUARD_WINDOW_SECONDS = 10.0


class CaptureMode(enum.StrEnum):
    """How changes are seen. Same values as ``bridge.capture.source.Mode``."""

    AUTO = "auto"
    FENTRY = "fentry"
    KPROBE = "kprobe"
    SYSCALL = "syscall"
    SWEEP = "sweep"


class Storage(enum.StrEnum):
    """Where the broker keeps the stream."""

    FILE = "file"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where the embedded server listens. Port 0: a free one."""

    host: str = "127.0.0.1"
    port: int = 4222

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Who this node is and where it keeps its state."""

    name: str
    cluster: str = "default"
    state_directory: Path = STATE_DIRECTORY


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """The NATS servers. No ``urls`` means an embedded server at ``listen``."""

    urls: tuple[str, ...] = ()
    listen: ListenAddress = field(default_factory=ListenAddress)
    storage: Storage = Storage.FILE
    replicas: int = 1

    @property
    def embedded(self) -> bool:
        return not self.urls


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """How changes are captured, for maps that say nothing else."""

    mode: CaptureMode = CaptureMode.AUTO
    sweep_seconds: float = SWEEP_SECONDS
    ring_bytes: int = RING_BYTES


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Bounds of the queues between a map and the broker, per map."""

    outbox_bytes: int = OUTBOX_BYTES
    inbox_bytes: int = INBOX_BYTES


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """When changes of others are too many to be believed: shares of the map; ``None``: never."""

    deletes: float | None = None
    changes: float | None = None
    window_seconds: float = GUARD_WINDOW_SECONDS

    def __str__(self) -> str:
        limits = {"deletes": self.deletes, "changes": self.changes}
        told = [f"{what} {share:.0%}" for what, share in limits.items() if share is not None]
        return f"{', '.join(told)} in {self.window_seconds:g}s" if told else "none"


@dataclass(frozen=True, slots=True)
class MapConfig:
    """One map: its name in the stream and where it is in this kernel."""

    name: str
    selector: MapSelector
    role: Role = Role.REPLICATE
    conflict: ConflictPolicy = ConflictPolicy.STREAM
    emit: MapSelector | None = None  # the ring of a program that emits its changes itself
    emit_losses: MapSelector | None = None  # where that program counts what the ring refused
    sweep_seconds: float = SWEEP_SECONDS
    ring_bytes: int = RING_BYTES
    guard: GuardConfig = field(default_factory=GuardConfig)


@dataclass(frozen=True, slots=True)
class Config:
    """One node's configuration."""

    node: NodeConfig
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    maps: tuple[MapConfig, ...] = ()

    def map(self, name: str) -> MapConfig:
        """The map of that stream name. Raises ``KeyError``."""
        for entry in self.maps:
            if entry.name == name:
                return entry
        raise KeyError(name)

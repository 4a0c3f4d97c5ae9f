"""The configuration as the program uses it: checked, converted, frozen.

Text has become numbers with their unit in the name, and every default has been filled in. Where a
map overrides a value of ``[capture]``, the map's field already holds the value in force.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from bridge.layout.declared import read_declared
from bridge.layout.rules import FieldRule
from bridge.layout.types import Layout
from bridge.model import MapSelector, Role

STATE_DIRECTORY = Path("/var/lib/mapbridge")
SWEEP_SECONDS = 0.25
RING_BYTES = 16 << 20
OUTBOX_BYTES = 64 << 20
INBOX_BYTES = 64 << 20
METRIC_HELP = "entries of an eBPF map"
METRIC_SERIES = 1_000


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
class DeclaredLayout:
    """What the bytes of a map mean, in C syntax: declarations, and the types of key and value."""

    types: str
    key: str
    value: str

    @property
    def layout(self) -> Layout:
        """The types. They were read once already when the configuration was checked."""
        return read_declared(self.types, self.key, self.value)


class MetricType(enum.StrEnum):
    """What Prometheus is told a metric is."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class MetricConfig:
    """A metric out of a map's entries. Entries with the same labels are added up.

    value   the field that is added; ``None``: entries are counted
    labels  (name, field) each
    series  combinations of labels that are exported at most
    """

    name: str
    help: str = METRIC_HELP
    type: MetricType = MetricType.GAUGE
    value: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    where: str | None = None
    series: int = METRIC_SERIES


@dataclass(frozen=True, slots=True)
class MapConfig:
    """One map: its name in the stream and where it is in this kernel."""

    name: str
    selector: MapSelector
    role: Role = Role.REPLICATE
    emit: MapSelector | None = None  # the ring of a program that emits its changes itself
    emit_losses: MapSelector | None = None  # where that program counts what the ring refused
    sweep_seconds: float = SWEEP_SECONDS
    ring_bytes: int = RING_BYTES
    rules: tuple[FieldRule, ...] = ()
    metrics: tuple[MetricConfig, ...] = ()
    declared: DeclaredLayout | None = None  # goes before the map's own type information


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

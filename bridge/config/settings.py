"""The configuration as the program uses it: checked, converted, frozen.

Text has become numbers with their unit in the name, and every default has been filled in. Where a
map overrides a value of ``[capture]``, the map's field already holds the value in force.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from bridge.access import Access
from bridge.layout.declared import read_declared
from bridge.layout.rules import FieldRule
from bridge.layout.types import Layout
from bridge.model import ConflictPolicy, Evict, MapSelector, Role

STATE_DIRECTORY = Path("/var/lib/mapbridge")
SWEEP_SECONDS = 0.25
RING_BYTES = 16 << 20
PERF_PAGES = 512
OUTBOX_BYTES = 64 << 20
INBOX_BYTES = 64 << 20
MAPS_MAX = 1000  # of one node, those that patterns find included; the probes have 1024 slots
NAME_LENGTH_MAX = 64  # as in bridge/wire/subjects.py
OWN_NAME = "*"  # in a stream name: where the own name of each map that matches goes
_STREAM_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def is_stream_name(text: str) -> bool:
    """Whether a map may be called so in the stream."""
    return _STREAM_NAME.fullmatch(text) is not None and len(text) <= NAME_LENGTH_MAX


METRIC_HELP = "entries of an eBPF map"
METRIC_SERIES = 1_000
LAG_SECONDS = 5.0
SNAPSHOT_SECONDS = 3600.0
SNAPSHOT_BYTES = 256 << 20
GUARD_WINDOW_SECONDS = 10.0


class CaptureMode(enum.StrEnum):
    """How changes are seen. Same values as ``bridge.capture.source.Mode``."""

    AUTO = "auto"
    FENTRY = "fentry"
    KPROBE = "kprobe"
    SYSCALL = "syscall"
    SWEEP = "sweep"


class CaptureTransport(enum.StrEnum):
    """How records get to the bridge. Same values as ``bridge.capture.transport.Transport``."""

    AUTO = "auto"
    RING = "ring"
    PERF = "perf"


class Storage(enum.StrEnum):
    """Where the broker keeps the stream."""

    FILE = "file"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server listens. Port 0: a free one."""

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
    """The NATS servers. No ``urls`` means an embedded server at ``listen``.

    ``inbox_prefix``: of the subjects on which answers come; empty: one of this node's own.
    """

    urls: tuple[str, ...] = field(default=(), repr=False)  # may hold passwords
    listen: ListenAddress = field(default_factory=ListenAddress)
    storage: Storage = Storage.FILE
    replicas: int = 1
    access: Access = field(default_factory=Access)
    inbox_prefix: str = ""
    domain: str | None = None  # of JetStream

    @property
    def embedded(self) -> bool:
        return not self.urls


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """How changes are captured, for maps that say nothing else."""

    mode: CaptureMode = CaptureMode.AUTO
    sweep_seconds: float = SWEEP_SECONDS
    ring_bytes: int = RING_BYTES
    transport: CaptureTransport = CaptureTransport.AUTO
    perf_pages: int = PERF_PAGES  # of one CPU's buffer, where perf buffers are used


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Bounds of the queues between a map and the broker, per map."""

    outbox_bytes: int = OUTBOX_BYTES
    inbox_bytes: int = INBOX_BYTES


@dataclass(frozen=True, slots=True)
class SnapshotsConfig:
    """When a map's next snapshot is due: after so long, or so many bytes of its changes."""

    seconds: float = SNAPSHOT_SECONDS
    bytes: int = SNAPSHOT_BYTES


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Where the daemon answers HTTP: an address or a Unix socket's path; ``None``: nowhere."""

    listen: ListenAddress | Path | None = None


@dataclass(frozen=True, slots=True)
class SecurityConfig:
    """``drop_capabilities``: give up what is not needed any more once the probes are attached."""

    drop_capabilities: bool = True


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
    """One map: its name in the stream and where it is in this kernel.

    Or all maps that match: then ``selector`` is a pattern, and ``name`` has ``OWN_NAME`` once.
    """

    name: str
    selector: MapSelector
    role: Role = Role.REPLICATE
    conflict: ConflictPolicy = ConflictPolicy.STREAM
    emit: MapSelector | None = None  # the ring of a program that emits its changes itself
    emit_losses: MapSelector | None = None  # where that program counts what the ring refused
    sweep_seconds: float = SWEEP_SECONDS
    sweeps_too: bool = False  # the map's own table asks for sweeps, beside probes or emit as well
    ignore: tuple[str, ...] = ()  # bytes or fields of the value that are no change to a sweep
    ring_bytes: int = RING_BYTES
    guard: GuardConfig = field(default_factory=GuardConfig)
    lag_seconds: float = LAG_SECONDS  # a map that is further behind is not synced
    evict: Evict = Evict.LOCAL  # of LRU maps
    rules: tuple[FieldRule, ...] = ()
    metrics: tuple[MetricConfig, ...] = ()
    declared: DeclaredLayout | None = None  # goes before the map's own type information

    def member(self, own_name: str) -> MapConfig:
        """What holds for one of the maps that match; its name may be unfit for the stream."""
        pin = self.selector.pin
        selector = (
            MapSelector(name=own_name)
            if pin is None
            else MapSelector(pin=str(Path(pin).parent / own_name))
        )
        return replace(self, name=self.name.replace(OWN_NAME, own_name), selector=selector)

    def member_named(self, name: str) -> MapConfig | None:
        """The one that bears this name in the stream; ``None``: no map that matches can."""
        head, _, tail = self.name.partition(OWN_NAME)
        own = name.removeprefix(head).removesuffix(tail)
        pattern = Path(self.selector.pin).name if self.selector.pin else self.selector.name or ""
        matches = own and f"{head}{own}{tail}" == name and fnmatchcase(own, pattern)
        return self.member(own) if matches else None


@dataclass(frozen=True, slots=True)
class Config:
    """One node's configuration."""

    node: NodeConfig
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    snapshots: SnapshotsConfig = field(default_factory=SnapshotsConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    maps: tuple[MapConfig, ...] = ()

    def map(self, name: str) -> MapConfig:
        """The map of that stream name, by name or by pattern. Raises ``KeyError``."""
        for entry in self.maps:
            if entry.name == name and not entry.selector.is_pattern:
                return entry
        for entry in self.maps:
            member = entry.member_named(name) if entry.selector.is_pattern else None
            if member is not None:
                return member
        raise KeyError(name)

"""The configuration file's shape. What a key may hold is said here and nowhere else.

Each model is one table. Values arrive as TOML gave them; a function of ``values`` turns each into
the one in force or says what is wrong with it. Checks that need two keys are in ``checks``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from bridge.config import settings, values
from bridge.config.settings import (
    MAPS_MAX,
    CaptureMode,
    CaptureTransport,
    ListenAddress,
    MetricType,
    Storage,
)
from bridge.layout.declared import DeclaredError, read_declared
from bridge.layout.rules import FieldRule
from bridge.model import ConflictPolicy, Evict, Role

PAGE_BYTES = 4096

Token = Annotated[str, BeforeValidator(values.token)]
AbsolutePath = Annotated[str, BeforeValidator(values.absolute)]
KernelName = Annotated[str, BeforeValidator(values.kernel_name)]
MapId = Annotated[int, BeforeValidator(values.map_id)]
Sweep = Annotated[float, BeforeValidator(values.duration(0.01, 3600))]
Share = Annotated[float, BeforeValidator(values.share)]
Window = Annotated[float, BeforeValidator(values.duration(0.1, 3600))]
Ring = Annotated[int, BeforeValidator(values.size(PAGE_BYTES, 1 << 30, power_of_two=True))]
Queue = Annotated[int, BeforeValidator(values.size(1 << 20, 16 << 30))]
Text = Annotated[str, BeforeValidator(values.nonempty)]
FilePath = Annotated[Path, BeforeValidator(values.directory)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class NodeTable(Table):
    name: Token
    cluster: Token = "default"
    state_dir: Annotated[Path, BeforeValidator(values.directory)] = settings.STATE_DIRECTORY


class BrokerTable(Table):
    url: Annotated[tuple[str, ...], BeforeValidator(values.server_urls)] = ()
    listen: Annotated[ListenAddress, BeforeValidator(values.listen)] = ListenAddress()
    storage: Annotated[Storage, BeforeValidator(values.choice(Storage))] = Storage.FILE
    replicas: Annotated[int, BeforeValidator(values.replicas)] = 1
    context: Text | None = None
    user: Text | None = None
    password_file: FilePath | None = None
    token_file: FilePath | None = None
    creds: FilePath | None = None
    nkey: FilePath | None = None
    tls_ca: FilePath | None = None
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None
    tls_first: Annotated[bool, BeforeValidator(values.flag)] = False
    inbox_prefix: Annotated[str, BeforeValidator(values.inbox)] | None = None
    domain: Token | None = None


class CaptureTable(Table):
    mode: Annotated[CaptureMode, BeforeValidator(values.choice(CaptureMode))] = CaptureMode.AUTO
    sweep: Sweep = settings.SWEEP_SECONDS
    ring: Ring = settings.RING_BYTES
    transport: Annotated[CaptureTransport, BeforeValidator(values.choice(CaptureTransport))] = (
        CaptureTransport.AUTO
    )
    perf_pages: Annotated[int, BeforeValidator(values.pages)] = settings.PERF_PAGES


class LimitsTable(Table):
    outbox: Queue = settings.OUTBOX_BYTES
    inbox: Queue = settings.INBOX_BYTES


class SnapshotsTable(Table):
    every: Annotated[float, BeforeValidator(values.duration(1, 30 * 86_400))] = (
        settings.SNAPSHOT_SECONDS
    )
    bytes: Annotated[int, BeforeValidator(values.size(PAGE_BYTES, 1 << 40))] = (
        settings.SNAPSHOT_BYTES
    )


class HttpTable(Table):
    listen: Annotated[ListenAddress | Path | None, BeforeValidator(values.http_listen)] = None


class SecurityTable(Table):
    drop_capabilities: Annotated[bool, BeforeValidator(values.flag)] = True


class SelectorTable(Table):
    pin: AbsolutePath | None = None
    map: KernelName | None = None
    id: MapId | None = None


class LayoutTable(Table):
    types: Annotated[str, BeforeValidator(values.nonempty)] = ""
    key: Annotated[str, BeforeValidator(values.nonempty)]
    value: Annotated[str, BeforeValidator(values.nonempty)]

    @model_validator(mode="after")
    def _understood(self) -> Self:
        try:
            read_declared(self.types, self.key, self.value)
        except DeclaredError as error:
            raise ValueError(str(error)) from error
        return self


class MetricTable(Table):
    name: Annotated[str, BeforeValidator(values.metric_name)]
    help: Annotated[str, BeforeValidator(values.nonempty)] = settings.METRIC_HELP
    type: Annotated[MetricType, BeforeValidator(values.choice(MetricType))] = MetricType.GAUGE
    value: Annotated[str, BeforeValidator(values.field_path)] | None = None
    labels: Annotated[dict[str, str], BeforeValidator(values.labels)] = {}
    where: Annotated[str, BeforeValidator(values.nonempty)] | None = None
    series: Annotated[int, BeforeValidator(values.series)] = settings.METRIC_SERIES


class GuardTable(Table):
    deletes: Share | None = None
    changes: Share | None = None
    window: Window = settings.GUARD_WINDOW_SECONDS


class MapTable(SelectorTable):
    pin: Annotated[str, BeforeValidator(values.pinned_maps)] | None = None
    map: Annotated[str, BeforeValidator(values.kernel_maps)] | None = None
    name: Annotated[str, BeforeValidator(values.stream_name)] | None = None
    role: Annotated[Role, BeforeValidator(values.choice(Role))] = Role.REPLICATE
    conflict: Annotated[ConflictPolicy, BeforeValidator(values.choice(ConflictPolicy))] = (
        ConflictPolicy.STREAM
    )
    emit: Annotated[SelectorTable | None, BeforeValidator(values.emit)] = None
    emit_losses: Annotated[SelectorTable | None, BeforeValidator(values.emit)] = None
    ring: Ring | None = None
    sweep: Sweep | None = None
    evict: Annotated[Evict, BeforeValidator(values.choice(Evict))] = Evict.LOCAL
    layout: LayoutTable | None = None
    fields: Annotated[tuple[FieldRule, ...], BeforeValidator(values.rules)] = ()
    metrics: tuple[MetricTable, ...] = ()
    ignore: Annotated[tuple[str, ...], BeforeValidator(values.ignored)] = ()
    lag: Annotated[float, BeforeValidator(values.duration(0.1, 3600))] = settings.LAG_SECONDS
    guard: GuardTable = GuardTable()


class Document(Table):
    node: NodeTable
    broker: BrokerTable = BrokerTable()
    capture: CaptureTable = CaptureTable()
    limits: LimitsTable = LimitsTable()
    snapshots: SnapshotsTable = SnapshotsTable()
    http: HttpTable = HttpTable()
    security: SecurityTable = SecurityTable()
    maps: Annotated[tuple[MapTable, ...], Field(max_length=MAPS_MAX)] = ()

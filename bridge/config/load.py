"""From a file to a ``Config``, or to one error that lists everything wrong with the file.

``parse`` takes the text, so that whoever merges several sources (files, environment) can do so
before anything is judged.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import pydantic
from pydantic_core import ErrorDetails

from bridge.config.checks import cross_check
from bridge.config.document import (
    Document,
    GuardTable,
    LayoutTable,
    MapTable,
    MetricTable,
    SelectorTable,
)
from bridge.config.problems import ConfigError, Problem, shown
from bridge.config.settings import (
    OWN_NAME,
    BrokerConfig,
    CaptureConfig,
    Config,
    DeclaredLayout,
    GuardConfig,
    HttpConfig,
    LimitsConfig,
    MapConfig,
    MetricConfig,
    NodeConfig,
    SecurityConfig,
    SnapshotsConfig,
)
from bridge.model import MapSelector

FILE_BYTES_MAX = 1 << 20
_HINT = "compare with `mapbridge config init`, which prints every key with its meaning"


def load(path: Path | str) -> Config:
    """Read and check a TOML file. Raises ``ConfigError``."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise ConfigError(
            str(path), [Problem("", reason)], hint="name the file with --config FILE"
        ) from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(str(path), [Problem("", "is too large", f"{len(raw)} bytes")])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", f"is not UTF-8: {error.reason}")]) from error
    return parse(text, source=str(path))


def parse(text: str, *, source: str = "<text>") -> Config:
    """Check TOML text; ``source`` names it in errors. Raises ``ConfigError``."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        problem = Problem("", f"is not TOML: {reason[:1].lower()}{reason[1:]}")
        raise ConfigError(source, [problem], hint=_HINT) from error
    return from_mapping(data, source=source)


def from_mapping(data: Mapping[str, object], *, source: str = "<data>") -> Config:
    """Check data of the file's shape. Raises ``ConfigError``."""
    problems: list[Problem] = []
    document: Document | None = None
    try:
        document = Document.model_validate(data)
    except pydantic.ValidationError as error:
        problems += [_translated(detail) for detail in error.errors(include_url=False)]
    problems += cross_check(data)
    if problems:
        raise ConfigError(source, sorted(problems, key=_place), hint=_HINT)
    assert document is not None
    return _converted(document)


def sample() -> str:
    """A configuration file with every key, its default and its meaning."""
    return (resources.files("bridge.config") / "sample.toml").read_text(encoding="utf-8")


def _translated(detail: ErrorDetails) -> Problem:
    """pydantic's finding in this project's words."""
    location, kind = detail["loc"], detail["type"]
    path = _path(location)
    got = shown(detail["input"])
    if kind == "missing":
        return Problem(path, "is required")
    if kind == "extra_forbidden":
        return Problem(path, "unknown key", hint=_nearest(location))
    if kind in {"model_type", "model_attributes_type"}:
        return Problem(path, "must be a table", got)
    if kind in {"tuple_type", "list_type"}:
        return Problem(path, f"must be an array of tables ([[{path}]])", got)
    if kind == "too_long":
        return Problem(path, f"at most {detail['ctx']['max_length']} maps", "more")
    if kind == "value_error":
        return Problem(path, str(detail["ctx"]["error"]), got)
    message = detail["msg"]
    return Problem(path, f"{message[:1].lower()}{message[1:]}", got)


def _place(problem: Problem) -> list[int | str]:
    """Sorts by table, and maps by their number: ``maps[2]`` before ``maps[10]``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", problem.path)]


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def _nearest(location: tuple[int | str, ...]) -> str:
    """What an unknown key was perhaps meant to be: a key beside it, or one of another table."""
    *parents, key = (step for step in location if isinstance(step, str))
    tables = {
        name: [*model.model_fields]
        for name, model in (
            ("", Document),
            *((n, f.annotation) for n, f in Document.model_fields.items() if n != "maps"),
            ("maps", MapTable),
            ("maps.emit", SelectorTable),
            ("maps.emit_losses", SelectorTable),
            ("maps.layout", LayoutTable),
            ("maps.metrics", MetricTable),
            ("maps.guard", GuardTable),
        )
        if isinstance(model, type) and issubclass(model, pydantic.BaseModel)
    }
    here = ".".join(parents)
    close = difflib.get_close_matches(key, tables.get(here, []), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    for table, keys in tables.items():
        if table and key in keys:
            return f"did you mean {key!r} of {table}?"
    return ""


def _converted(document: Document) -> Config:
    capture = CaptureConfig(
        document.capture.mode,
        document.capture.sweep,
        document.capture.ring,
        document.capture.transport,
        document.capture.perf_pages,
    )
    return Config(
        node=NodeConfig(document.node.name, document.node.cluster, document.node.state_dir),
        broker=BrokerConfig(
            document.broker.url,
            document.broker.listen,
            document.broker.storage,
            document.broker.replicas,
        ),
        capture=capture,
        limits=LimitsConfig(document.limits.outbox, document.limits.inbox),
        snapshots=SnapshotsConfig(document.snapshots.every, document.snapshots.bytes),
        http=HttpConfig(document.http.listen),
        security=SecurityConfig(document.security.drop_capabilities),
        maps=tuple(_map(table, capture) for table in document.maps),
    )


def _map(table: MapTable, capture: CaptureConfig) -> MapConfig:
    return MapConfig(
        name=OWN_NAME if table.name is None else table.name,
        selector=_selector(table),
        role=table.role,
        conflict=table.conflict,
        emit=None if table.emit is None else _selector(table.emit),
        emit_losses=None if table.emit_losses is None else _selector(table.emit_losses),
        sweep_seconds=capture.sweep_seconds if table.sweep is None else table.sweep,
        sweeps_too=table.sweep is not None,
        ignore=table.ignore,
        lag_seconds=table.lag,
        ring_bytes=capture.ring_bytes if table.ring is None else table.ring,
        evict=table.evict,
        rules=table.fields,
        metrics=tuple(_metric(each) for each in table.metrics),
        declared=None if table.layout is None else _declared(table.layout),
        guard=GuardConfig(table.guard.deletes, table.guard.changes, table.guard.window),
    )


def _metric(table: MetricTable) -> MetricConfig:
    return MetricConfig(
        table.name,
        table.help,
        table.type,
        table.value,
        tuple(table.labels.items()),
        table.where,
        table.series,
    )


def _declared(table: LayoutTable) -> DeclaredLayout:
    return DeclaredLayout(table.types, table.key, table.value)


def _selector(table: SelectorTable) -> MapSelector:
    return MapSelector(pin=table.pin, name=table.map, id=table.id)

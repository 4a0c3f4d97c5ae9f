"""From a file to a ``Config``, or to one error that lists everything wrong with the file.

``parse`` takes the text, so that whoever merges several sources (files, environment) can do so
before anything is judged.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import pydantic
from pydantic.fields import FieldInfo
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
from bridge.config.layers import Keys, Layers, leaves
from bridge.config.nats_access import broker_config
from bridge.config.problems import ConfigError, Problem, shown, without_password
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
from bridge.config.units import format_duration, format_size
from bridge.model import MapSelector

_HINT = "compare with `mapbridge config init`, which prints every key with its meaning"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, the values that were given, and where each came from.

    ``warnings``: what was left out of account. ``files`` in the order in which they were read.
    """

    config: Config
    document: Document
    layers: Layers

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.layers.warnings)

    def values(self) -> Iterator[tuple[str, object, str]]:
        """Each key with its value in the file's terms and its origin; defaults too."""
        given = dict(leaves(self.layers.data))
        for name in Document.model_fields:
            table = getattr(self.document, name)
            if name == "maps":
                continue
            for key in type(table).model_fields:
                path = f"{name}.{key}"
                if path in given:
                    yield path, without_password(str(given[path])), self.layers.origins[path]
                else:
                    yield path, as_written(key, getattr(table, key)), "default"
        for path, value in given.items():
            if path.startswith("maps["):
                yield path, value, self.layers.origin(path)


def load(path: Path | str, settings: Sequence[str] = ()) -> Config:
    """The configuration of a file and of all that goes before it. Raises ``ConfigError``."""
    return read(path, settings).config


def read(
    path: Path | str,
    settings: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Loaded:
    """The same, with what it was put together from. ``settings``: ``table.key=value`` each."""
    layers = Layers()
    layers.add_files(Path(path))
    layers.add_environment(environment, KEYS)
    layers.add_settings(settings, KEYS)
    match layers.unreadable:  # what stands in such a file is not known: nothing more can be judged
        case []:
            pass
        case [one]:
            raise ConfigError(one.path, [replace(one, path="", hint="")], hint=one.hint)
        case several:
            raise ConfigError("configuration", several)
    config, document = _judged(layers.data, str(path), layers, environment)
    return Loaded(config, document, layers)


def parse(text: str, *, source: str = "<text>") -> Config:
    """Check TOML text; ``source`` names it in errors. Raises ``ConfigError``."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        problem = Problem("", f"is not TOML: {reason[:1].lower()}{reason[1:]}")
        raise ConfigError(source, [problem], hint=_HINT) from error
    return from_mapping(data, source=source)


def from_mapping(
    data: Mapping[str, object],
    *,
    source: str = "<data>",
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Check data of the file's shape. Raises ``ConfigError``.

    ``environ``: where what the file does not say of the broker may stand; this process's.
    """
    return _judged(data, source, Layers(), environ)[0]


def _judged(
    data: Mapping[str, object], source: str, layers: Layers, environ: Mapping[str, str]
) -> tuple[Config, Document]:
    """Everything that is wrong at once, each with its origin. Raises ``ConfigError``."""
    problems = list(layers.problems)
    document: Document | None = None
    try:
        document = Document.model_validate(data)
    except pydantic.ValidationError as error:
        problems += [_translated(detail) for detail in error.errors(include_url=False)]
    problems += cross_check(data, environ)
    if problems:
        placed = [layers.placed(one) for one in problems]
        raise ConfigError(source, sorted(placed, key=_place), hint=_HINT)
    assert document is not None
    broker = broker_config(
        document.broker,
        embedded="listen" in document.broker.model_fields_set,
        environ=environ,
        problems=problems,
    )
    if problems:
        raise ConfigError(source, problems, hint="compare with `nats context info`")
    return _converted(document, broker), document


def sample() -> str:
    """A configuration file with every key, its default and its meaning."""
    return (resources.files("bridge.config") / "sample.toml").read_text(encoding="utf-8")


def _translated(detail: ErrorDetails) -> Problem:
    """pydantic's finding in this project's words."""
    location, kind = detail["loc"], detail["type"]
    path = _path(location)
    got = shown(detail["input"])
    if kind == "missing":
        if path in ("node", "node.name"):
            return Problem("node.name", "is required", hint='such as name = "lb-1" below [node]')
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


def as_written(key: str, value: object) -> str:
    """A default as it would stand in a file."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format_duration(value)
    return format_size(value) if isinstance(value, int) and key in _SIZES else str(value)


def _keys() -> Keys:
    """The keys of each table that stands once, and whether they take something else than text."""
    return {
        name: {key: _takes_literals(field) for key, field in table.model_fields.items()}
        for name, outer in Document.model_fields.items()
        if isinstance(table := outer.annotation, type) and issubclass(table, pydantic.BaseModel)
    }


def _takes_literals(field: FieldInfo) -> bool:
    """Numbers and flags; sizes are text with a unit."""
    if not isinstance(field.default, int) or isinstance(field.default, bool):
        return isinstance(field.default, bool)
    try:
        for validator in field.metadata:
            if isinstance(validator, pydantic.BeforeValidator):
                validator.func(format_size(field.default))  # type: ignore[call-arg]
    except ValueError:
        return True
    return False


_SIZES = {"ring", "outbox", "inbox", "bytes"}
KEYS = _keys()


def _converted(document: Document, broker: BrokerConfig) -> Config:
    capture = CaptureConfig(
        document.capture.mode,
        document.capture.sweep,
        document.capture.ring,
        document.capture.transport,
        document.capture.perf_pages,
    )
    return Config(
        node=NodeConfig(document.node.name, document.node.cluster, document.node.state_dir),
        broker=broker,
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

"""The configuration file's shape. What a key may hold is said here and nowhere else.

Each model is one table. Values arrive as TOML gave them; a validator turns text into the value in
force or raises ``ValueError`` with the reason. Checks that need two keys are in ``checks``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bridge.config import settings
from bridge.config.settings import CaptureMode, ListenAddress, Storage
from bridge.config.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_share,
    parse_size,
)
from bridge.model import ConflictPolicy, Role, is_token

PAGE_BYTES = 4096
MAPS_MAX = 256
NAME_LENGTH_MAX = 64  # as in bridge/wire/subjects.py
KERNEL_NAME_LENGTH_MAX = 15  # BPF_OBJ_NAME_LEN - 1
_KERNEL_NAME = re.compile(r"[A-Za-z0-9_.]+")
_STREAM_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_SCHEMES = ("nats", "tls")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    if not value:
        raise ValueError("must not be empty")
    return value


def _choice(kind: type[enum.StrEnum]) -> Callable[[object], enum.StrEnum]:
    names = [member.value for member in kind]

    def validate(value: object) -> enum.StrEnum:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return kind(value)

    return validate


def _token(value: object) -> str:
    text = _text(value)
    if not is_token(text) or len(text) > NAME_LENGTH_MAX:
        raise ValueError(
            f"must be 1 to {NAME_LENGTH_MAX} letters, digits, '_' and '-' (it is part of a subject)"
        )
    return text


def _stream_name(value: object) -> str:
    text = _text(value)
    if _STREAM_NAME.fullmatch(text) is None or len(text) > NAME_LENGTH_MAX:
        raise ValueError(f"must be 1 to {NAME_LENGTH_MAX} letters, digits, '_', '-' and '.'")
    return text


def _kernel_name(value: object) -> str:
    text = _text(value)
    if _KERNEL_NAME.fullmatch(text) is None or len(text) > KERNEL_NAME_LENGTH_MAX:
        raise ValueError(
            f"must be a kernel map name: 1 to {KERNEL_NAME_LENGTH_MAX} letters, digits, '_' and '.'"
        )
    return text


def _map_id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32:
        raise ValueError("must be a map id: a whole number from 1")
    return value


def _absolute(value: object) -> str:
    text = _text(value)
    if not Path(text).is_absolute():
        raise ValueError("must be an absolute path")
    return text


def _directory(value: object) -> Path:
    return Path(_absolute(value))


def _duration(least: float, most: float) -> Callable[[object], float]:
    def validate(value: object) -> float:
        if not isinstance(value, str):
            raise ValueError("must be text with a unit, such as '250ms'")
        seconds = parse_duration(value)
        if not least <= seconds <= most:
            raise ValueError(f"must be {format_duration(least)} to {format_duration(most)}")
        return seconds

    return validate


def _size(least: int, most: int, *, power_of_two: bool = False) -> Callable[[object], int]:
    def validate(value: object) -> int:
        if not isinstance(value, str):
            raise ValueError("must be text with a unit, such as '16MiB'")
        size = parse_size(value)
        if not least <= size <= most:
            raise ValueError(f"must be {format_size(least)} to {format_size(most)}")
        if power_of_two and size & (size - 1):
            raise ValueError("must be a power of two (the kernel's ring buffer needs it)")
        return size

    return validate


def _share(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError("must be text such as '50%'")
    return parse_share(value)


def _urls(value: object) -> tuple[str, ...]:
    urls = tuple(part.strip() for part in _text(value).split(","))
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError(
                "must be URLs such as 'nats://host:4222', separated by commas; "
                f"schemes: {', '.join(_SCHEMES)}"
            )
        _port_of(parts.port if parts.port is not None else 4222)
    return urls


def _listen(value: object) -> ListenAddress:
    text = _text(value)
    host, mark, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not mark or not host or not port.isdecimal():
        raise ValueError("must be an address and a port, such as '127.0.0.1:4222'")
    return ListenAddress(host, _port_of(int(port)))


def _port_of(port: int) -> int:
    if not 0 <= port <= 65_535:
        raise ValueError("must have a port of 0 to 65535")
    return port


def _replicas(value: object) -> int:
    if value not in (1, 3, 5) or isinstance(value, bool):
        raise ValueError("must be 1, 3 or 5")
    assert isinstance(value, int)
    return value


Token = Annotated[str, BeforeValidator(_token)]
AbsolutePath = Annotated[str, BeforeValidator(_absolute)]
KernelName = Annotated[str, BeforeValidator(_kernel_name)]
MapId = Annotated[int, BeforeValidator(_map_id)]
Sweep = Annotated[float, BeforeValidator(_duration(0.01, 3600))]
Share = Annotated[float, BeforeValidator(_share)]
Window = Annotated[float, BeforeValidator(_duration(0.1, 3600))]
Ring = Annotated[int, BeforeValidator(_size(PAGE_BYTES, 1 << 30, power_of_two=True))]
Queue = Annotated[int, BeforeValidator(_size(1 << 20, 16 << 30))]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class NodeTable(Table):
    name: Token
    cluster: Token = "default"
    state_dir: Annotated[Path, BeforeValidator(_directory)] = settings.STATE_DIRECTORY


class BrokerTable(Table):
    url: Annotated[tuple[str, ...], BeforeValidator(_urls)] = ()
    listen: Annotated[ListenAddress, BeforeValidator(_listen)] = ListenAddress()
    storage: Annotated[Storage, BeforeValidator(_choice(Storage))] = Storage.FILE
    replicas: Annotated[int, BeforeValidator(_replicas)] = 1


class CaptureTable(Table):
    mode: Annotated[CaptureMode, BeforeValidator(_choice(CaptureMode))] = CaptureMode.AUTO
    sweep: Sweep = settings.SWEEP_SECONDS
    ring: Ring = settings.RING_BYTES


class LimitsTable(Table):
    outbox: Queue = settings.OUTBOX_BYTES
    inbox: Queue = settings.INBOX_BYTES


class SelectorTable(Table):
    pin: AbsolutePath | None = None
    map: KernelName | None = None
    id: MapId | None = None


def _emit(value: object) -> object:
    return {"pin": value} if isinstance(value, str) else value


class GuardTable(Table):
    deletes: Share | None = None
    changes: Share | None = None
    window: Window = settings.GUARD_WINDOW_SECONDS


class MapTable(SelectorTable):
    name: Annotated[str, BeforeValidator(_stream_name)]
    role: Annotated[Role, BeforeValidator(_choice(Role))] = Role.REPLICATE
    conflict: Annotated[ConflictPolicy, BeforeValidator(_choice(ConflictPolicy))] = (
        ConflictPolicy.STREAM
    )
    emit: Annotated[SelectorTable | None, BeforeValidator(_emit)] = None
    emit_losses: Annotated[SelectorTable | None, BeforeValidator(_emit)] = None
    ring: Ring | None = None
    sweep: Sweep | None = None
    guard: GuardTable = GuardTable()


class Document(Table):
    node: NodeTable
    broker: BrokerTable = BrokerTable()
    capture: CaptureTable = CaptureTable()
    limits: LimitsTable = LimitsTable()
    maps: Annotated[tuple[MapTable, ...], Field(max_length=MAPS_MAX)] = ()

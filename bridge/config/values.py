"""What the value of one key may hold.

Each function takes the value as TOML gave it, and gives the one in force or raises ``ValueError``
with the reason for the reader. Which key takes which is in ``document``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from bridge.config.settings import NAME_LENGTH_MAX, ListenAddress, is_stream_name
from bridge.config.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_range,
    parse_share,
    parse_size,
)
from bridge.layout.rules import FieldRule, Rule
from bridge.model import WILDCARDS, has_wildcard, is_token

PERF_PAGES_MIN, PERF_PAGES_MAX = 16, 1 << 16  # twice the largest record; 256 MiB a CPU
IGNORE_MAX = 64
UNIX_PATH_BYTES_MAX = 107  # sockaddr_un, <sys/un.h>
KERNEL_NAME_LENGTH_MAX = 15  # BPF_OBJ_NAME_LEN - 1
_KERNEL_NAME = re.compile(r"[A-Za-z0-9_.]+")
_KERNEL_PATTERN = re.compile(r"[A-Za-z0-9_.*?\[\]!-]+")
_METRIC_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_LABEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIELD_PATH = re.compile(r"(?:key|value)(?:\.[A-Za-z_]\w*(?:\[\d+\])*|\[\d+\])+")
_RULE_PATH = re.compile(r"(?:key|value)(?:\.[A-Za-z_]\w*)+")
LABELS_MAX = 16
SERIES_MAX = 100_000
_SCHEMES = ("nats", "tls")
_ESCAPES = "in a password / ? # and @ are written %2F %3F %23 and %40"


def nonempty(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    if not value:
        raise ValueError("must not be empty")
    return value


def choice(kind: type[enum.StrEnum]) -> Callable[[object], enum.StrEnum]:
    names = [member.value for member in kind]

    def validate(value: object) -> enum.StrEnum:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return kind(value)

    return validate


def token(value: object) -> str:
    text = nonempty(value)
    if not is_token(text) or len(text) > NAME_LENGTH_MAX:
        raise ValueError(
            f"must be 1 to {NAME_LENGTH_MAX} letters, digits, '_' and '-' (it is part of a subject)"
        )
    return text


def stream_name(value: object) -> str:
    text = nonempty(value)
    if text.count("*") > 1 or not is_stream_name(text.replace("*", "") or "m"):
        raise ValueError(f"must be 1 to {NAME_LENGTH_MAX} letters, digits, '_', '-' and '.'")
    return text


def pinned_maps(value: object) -> str:
    """A pin, or a pattern for the pins of one folder."""
    text = absolute(value)
    if has_wildcard(str(Path(text).parent)):
        raise ValueError(f"may have {' '.join(WILDCARDS)} in the last part of the path only")
    return text


def kernel_maps(value: object) -> str:
    """A kernel name, or a pattern for several."""
    if not isinstance(value, str) or not has_wildcard(value):
        return kernel_name(value)
    if _KERNEL_PATTERN.fullmatch(value) is None or len(value) > NAME_LENGTH_MAX:
        raise ValueError(
            f"must be a pattern for kernel map names: 1 to {NAME_LENGTH_MAX} letters, digits, "
            "'_', '.' and the wildcards '*', '?', '[...]'"
        )
    return value


def kernel_name(value: object) -> str:
    text = nonempty(value)
    if _KERNEL_NAME.fullmatch(text) is None or len(text) > KERNEL_NAME_LENGTH_MAX:
        raise ValueError(
            f"must be a kernel map name: 1 to {KERNEL_NAME_LENGTH_MAX} letters, digits, '_' and '.'"
        )
    return text


def map_id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 32:
        raise ValueError("must be a map id: a whole number from 1")
    return value


def absolute(value: object) -> str:
    text = nonempty(value)
    if not Path(text).is_absolute():
        raise ValueError("must be an absolute path")
    return text


def directory(value: object) -> Path:
    return Path(absolute(value))


def duration(least: float, most: float) -> Callable[[object], float]:
    def validate(value: object) -> float:
        if not isinstance(value, str):
            raise ValueError("must be text with a unit, such as '250ms'")
        seconds = parse_duration(value)
        if not least <= seconds <= most:
            raise ValueError(f"must be {format_duration(least)} to {format_duration(most)}")
        return seconds

    return validate


def size(least: int, most: int, *, power_of_two: bool = False) -> Callable[[object], int]:
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


def pages(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a number of pages, such as 512")
    if not PERF_PAGES_MIN <= value <= PERF_PAGES_MAX or value & (value - 1):
        raise ValueError(f"must be a power of two, {PERF_PAGES_MIN} to {PERF_PAGES_MAX}")
    return value


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def share(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError("must be text such as '50%'")
    return parse_share(value)


def server_urls(value: object) -> tuple[str, ...]:
    """The servers in a text. Raises ``ValueError``."""
    urls = tuple(part.strip() for part in nonempty(value).split(","))
    for url in urls:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # The error itself may show a part of a password.
            raise ValueError(f"has a host or a port that is none; {_ESCAPES}") from None
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError(
                "must be URLs such as 'nats://host:4222', separated by commas; "
                f"schemes: {', '.join(_SCHEMES)}"
            )
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"has more than a host and a port; {_ESCAPES}")
        _port_of(4222 if port is None else port)
    return urls


def listen(value: object) -> ListenAddress:
    text = nonempty(value)
    host, mark, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not mark or not host or not port.isdecimal():
        raise ValueError("must be an address and a port, such as '127.0.0.1:4222'")
    return ListenAddress(host, _port_of(int(port)))


def http_listen(value: object) -> ListenAddress | Path:
    text = nonempty(value)
    if not text.startswith("unix:"):
        return listen(value)
    path = text.removeprefix("unix:")
    if not Path(path).is_absolute() or "\0" in path or len(path.encode()) > UNIX_PATH_BYTES_MAX:
        raise ValueError(
            f"must be 'unix:' and an absolute path of at most {UNIX_PATH_BYTES_MAX} bytes"
        )
    return Path(path)


def _port_of(port: int) -> int:
    if not 0 <= port <= 65_535:
        raise ValueError("must have a port of 0 to 65535")
    return port


def replicas(value: object) -> int:
    if value not in (1, 3, 5) or isinstance(value, bool):
        raise ValueError("must be 1, 3 or 5")
    assert isinstance(value, int)
    return value


def inbox(value: object) -> str:
    text = nonempty(value)
    if not all(is_token(token) for token in text.split(".")) or len(text) > NAME_LENGTH_MAX:
        raise ValueError("must be letters, digits, '_', '-' and '.', such as '_INBOX'")
    return text


def ignored(value: object) -> tuple[str, ...]:
    """Byte ranges and field names; which of them the map has is known when it is open."""
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError("must be a list of byte ranges such as '16:24' and of field names")
    if len(value) > IGNORE_MAX:
        raise ValueError(f"must have at most {IGNORE_MAX} parts")
    for one in value:
        parse_range(one)
    return tuple(value)


def emit(value: object) -> object:
    return {"pin": value} if isinstance(value, str) else value


def metric_name(value: object) -> str:
    text = nonempty(value)
    if _METRIC_NAME.fullmatch(text) is None:
        raise ValueError("must be a metric's name: letters, digits, '_' and ':'")
    return text


def field_path(value: object) -> str:
    text = nonempty(value)
    if text not in ("node", "key", "value") and _FIELD_PATH.fullmatch(text) is None:
        raise ValueError("must be a field such as key.port[0] or value.packets, or node")
    return text


def labels(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > LABELS_MAX:
        raise ValueError(f"must be a table of at most {LABELS_MAX} labels and fields")
    for name in value:
        if _LABEL_NAME.fullmatch(name) is None or name.startswith("__"):
            raise ValueError(f"must have letters, digits and '_' in the names of labels ({name})")
    return {name: field_path(path) for name, path in value.items()}


def series(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= SERIES_MAX:
        raise ValueError(f"must be 1 to {SERIES_MAX}")
    return value


def rules(value: object) -> tuple[FieldRule, ...]:
    if not isinstance(value, dict):
        raise ValueError('must be a table of fields, such as "value.seen" = "ktime"')
    return tuple(_rule(path, said) for path, said in value.items())


def _rule(path: str, said: object) -> FieldRule:
    if path not in ("key", "value") and _RULE_PATH.fullmatch(path) is None:
        raise ValueError(f"must name fields such as value.seen, without indexes ({path})")
    names = [rule.value for rule in Rule if rule is not Rule.ENUM]
    if isinstance(said, str) and said in names:
        return FieldRule(path, Rule(said))
    named = said.get("enum") if isinstance(said, dict) and len(said) == 1 else None
    if isinstance(named, dict) and named and all(type(n) is int for n in named.values()):
        return FieldRule(path, Rule.ENUM, tuple(named.items()))
    raise ValueError(
        f"{path}: must be one of {', '.join(names)}, or a table {{ enum = {{ NAME = 1 }} }}"
    )

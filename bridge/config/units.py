"""Durations and sizes as people write them: ``250ms``, ``1.5s``, ``16MiB``."""

from __future__ import annotations

import re

from bridge.model import VALUE_SIZE_MAX

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DECIMAL_BYTES = {"KB", "MB", "GB", "kB", "K", "M", "G"}
_RANGE = re.compile(r"(\d{1,6}):(\d{1,6})")
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_duration(text: str) -> float:
    """Seconds. Raises ``ValueError`` with a reason for the reader."""
    number, unit = _split(text, "a duration such as '250ms' or '5s'")
    if unit not in _SECONDS:
        raise ValueError(f"must end in one of {', '.join(_SECONDS)}")
    return float(number) * _SECONDS[unit]


def parse_size(text: str) -> int:
    """Bytes. Raises ``ValueError`` with a reason for the reader."""
    number, unit = _split(text, "a size such as '64KiB' or '16MiB'")
    if unit in _DECIMAL_BYTES:
        raise ValueError(f"must use binary units: {', '.join(_BYTES)}")
    if unit not in _BYTES:
        raise ValueError(f"must end in one of {', '.join(_BYTES)}")
    size = float(number) * _BYTES[unit]
    if not size.is_integer():
        raise ValueError("must be a whole number of bytes")
    return int(size)


def parse_range(text: str) -> range | None:
    """The bytes of ``16:24``, which are 16 to 23; ``None`` for a name. Raises ``ValueError``."""
    if ":" not in text:
        return None
    match = _RANGE.fullmatch(text)
    if match is None or not int(match[1]) < int(match[2]) <= VALUE_SIZE_MAX:
        raise ValueError(
            f"must be bytes from:to, such as '16:24', at most :{VALUE_SIZE_MAX} (got {text!r})"
        )
    return range(int(match[1]), int(match[2]))


def parse_share(text: str) -> float:
    """``50%`` as 0.5. Raises ``ValueError`` with a reason for the reader."""
    number, mark = text.strip()[:-1], text.strip()[-1:]
    if mark != "%" or not number.strip().isdecimal() or not 1 <= int(number) <= 100:
        raise ValueError("must be a share of '1%' to '100%'")
    return int(number) / 100


def format_duration(seconds: float) -> str:
    """The shortest text that ``parse_duration`` takes back: 0.25 gives ``250ms``."""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        quantity = seconds / _SECONDS[unit]
        if quantity >= 1 and abs(quantity - round(quantity)) < 1e-9:
            return f"{round(quantity)}{unit}"
    return f"{seconds:g}s"


def format_size(size_bytes: int) -> str:
    """The shortest text that ``parse_size`` takes back: 16777216 gives ``16MiB``."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes >= _BYTES[unit] and size_bytes % _BYTES[unit] == 0:
            return f"{size_bytes // _BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def _split(text: str, what: str) -> tuple[str, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"must be {what}")
    return match[1], match[2]

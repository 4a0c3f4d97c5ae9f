"""Where in a TOML file each key stands, by line.

The parser of the standard library keeps no lines. So the text, which it has accepted as a whole, is
read once more statement by statement: each is given to the same parser alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping

_TEXTS = ('"""', "'''")
_BRACKETS = ("]", "}")


def lines_of(text: str) -> dict[str, int]:
    """The line of each table and key, from 1, by path: ``maps[1].role``."""
    found: dict[str, int] = {}
    counts: dict[str, int] = {}  # tables so far of each array of tables
    here = ""
    for number, statement, data in _statements(text):
        if statement.startswith("["):
            here = _header(data, counts, is_new=statement.startswith("[["))
            found.setdefault(here, number)
            continue
        for path in _paths(data, here):
            found.setdefault(path, number)
    return found


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, object]]]:
    """Line, text and meaning of each header and each assignment."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        begun, statement = at, lines[at]
        data = _parsed(statement)
        # Trying each line of a long text would take the square of its length.
        closing = next(((mark,) for mark in _TEXTS if mark in statement), _BRACKETS)
        while data is None and at + 1 < len(lines):
            at += 1
            statement += "\n" + lines[at]
            data = _parsed(statement) if any(mark in lines[at] for mark in closing) else None
        at += 1
        if data:
            yield begun + 1, statement.strip(), data


def _parsed(statement: str) -> dict[str, object] | None:
    try:
        return tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return None


def _header(data: Mapping[str, object], counts: dict[str, int], *, is_new: bool) -> str:
    """The path of ``[a.b]`` or ``[[a.b]]``, with the numbers of the arrays that it goes through."""
    steps: list[str] = []
    inner: object = data
    while isinstance(inner := inner[0] if isinstance(inner, list) else inner, dict) and inner:
        (step, inner), *_ = inner.items()
        steps.append(step)
    path = ""
    for depth, step in enumerate(steps):
        path = _joined(path, step)
        if is_new and depth == len(steps) - 1:
            counts[path] = counts.get(path, 0) + 1
        if path in counts:
            path = f"{path}[{counts[path] - 1}]"
    return path


def _paths(data: Mapping[str, object], above: str) -> Iterator[str]:
    for key, value in data.items():
        path = _joined(above, key)
        yield path
        if isinstance(value, dict):
            yield from _paths(value, path)


def _joined(above: str, key: str) -> str:
    return f"{above}.{key}" if above else key

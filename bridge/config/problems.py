"""What can be wrong with a configuration, and how it is told: all of it at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bridge.errors import BridgeError, Exit

_GOT_LENGTH_MAX = 80
_SCHEME = re.compile(r"""['"\[(]*(?:[a-z][a-z0-9+.-]*://)?""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault. ``path`` is where in the file (``maps[1].role``), empty for the whole file.

    ``origin``: the file and line, variable or option that the value came from, where it is known.
    """

    path: str
    reason: str
    got: str = ""
    hint: str = ""
    origin: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.reason}" if self.path else self.reason
        where = [f"got {self.got}"] if self.got else []
        where += [f"in {self.origin}"] if self.origin else []
        if where:
            text += f" ({' '.join(where)})"
        return f"{text}; {self.hint}" if self.hint else text

    def as_dict(self) -> dict[str, str]:
        return {
            "path": self.path,
            "reason": self.reason,
            "got": self.got,
            "origin": self.origin,
            "hint": self.hint,
        }


class ConfigError(BridgeError):
    """The configuration cannot be used. ``problems`` has every fault that was found."""

    exit_code = Exit.CONFIG

    def __init__(self, source: str, problems: Sequence[Problem], *, hint: str = "") -> None:
        assert problems, "a configuration error needs a problem"
        self.source = source
        self.problems = tuple(problems)
        if len(problems) == 1:
            message = f"{source}: {problems[0]}"
        else:
            lines = "".join(f"\n  {problem}" for problem in problems)
            message = f"{source}: {len(problems)} problems{lines}"
        super().__init__(message, hint=hint)


def shown(value: object) -> str:
    """A value of the file as the reader wrote it, short enough for a line, without passwords."""
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    text = without_password(text)
    if len(text) > _GOT_LENGTH_MAX:
        return f"{text[: _GOT_LENGTH_MAX - 1]}…"
    return text


def without_password(text: str) -> str:
    """A URL, or several, with what stands before the last ``@`` left out.

    What should be a URL and is none is cut as well: a password with a ``/`` in it ends the host.
    """
    identity, mark, rest = text.rpartition("@")
    if not mark or ":" not in text:
        return text
    scheme = _SCHEME.match(identity)
    return f"{scheme[0] if scheme else ''}***@{rest}"

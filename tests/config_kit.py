"""Small configurations, and what is told of a wrong one."""

from __future__ import annotations

import pytest

from bridge.config import ConfigError, Problem, parse
from bridge.errors import Exit


def problems_of(text: str) -> dict[str, Problem]:
    """What is wrong with a file, by path, in the order in which it is told."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.exit_code is Exit.CONFIG
    return {problem.path: problem for problem in caught.value.problems}


def with_map(lines: str) -> str:
    """A node with a map named ``m``; ``lines`` say the rest of it."""
    return f'[node]\nname = "a"\n[[maps]]\nname = "m"\n{lines}'


def several(lines: str) -> str:
    """A node with a table of maps, for which ``lines`` say all."""
    return f'[node]\nname = "a"\n[[maps]]\n{lines}'

"""Functions of the running kernel by ``/proc/kallsyms``.

Compilers rename functions that they change (``name.isra.0``, ``name.constprop.0``), and a probe
must be attached to the name that is there. ``.cold`` parts are never a function's entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import UnavailableError

KALLSYMS = Path("/proc/kallsyms")

_SUFFIX = re.compile(rb"(?:\.(?:isra|constprop|part|llvm)\.\d+)+")
_CODE_TYPES = frozenset(b"tTwW")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function as the kernel names it. ``address`` is 0 when the kernel hides addresses.

    ``twins`` counts other functions that bear the same full name: a probe by name is in doubt.
    """

    name: str
    address: int
    twins: int = 0


class SymbolTable:
    """One reading of the kernel's symbols."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data if data.endswith(b"\n") else data + b"\n"

    @classmethod
    def load(cls, path: str | Path = KALLSYMS) -> SymbolTable:
        """Read all symbols (some 10 MB). Raises UnavailableError."""
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise UnavailableError(
                f"kernel symbols {path}: not readable (got {error.strerror})",
                hint="use a kernel built with CONFIG_KALLSYMS=y",
            ) from error

    def resolve(self, names: Iterable[str]) -> dict[str, Symbol | None]:
        """For each name its function: the exact name first, else a renamed form, else ``None``."""
        return {name: self._find(name) for name in names}

    def _find(self, name: str) -> Symbol | None:
        wanted = b" " + name.encode()
        exact: list[Symbol] = []
        renamed: list[Symbol] = []
        at = self._data.find(wanted)
        while at >= 0:
            end = self._data.index(b"\n", at)
            full = self._data[at + 1 : end].split(b"\t", 1)[0].rstrip()
            suffix = full[len(wanted) - 1 :]
            if not suffix or _SUFFIX.fullmatch(suffix):
                start = self._data.rfind(b"\n", 0, at) + 1
                address, kind = self._data[start:at].split(b" ")
                if kind[0] in _CODE_TYPES:
                    (renamed if suffix else exact).append(Symbol(full.decode(), int(address, 16)))
            at = self._data.find(wanted, end)
        # A part is only a piece of the function and comes last.
        found = exact or sorted(renamed, key=lambda symbol: (".part." in symbol.name, symbol.name))
        if not found:
            return None
        twins = sum(symbol.name == found[0].name for symbol in found) - 1
        return Symbol(found[0].name, found[0].address, twins)


def variable_addresses(names: Iterable[str], path: str | Path = KALLSYMS) -> dict[str, int]:
    """Addresses of the kernel's variables, those of per-CPU ones without a CPU's offset.

    Names that are not there are left out: variables are listed with CONFIG_KALLSYMS_ALL only, and
    with addresses only for root. Raises OSError.
    """
    data = Path(path).read_bytes()
    found: dict[str, int] = {}
    for name in names:
        line = rb"^([0-9a-f]+) [A-Za-z] " + re.escape(name.encode()) + rb"$"
        match = re.search(line, data, re.MULTILINE)
        if match is not None and int(match[1], 16):
            found[name] = int(match[1], 16)
    return found


def resolve(names: Iterable[str]) -> dict[str, Symbol | None]:
    """``SymbolTable.resolve`` on the running kernel, for a caller who asks once."""
    return SymbolTable.load().resolve(names)

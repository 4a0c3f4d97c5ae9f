"""The kernel matrix as a page: ``docs/reference/kernels.md`` out of ``build/kernels.json``.

The page is committed and holds figures of one run. ``read`` takes it apart again, so that a test
can hold that the committed page is one that this generator would write for today's plan.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bridge.kernel.maptypes import type_name
from tests.vm.kernels import CHECKOUT, SUITES
from tests.vm.matrix.plan import KINDS, MODES, UNSEEN, Cell, State, Table, Unseen, places

JSON: Final = CHECKOUT / "build" / "kernels.json"
PAGE: Final = CHECKOUT / "docs" / "reference" / "kernels.md"
NOT_TRIED: Final = "-"

_HEAD = """# What is seen on which kernel

Made by `make test-kernels`, which boots each kernel in QEMU, writes maps in every way there is, and
compares what each mode of capture reports, change by change, with what was done. Do not edit.

{kernels}

* `101/101`: seen / done, and all of it right: operation, key and value. `0/0`: an operation that
  changes nothing, and rightly reports nothing.
* `0/59+59`: not visible in this mode, for a reason given below. A comparison of the map with what
  had been reported, as after a loss or in a sweep, found all 59.
* `{none}`: the kernel does not have it. `37/37 (5.10: {none})`: what differs stands in brackets.
* Mode `sweep` compares maps at intervals, so it finds what a series of writes came to in the end.
"""
_UNSEEN = "## Not visible\n\n"
_SOFTIRQS = """
Softirqs that interrupt a process's work on a map come and go with the traffic, so they are no cell
of a table. Mode `kprobe` does not see what they write; it counts it, and the map is repaired.
"""
_REFUSED = "## Refused\n\n"
_ROW = re.compile(r"^\| (?!writer|---)(.+) \|$", re.MULTILINE)


def load(path: Path = JSON) -> dict[str, Table]:
    """Tables by kernel version, as far as they were made."""
    if not path.exists():
        return {}
    found = {v: table_of(fields) for v, fields in json.loads(path.read_text()).items()}
    return {version: found[version] for version in SUITES if version in found}


def table_of(fields: dict[str, Any]) -> Table:
    """Of what ``asdict`` made of it and JSON kept. Raises ``KeyError``, ``TypeError``."""
    cells = tuple(Cell(**{**c, "state": State(c["state"])}) for c in fields["cells"])
    return Table(**{**fields, "cells": cells})


def save(tables: dict[str, Table], path: Path = JSON) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({version: asdict(table) for version, table in tables.items()}, indent=1)
    path.write_text(text + "\n")


def render(tables: dict[str, Table]) -> str:
    """The whole page."""
    kernels = [f"* {version}: `{table.release}`" for version, table in tables.items()]
    parts = [_HEAD.format(kernels="\n".join(kernels), none=NOT_TRIED)]
    for kind in KINDS:
        rows = list(_rows(kind.name, tables))
        if rows:
            parts.append(f"## {kind.name}\n\n" + _table(rows))
    parts.append(_UNSEEN + "".join(_unseen(one) for one in UNSEEN) + _SOFTIRQS)
    refused = _refused(tables)
    if refused:
        parts.append(_REFUSED + refused)
    return "\n".join(parts)


def _rows(kind: str, tables: dict[str, Table]) -> Iterator[list[str]]:
    """Writer, operation, and a text for each mode; nothing where all refuse the kind."""
    found = {
        (c.mode, version, c.writer, c.operation): c
        for version, table in tables.items()
        for c in table.cells
        if c.kind == kind
    }
    if all(c.state is State.REFUSED for c in found.values()):
        return
    lines = dict.fromkeys(
        (str(p.writer), str(p.step.action)) for p in places() if p.kind.name == kind
    )
    for writer, operation in lines:
        texts = (
            {
                version: _text(found.get((str(mode), version, writer, operation)))
                for version in tables
            }
            for mode in MODES
        )
        yield [writer, operation, *(_joined(by_version) for by_version in texts)]


def _joined(by_version: dict[str, str]) -> str:
    """One text for all kernels, and behind it those that differ."""
    common = Counter(by_version.values()).most_common(1)[0][0]
    others = [f"{version}: {text}" for version, text in by_version.items() if text != common]
    return f"{common} ({', '.join(others)})" if others else common


def _text(cell: Cell | None) -> str:
    if cell is None or cell.state is State.UNSUPPORTED:
        return NOT_TRIED
    if cell.state is State.REFUSED:
        return "refused"
    text = f"{cell.seen}/{cell.expected}"
    if cell.state is State.FAILED:
        return f"**{text}**"
    return f"{text}+{cell.repaired}" if cell.repaired is not None else text


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = ["writer", "operation", *map(str, MODES)]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _unseen(one: Unseen) -> str:
    """A line of the list of reasons."""
    parts = [f"mode {', '.join(sorted(one.modes))}"]
    parts += [", ".join(sorted(names)) for names in (one.writers, one.actions) if names]
    if one.types:
        parts.append(", ".join(sorted(map(type_name, one.types))))
    if one.before is not None:
        parts.append(f"before Linux {one.before[0]}.{one.before[1]}")
    return f"* {'; '.join(parts)}: {one.reason}.\n"


def _refused(tables: dict[str, Table]) -> str:
    """Kinds that a mode does not take, and why."""
    lines: dict[tuple[str, str], list[str]] = {}
    for table in tables.values():
        for c in table.cells:
            if c.state is State.REFUSED:
                modes = lines.setdefault((c.kind, c.reason), [])
                if c.mode not in modes:
                    modes.append(c.mode)
    return "".join(
        f"* {kind}, mode {', '.join(modes)}: {reason}.\n" for (kind, reason), modes in lines.items()
    )


def cells_of(page: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Of a page: kind, writer, operation, mode, kernel of each cell that is not ``NOT_TRIED``."""
    for section in page.split("\n## ")[1:]:
        kind, _, body = section.partition("\n")
        for line in _ROW.findall(body):
            writer, operation, *texts = line.split(" | ")
            for mode, joined in zip(MODES, texts, strict=True):
                common, _, others = joined.removesuffix(")").partition(" (")
                by_version = dict.fromkeys(SUITES, common)
                by_version |= dict(other.split(": ") for other in others.split(", ") if other)
                for version, text in by_version.items():
                    if text != NOT_TRIED:
                        yield kind, writer, operation, str(mode), version

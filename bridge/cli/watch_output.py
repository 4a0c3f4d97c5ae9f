"""How changes are printed: a line each, an object each, or a table that grows at its end."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import click
import numpy as np
import numpy.typing as npt
import orjson

from bridge.bus.protocol import Received
from bridge.feed.rows import Fields, Told, tell
from bridge.layout.render import Shown, line_of

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

BYTES_SHOWN = 24  # of a value, to people; JSON has all of it
WIDTH_MAX = 40  # of a column of the table
ROWS_KEPT = 200  # of the live table; the terminal shows as many as fit
_ARROW = "  ->  "

Rows = npt.NDArray[np.intp]


class Printer(Protocol):
    """Takes some rows of a message; ``fields`` is there when its layout is known."""

    def show(self, item: Received, rows: Rows, fields: Fields | None) -> None: ...

    def close(self) -> None: ...


class Lines:
    """For people: one line per change."""

    def show(self, item: Received, rows: Rows, fields: Fields | None) -> None:
        click.echo("\n".join(self._lines(item, rows, fields)))

    def close(self) -> None:
        """Nothing is held back."""

    def _lines(self, item: Received, rows: Rows, fields: Fields | None) -> Iterator[str]:
        told = tell(item.delta, rows, fields)
        size = item.delta.batch.value_size
        for operation, key, value, time in zip(
            told.operations, told.keys, told.values, told.times, strict=True
        ):
            text = "" if value is None else line_of(value)
            if fields is None and len(text) > 2 * BYTES_SHOWN:
                text = f"{text[: 2 * BYTES_SHOWN]}… ({size} bytes)"
            arrow = _ARROW if fields is not None and text else "  "
            head = f"{time[11:26]}  {item.delta.origin.node}  {operation:<6}"
            yield f"{head}  {line_of(key)}{arrow}{text}".rstrip()


class JsonLines:
    """For programs: one object per change."""

    def show(self, item: Received, rows: Rows, fields: Fields | None) -> None:
        raw = tell(item.delta, rows, None)
        shown = None if fields is None else tell(item.delta, rows, fields)
        lines = [
            orjson.dumps(_object(item, raw, shown, index)).decode() for index in range(len(raw))
        ]
        click.echo("\n".join(lines))

    def close(self) -> None:
        """Nothing is held back."""


def _object(item: Received, raw: Told, shown: Told | None, index: int) -> dict[str, object]:
    delta = item.delta
    answer: dict[str, object] = {
        "time": raw.times[index],
        "cluster": delta.origin.cluster,
        "map": delta.origin.map,
        "node": delta.origin.node,
        "cause": delta.batch.cause.name.lower(),
        "op": raw.operations[index],
        "key": raw.keys[index],
        "writer": raw.writers[index],
        "sequence": raw.sequences[index],
        "stream_sequence": item.sequence,
    }
    value = raw.values[index]
    if value is not None:
        answer["value"] = value
    if shown is not None:
        answer["fields"] = {"key": shown.keys[index]}
        if value is not None:
            answer["fields"] = {"key": shown.keys[index], "value": shown.values[index]}
    return answer


class Columns:
    """A table with a column per field; it lives on a terminal, a pipe gets it line by line."""

    def __init__(self) -> None:
        self._rows: deque[dict[str, str]] = deque(maxlen=ROWS_KEPT)
        self._widths: dict[str, int] = {}
        self._live: Live | None = None
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, vertical_overflow="crop")
            self._live.start()

    def show(self, item: Received, rows: Rows, fields: Fields | None) -> None:
        told = tell(item.delta, rows[-ROWS_KEPT:] if self._live else rows, fields)
        fresh = [_cells(item, told, index) for index in range(len(told))]
        self._rows.extend(fresh)
        if self._live is not None:
            self._live.update(self._table(self._live.console.height), refresh=True)
        else:
            click.echo("\n".join(self._printed(fresh)))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _printed(self, fresh: Sequence[dict[str, str]]) -> Iterator[str]:
        """Lines; the headings again when a column is new."""
        for row in fresh:
            if not row.keys() <= self._widths.keys():
                for name, text in row.items():
                    self._widths[name] = max(self._widths.get(name, 0), len(name), len(text))
                names = self._widths.items()
                yield "  ".join(name.upper().ljust(width) for name, width in names).rstrip()
            for name, text in row.items():
                self._widths[name] = max(self._widths[name], min(len(text), WIDTH_MAX))
            cells = (row.get(name, "").ljust(width) for name, width in self._widths.items())
            yield "  ".join(cells).rstrip()

    def _table(self, height: int) -> Table:
        from rich.table import Table
        from rich.text import Text

        shown = list(self._rows)[-max(height - 2, 1) :]
        names = list(dict.fromkeys(name for row in shown for name in row))
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for name in names:
            table.add_column(name.upper(), no_wrap=True)
        for row in shown:
            table.add_row(*(Text(row.get(name, "")) for name in names))
        return table


def _cells(item: Received, told: Told, index: int) -> dict[str, str]:
    cells = {
        "time": told.times[index][11:26],
        "node": item.delta.origin.node,
        "op": told.operations[index],
    }
    cells |= _flat("key", told.keys[index])
    value = told.values[index]
    return cells if value is None else cells | _flat("value", value)


def _flat(role: str, shown: Shown) -> dict[str, str]:
    """A cell per field of a struct; what only fills a gap is left out when it is zero."""
    from bridge.layout.forms import is_filler

    if not isinstance(shown, dict):
        return {role: line_of(shown)}
    return {name: line_of(value) for name, value in shown.items() if not is_filler(name)}

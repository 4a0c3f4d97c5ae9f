"""How commands print, so that all look the same.

People get aligned columns; a terminal adds colour, a pipe gets plain text of full width. Programs
get JSON: one document on standard output, and on failure one object on standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import click
import orjson

from bridge.errors import BridgeError
from bridge.redaction import redacted

Command = TypeVar("Command", bound=Callable[..., object])

_META_JSON = "bridge.cli.output.json"
_COLOURS = {"yes": "green", "no": "red", "unknown": "yellow"}
_GAP = "  "


def json_option(command: Command) -> Command:
    """``--json`` for a command, which gets it as ``as_json``; its errors become JSON as well."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
        ctx.meta[_META_JSON] = value
        return value

    return click.option(
        "--json", "as_json", is_flag=True, is_eager=True, callback=remember, help="Print JSON."
    )(command)


def wants_json(ctx: click.Context) -> bool:
    """Whether the command that runs under ``ctx`` was called with ``--json``."""
    return bool(ctx.meta.get(_META_JSON, False))


def colours() -> bool:
    """Whether standard output is a terminal that wants colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def mark(word: str) -> str:
    """``yes``, ``no`` and ``unknown`` in their colours, on a terminal."""
    return click.style(word, fg=_COLOURS.get(word), bold=True) if colours() else word


def line(text: str = "") -> None:
    """One line for people."""
    click.echo(text)


def print_json(data: object) -> None:
    """One JSON document; indented for a terminal, on one line for a pipe.

    Dataclasses, enumerations and numpy numbers are taken as they are, paths as text.
    """
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    if sys.stdout.isatty():
        option |= orjson.OPT_INDENT_2
    click.echo(orjson.dumps(data, default=str, option=option).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under their headings. Columns in which every cell is a number stand to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    right = {
        index
        for index in range(len(columns))
        if cells and all(_is_number(row[index]) for row in cells)
    }
    if colours():
        _print_rich(columns, cells, right)
        return
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(row[index]) for row in lines) for index in range(len(columns))]
    for row in lines:
        padded = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo(_GAP.join(padded).rstrip())


def print_error(error: BridgeError, *, as_json: bool) -> None:
    """``Error:`` and ``Try:`` on standard error, or one JSON object on one line."""
    if as_json:
        click.echo(orjson.dumps({"error": error_object(error)}).decode(), err=True)
        return
    click.echo(f"{_heading('Error:', 'red')} {redacted(str(error))}", err=True)
    if error.hint:
        click.echo(f"{_heading('Try:', 'green')} {error.hint}", err=True)


def error_object(error: BridgeError) -> dict[str, object]:
    """What ``--json`` tells of an error. ``problems`` is there for a configuration only."""
    found: dict[str, object] = {
        "kind": type(error).__name__,
        "message": redacted(str(error)),
        "hint": error.hint,
        "exit_code": int(error.exit_code),
    }
    problems = getattr(error, "problems", None)
    if problems is not None:
        found["problems"] = [problem.as_dict() for problem in problems]
    return found


def _heading(text: str, colour: str) -> str:
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    return click.style(text, fg=colour, bold=True) if coloured else text


def _text(cell: object) -> str:
    return "" if cell is None else str(cell)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").isdecimal()


def _print_rich(columns: Sequence[str], cells: list[list[str]], right: set[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column.upper(), justify="right" if index in right else "left")
    for row in cells:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)

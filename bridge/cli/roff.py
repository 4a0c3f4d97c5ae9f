"""A command as a manual page in roff, the language of man(7).

Text is escaped as man(7) asks: a backslash is ``\\e``, a hyphen of an option ``\\-``, and a line
that begins with a dot or an apostrophe, which would be a request, gets ``\\&`` in front.
"""

from __future__ import annotations

import inspect
import os
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import click

from bridge import __version__
from bridge.cli.options import CONFIG_FILE

_UNWRAPPED = "\b"  # click's mark of a paragraph whose lines stay as they are
_EXAMPLES = "Examples:"
_EXIT_CODES = "Exit codes:"


@dataclass(frozen=True, slots=True)
class Page:
    """A command and the context that knows its full name."""

    command: click.Command
    ctx: click.Context

    @property
    def title(self) -> str:
        """``mapbridge-schema-diff``"""
        return self.ctx.command_path.replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Of click's help, without its marks. ``verbatim``: its lines stay as they are."""

    lines: tuple[str, ...]
    verbatim: bool

    def without_heading(self) -> Paragraph:
        lines = textwrap.dedent("\n".join(self.lines[1:])).split("\n")
        return replace(self, lines=tuple(lines))


def render(page: Page) -> str:
    """The page's text, which ends with a line feed."""
    paragraphs = _paragraphs(page.command.help or "")
    examples = [one for one in paragraphs if one.lines[0] == _EXAMPLES]
    exits = [one for one in paragraphs if one.lines[0].startswith(_EXIT_CODES)]
    rest = [one for one in paragraphs if one not in examples and one not in exits]
    lines = [
        f'.TH "{_text(page.title.upper())}" 1 "{_date()}" "mapbridge {__version__}"',
        ".SH NAME",
        f"{_option(page.title)} \\- {_text(_summary(page))}",
        *_synopsis(page),
        *_section("DESCRIPTION", _body(rest)),
        *_options(page),
        *_commands(page),
        *_section("EXIT STATUS", _body([replace(one, verbatim=False) for one in exits])),
        *_section("EXAMPLES", _body([one.without_heading() for one in examples])),
        *_environment(page),
        *_see_also(page),
    ]
    return "\n".join(lines) + "\n"


def _date() -> str:
    """Of the build; reproducible builds set ``SOURCE_DATE_EPOCH``."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _summary(page: Page) -> str:
    text = page.command.get_short_help_str(limit=1000).strip().removesuffix(".")
    return text[:1].lower() + text[1:]


def _synopsis(page: Page) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    yield f".B {_option(page.ctx.command_path)}"
    yield " ".join(_option(piece) for piece in page.command.collect_usage_pieces(page.ctx))


def _paragraphs(text: str) -> list[Paragraph]:
    found: list[Paragraph] = []
    for block in inspect.cleandoc(text).split("\n\n"):
        lines = block.strip("\n").split("\n")
        verbatim = lines[0].strip() == _UNWRAPPED
        found.append(Paragraph(tuple(lines[1:] if verbatim else lines), verbatim))
    return [paragraph for paragraph in found if paragraph.lines]


def _body(paragraphs: list[Paragraph]) -> Iterator[str]:
    for index, paragraph in enumerate(paragraphs):
        if index:
            yield ".PP"
        if paragraph.verbatim:
            yield from (".nf", *map(_option, paragraph.lines), ".fi")
        else:
            yield from (_text(line.strip()) for line in paragraph.lines)


def _options(page: Page) -> Iterator[str]:
    records = [
        record
        for param in page.command.get_params(page.ctx)
        if (record := param.get_help_record(page.ctx)) is not None
        and (record[1] or isinstance(param, click.Option))
    ]
    if records:
        yield ".SH OPTIONS"
    for names, text in records:
        yield ".TP"
        yield f".B {_option(names)}"
        yield _text(" ".join(text.split())) or "\\&"


def _commands(page: Page) -> Iterator[str]:
    if not isinstance(page.command, click.Group):
        return
    yield ".SH COMMANDS"
    for name in page.command.list_commands(page.ctx):
        member = page.command.get_command(page.ctx, name)
        if member is not None and not member.hidden:
            yield ".TP"
            yield f".BR {_option(f'{page.title}-{name}')} (1)"
            yield _text(member.get_short_help_str(limit=1000))


def _environment(page: Page) -> Iterator[str]:
    entries = [
        (str(param.envvar), param.get_help_record(page.ctx))
        for param in page.command.get_params(page.ctx)
        if isinstance(param, click.Option) and param.envvar
    ]
    if entries:
        yield ".SH ENVIRONMENT"
    for variable, record in entries:
        yield ".TP"
        yield f".B {_text(variable)}"
        yield f"Stands for {_option((record or ('the option',))[0])}."
    if any(variable == "MAPBRIDGE_CONFIG" for variable, _ in entries):
        yield ".SH FILES"
        yield ".TP"
        yield f".I {_text(str(CONFIG_FILE))}"
        yield "The configuration, where none is named."


def _see_also(page: Page) -> Iterator[str]:
    parent = page.ctx.parent
    if parent is not None:
        yield ".SH SEE ALSO"
        yield f".BR {_option(parent.command_path.replace(' ', '-'))} (1)"


def _section(name: str, lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [f".SH {name}", *found] if found else []


def _text(text: str) -> str:
    escaped = text.replace("\\", "\\e")
    return f"\\&{escaped}" if escaped[:1] in {".", "'"} else escaped


def _option(text: str) -> str:
    """What may be typed: its hyphens are no dashes."""
    return _text(text).replace("-", "\\-")

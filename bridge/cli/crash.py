"""The end of a command that nobody foresaw: told with its traceback, and without secrets.

Exceptions of libraries may quote what they were given, so whatever would reach standard error by
the interpreter's own hands goes through ``redacted`` first.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import NoReturn

import click

from bridge.cli import output
from bridge.errors import InvariantError
from bridge.redaction import redacted

HINT = "this is a fault of mapbridge: `mapbridge bugreport` collects what helps to mend it"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def hide_secrets() -> None:
    """For what threads and forgotten tasks end with; called once, when the command begins."""
    threading.excepthook = _thread_ended
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())


def end(error: Exception, *, as_json: bool) -> NoReturn:
    """Print ``error`` and leave with the exit code of a fault."""
    click.echo(_text(type(error), error, error.__traceback__), err=True, nl=False)
    told = InvariantError(f"unforeseen: {type(error).__name__}: {error}", hint=HINT)
    output.print_error(told, as_json=as_json)
    sys.exit(told.exit_code)


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    name = ended.thread.name if ended.thread is not None else "?"
    text = _text(ended.exc_type, ended.exc_value, ended.exc_traceback)
    click.echo(f"thread {name} has ended:\n{text}", err=True, nl=False)


def _text(
    kind: type[BaseException], error: BaseException | None, where: TracebackType | None
) -> str:
    return redacted("".join(traceback.format_exception(kind, error, where)))

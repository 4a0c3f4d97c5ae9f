"""Telling the operator: structured lines on standard error, each distinct trouble once."""

from __future__ import annotations

import logging
import sys
from typing import Protocol

import structlog

from bridge.redaction import redacted

REMEMBERED_MAX = 1_000


class Report(Protocol):
    """Where the parts of a node say what a person should know."""

    def say(self, text: str, **fields: object) -> None: ...
    def warn(self, text: str, **fields: object) -> None: ...
    def warn_once(self, text: str, **fields: object) -> None: ...


def _without_secrets(
    logger: object, method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    """What libraries and brokers say is passed on, so it is looked at here."""
    del logger, method
    return {name: redacted(each) if isinstance(each, str) else each for name, each in event.items()}


class LogReport:
    """Lines for a person on a terminal, JSON otherwise; silent while all is well."""

    def __init__(self, *, json: bool | None = None, **bound: object) -> None:
        as_json = not sys.stderr.isatty() if json is None else json
        renderer: structlog.types.Processor = (
            structlog.processors.JSONRenderer()
            if as_json
            else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        )
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _without_secrets,
                renderer,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        ).bind(**bound)
        self._said: set[str] = set()
        self.suppressed = 0

    def say(self, text: str, **fields: object) -> None:
        self._log.info(text, **fields)

    def warn(self, text: str, **fields: object) -> None:
        self._log.warning(text, **fields)

    def warn_once(self, text: str, **fields: object) -> None:
        if text in self._said or len(self._said) >= REMEMBERED_MAX:
            self.suppressed += 1
            return
        self._said.add(text)
        self._log.warning(text, **fields)

"""The one root error. Every failure a person can meet carries an exit code and a way out.

Subclasses stand next to the code that raises them; foreign exceptions (``OSError``, those of
nats-py, of BCC) are translated where they enter, never further in. Messages are lower case, without
a full stop, in the form ``subject: reason (got X)``.
"""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of the command, after ``sysexits.h`` where it has a fitting one."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    UNAVAILABLE = 69
    INVARIANT = 70
    TEMPORARY = 75
    PRIVILEGE = 77
    CONFIG = 78


class BridgeError(Exception):
    """Root of all errors of mapbridge.

    ``hint`` tells the reader what to do next; the command prints it behind ``Try:``.
    """

    exit_code: Exit = Exit.FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class PrivilegeError(BridgeError):
    """The process lacks a capability; the message names it."""

    exit_code = Exit.PRIVILEGE


class UnavailableError(BridgeError):
    """Something the bridge depends on is not there: a kernel feature, a broker, a package."""

    exit_code = Exit.UNAVAILABLE


class InvariantError(BridgeError):
    """A state that the design excludes was reached: a fault of mapbridge itself."""

    exit_code = Exit.INVARIANT

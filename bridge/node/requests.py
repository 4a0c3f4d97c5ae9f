"""What other commands ask of the running bridge: files in its state directory.

A request is a file that the bridge takes away, an answer one that the asking command takes away.
Both appear in one step, under their final name. Whoever may write the state directory may ask.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from bridge.errors import BridgeError, Exit, UnavailableError

FOLDER = "requests"
POLL_SECONDS = 0.1
PENDING_MAX = 64
STALE_SECONDS = 3600.0  # an answer that nobody took away


class RequestFailedError(BridgeError):
    """The bridge could not do what was asked."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.TEMPORARY) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = code


Handler = Callable[[str, str], Awaitable[dict[str, object]]]


@dataclass(slots=True)
class Requests:
    """The bridge's side. ``handle`` gets the action and the map; belongs to the event loop."""

    state: Path
    handle: Handler
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def clear(self) -> None:
        """At the start: nobody waits for the bridge before."""
        for path in self._folder().glob("*"):
            path.unlink(missing_ok=True)

    def look(self) -> None:
        """Begin what was asked since the last look. Raises ``OSError``."""
        for path in sorted(self._folder().glob("*.request"))[:PENDING_MAX]:
            content = path.read_bytes()
            path.unlink()
            if len(self._tasks) < PENDING_MAX:
                task = asyncio.create_task(self._answer(path.stem, content))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        for path in self._folder().glob("*.answer"):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _folder(self) -> Path:
        folder = self.state / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    async def _answer(self, number: str, content: bytes) -> None:
        try:
            asked = orjson.loads(content)
            answer = await self.handle(str(asked["action"]), str(asked["map"]))
        except BridgeError as error:
            answer = {"error": str(error), "hint": error.hint, "code": int(error.exit_code)}
        except (orjson.JSONDecodeError, KeyError, TypeError):
            answer = {"error": "request: cannot be read"}
        _write(self._folder() / f"{number}.answer", answer)


def ask(state: Path, action: str, map_name: str, timeout_seconds: float) -> dict[str, object]:
    """Ask the bridge with this state directory, and wait for its answer.

    Raises ``RequestFailedError`` with its reason, ``UnavailableError`` when it does not answer.
    """
    folder = state / FOLDER
    number = secrets.token_hex(8)
    request, answer = folder / f"{number}.request", folder / f"{number}.answer"
    try:
        _write(request, {"action": action, "map": map_name})
    except FileNotFoundError as error:
        raise UnavailableError(
            f"state directory {state}: no bridge runs here", hint="start `mapbridge run`"
        ) from error
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if answer.exists():
            content = orjson.loads(answer.read_bytes())
            answer.unlink(missing_ok=True)
            found: dict[str, object] = content if isinstance(content, dict) else {}
            if "error" in found:
                raise _failure(found)
            return found
        time.sleep(POLL_SECONDS)
    taken = not request.exists()
    request.unlink(missing_ok=True)
    raise UnavailableError(
        f"bridge: {'is not done' if taken else 'did not answer'} within {timeout_seconds:g} s",
        hint="give it more time with --timeout, and see `mapbridge status`",
    )


def _failure(answer: dict[str, object]) -> RequestFailedError:
    code = answer.get("code")
    return RequestFailedError(
        str(answer["error"]),
        hint=str(answer.get("hint") or ""),
        code=Exit(code) if isinstance(code, int) and code else Exit.TEMPORARY,
    )


def _write(path: Path, content: dict[str, object]) -> None:
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(content))
    draft.replace(path)

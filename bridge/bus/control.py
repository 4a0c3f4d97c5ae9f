"""Questions and answers between a cluster's nodes and whoever asks them, beside the log.

A question goes to one node, or to all that listen; the answers are JSON. They pass through the
broker's core, not through the stream: what nobody waits for any more is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import orjson

from bridge.bus.link import Link, RequestError
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from nats.aio.msg import Msg

QUESTIONS_MAX = 16  # that wait; more are refused
_PAUSE_SECONDS = 0.5

Answer = dict[str, object]
Handler = Callable[[str, Answer], Awaitable[Answer]]


class ControlServer:
    """Answers what comes on ``subjects``, one question after the other; ``run`` is a task."""

    def __init__(
        self, link: Callable[[], Awaitable[Link]], subjects: tuple[str, ...], handler: Handler
    ) -> None:
        self._link = link
        self._subjects = subjects
        self._handler = handler
        self._waiting: asyncio.Queue[tuple[Link, Msg]] = asyncio.Queue(QUESTIONS_MAX)
        self.answered = 0
        self.refused = 0  # because too many waited

    async def run(self) -> None:
        """Until cancelled, over any number of connections. Raises what ends the bus."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._answer_all())
            while True:
                link = await self._link()
                try:
                    for subject in self._subjects:
                        await link.subscribe(subject, partial(self._take, link))
                except RequestError:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                await link.lost.wait()

    def _take(self, link: Link, message: Msg) -> None:
        try:
            self._waiting.put_nowait((link, message))
        except asyncio.QueueFull:
            self.refused += 1

    async def _answer_all(self) -> None:
        while True:
            link, message = await self._waiting.get()
            try:
                question = orjson.loads(message.data or b"{}")
                answer = await self._handler(message.subject, question)
            except BridgeError as error:
                answer = {"error": str(error)}
            except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
                # One that anybody may ask must not end the node.
                answer = {"error": f"question: cannot be understood ({error})"}
            if not message.reply:
                continue
            try:
                await link.send(message.reply, orjson.dumps(answer))
                self.answered += 1
            except RequestError:
                continue  # the connection is gone, and whoever asked asks again


async def ask(link: Link, subject: str, question: Mapping[str, object]) -> Answer:
    """One node's answer; raises ``RequestError`` when none comes."""
    return _answer(await link.request(subject, orjson.dumps(question)))


async def ask_all(
    link: Link, subject: str, question: Mapping[str, object], seconds: float
) -> list[Answer]:
    """All answers that come within ``seconds``; raises ``RequestError`` when it may not ask."""
    found: list[Answer] = []
    inbox = link.new_inbox()

    def take(message: Msg) -> None:
        if message.data:  # without: the broker's word that nobody listens
            found.append(_answer(message))

    subscription = await link.subscribe(inbox, take)
    try:
        await link.send(subject, orjson.dumps(question), reply=inbox)
        await asyncio.sleep(seconds)
    finally:
        await link.unsubscribe(subscription)
    if not found:
        link.check_allowed(subject)
    return found


def _answer(message: Msg) -> Answer:
    try:
        found = orjson.loads(message.data)
    except orjson.JSONDecodeError as error:
        raise RequestError("node: answered no JSON", sent=True) from error
    return found if isinstance(found, dict) else {}

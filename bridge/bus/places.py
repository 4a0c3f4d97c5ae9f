"""Places in the log by time: which message was the first to be stored at or after an instant."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from bridge.bus.link import ForbiddenError, RequestError
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import LogUnavailableError
from bridge.bus.streams import NO_MESSAGE
from bridge.wire.subjects import cluster_filter, stream_name

_TRIES_MAX = 20
_PAUSE_SECONDS = 0.25


async def sequence_at(bus: NatsBus, cluster: str, time_ns: int) -> int:
    """The sequence of the first message stored at ``time_ns`` (since 1970) or later.

    One behind the last when there is none. Times are those of the broker's clock, which never go
    back within a log: found by halving, in some 20 requests. Raises ``LogUnavailableError``,
    ``ForbiddenError``.
    """
    state = await bus.log_state(cluster)
    low, high = state.first, state.last + 1
    while low < high:
        middle = (low + high) // 2
        found = await _next_message(bus, cluster, middle)
        if found is None or found[1] >= time_ns:
            high = middle
        else:
            low = found[0] + 1
    return low


async def _next_message(bus: NatsBus, cluster: str, sequence: int) -> tuple[int, int] | None:
    """Sequence and time of the first message from ``sequence`` on."""
    stream = stream_name(cluster)
    trouble = ""
    for _ in range(_TRIES_MAX):
        try:
            link = await bus.link()
            reply = await link.call(
                f"{bus.api_prefix}.STREAM.MSG.GET.{stream}",
                {"seq": sequence, "next_by_subj": cluster_filter(cluster)},
            )
        except ForbiddenError:
            raise
        except RequestError as error:
            trouble = str(error)
        else:
            if reply.error_code == NO_MESSAGE:
                return None
            if not reply.error_code:
                stored = _nanoseconds(reply.text("message", "time"))
                return reply.number("message", "seq"), stored
            trouble = reply.error
        await asyncio.sleep(_PAUSE_SECONDS)
    raise LogUnavailableError(f"log {stream}: cannot be read ({trouble})")


def _nanoseconds(text: str) -> int:
    """A time as the broker writes it (RFC 3339, up to 9 digits of a second, UTC)."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    try:
        seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
        return seconds * 1_000_000_000 + int(rest[:9].ljust(9, "0") or "0")
    except ValueError as error:
        raise LogUnavailableError(f"broker: gave no time (got {text!r})") from error

"""The log stream of a cluster: made when it is missing, checked when it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from bridge.bus.link import ForbiddenError, Link, Reply, RequestError
from bridge.bus.protocol import BrokerRefusedError, LogState, LogUnavailableError
from bridge.errors import BridgeError, Exit
from bridge.wire.subjects import cluster_filter, stream_name

NO_MESSAGE = 10037
STREAM_NOT_FOUND = 10059
NO_LEADER = "too few of its servers can be reached: it has no leader"
_NS = 1_000_000_000
_FATAL_CODES = {10023, 10028, 10047, 10052, 10065, 10074}
_TRIES_MAX = 40
_PAUSE_SECONDS = 0.5


class LogConfigError(BridgeError):
    """The log exists with a configuration that the bridge cannot work with."""

    exit_code = Exit.CONFIG


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the log keeps, where, and how often. 0: no limit."""

    storage: Literal["file", "memory"] = "file"
    replicas: int = 1
    max_age_seconds: int = 7 * 24 * 3600
    max_bytes: int = 0
    duplicate_window_seconds: int = 120


@dataclass(frozen=True, slots=True)
class LogReport:
    """What ``ensure_log`` found. ``differences`` are limits that an operator may have set."""

    state: LogState
    created: bool
    differences: tuple[str, ...]


async def ensure_log(
    link: Link, api: str, cluster: str, settings: LogSettings, report: Callable[[str], None]
) -> LogReport:
    """Make the log of ``cluster``, or check the one that is there.

    Raises ``LogConfigError`` when the existing one would lose or reorder what the bridge needs,
    ``LogUnavailableError`` when it cannot be made, ``BrokerRefusedError`` when this user may not
    make it, ``ForbiddenError`` when it may not even look.
    """
    name = stream_name(cluster)
    for attempt in range(_TRIES_MAX):
        try:
            reply = await link.call(f"{api}.STREAM.INFO.{name}", {})
            created = reply.error_code == STREAM_NOT_FOUND
            if created:
                wanted = _wanted(cluster, settings)
                reply = await _create(link, api, name, wanted)
            if reply.error_code in _FATAL_CODES:
                raise LogUnavailableError(
                    f"log {name}: the broker refuses to make it ({reply.error})",
                    hint="check log.replicas and log.max_bytes against the broker's limits",
                )
            if not reply.error_code and (created or is_led(reply)):
                return _check(reply, cluster, settings, created)
            trouble = reply.error or NO_LEADER
        except ForbiddenError:
            raise
        except RequestError as error:
            if not link.alive:
                raise
            trouble = str(error)
        if attempt == 3:
            report(f"log {name}: {trouble}; trying again")
        await asyncio.sleep(_PAUSE_SECONDS)
    raise LogUnavailableError(f"log {name}: cannot be made or read ({trouble})")


async def _create(link: Link, api: str, name: str, wanted: dict[str, object]) -> Reply:
    try:
        return await link.call(f"{api}.STREAM.CREATE.{name}", wanted)
    except ForbiddenError as error:
        raise BrokerRefusedError(
            f"log {name}: does not exist on the broker, and this user may not make it",
            hint="start a node first whose permissions were printed without --no-create",
        ) from error


def is_led(reply: Reply) -> bool:
    """Whether an answer about a stream is a leader's.

    While there is none, each server that is asked tells what it happens to hold, which may be less
    than was read of the others (nats-server 2.15, a minority that was cut off).
    """
    cluster = reply.section("cluster")
    return not cluster or bool(cluster.get("leader"))


def log_state(reply: Reply) -> LogState:
    """The state that a STREAM.INFO or STREAM.CREATE answer holds."""
    return LogState(
        id=reply.text("created"),
        first=reply.number("state", "first_seq"),
        last=reply.number("state", "last_seq"),
        messages=reply.number("state", "messages"),
        bytes=reply.number("state", "bytes"),
        bytes_max=max(reply.number("config", "max_bytes"), 0),
        age_seconds_max=reply.number("config", "max_age") / _NS,
        consumers=reply.number("state", "consumer_count"),
    )


def nanoseconds(text: str) -> int | None:
    """An RFC 3339 time in UTC as the server writes it, in ns; ``None`` when it is none."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    try:
        seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
        return seconds * 1_000_000_000 + int(rest.ljust(9, "0")[:9])
    except ValueError:
        return None


def _wanted(cluster: str, settings: LogSettings) -> dict[str, object]:
    return {
        "name": stream_name(cluster),
        "subjects": [cluster_filter(cluster)],
        "description": "changes of eBPF maps, one subject per map and node (mapbridge)",
        "retention": "limits",
        "discard": "old",
        "storage": settings.storage,
        "num_replicas": settings.replicas,
        "max_age": settings.max_age_seconds * _NS,
        "max_bytes": settings.max_bytes or -1,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "duplicate_window": settings.duplicate_window_seconds * _NS,
        "allow_direct": True,
        "deny_delete": False,
        # One node could wipe every node's history with a single header.
        "allow_rollup_hdrs": False,
    }


def _check(reply: Reply, cluster: str, settings: LogSettings, created: bool) -> LogReport:
    name = stream_name(cluster)
    have = reply.section("config")
    faults = []
    if have.get("subjects") != [cluster_filter(cluster)]:
        faults.append(f"subjects are {have.get('subjects')}, not {[cluster_filter(cluster)]}")
    if have.get("retention") != "limits":
        faults.append(f"retention is {have.get('retention')}: reading would remove messages")
    if have.get("discard") != "old":
        faults.append("a full log would refuse new changes (discard new)")
    if have.get("no_ack"):
        faults.append("it does not acknowledge messages (no_ack)")
    if have.get("max_msgs_per_subject", -1) not in (-1, 0):
        faults.append("it keeps a limited number of messages per subject")
    if have.get("mirror") or have.get("sealed"):
        faults.append("it takes no messages (a mirror, or sealed)")
    if faults:
        raise LogConfigError(
            f"log {name}: {'; '.join(faults)}",
            hint=f"change it with `nats stream edit {name}`, or use another cluster name",
        )
    differences = []
    for field, value in _wanted(cluster, settings).items():
        if field in ("storage", "num_replicas", "max_age", "max_bytes", "allow_rollup_hdrs"):
            got = have.get(field, False if field == "allow_rollup_hdrs" else None)
            if got != value:
                differences.append(f"{field} is {got}, configured {value}")
    return LogReport(log_state(reply), created, tuple(differences))

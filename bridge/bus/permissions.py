"""What the broker must allow whom: the subjects that each kind of user of a cluster needs.

A node may publish its own changes and nobody else's. What a broker cannot tell apart by subjects
is written down in ``docs/explanation/security.md``.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.bus.board import board_stream, board_subject
from bridge.bus.micro import SERVICE, VERBS
from bridge.wire.subjects import (
    check_token,
    control_subject,
    escape,
    feed_filter,
    feed_stream_name,
    map_filter,
    schema_filter,
    schema_stream_name,
    snapshot_stream_name,
    snapshots_filter,
    stream_name,
)

ANSWER_SECONDS = 60


class Kind(enum.StrEnum):
    """Who connects."""

    NODE = "node"  # `mapbridge run`
    OBSERVER = "observer"  # watch, at, replay, schema, status --nodes, export
    FEED = "feed"  # `mapbridge feed`
    OPERATOR = "operator"  # verify, diff, resume, and the upkeep of streams


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects; everything else is refused. ``answers``: it may reply to what it was asked."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool

    def as_dict(self) -> dict[str, object]:
        """The shape of nats-server's configuration."""
        found: dict[str, object] = {
            "publish": {"allow": list(self.publish)},
            "subscribe": {"allow": list(self.subscribe)},
        }
        if self.answers:
            found["allow_responses"] = {"max": 1, "expires": f"{ANSWER_SECONDS}s"}
        return found

    def config(self) -> str:
        """A ``permissions`` block of nats-server's configuration."""
        lines = ["permissions {"]
        for verb, subjects in (("publish", self.publish), ("subscribe", self.subscribe)):
            allowed = "".join(f"      {json.dumps(subject)}\n" for subject in subjects)
            lines.append(f"  {verb}: {{\n    allow: [\n{allowed}    ]\n  }}")
        if self.answers:
            lines.append(f'  allow_responses: {{ max: 1, expires: "{ANSWER_SECONDS}s" }}')
        return "\n".join([*lines, "}"])


def permissions(
    kind: Kind,
    cluster: str,
    name: str,
    inbox: str,
    *,
    maps: Sequence[str] = (),
    creates: bool = True,
    api: str = "$JS.API",
) -> Permissions:
    """What a user called ``name`` needs. ``maps``: none means all.

    creates   whether it may make the streams that are missing; nobody may change one that is there
    """
    check_token("node", name)
    tokens = [escape(each) for each in maps] or ["*"]
    publish = list(_publishes(kind, cluster, name, tokens))
    log, snapshots = stream_name(cluster), snapshot_stream_name(cluster)
    read = [log, snapshots, schema_stream_name(cluster), board_stream(cluster)]
    made = read if kind is Kind.NODE else []
    consumed = [log, snapshots]
    if kind is not Kind.NODE:
        read = [*read, feed_stream_name(cluster)]
        consumed.append(feed_stream_name(cluster))
    if kind is Kind.FEED:
        made = [feed_stream_name(cluster)]
    if kind is Kind.OPERATOR:
        publish.append(f"{api}.>")
    else:
        publish.append(f"{api}.INFO")
        for verb, streams in (
            ("STREAM.INFO", read),
            ("STREAM.MSG.GET", read),
            ("STREAM.CREATE", made if creates else []),
            *((f"CONSUMER.{verb}", consumed) for verb in ("CREATE", "DELETE", "MSG.NEXT")),
        ):
            for stream in streams:
                publish += [f"{api}.{verb}.{stream}{end}" for end in _ends(verb)]
    subscribe = [f"{inbox}.>"]
    if kind is Kind.NODE:
        subscribe += [control_subject(cluster), control_subject(cluster, name)]
        for verb in VERBS:
            subscribe += [f"{verb}{end}" for end in ("", f".{SERVICE}", f".{SERVICE}.*")]
    return Permissions(tuple(publish), tuple(subscribe), kind is Kind.NODE)


def _publishes(kind: Kind, cluster: str, name: str, tokens: Sequence[str]) -> Iterator[str]:
    yield from (f"{verb}.{SERVICE}" for verb in VERBS)  # who there is, for the page and `status`
    if kind is Kind.NODE:
        for token in tokens:
            for pattern in (map_filter(cluster, "m"), schema_filter(cluster, "m")):
                head, tail = pattern.rsplit(".m.", 1)
                yield f"{head}.{token}.{name if '.delta' in head else tail}"
            yield f"{snapshots_filter(cluster).removesuffix('>')}{token}.>"
            yield board_subject(cluster, token, name)
    elif kind is Kind.FEED:
        for token in tokens:
            yield f"{feed_filter(cluster).removesuffix('*')}{token}"
    elif kind is Kind.OPERATOR:
        yield control_subject(cluster)
        yield f"{control_subject(cluster)}.*.*"


def _ends(verb: str) -> tuple[str, ...]:
    """Consumers' names hold a number that nobody can guess, so the name itself is left open."""
    if verb == "CONSUMER.CREATE":
        return (".*", ".*.>")
    return (".*",) if verb.startswith("CONSUMER") else ("",)

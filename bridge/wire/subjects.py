"""Names in the log: subjects, streams, headers, message ids.

Tokens hold ``[A-Za-z0-9_-]`` only. Cluster and node names are tokens by rule; a map's name may be
any text and is escaped: reversible, and equal names alone give equal tokens.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from bridge.errors import BridgeError
from bridge.model import Delta, Origin, is_token

ROOT = "mapbridge"
NAME_LENGTH_MAX = 64  # characters of a cluster, node or map name

HEADER_MESSAGE_ID = "Nats-Msg-Id"
HEADER_EXPECTED_LAST = "Nats-Expected-Last-Subject-Sequence"
HEADER_VERSION = "Mapbridge-Version"
WIRE_VERSION = "1"
HEADER_LAYOUT = "Mapbridge-Layout"  # fingerprint, 16 hex digits; of messages of a feed
HEADER_SOURCE = "Mapbridge-Source"  # how far of the log a feed has come with this message

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")
_REMEMBERED_MAX = 4096  # names that come with each message
_ESCAPED = re.compile(r"(?:[A-Za-z0-9-]|_[0-9a-f]{2})+")


class SubjectError(BridgeError):
    """A name that cannot stand in a subject, or a subject that is none of ours."""


@dataclass(frozen=True, slots=True)
class DeltaSubject:
    """What a subject tells about its messages."""

    cluster: str
    map: str
    node: str


@functools.lru_cache(_REMEMBERED_MAX)
def escape(name: str) -> str:
    """One subject token that stands for ``name``; raises ``SubjectError``."""
    if not 0 < len(name) <= NAME_LENGTH_MAX:
        raise SubjectError(f"name: needs 1 to {NAME_LENGTH_MAX} characters (got {len(name)})")
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise SubjectError(f"name: is no valid text (got {name!r})") from error
    return "".join(chr(byte) if byte in _PLAIN else f"_{byte:02x}" for byte in raw)


@functools.lru_cache(_REMEMBERED_MAX)
def unescape(token: str) -> str:
    """The name that ``token`` stands for; only what ``escape`` gives is taken."""
    if _ESCAPED.fullmatch(token) is None:
        raise SubjectError(f"subject: a token is not escaped as it should be (got {token!r})")
    raw = bytearray()
    position = 0
    while position < len(token):
        if token[position] == "_":
            raw.append(int(token[position + 1 : position + 3], 16))
            position += 3
        else:
            raw.append(ord(token[position]))
            position += 1
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise SubjectError(f"subject: a token is no UTF-8 (got {token!r})") from error
    if escape(name) != token:
        raise SubjectError(f"subject: a token is not escaped as it should be (got {token!r})")
    return name


@functools.lru_cache(_REMEMBERED_MAX)
def check_token(what: str, name: str) -> str:
    """``name``, when it may stand as a token itself; raises ``SubjectError``."""
    if not is_token(name) or len(name) > NAME_LENGTH_MAX:
        raise SubjectError(
            f"{what}: needs 1 to {NAME_LENGTH_MAX} of letters, digits, '_' and '-' (got {name!r})"
        )
    return name


def delta_subject(origin: Origin) -> str:
    """The subject of an origin's changes (the same for all its incarnations)."""
    cluster, node = check_token("cluster", origin.cluster), check_token("node", origin.node)
    return f"{ROOT}.{cluster}.delta.{escape(origin.map)}.{node}"


def map_filter(cluster: str, map_name: str) -> str:
    """The pattern of all nodes' changes of one map."""
    return f"{ROOT}.{check_token('cluster', cluster)}.delta.{escape(map_name)}.*"


def cluster_filter(cluster: str) -> str:
    """The pattern of all changes of a cluster."""
    return f"{ROOT}.{check_token('cluster', cluster)}.delta.*.*"


def control_subject(cluster: str, node: str = "", verb: str = "") -> str:
    """Where questions go: to one node, by what is asked for; without a node, to all."""
    subject = f"{ROOT}.{check_token('cluster', cluster)}.ctl"
    if not node:
        return subject
    return f"{subject}.{check_token('node', node)}.{verb or '*'}"


@functools.lru_cache(_REMEMBERED_MAX)
def parse_subject(subject: str) -> DeltaSubject:
    """What ``subject`` names; raises ``SubjectError``."""
    tokens = subject.split(".")
    if len(tokens) != 5 or tokens[0] != ROOT or tokens[2] != "delta":
        raise SubjectError(f"subject: is none of the bridge's (got {subject!r})")
    return DeltaSubject(
        check_token("cluster", tokens[1]),
        unescape(tokens[3]),
        check_token("node", tokens[4]),
    )


def stream_name(cluster: str) -> str:
    """The log stream of a cluster."""
    return f"MAPBRIDGE_{check_token('cluster', cluster)}"


def schema_stream_name(cluster: str) -> str:
    """The stream of what a cluster's maps mean."""
    return f"{stream_name(cluster)}_SCHEMA"


def schema_subject(cluster: str, map_name: str, layout: int) -> str:
    """The subject of one layout of a map."""
    return f"{ROOT}.{check_token('cluster', cluster)}.schema.{escape(map_name)}.{layout:016x}"


def schema_filter(cluster: str, map_name: str = "") -> str:
    """The pattern of all layouts of one map, or of all maps."""
    token = escape(map_name) if map_name else "*"
    return f"{ROOT}.{check_token('cluster', cluster)}.schema.{token}.*"


def feed_stream_name(cluster: str) -> str:
    """The stream of a cluster's feeds."""
    return f"{stream_name(cluster)}_FEED"


def feed_subject(cluster: str, kind: str, map_name: str) -> str:
    """The subject of one feed of a map: the changes of all its nodes."""
    return f"{ROOT}.{check_token('cluster', cluster)}.feed.{kind}.{escape(map_name)}"


def feed_filter(cluster: str) -> str:
    """The pattern of all feeds of a cluster."""
    return f"{ROOT}.{check_token('cluster', cluster)}.feed.*.*"


def snapshot_stream_name(cluster: str) -> str:
    """The stream of a cluster's snapshots: of each subject it keeps the newest message."""
    return f"MAPBRIDGE-SNAPSHOTS_{check_token('cluster', cluster)}"


def snapshots_filter(cluster: str) -> str:
    """The pattern of everything in the stream of snapshots."""
    return f"{ROOT}.{check_token('cluster', cluster)}.snap.>"


def chunk_subject(cluster: str, map_name: str, slot: int, chunk: int) -> str:
    """The subject of one part of a snapshot."""
    return f"{_snapshot_slot(cluster, map_name, slot)}.{chunk}"


def chunks_filter(cluster: str, map_name: str, slot: int) -> str:
    """The pattern of all parts in a slot, its manifest too."""
    return f"{_snapshot_slot(cluster, map_name, slot)}.*"


def manifest_subject(cluster: str, map_name: str, slot: int) -> str:
    """The subject that makes the parts in a slot a snapshot."""
    return f"{_snapshot_slot(cluster, map_name, slot)}.manifest"


def lease_subject(cluster: str, map_name: str) -> str:
    """The subject by which one node at a time takes a map's snapshots."""
    return f"{ROOT}.{check_token('cluster', cluster)}.snap.{escape(map_name)}.lease"


def _snapshot_slot(cluster: str, map_name: str, slot: int) -> str:
    return f"{ROOT}.{check_token('cluster', cluster)}.snap.{escape(map_name)}.{slot}"


def message_id(delta: Delta) -> str:
    """The id by which the log tells a message sent twice.

    Ids share one name space per stream, so they hold the incarnation, which nobody can guess.
    """
    origin = delta.origin
    return f"{origin.node}:{escape(origin.map)}:{origin.incarnation:016x}:{delta.first_sequence}"

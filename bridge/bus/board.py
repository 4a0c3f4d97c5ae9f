"""Where the nodes of a cluster say which of their maps are synced: a key-value bucket.

Bucket ``MAPBRIDGE-SYNC_<cluster>``, key ``<map, escaped>.<node>``, so that the ordinary tools for
buckets can read and watch it. A key vanishes by itself when its node has not renewed it for a
while: a node that died is not taken for ready.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict, dataclass

import orjson
from nats import errors as nats_errors

from bridge.bus.link import Reply, RequestError
from bridge.bus.nats_bus import NatsBus
from bridge.bus.streams import NO_MESSAGE, STREAM_NOT_FOUND, LogSettings
from bridge.errors import UnavailableError
from bridge.wire.subjects import SubjectError, check_token, escape, unescape

VALID_SECONDS = 30
_NS = 1_000_000_000


class BoardError(UnavailableError):
    """The bucket could not be read or written now."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one map stands on one node. ``behind_seconds``: ``None``: it never held everything."""

    node: str
    map: str
    synced: bool
    state: str
    behind_seconds: float | None
    position: int  # everything up to here in the log is written
    written: float  # seconds since 1970, by the node's clock


def _bucket(cluster: str) -> str:
    return f"MAPBRIDGE-SYNC_{check_token('cluster', cluster)}"


def board_stream(cluster: str) -> str:
    """The stream behind a cluster's bucket."""
    return f"KV_{_bucket(cluster)}"


def board_subject(cluster: str, map_token: str, node: str) -> str:
    """Where one node says how one map stands; ``map_token`` is escaped, or a pattern."""
    return f"$KV.{_bucket(cluster)}.{map_token}.{check_token('node', node)}"


class SyncBoard:
    """The bucket of one cluster. Methods make one attempt and raise ``BoardError``."""

    def __init__(self, bus: NatsBus, cluster: str, settings: LogSettings | None = None) -> None:
        self._bus = bus
        self._cluster = cluster
        self._stream, self._prefix = board_stream(cluster), f"$KV.{_bucket(cluster)}"
        self._settings = settings or LogSettings()
        self._made = False

    async def say(self, standing: Standing) -> None:
        """Replace what this node said of the map."""
        if not self._made:
            await self._make()
        subject = board_subject(self._cluster, escape(standing.map), standing.node)
        link = self._bus.link_now
        if link is None:
            raise BoardError("synced state: the broker is away")
        try:
            reply = Reply((await link.request(subject, orjson.dumps(asdict(standing)))).data)
        except (RequestError, nats_errors.Error) as error:
            self._made = False
            raise BoardError(f"synced state: {error}") from error
        if reply.error_code:
            raise BoardError(f"synced state: {reply.error}")

    async def all(self) -> list[Standing]:
        """What all nodes say, by map and node; who said nothing for long is not among them."""
        reply = await self._call("STREAM.INFO", subjects_filter=f"{self._prefix}.>")
        if reply.error_code == STREAM_NOT_FOUND:
            return []
        found = []
        for subject in sorted(reply.section("state", "subjects")):
            last = await self._call("STREAM.MSG.GET", last_by_subj=subject)
            if last.error_code != NO_MESSAGE:
                found.append(self.read(subject, last.text("message", "data")))
        return [standing for standing in found if standing is not None]

    def read(self, subject: str, text: str) -> Standing | None:
        """What one key says; ``None`` for what is not ours or contradicts its own name."""
        try:
            content = orjson.loads(base64.b64decode(text, validate=True))
            behind = content["behind_seconds"]
            standing = Standing(
                node=str(content["node"]),
                map=str(content["map"]),
                synced=content["synced"] is True,
                state=str(content["state"]),
                behind_seconds=None if behind is None else float(behind),
                position=int(content["position"]),
                written=float(content["written"]),
            )
            name, node = subject.removeprefix(f"{self._prefix}.").split(".")
            same = (unescape(name), node) == (standing.map, standing.node)
        except (binascii.Error, ValueError, KeyError, TypeError, SubjectError):
            return None
        return standing if same else None

    async def _make(self) -> None:
        """The bucket as the tools for buckets make it, but for one thing."""
        reply = await self._call("STREAM.INFO")
        if not reply.error_code:
            self._made = True
            return
        reply = await self._call(
            "STREAM.CREATE",
            name=self._stream,
            subjects=[f"{self._prefix}.>"],
            description="which node holds which map in full (mapbridge)",
            retention="limits",
            discard="new",
            storage="memory",
            num_replicas=self._settings.replicas,
            max_msgs_per_subject=1,
            max_age=VALID_SECONDS * _NS,
            allow_direct=True,
            # One node could wipe what all say with a single header.
            allow_rollup_hdrs=False,
            deny_delete=True,
        )
        if reply.error_code:
            reply = await self._call("STREAM.INFO")  # another node made it, in another shape
        if reply.error_code:
            raise BoardError(f"synced state: bucket cannot be made ({reply.error})")
        self._made = True

    async def _call(self, what: str, **body: object) -> Reply:
        link = self._bus.link_now
        if link is None:
            raise BoardError("synced state: the broker is away")
        try:
            return await link.call(f"{self._bus.api_prefix}.{what}.{self._stream}", body)
        except RequestError as error:
            raise BoardError(f"synced state: {error}") from error

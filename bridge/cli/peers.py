"""The nodes of a cluster, asked over the broker: who has a map, its digests and entries there."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np

from bridge.bus.control import Answer, ask, ask_all
from bridge.bus.link import ForbiddenError, RequestError
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.refusals import redacted
from bridge.cli.broker import broker_urls
from bridge.config.settings import Config
from bridge.core.digests import Digest
from bridge.errors import BridgeError, UnavailableError
from bridge.model import U8, VALUE_SIZE_MAX
from bridge.node.access import bus_settings
from bridge.node.control import pack, unpack
from bridge.wire.subjects import control_subject

GATHER_SECONDS = 1.0  # for the answers of all nodes
ANSWER_SECONDS = 30.0
CONNECT_SECONDS = 10.0
BUCKETS_PER_QUESTION = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """The digest of one node's map. ``reached``: everything that was asked for was in it.

    ``evicts``: the map drops entries by itself, and that is nothing to the other nodes.
    """

    node: str
    reached: bool
    sequence: int
    entries: int
    digest: Digest
    evicts: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Entries of some buckets of one node's map."""

    keys: U8
    values: U8
    truncated: bool

    def as_mapping(self) -> dict[bytes, bytes]:
        pairs = zip(self.keys, self.values, strict=True)
        return {key.tobytes(): value.tobytes() for key, value in pairs}


class Peers:
    """Asks; one question to several nodes goes to all of them at once."""

    def __init__(self, bus: NatsBus, cluster: str) -> None:
        self._bus = bus
        self._cluster = cluster

    async def having(self, name: str) -> dict[str, str]:
        """The nodes on which a map runs, with its role there."""
        subject = control_subject(self._cluster)
        answers = await ask_all(await self._bus.link(), subject, {}, GATHER_SECONDS)
        found = {}
        for answer in answers:
            maps = answer.get("maps")
            if isinstance(maps, dict) and name in maps:
                found[str(answer.get("node", "?"))] = str(maps[name])
        return dict(sorted(found.items()))

    async def head(self) -> int:
        """The position of the log's end now."""
        return (await self._bus.log_state(self._cluster)).last

    async def digests(self, name: str, nodes: Sequence[str], buckets: int) -> list[Reading]:
        """All with one seed, of maps that hold what the stream holds now."""
        seed = random.SystemRandom().getrandbits(64)
        question: Answer = {
            "map": name,
            "seed": str(seed),
            "buckets": buckets,
            "position": await self.head(),
        }
        answers = await self._each(nodes, "digest", question)
        found = []
        for node, answer in zip(nodes, answers, strict=True):
            found.append(read_digest(node, answer, Digest(seed, buckets)))
        _check_forms(name, dict(zip(nodes, answers, strict=True)))
        return found

    async def entries(
        self, name: str, nodes: Sequence[str], digest: Digest, wanted: Sequence[int]
    ) -> list[Page]:
        """What each node holds in some buckets of a digest, now."""
        rounds: list[list[Page]] = []
        position = await self.head()
        groups = [
            [int(bucket) for bucket in wanted[at : at + BUCKETS_PER_QUESTION]]
            for at in range(0, len(wanted), BUCKETS_PER_QUESTION)
        ]
        while groups:
            group = groups.pop()
            question: Answer = {
                "map": name,
                "seed": str(digest.seed),
                "buckets": digest.buckets,
                "position": position,
                "wanted": group,
            }
            answers = await self._each(nodes, "entries", question)
            pages = [read_page(n, answer) for n, answer in zip(nodes, answers, strict=True)]
            if not any(page.truncated for page in pages):
                rounds.append(pages)
            elif len(group) > 1:
                groups += [group[: len(group) // 2], group[len(group) // 2 :]]
            else:  # what is cut off cannot be told from what is not there
                rounds.append([Page(p.keys[:0], p.values[:0], True) for p in pages])
        return [_joined(pages) for pages in zip(*rounds, strict=True)]

    async def repair(self, name: str, node: str, keys: U8) -> int:
        """Let one node publish what it holds for these keys; how many changes that were."""
        question: Answer = {"map": name, "keys": pack(keys)}
        (answer,) = await self._each([node], "repair", question)
        return int(str(answer["published"]))

    async def tell(self, node: str, verb: str, question: Answer) -> Answer:
        """One node's answer to anything else."""
        (answer,) = await self._each([node], verb, question)
        return answer

    async def _each(self, nodes: Sequence[str], verb: str, question: Answer) -> list[Answer]:
        link = await self._bus.link()
        subjects = [control_subject(self._cluster, node, verb) for node in nodes]
        try:
            answers = await asyncio.gather(*(ask(link, s, question) for s in subjects))
        except ForbiddenError:
            raise
        except RequestError as error:
            raise UnavailableError(
                f"nodes {', '.join(nodes)}: not all of them answer ({error})",
                hint="see whether their bridges run, and which the broker lets in",
            ) from error
        for node, answer in zip(nodes, answers, strict=True):
            if "error" in answer:
                raise BridgeError(f"node {node}: {answer['error']}")
        return list(answers)


def _check_forms(name: str, answers: dict[str, Answer]) -> None:
    """Bytes of maps whose sizes, rules or layouts differ cannot be compared.

    A map whose layout nothing tells holds the bytes that were sent, so it goes with any.
    """
    forms = {node: str(answer.get("form")) for node, answer in answers.items()}
    layouts = {node: str(answer.get("layout", "")) for node, answer in answers.items()}
    if len(set(forms.values())) > 1:
        what, told, hint = "sizes or field rules", forms, "make them the same on all nodes"
    elif len(set(layouts.values()) - {""}) > 1:
        what, told, hint = "layouts", layouts, "see `mapbridge schema check`"
    else:
        return
    listed = ", ".join(f"{node}: {form or 'not known'}" for node, form in told.items())
    raise BridgeError(
        f"map {name}: cannot be compared, its {what} differ between nodes (got {listed})",
        hint=hint,
    )


@asynccontextmanager
async def peers_of(config: Config) -> AsyncIterator[Peers]:
    """Connected to the broker that a configuration names; raises ``UnavailableError``."""
    settings = replace(
        bus_settings(config, f"ask-{os.getpid()}", broker_urls(config)),
        request_timeout_seconds=ANSWER_SECONDS,
    )
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            bus = await open_bus(settings)
    except TimeoutError as error:
        raise UnavailableError(
            f"broker {', '.join(map(redacted, settings.urls))}: cannot be reached",
            hint="start the server or the bridge, or correct broker.url",
        ) from error
    try:
        yield Peers(bus, config.node.cluster)
    finally:
        await bus.close()


def read_digest(node: str, answer: Answer, digest: Digest) -> Reading:
    """What a node answers of its map, in ``digest``. Raises ``BridgeError``."""
    try:
        sums, counts = (
            unpack(answer[name], 8).view(np.uint64)[:, 0] for name in ("sums", "counts")
        )
        sequence, entries = int(str(answer["sequence"])), int(str(answer["entries"]))
    except (ValueError, LookupError) as error:
        raise _nonsense(node, error) from error
    if not len(sums) == len(counts) == digest.buckets:
        raise BridgeError(f"node {node}: answered with another number of buckets")
    digest.sums, digest.counts = sums, counts
    reached, evicts = answer.get("reached") is True, answer.get("evicts") is True
    return Reading(node, reached, sequence, entries, digest, evicts)


def read_page(node: str, answer: Answer) -> Page:
    """The entries in a node's answer. Raises ``BridgeError``."""
    try:
        keys = unpack(answer["keys"], _width(answer["key_size"]))
        values = unpack(answer["values"], _width(answer["value_size"]))
        truncated = bool(answer["truncated"])
    except (ValueError, LookupError) as error:
        raise _nonsense(node, error) from error
    if len(keys) != len(values):
        raise BridgeError(f"node {node}: answered with keys that are not as many as values")
    return Page(keys, values, truncated)


def _width(found: object) -> int:
    width = int(str(found))
    if not 0 < width <= VALUE_SIZE_MAX:
        raise ValueError(f"a size of {width} bytes")
    return width


def _nonsense(node: str, error: Exception) -> BridgeError:
    return BridgeError(
        f"node {node}: its answer makes no sense ({error!r})",
        hint="see whether it runs the same version of mapbridge",
    )


def _joined(pages: Sequence[Page]) -> Page:
    return Page(
        np.concatenate([page.keys for page in pages]),
        np.concatenate([page.values for page in pages]),
        any(page.truncated for page in pages),
    )

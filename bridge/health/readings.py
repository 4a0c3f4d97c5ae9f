"""How single metrics are read out of a document, where it takes more than one number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from bridge.health.families import Durations, Facts, Sample, maps, number
from bridge.health.latest import section


def build_info(facts: Facts) -> Iterator[Sample]:
    if "version" in facts.document:
        yield (str(facts.document["version"]),), 1.0


def node_info(facts: Facts) -> Iterator[Sample]:
    if "node" in facts.document:
        mode = section(facts.document, "capture").get("mode", "none")
        yield (str(facts.document["node"]), str(facts.document.get("cluster")), str(mode)), 1.0


def status_age(facts: Facts) -> Iterator[Sample]:
    if math.isfinite(facts.age_seconds):
        yield (), facts.age_seconds


def reloads(facts: Facts) -> Iterator[Sample]:
    counts = section(facts.document, "configuration")
    for result in ("taken", "refused"):
        if (count := number(counts.get(result))) is not None:
            yield (result,), count


def last_reload(facts: Facts) -> Iterator[Sample]:
    found = section(facts.document, "configuration")
    if found:
        yield (), float(found.get("trouble") is None)


def states(facts: Facts) -> Iterator[Sample]:
    for name, found in maps(facts):
        yield (name, str(found.get("state"))), 1.0


def events(facts: Facts) -> Iterator[Sample]:
    for name, found in maps(facts):
        counts = section(found, "capture")
        scanned, repaired = number(counts.get("scanned")), number(counts.get("repaired"))
        changes = number(counts.get("changes"))
        if changes is None or scanned is None or repaired is None:
            continue
        yield (name, "change"), changes - scanned - repaired
        yield (name, "scan"), scanned
        yield (name, "repair"), repaired


def lost(facts: Facts) -> Iterator[Sample]:
    for name, found in maps(facts):
        for place, count in section(found, "capture", "losses").items():
            yield (name, place), number(count) or 0.0


def durations(facts: Facts) -> Iterator[Sample]:
    for name, found in maps(facts):
        published, so_far = section(found, "published"), 0.0
        buckets: list[tuple[str, float]] = []
        for bound, count in section(published, "durations").items():
            so_far += number(count) or 0.0
            buckets.append((bound, so_far))
        if buckets:
            yield (name,), Durations(tuple(buckets), number(published.get("seconds")) or 0.0)


def blocked(facts: Facts) -> Iterator[Sample]:
    for name, found in maps(facts):
        yield (name,), float(bool(found.get("trouble")))


def of_outboxes(key: str) -> Callable[[Facts], Iterator[Sample]]:
    def read(facts: Facts) -> Iterator[Sample]:
        for name, found in maps(facts):
            value = number(section(found, "outbox").get(key))
            if value is not None:
                yield (name, "outbox"), value

    return read


def queue(outbox: str, inbox: str | None) -> Callable[[Facts], Iterator[Sample]]:
    """The outbox of each map, and the inbox that all share, which has no map."""

    def read(facts: Facts) -> Iterator[Sample]:
        yield from of_outboxes(outbox)(facts)
        found = section(facts.document, "inbox")
        value = float(facts.inbox_bytes_max) if inbox is None else number(found.get(inbox))
        if value is not None and found:
            yield ("", "inbox"), value

    return read


def refusals(facts: Facts) -> Iterator[Sample]:
    yield from of_outboxes("batches_refused")(facts)
    waits = number(section(facts.document, "inbox").get("waits"))
    if waits is not None:
        yield ("", "inbox"), waits


def delays(facts: Facts) -> Iterator[Sample]:
    for name, found in maps(facts):
        for key, quantile in (("p50_seconds", "0.5"), ("p99_seconds", "0.99")):
            value = number(section(found, "apply").get(key))
            if value is not None:
                yield (name, quantile), value


def written_at(facts: Facts) -> Iterator[Sample]:
    since_boot = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    for name, found in maps(facts):
        written = number(section(found, "apply").get("written_at"))
        if written:
            yield (name,), since_boot + written / 1e9


def parked(facts: Facts) -> Iterator[Sample]:
    for name, found in maps(facts):
        yield (name,), float(len(section(found, "parked")))


def answers(facts: Facts) -> Iterator[Sample]:
    for code, count in section(facts.http, "answers").items():
        yield (code,), number(count) or 0.0


def turned_away(facts: Facts) -> Iterator[Sample]:
    yield (), number(facts.http.get("turned_away")) or 0.0

"""What a metric is here: name and meaning as data, and how its numbers come out of a document."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from bridge.health.latest import section

PREFIX = "mapbridge_"
BY_MAP = ("map",)


class Kind(enum.StrEnum):
    """What Prometheus is told a metric is."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Facts:
    """What metrics are made of: the last document, its age, the HTTP server's own counts."""

    document: Mapping[str, object]
    age_seconds: float
    http: Mapping[str, object]
    inbox_bytes_max: int


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram. ``buckets``: (upper bound in seconds, observations up to it)."""

    buckets: tuple[tuple[str, float], ...]
    sum_seconds: float


Value = float | Durations
Sample = tuple[tuple[str, ...], Value]
Read = Callable[[Facts], Iterable[Sample]]


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. ``unit`` is what its name ends with, ``_total`` aside; empty: counts, flags."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str
    read: Read

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    def family(self, facts: Facts) -> Metric:
        samples = list(self.read(facts))
        if self.kind is Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(self.full_name, self.help, labels=self.labels)
            for labels, value in samples:
                assert isinstance(value, Durations)
                histogram.add_metric(labels, list(value.buckets), value.sum_seconds)
            return histogram
        kind = CounterMetricFamily if self.kind is Kind.COUNTER else GaugeMetricFamily
        family = kind(self.full_name, self.help, labels=self.labels)
        for labels, value in samples:
            assert not isinstance(value, Durations)
            family.add_metric(labels, value)
        return family


def number(found: object) -> float | None:
    """A number or a flag of a document; ``None`` for what is neither."""
    return float(found) if isinstance(found, int | float) else None


def maps(facts: Facts) -> Iterator[tuple[str, Mapping[str, object]]]:
    for name, found in section(facts.document, "maps").items():
        yield name, section(found)


def of_maps(*path: str) -> Read:
    """One number of each map."""
    *tables, key = path

    def read(facts: Facts) -> Iterator[Sample]:
        for name, found in maps(facts):
            value = number(section(found, *tables).get(key))
            if value is not None:
                yield (name,), value

    return read


def each_of_maps(table: tuple[str, ...], keys: Mapping[str, str]) -> Read:
    """Several numbers of each map; ``keys``: label by the document's key."""

    def read(facts: Facts) -> Iterator[Sample]:
        for name, found in maps(facts):
            counts = section(found, *table)
            for key, label in keys.items():
                value = number(counts.get(key))
                if value is not None:
                    yield (name, label), value

    return read


def of_node(*path: str) -> Read:
    """One number of the node."""
    *tables, key = path

    def read(facts: Facts) -> Iterator[Sample]:
        value = number(section(facts.document, *tables).get(key))
        if value is not None:
            yield (), value

    return read

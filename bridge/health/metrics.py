"""Every metric of the daemon, once: served at ``/metrics``, described in its page of the docs.

No label ever holds a key of a map: the number of series follows from the configuration.
Those of changes stand beside this module, by the way that a change goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import Metric

from bridge.health import readings
from bridge.health.families import BY_MAP, Facts, Kind, Spec, of_maps, of_node
from bridge.health.metrics_incoming import INCOMING
from bridge.health.metrics_outgoing import OUTGOING

GAUGE, COUNTER = Kind.GAUGE, Kind.COUNTER


class NodeCollector:
    """Implements prometheus_client's collector on what is known when it is asked."""

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        facts = self._facts()
        for spec in SPECS:
            yield spec.family(facts)


_NODE: tuple[Spec, ...] = (
    Spec(
        "build_info", GAUGE, "info", ("version",), "1; the version is a label", readings.build_info
    ),
    Spec(
        "node_info",
        GAUGE,
        "info",
        ("node", "cluster", "capture"),
        "1; the node, its cluster and the capture mode in force are labels",
        readings.node_info,
    ),
    Spec(
        "status_age_seconds",
        GAUGE,
        "seconds",
        (),
        "age of what the other metrics were made of; when it is older than 3 s they are left out",
        readings.status_age,
    ),
    Spec(
        "config_reloads_total",
        COUNTER,
        "",
        ("result",),
        "configurations that were read again: taken, or refused, which changed nothing",
        readings.reloads,
    ),
    Spec(
        "config_last_reload_successful",
        GAUGE,
        "",
        (),
        "0 while the last configuration that was read is not in force, because it was refused",
        readings.last_reload,
    ),
)

_STATE: tuple[Spec, ...] = (
    Spec(
        "map_state",
        GAUGE,
        "",
        ("map", "state"),
        "1 for the state that the map is in",
        readings.states,
    ),
    Spec(
        "map_synced",
        GAUGE,
        "",
        BY_MAP,
        "1 when the map holds what the stream says and is within its lag limit",
        of_maps("synced"),
    ),
    Spec(
        "map_behind_seconds",
        GAUGE,
        "seconds",
        BY_MAP,
        "so long ago the map held all that the stream held; absent: never",
        of_maps("behind_seconds"),
    ),
    Spec(
        "map_lives_total",
        COUNTER,
        "",
        BY_MAP,
        "kernel maps that stood at the map's place",
        of_maps("lives"),
    ),
    Spec(
        "map_trouble",
        GAUGE,
        "",
        BY_MAP,
        "1 while nothing is stored or read; the status says why",
        readings.blocked,
    ),
    Spec("map_parked_nodes", GAUGE, "", BY_MAP, "nodes whose layout does not fit", readings.parked),
    Spec(
        "verify_drift_keys",
        GAUGE,
        "",
        BY_MAP,
        "keys that differed between nodes when `mapbridge verify` compared the map last; absent: "
        "not since this bridge began",
        of_maps("verified", "drift"),
    ),
    Spec(
        "verify_timestamp_seconds",
        GAUGE,
        "seconds",
        BY_MAP,
        "when it was compared last, since 1970; absent: as above",
        of_maps("verified", "at"),
    ),
)

_BY_QUEUE = ("map", "queue")
_QUEUES: tuple[Spec, ...] = (
    Spec(
        "queue_items",
        GAUGE,
        "",
        _BY_QUEUE,
        "what waits: changes (outbox), messages (inbox)",
        readings.queue("rows", "waiting"),
    ),
    Spec(
        "queue_bytes",
        GAUGE,
        "bytes",
        _BY_QUEUE,
        "what waits",
        readings.queue("bytes", "waiting_bytes"),
    ),
    Spec(
        "queue_capacity_bytes",
        GAUGE,
        "bytes",
        _BY_QUEUE,
        "what may wait",
        readings.queue("capacity_bytes", None),
    ),
    Spec(
        "queue_peak_bytes",
        GAUGE,
        "bytes",
        _BY_QUEUE,
        "most that ever waited",
        readings.queue("bytes_peak", "peak_bytes"),
    ),
    Spec(
        "queue_refusals_total",
        COUNTER,
        "",
        _BY_QUEUE,
        "times that the queue had no room",
        readings.refusals,
    ),
)

_SERVERS: tuple[Spec, ...] = (
    Spec(
        "nats_connected",
        GAUGE,
        "",
        (),
        "1 while the broker is there",
        of_node("broker", "connected"),
    ),
    Spec(
        "nats_reconnects_total",
        COUNTER,
        "",
        (),
        "times that the broker was found again",
        of_node("broker", "reconnects"),
    ),
    Spec("http_answers_total", COUNTER, "", ("code",), "answers of this server", readings.answers),
    Spec(
        "http_turned_away_total",
        COUNTER,
        "",
        (),
        "connections that found all places taken",
        readings.turned_away,
    ),
)

SPECS = (*_NODE, *_STATE, *OUTGOING, *_QUEUES, *INCOMING, *_SERVERS)

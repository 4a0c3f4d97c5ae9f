"""Every metric of the daemon, once: served at ``/metrics``, described in its page of the docs.

No label ever holds a key of a map: the number of series follows from the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import Metric

from bridge.health import readings
from bridge.health.families import Facts, Kind, Spec, each_of_maps, of_maps, of_node

GAUGE, COUNTER, HISTOGRAM = Kind.GAUGE, Kind.COUNTER, Kind.HISTOGRAM


class NodeCollector:
    """Implements prometheus_client's collector on what is known when it is asked."""

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        facts = self._facts()
        for spec in SPECS:
            yield spec.family(facts)


_MAP = ("map",)
_QUEUE = ("map", "queue")
_RESULTS = {
    "updated": "updated",
    "deleted": "deleted",
    "absent": "absent",
    "superseded": "superseded",
    "duplicates": "duplicate",
    "parked": "parked",
    "forgotten": "forgotten",
}

SPECS: tuple[Spec, ...] = (
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
        _MAP,
        "1 when the map holds what the stream says and is within its lag limit",
        of_maps("synced"),
    ),
    Spec(
        "map_behind_seconds",
        GAUGE,
        "seconds",
        _MAP,
        "so long ago the map held all that the stream held; absent: never",
        of_maps("behind_seconds"),
    ),
    Spec(
        "map_lives_total",
        COUNTER,
        "",
        _MAP,
        "kernel maps that stood at the map's place",
        of_maps("lives"),
    ),
    Spec(
        "map_trouble",
        GAUGE,
        "",
        _MAP,
        "1 while nothing is stored or read; the status says why",
        readings.blocked,
    ),
    Spec("map_parked_nodes", GAUGE, "", _MAP, "nodes whose layout does not fit", readings.parked),
    Spec(
        "capture_events_total",
        COUNTER,
        "",
        ("map", "cause"),
        "own changes: as they happened, found by the first scan, or by a repair",
        readings.events,
    ),
    Spec(
        "capture_lost_total",
        COUNTER,
        "",
        ("map", "stage"),
        "changes not recorded, by the place that lost them; each is mended by a repair",
        readings.lost,
    ),
    Spec(
        "capture_refused_total",
        COUNTER,
        "",
        _MAP,
        "times that changes stayed in the ring because the outbox was full",
        of_maps("capture", "refused"),
    ),
    Spec(
        "capture_repairs_total",
        COUNTER,
        "",
        _MAP,
        "comparisons of the map after losses",
        of_maps("capture", "repairs", "finished"),
    ),
    Spec(
        "capture_sweeps_total",
        COUNTER,
        "",
        _MAP,
        "comparisons of the map at its interval",
        of_maps("capture", "sweeps", "finished"),
    ),
    Spec(
        "capture_sweep_seconds",
        GAUGE,
        "seconds",
        _MAP,
        "what the last sweep took",
        of_maps("capture", "sweeps", "seconds"),
    ),
    Spec(
        "capture_doubtful_keys",
        GAUGE,
        "",
        _MAP,
        "keys whose local order is in doubt until their own message returns",
        of_maps("capture", "dirty"),
    ),
    Spec(
        "coalesced_total",
        COUNTER,
        "",
        _MAP,
        "waiting changes that a later one of their key replaced",
        of_maps("outbox", "rows_merged"),
    ),
    Spec(
        "publish_batches_total",
        COUNTER,
        "",
        _MAP,
        "messages stored in the log",
        of_maps("published", "messages"),
    ),
    Spec(
        "publish_held_total",
        COUNTER,
        "",
        _MAP,
        "times that a message of a busy map waited a few milliseconds to grow",
        of_maps("published", "held"),
    ),
    Spec(
        "publish_changes_total",
        COUNTER,
        "",
        _MAP,
        "changes stored in the log",
        of_maps("published", "changes"),
    ),
    Spec(
        "publish_duration_seconds",
        HISTOGRAM,
        "seconds",
        _MAP,
        "from the first attempt to the acknowledgement of a message",
        readings.durations,
    ),
    Spec(
        "queue_items",
        GAUGE,
        "",
        _QUEUE,
        "what waits: changes (outbox), messages (inbox)",
        readings.queue("rows", "waiting"),
    ),
    Spec(
        "queue_bytes",
        GAUGE,
        "bytes",
        _QUEUE,
        "what waits",
        readings.queue("bytes", "waiting_bytes"),
    ),
    Spec(
        "queue_capacity_bytes",
        GAUGE,
        "bytes",
        _QUEUE,
        "what may wait",
        readings.queue("capacity_bytes", None),
    ),
    Spec(
        "queue_peak_bytes",
        GAUGE,
        "bytes",
        _QUEUE,
        "most that ever waited",
        readings.queue("bytes_peak", "peak_bytes"),
    ),
    Spec(
        "queue_refusals_total",
        COUNTER,
        "",
        _QUEUE,
        "times that the queue had no room",
        readings.refusals,
    ),
    Spec(
        "apply_messages_total",
        COUNTER,
        "",
        _MAP,
        "messages of other nodes judged",
        of_maps("apply", "messages"),
    ),
    Spec(
        "apply_deltas_total",
        COUNTER,
        "",
        ("map", "result"),
        "changes of other nodes, by what became of them; superseded: a later one won",
        each_of_maps(("apply",), _RESULTS),
    ),
    Spec(
        "apply_loaded_total",
        COUNTER,
        "",
        _MAP,
        "entries written out of snapshots",
        of_maps("apply", "loaded"),
    ),
    Spec(
        "apply_rejected_total",
        COUNTER,
        "",
        _MAP,
        "messages not applied, for sizes that differ",
        of_maps("apply", "rejected"),
    ),
    Spec(
        "apply_full_total",
        COUNTER,
        "",
        _MAP,
        "updates that found the map full and were kept",
        of_maps("apply", "refused"),
    ),
    Spec(
        "apply_failures_total",
        COUNTER,
        "",
        _MAP,
        "writes that the kernel broke off",
        of_maps("apply", "failed"),
    ),
    Spec(
        "apply_unwritten",
        GAUGE,
        "",
        _MAP,
        "changes that wait to be tried again",
        of_maps("apply", "unwritten"),
    ),
    Spec(
        "replication_lag_seconds",
        GAUGE,
        "seconds",
        _MAP,
        "age of the newest change of the last batch when it was in the map",
        of_maps("apply", "lag_seconds"),
    ),
    Spec(
        "apply_delay_seconds",
        GAUGE,
        "seconds",
        ("map", "quantile"),
        "from a change on its node to this map, since the start; one change in 16 is measured",
        readings.delays,
    ),
    Spec(
        "last_applied_timestamp_seconds",
        GAUGE,
        "seconds",
        _MAP,
        "when the map was last written",
        readings.written_at,
    ),
    Spec(
        "stream_position",
        GAUGE,
        "",
        _MAP,
        "message of the log up to which all is written",
        of_maps("apply", "sequence"),
    ),
    Spec(
        "stream_messages_total",
        COUNTER,
        "",
        _MAP,
        "messages read",
        of_maps("stream", "received"),
    ),
    Spec(
        "stream_broken_total",
        COUNTER,
        "",
        _MAP,
        "messages that could not be read and were skipped",
        of_maps("stream", "broken"),
    ),
    Spec(
        "stream_gaps_total",
        COUNTER,
        "",
        _MAP,
        "holes met: the log forgot messages before the read",
        of_maps("stream", "gaps"),
    ),
    Spec(
        "stream_unmended_total",
        COUNTER,
        "",
        _MAP,
        "holes that no snapshot covered",
        of_maps("stream", "unmended"),
    ),
    Spec("snapshot_loads_total", COUNTER, "", _MAP, "snapshots loaded", of_maps("stream", "loads")),
    Spec(
        "snapshot_load_failures_total",
        COUNTER,
        "",
        _MAP,
        "snapshots that could not be loaded",
        of_maps("stream", "load_failures"),
    ),
    Spec(
        "snapshots_taken_total",
        COUNTER,
        "",
        _MAP,
        "snapshots stored by this node",
        of_maps("snapshots", "taken"),
    ),
    Spec(
        "snapshots_discarded_total",
        COUNTER,
        "",
        _MAP,
        "snapshots begun and thrown away",
        of_maps("snapshots", "discarded"),
    ),
    Spec(
        "join_duration_seconds",
        GAUGE,
        "seconds",
        _MAP,
        "what the last joining took",
        of_maps("joined", "seconds"),
    ),
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

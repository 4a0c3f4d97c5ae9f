"""Metrics of what reaches a node: the log that is read, what is applied, snapshots."""

from __future__ import annotations

from bridge.health import readings
from bridge.health.families import BY_MAP, Kind, Spec, each_of_maps, of_maps

GAUGE, COUNTER = Kind.GAUGE, Kind.COUNTER

_RESULTS = {
    "updated": "updated",
    "deleted": "deleted",
    "absent": "absent",
    "superseded": "superseded",
    "duplicates": "duplicate",
    "parked": "parked",
    "forgotten": "forgotten",
}

INCOMING: tuple[Spec, ...] = (
    Spec(
        "apply_messages_total",
        COUNTER,
        "",
        BY_MAP,
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
        BY_MAP,
        "entries written out of snapshots",
        of_maps("apply", "loaded"),
    ),
    Spec(
        "apply_rejected_total",
        COUNTER,
        "",
        BY_MAP,
        "messages not applied, for sizes that differ",
        of_maps("apply", "rejected"),
    ),
    Spec(
        "apply_full_total",
        COUNTER,
        "",
        BY_MAP,
        "updates that found the map full and were kept",
        of_maps("apply", "refused"),
    ),
    Spec(
        "apply_failures_total",
        COUNTER,
        "",
        BY_MAP,
        "writes that the kernel broke off",
        of_maps("apply", "failed"),
    ),
    Spec(
        "apply_unwritten",
        GAUGE,
        "",
        BY_MAP,
        "changes that wait to be tried again",
        of_maps("apply", "unwritten"),
    ),
    Spec(
        "replication_lag_seconds",
        GAUGE,
        "seconds",
        BY_MAP,
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
        BY_MAP,
        "when the map was last written",
        readings.written_at,
    ),
    Spec(
        "stream_position",
        GAUGE,
        "",
        BY_MAP,
        "message of the log up to which all is written",
        of_maps("apply", "sequence"),
    ),
    Spec(
        "stream_messages_total",
        COUNTER,
        "",
        BY_MAP,
        "messages read",
        of_maps("stream", "received"),
    ),
    Spec(
        "stream_broken_total",
        COUNTER,
        "",
        BY_MAP,
        "messages that could not be read and were skipped",
        of_maps("stream", "broken"),
    ),
    Spec(
        "stream_gaps_total",
        COUNTER,
        "",
        BY_MAP,
        "holes met: the log forgot messages before the read",
        of_maps("stream", "gaps"),
    ),
    Spec(
        "stream_unmended_total",
        COUNTER,
        "",
        BY_MAP,
        "holes that no snapshot covered",
        of_maps("stream", "unmended"),
    ),
    Spec(
        "snapshot_loads_total", COUNTER, "", BY_MAP, "snapshots loaded", of_maps("stream", "loads")
    ),
    Spec(
        "snapshot_load_failures_total",
        COUNTER,
        "",
        BY_MAP,
        "snapshots that could not be loaded",
        of_maps("stream", "load_failures"),
    ),
    Spec(
        "snapshots_taken_total",
        COUNTER,
        "",
        BY_MAP,
        "snapshots stored by this node",
        of_maps("snapshots", "taken"),
    ),
    Spec(
        "snapshots_discarded_total",
        COUNTER,
        "",
        BY_MAP,
        "snapshots begun and thrown away",
        of_maps("snapshots", "discarded"),
    ),
    Spec(
        "join_duration_seconds",
        GAUGE,
        "seconds",
        BY_MAP,
        "what the last joining took",
        of_maps("joined", "seconds"),
    ),
)

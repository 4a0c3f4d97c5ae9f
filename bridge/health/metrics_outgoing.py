"""Metrics of what leaves a node: changes captured, put together and published."""

from __future__ import annotations

from bridge.health import readings
from bridge.health.families import BY_MAP, Kind, Spec, of_maps

GAUGE, COUNTER, HISTOGRAM = Kind.GAUGE, Kind.COUNTER, Kind.HISTOGRAM

OUTGOING: tuple[Spec, ...] = (
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
        BY_MAP,
        "times that changes stayed in the ring because the outbox was full",
        of_maps("capture", "refused"),
    ),
    Spec(
        "capture_repairs_total",
        COUNTER,
        "",
        BY_MAP,
        "comparisons of the map after losses",
        of_maps("capture", "repairs", "finished"),
    ),
    Spec(
        "capture_sweeps_total",
        COUNTER,
        "",
        BY_MAP,
        "comparisons of the map at its interval",
        of_maps("capture", "sweeps", "finished"),
    ),
    Spec(
        "capture_sweep_seconds",
        GAUGE,
        "seconds",
        BY_MAP,
        "what the last sweep took",
        of_maps("capture", "sweeps", "seconds"),
    ),
    Spec(
        "capture_doubtful_keys",
        GAUGE,
        "",
        BY_MAP,
        "keys whose local order is in doubt until their own message returns",
        of_maps("capture", "dirty"),
    ),
    Spec(
        "coalesced_total",
        COUNTER,
        "",
        BY_MAP,
        "waiting changes that a later one of their key replaced",
        of_maps("outbox", "rows_merged"),
    ),
    Spec(
        "publish_batches_total",
        COUNTER,
        "",
        BY_MAP,
        "messages stored in the log",
        of_maps("published", "messages"),
    ),
    Spec(
        "publish_held_total",
        COUNTER,
        "",
        BY_MAP,
        "times that a message of a busy map waited a few milliseconds to grow",
        of_maps("published", "held"),
    ),
    Spec(
        "publish_changes_total",
        COUNTER,
        "",
        BY_MAP,
        "changes stored in the log",
        of_maps("published", "changes"),
    ),
    Spec(
        "publish_duration_seconds",
        HISTOGRAM,
        "seconds",
        BY_MAP,
        "from the first attempt to the acknowledgement of a message",
        readings.durations,
    ),
)

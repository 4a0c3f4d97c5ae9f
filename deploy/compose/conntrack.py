"""The connection tracker for docker-compose.yml: a map for each of three nodes, and traffic.

The containers share one kernel, so each node gets a map of its own, of the same shape, at a pin of
its own: PINS/NODE/maps/ct. Node a's is written by the tracker's programs, which see real TCP
connections between two network namespaces of this container; the others begin empty.

    conntrack.py            load what is not there yet, open and close connections until SIGTERM
    conntrack.py remove     remove the pins

Pins outlive the container. When it starts again it goes on with the maps that are there: what the
programs had tracked before is forgotten, as it would be on a machine that was booted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from bridge.demo.topology import Topology
from bridge.demo.tracker import Tracker
from bridge.demo.traffic import Traffic
from bridge.errors import BridgeError
from bridge.kernel.maps import open_pin
from bridge.rig.claim import Claim

PINS = Path("/sys/fs/bpf/mapbridge")
NODES = ("a", "b", "c")
SESSIONS = int(os.environ.get("SESSIONS", "2000"))  # that stay open
STEP = max(SESSIONS // 20, 1)  # sessions opened, and closed, per second
STEP_SECONDS = 1.0
DONE_SECONDS_MAX = 60.0
SAY_EVERY = 60  # steps


class FixedPlaces(Claim):
    """Names that are the same in every run: the namespaces are this container's alone."""

    def __init__(self) -> None:
        super().__init__("compose", -1)

    @property
    def pin_directory(self) -> Path:
        return PINS


def load(tracker: Tracker) -> None:
    pins = tracker.pins.values()
    if not all(one.map.exists() for one in pins) or not tracker.active.ingress.exists():
        tracker.remove()
        tracker.load()
        return
    with open_pin(tracker.active.map) as kernel_map:
        for keys, _ in list(kernel_map.scan()):
            kernel_map.delete_batch(keys)


def keep_going(traffic: Traffic, stop: threading.Event) -> None:
    steps = 0
    while not stop.wait(STEP_SECONDS if steps else 0.0):
        held = traffic.progress().asked
        if held >= SESSIONS:
            traffic.close(STEP)
        traffic.open(STEP)
        told = traffic.wait(DONE_SECONDS_MAX)
        if steps % SAY_EVERY == 0:
            print(f"{told.open:,} connections open, {told.closed:,} closed so far")
        steps += 1


def run() -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    places = FixedPlaces()
    tracker = Tracker(places, SESSIONS + STEP, NODES)
    with Topology(places) as topology:
        load(tracker)
        topology.attach(tracker.active.ingress, tracker.active.egress)
        print(f"tracking connections in {tracker.active.map}")
        with Traffic(topology, SESSIONS + STEP) as traffic:
            keep_going(traffic, stop)
            traffic.close()
            traffic.wait(DONE_SECONDS_MAX)


def main() -> int:
    try:
        if sys.argv[1:] == ["remove"]:
            Tracker(FixedPlaces(), SESSIONS + STEP, NODES).remove()
        elif sys.argv[1:]:
            print(__doc__, file=sys.stderr)
            return 2
        else:
            run()
    except BridgeError as error:
        print(f"Error: {error}\nTry: {error.hint}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())

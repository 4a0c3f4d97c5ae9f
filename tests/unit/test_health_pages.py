"""Readiness and the pages, for what a node may have said of itself and how long ago."""

from __future__ import annotations

from http import HTTPStatus

import orjson
import pytest

from bridge.config import Config, parse
from bridge.health.http import Answer, Request
from bridge.health.latest import DEAD_SECONDS, STALE_SECONDS, Latest, Phase
from bridge.health.neighbours import FORGOTTEN_SECONDS, LOOKED_AT_SECONDS, Neighbours, Roll
from bridge.health.pages import DASHBOARD, Pages

CONFIG: Config = parse(
    """
[node]
name = "a"
[[maps]]
name = "ct"
pin = "/sys/fs/bpf/ct"
[[maps]]
name = "lb"
pin = "/sys/fs/bpf/lb"
[[maps]]
pin = "/sys/fs/bpf/x/*"
name = "x-*"
"""
)
SYNCED = {"state": "running", "synced": True, "behind_seconds": 0.25}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A node's pages, and a clock that only the test moves."""

    def __init__(self, **maps: dict[str, object]) -> None:
        self.clock = Clock()
        self.latest = Latest(self.clock)
        self.neighbours = Neighbours(self.clock)
        self.pages = Pages(
            CONFIG,
            self.latest,
            lambda: {"answers": {"200": 7}, "turned_away": 3},
            self.neighbours,
        )
        if maps:
            self.latest.tell(
                {"node": "a", "version": "1", "broker": {"connected": True}, "maps": maps}
            )
            self.latest.enter(Phase.RUNNING, "running")

    def get(self, path: str, query: str = "") -> Answer:
        return self.pages(Request(path, query, ""))

    def ready(self, query: str = "") -> tuple[HTTPStatus, list[str]]:
        answer = self.get("/readyz", query)
        body = orjson.loads(answer.body)
        assert body["ready"] == (answer.status is HTTPStatus.OK)
        return answer.status, body["reasons"]


OK, AWAY = HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE


def test_ready_when_all_maps_are_synced() -> None:
    node = Node(ct=SYNCED, lb=SYNCED)
    assert node.ready() == (OK, [])
    assert node.ready("map=ct&map=lb&lag=5s") == (OK, [])


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({}, "nothing is known of it yet"),
        ({"state": "waiting", "synced": False}, "the kernel has no such map yet"),
        ({"state": "joining", "synced": False}, "reads the stream up to its end"),
        ({"state": "parked", "synced": False}, "changes of another layout wait"),
        ({"state": "running", "synced": False, "behind_seconds": 7.0}, "7.0 s behind"),
        ({"state": "failed", "synced": False}, "not synced, it is failed"),
        (
            {"state": "joining", "synced": False, "trouble": "disk full"},
            "reads the stream up to its end (disk full)",
        ),
    ],
)
def test_not_ready_says_why(found: dict[str, object], reason: str) -> None:
    node = Node(ct=SYNCED, lb=found)
    assert node.ready() == (AWAY, [f"map lb: {reason}"])
    assert node.ready("map=ct") == (OK, [])
    assert node.ready("map=lb") == (AWAY, [f"map lb: {reason}"])


def test_maps_that_patterns_found_count_too() -> None:
    node = Node(ct=SYNCED, lb=SYNCED, **{"x-1": {"state": "joining", "synced": False}})
    assert node.ready()[0] is AWAY
    assert node.ready("map=x-1")[0] is AWAY
    assert node.ready("map=x-2") == (AWAY, ["map x-2: nothing is known of it yet"])


def test_a_broker_that_is_away_is_the_reason() -> None:
    node = Node(ct=SYNCED, lb=SYNCED)
    lost = {"state": "running", "synced": False, "behind_seconds": 1.0}
    node.latest.tell({"broker": {"connected": False}, "maps": {"ct": lost, "lb": SYNCED}})
    assert node.ready() == (AWAY, ["map ct: the broker is away"])


def test_age_counts_against_readiness() -> None:
    node = Node(ct=SYNCED, lb=SYNCED)
    node.clock.now += 1.0
    assert node.ready("lag=1s")[1] == [
        f"map {name}: 1.2 s behind, more than 1 s" for name in ("ct", "lb")
    ]
    assert node.ready("lag=2s") == (OK, [])
    node.clock.now += STALE_SECONDS
    assert node.ready() == (AWAY, ["the bridge has said nothing for 4.0 s"])


def test_a_map_that_is_only_published_has_no_lag_to_exceed() -> None:
    never = {"state": "running", "synced": True, "behind_seconds": None}
    assert Node(ct=never, lb=SYNCED).ready("lag=5s")[1] == [
        "map ct: never had everything, more than 5 s"
    ]


def test_not_ready_before_the_start_and_at_the_end() -> None:
    node = Node()
    node.latest.enter(Phase.STARTING, "connecting")
    assert node.ready()[1][0] == "the node is starting: connecting"
    assert node.get("/status").status is AWAY
    ending = Node(ct=SYNCED, lb=SYNCED)
    ending.latest.enter(Phase.STOPPING, "stopping")
    assert ending.ready() == (AWAY, ["the node is stopping: stopping"])


@pytest.mark.parametrize(
    ("path", "query", "status", "reason"),
    [
        ("/readyz", "lag=5", 400, "lag: "),
        ("/readyz", "lag=", 400, "lag: "),
        ("/readyz", "lag=250ms", 400, "lag: must be 1s to 1h"),
        ("/readyz", "lag=2s&lag=3s", 400, "lag: given more than once"),
        ("/readyz", "lga=5s", 400, "query: unknown parameter (got 'lga'); known: lag, map"),
        ("/readyz", "x", 400, "query: cannot be read"),
        ("/readyz", "map=%ff", 400, "query: cannot be read"),
        ("/readyz", "&".join(["map=ct"] * 65), 400, "query: cannot be read"),
        ("/readyz", "map=nothing", 404, "map: not bridged here (got 'nothing')"),
        ("/livez", "verbose=1", 400, "query: unknown parameter"),
        ("/index.html", "", 404, "no such path"),
        ("/metrics/", "", 404, "no such path"),
    ],
)
def test_wrong_questions_are_not_answered_with_ready(
    path: str, query: str, status: int, reason: str
) -> None:
    answer = Node(ct=SYNCED, lb=SYNCED).get(path, query)
    assert answer.status == status
    assert orjson.loads(answer.body)["error"].startswith(reason)


def test_alive_as_long_as_there_are_signs_of_it() -> None:
    node = Node(ct=SYNCED)
    assert node.get("/livez").status is OK
    node.clock.now += DEAD_SECONDS + 1
    assert node.get("/livez").status is AWAY
    node.latest.beat()
    assert node.get("/livez").status is OK


def test_metrics_are_written_out_again_only_for_what_is_new() -> None:
    node = Node(ct=SYNCED)
    first = node.get("/metrics")
    assert node.get("/metrics") is first
    text = node.pages(Request("/metrics", "", "application/openmetrics-text; version=1.0.0"))
    assert text.content_type.startswith("application/openmetrics-text")
    assert text.body.endswith(b"# EOF\n")
    node.latest.tell({"broker": {"connected": False}, "maps": {"ct": SYNCED}})
    assert b"mapbridge_nats_connected 0.0" in node.get("/metrics").body
    node.latest.enter(Phase.STOPPING, "stopping")
    assert b"\nmapbridge_nats_connected" not in node.get("/metrics").body


def test_old_numbers_are_no_metrics() -> None:
    node = Node(ct=SYNCED)
    assert b'mapbridge_map_synced{map="ct"} 1.0' in node.get("/metrics").body
    node.clock.now += STALE_SECONDS + 1
    old = node.get("/metrics").body
    assert b"mapbridge_map_synced{" not in old
    assert b"mapbridge_status_age_seconds 4.0" in old
    assert b'mapbridge_http_answers_total{code="200"} 7.0' in old


def test_the_cluster_is_asked_for_only_while_somebody_looks() -> None:
    node = Node(ct=SYNCED)
    assert not node.neighbours.wanted()
    first = orjson.loads(node.get("/cluster").body)
    assert (first["nodes"], first["age_seconds"]) == ([], None)
    assert first["own"]["maps"]["ct"]["synced"] is True
    assert node.neighbours.wanted()
    node.neighbours.tell([{"node": "b", "maps": {}}])
    node.clock.now += 2
    then = orjson.loads(node.get("/cluster").body)
    assert (then["nodes"], then["age_seconds"]) == (
        [{"node": "b", "maps": {}, "silent_seconds": 0.0}],
        2.0,
    )
    node.clock.now += LOOKED_AT_SECONDS
    assert not node.neighbours.wanted()
    assert orjson.loads(node.get("/cluster").body)["own"] is None, "its own word has become old"


def test_a_node_that_says_nothing_any_more_is_shown_on() -> None:
    roll = Roll()
    a, b = {"node": "a"}, {"node": "b"}
    roll.hear([b, a], 10.0)
    later = roll.hear([a], 20.0)
    assert [(one["node"], one["silent_seconds"]) for one in later] == [("a", 0.0), ("b", 10.0)]
    assert [one["node"] for one in roll.hear([a], 11.0 + FORGOTTEN_SECONDS)] == ["a"]


def test_many_nodes_are_asked_less_often() -> None:
    neighbours = Neighbours()
    assert neighbours.pause_seconds == 1.0
    neighbours.tell([{"node": str(number)} for number in range(1000)])
    assert neighbours.pause_seconds == 10.0


def test_the_page_for_people_brings_all_it_needs() -> None:
    answer = Node(ct=SYNCED).get("/")
    assert answer.content_type == "text/html; charset=utf-8"
    policy = dict(answer.headers)["Content-Security-Policy"]
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy
    text = DASHBOARD.read_text()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert " style=" not in text, "the policy would not let it pass"

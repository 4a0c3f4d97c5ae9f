"""What a node says of itself, out of its status, and as a micro service."""

from __future__ import annotations

from bridge.bus.micro import MicroService
from bridge.health.summary import summary

STATUS: dict[str, object] = {
    "node": "a",
    "cluster": "c",
    "version": "1.2.3",
    "started": 1.0,
    "written": 2.0,
    "capture": {"mode": "fentry"},
    "broker": {"connected": True, "trouble": "", "url": "nats://me:secret@10.0.0.1:4222"},
    "maps": {
        "ct": {
            "role": "replicate",
            "state": "running",
            "synced": True,
            "behind_seconds": 0.5,
            "published": {"changes": 7},
            "apply": {"sequence": 11, "changes": 5},
            "capture": {
                "repaired": 3,
                "losses": {"ring_full": 2, "fault": 1},
                "repairs": {"finished": 1},
            },
            "stream": {"unmended": 4},
            "parked": {"b": "its layout"},
            "lives": 2,
        },
        "new": {"state": "waiting"},
    },
}


def test_a_summary_says_what_people_ask_for() -> None:
    found = summary(STATUS)
    assert (found["node"], found["capture"], found["connected"]) == ("a", "fentry", True)
    maps = found["maps"]
    assert isinstance(maps, dict)
    told = maps["ct"]
    assert told["lost"] == 7
    assert (told["position"], told["published"], told["applied"], told["repaired"]) == (11, 7, 5, 3)
    assert told["trouble"] == "changes of b are parked: their layout does not fit"
    assert maps["new"]["state"] == "waiting"
    assert maps["new"]["lost"] == 0
    assert "secret" not in str(found)


def test_the_answers_of_a_micro_service() -> None:
    service = MicroService("1.2.3", "mapbridge.c.ctl.a.*", {"node": "a"}, lambda: summary(STATUS))
    assert len(service.subjects()) == 9
    for subject in service.subjects():
        answer = service.answer(subject)
        assert answer is not None
        assert (answer["name"], answer["version"]) == ("mapbridge", "1.2.3")
    stats = service.answer("$SRV.STATS")
    assert stats is not None
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    assert stats["endpoints"][0]["data"]["node"] == "a"  # type: ignore[index]
    assert service.answer("$SRV.SCHEMA") is None
    assert service.answer("mapbridge.c.ctl") is None

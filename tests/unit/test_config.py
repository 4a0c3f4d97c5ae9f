"""What a configuration file may say, and what follows from what it does not say."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bridge.capture.source import Mode
from bridge.capture.transport import PERF_PAGES, Transport
from bridge.config import (
    CaptureMode,
    CaptureTransport,
    ConfigError,
    ListenAddress,
    Storage,
    parse,
    sample,
)
from bridge.config.document import Document
from bridge.model import MapSelector, Role
from tests.config_kit import problems_of, several, with_map

FULL = """
[node]
name = "lb-1"
cluster = "edge"
state_dir = "/srv/bridge"

[broker]
url = "nats://10.0.0.1:4222, tls://10.0.0.2"
storage = "memory"
replicas = 3

[capture]
mode = "kprobe"
sweep = "1.5s"
ring = "1MiB"
transport = "perf"
perf_pages = 1024

[limits]
outbox = "128MiB"
inbox = "1GiB"

[[maps]]
name = "conntrack"
pin = "/sys/fs/bpf/ct"
emit = "/sys/fs/bpf/events"
emit_losses = "/sys/fs/bpf/lost"

[[maps]]
name = "nat"
map = "nat_table"
role = "publish"
emit = { id = 9 }
emit_losses = { map = "lost" }
ring = "4MiB"
sweep = "10ms"

[[maps]]
name = "acl"
id = 42
role = "apply"
"""


def test_every_key_arrives() -> None:
    config = parse(FULL)
    assert (config.node.name, config.node.cluster) == ("lb-1", "edge")
    assert config.node.state_directory == Path("/srv/bridge")
    assert config.broker.urls == ("nats://10.0.0.1:4222", "tls://10.0.0.2")
    assert (config.broker.storage, config.broker.replicas) == (Storage.MEMORY, 3)
    assert not config.broker.embedded
    assert config.capture.mode is CaptureMode.KPROBE
    assert (config.capture.sweep_seconds, config.capture.ring_bytes) == (1.5, 1 << 20)
    assert config.capture.transport is CaptureTransport.PERF
    assert config.capture.perf_pages == 1024
    assert (config.limits.outbox_bytes, config.limits.inbox_bytes) == (128 << 20, 1 << 30)
    conntrack, nat, acl = config.maps
    assert conntrack.selector == MapSelector(pin="/sys/fs/bpf/ct")
    assert conntrack.emit == MapSelector(pin="/sys/fs/bpf/events")
    assert conntrack.emit_losses == MapSelector(pin="/sys/fs/bpf/lost")
    assert nat.emit_losses == MapSelector(name="lost")
    assert conntrack.role is Role.REPLICATE
    assert (nat.selector, nat.emit) == (MapSelector(name="nat_table"), MapSelector(id=9))
    assert (acl.selector, acl.role, acl.emit) == (MapSelector(id=42), Role.APPLY, None)


def test_a_map_may_ask_for_sweeps_and_ignore_bytes() -> None:
    (entry,) = parse(with_map('id = 1\nsweep = "2s"\nignore = ["16:24", "last.seen"]')).maps
    assert (entry.sweeps_too, entry.sweep_seconds) == (True, 2.0)
    assert entry.ignore == ("16:24", "last.seen")
    (entry,) = parse(with_map("id = 1")).maps
    assert (entry.sweeps_too, entry.ignore) == (False, ())


def test_http_listens_at_an_address_or_a_unix_socket_or_nowhere() -> None:
    head = '[node]\nname = "a"\n'
    assert parse(head).http.listen is None
    assert parse(f'{head}[http]\nlisten = "[::1]:0"').http.listen == ListenAddress("::1", 0)
    assert parse(f'{head}[http]\nlisten = "unix:/run/s"').http.listen == Path("/run/s")


def test_a_map_inherits_what_it_does_not_override() -> None:
    conntrack, nat, _ = parse(FULL).maps
    assert (conntrack.sweep_seconds, conntrack.ring_bytes) == (1.5, 1 << 20)
    assert (nat.sweep_seconds, nat.ring_bytes) == (0.01, 4 << 20)


def test_a_guard_counts_shares_in_a_window() -> None:
    text = '[node]\nname = "a"\n[[maps]]\nname = "m"\npin = "/p"\n'
    guard = parse(text + 'guard = { deletes = "50%", window = "3s" }').maps[0].guard
    assert (guard.deletes, guard.changes, guard.window_seconds) == (0.5, None, 3.0)
    assert parse(text).maps[0].guard.deletes is None
    found = problems_of(text + 'guard = { deletes = 0.5, change = "200%" }')
    assert [line.split(":")[0] for line in found] == [
        "maps[0].guard.change",
        "maps[0].guard.deletes",
    ]


def test_defaults() -> None:
    config = parse('[node]\nname = "a"')
    assert config.node.cluster == "default"
    assert config.node.state_directory == Path("/var/lib/mapbridge")
    assert config.broker.embedded
    assert config.broker.listen == ListenAddress("127.0.0.1", 4222)
    assert (config.broker.storage, config.broker.replicas) == (Storage.FILE, 1)
    assert config.capture.mode is CaptureMode.AUTO
    assert (config.capture.sweep_seconds, config.capture.ring_bytes) == (0.25, 16 << 20)
    assert config.capture.transport is CaptureTransport.AUTO
    assert config.capture.perf_pages == PERF_PAGES
    assert (config.limits.outbox_bytes, config.limits.inbox_bytes) == (64 << 20, 64 << 20)
    assert config.maps == ()


def test_listen_takes_an_address_of_version_6() -> None:
    config = parse('[node]\nname = "a"\n[broker]\nlisten = "[::1]:0"')
    assert config.broker.listen == ListenAddress("::1", 0)
    assert str(config.broker.listen) == "[::1]:0"


@pytest.mark.parametrize(
    ("lines", "own", "name", "selector"),
    [
        ('pin = "/sys/fs/bpf/lb/*"', "vip", "vip", MapSelector(pin="/sys/fs/bpf/lb/vip")),
        ('map = "ct_*"', "ct_4", "ct_4", MapSelector(name="ct_4")),
        ('map = "ct_*"\nname = "x-*"', "ct_4", "x-ct_4", MapSelector(name="ct_4")),
        ('pin = "/b/[ab]?"\nname = "*.lb"', "a1", "a1.lb", MapSelector(pin="/b/a1")),
    ],
)
def test_a_pattern_stands_for_all_maps_that_match(
    lines: str, own: str, name: str, selector: MapSelector
) -> None:
    config = parse(several(f'{lines}\nrole = "publish"'))
    entry = config.maps[0]
    assert entry.selector.is_pattern
    member = entry.member(own)
    assert (member.name, member.selector, member.role) == (name, selector, Role.PUBLISH)
    assert config.map(name) == member
    with pytest.raises(KeyError):
        config.map("")


def test_the_sample_is_valid_and_shows_every_key() -> None:
    assert parse(sample()).maps[0].name == "conntrack"
    shown = sample()
    for table, field in Document.model_fields.items():
        assert f"[{table}]" in shown
        model = field.annotation
        keys = getattr(model, "model_fields", None)
        for key in keys or (
            "name",
            "pin",
            "map",
            "id",
            "role",
            "conflict",
            "emit",
            "emit_losses",
            "sweep",
            "ignore",
            "ring",
            "guard",
        ):
            forms = (f"\n{key} = ", f"\n#{key} = ", f"\n#   {key} = ")
            assert any(form in shown for form in forms), f"{table}.{key}"


def test_the_defaults_that_the_sample_shows_are_the_real_ones() -> None:
    head = sample().split("# One table per map.")[0]
    lines = head.splitlines()
    kept = [line.removeprefix("#") for line in lines if not line.startswith(("# ", "#   ", "#url"))]
    text = "\n".join(kept)
    assert tomllib.loads(text)["capture"]["mode"] == "auto"
    assert parse(text) == parse('[node]\nname = "node-a"')


def test_capture_modes_are_those_of_the_sources() -> None:
    assert [mode.value for mode in CaptureMode] == [mode.value for mode in Mode]
    assert [one.value for one in CaptureTransport] == [one.value for one in Transport]


def test_a_declared_layout() -> None:
    base = '[node]\nname = "n"\n[[maps]]\nname = "a"\nid = 1\n[maps.layout]\n'
    found = parse(base + 'types = "struct k { __be32 ip; };"\nkey = "struct k"\nvalue = "__u64"\n')
    declared = found.maps[0].declared
    assert declared is not None
    assert (declared.layout.key.size, declared.layout.value.size) == (4, 8)
    for text, path, said in (
        ('key = "struct k"\nvalue = "__u64"', "maps[0].layout", "no such type (got 'struct k')"),
        ('key = "__u32"', "maps[0].layout.value", "is required"),
        (
            'key = "__u32"\nvalue = "__u32"\ntype = ""',
            "maps[0].layout.type",
            "did you mean 'types'",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            parse(base + text)
        (problem,) = caught.value.problems
        assert problem.path == path
        assert said in str(problem)

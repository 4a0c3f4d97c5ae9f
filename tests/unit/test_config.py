"""What a configuration file may say, and what a reader is told when it says something else."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from bridge.access import Secret
from bridge.capture.source import Mode
from bridge.capture.transport import PERF_PAGES, Transport
from bridge.config import (
    BrokerConfig,
    CaptureMode,
    CaptureTransport,
    ConfigError,
    ListenAddress,
    Problem,
    Storage,
    from_mapping,
    load,
    parse,
    sample,
)
from bridge.config.document import Document
from bridge.config.units import format_duration, format_size, parse_duration, parse_size
from bridge.errors import Exit
from bridge.model import MapSelector, Role

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


def problems_of(text: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.exit_code is Exit.CONFIG
    return {problem.path: problem for problem in caught.value.problems}


def with_map(lines: str) -> str:
    return f'[node]\nname = "a"\n[[maps]]\nname = "m"\n{lines}'


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


@pytest.mark.parametrize("ignore", ["'1:2'", "[1]", "['2:2']", "['x:y']", "['0:65537']", "['']"])
def test_what_cannot_be_ignored(ignore: str) -> None:
    assert "must" in problems_of(with_map(f"id = 1\nignore = {ignore}"))["maps[0].ignore"].reason


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


def test_all_problems_are_told_at_once() -> None:
    found = problems_of(
        """
        [node]
        name = "a.b"
        [broker]
        storage = "tape"
        replicas = 2
        [capture]
        mode = "probes"
        ring = "15MiB"
        [[maps]]
        name = "x"
        pin = "/a"
        id = 3
        role = "both"
        """
    )
    assert set(found) == {
        "node.name",
        "broker.storage",
        "broker.replicas",
        "capture.mode",
        "capture.ring",
        "maps[0]",
        "maps[0].role",
    }
    assert found["maps[0]"].got == "pin and id"


def test_a_message_has_file_path_reason_and_value(tmp_path: Path) -> None:
    file = tmp_path / "bridge.toml"
    file.write_text(with_map('pin = "/a"\nrole = "both"'))
    with pytest.raises(ConfigError) as caught:
        load(file)
    expected = (
        "maps[0].role: must be one of publish, apply, replicate (got 'both' in bridge.toml:6)"
    )
    assert str(caught.value) == f"{file}: {expected}"
    assert "mapbridge config init" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ('[node]\nname = "a"\nclustr = "x"', "node.clustr", "did you mean 'cluster'?"),
        ('[node]\nname = "a"\nsweep = "1s"', "node.sweep", "did you mean 'sweep' of capture?"),
        ('[node]\nname = "a"\n[[map]]\nid = 1', "map", "did you mean 'maps'?"),
        (with_map('id = 1\nrolle = "apply"'), "maps[0].rolle", "did you mean 'role'?"),
        (
            with_map("id = 1\nemit_losses = '/l'\nemit = { pinn = '/a' }"),
            "maps[0].emit.pinn",
            "did you mean 'pin'?",
        ),
        ('[node]\nname = "a"\nzzz = 1', "node.zzz", ""),
    ],
)
def test_an_unknown_key_names_the_nearest(text: str, path: str, hint: str) -> None:
    problem = problems_of(text)[path]
    assert (problem.reason, problem.hint) == ("unknown key", hint)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "node.name"),
        ("[node]", "node.name"),
        ("[node]\nname = 5", "node.name"),
        (f'[node]\nname = "{"a" * 65}"', "node.name"),
        ('[node]\nname = "a"\ncluster = "x y"', "node.cluster"),
        ('[node]\nname = "a"\nstate_dir = "var"', "node.state_dir"),
        ('node = "a"', "node"),
        ('maps = "a"\n[node]\nname = "a"', "maps"),
        ('[node]\nname = "a"\n[broker]\nurl = "10.0.0.1"', "broker.url"),
        ('[node]\nname = "a"\n[broker]\nurl = "nats://h:99999"', "broker.url"),
        ('[node]\nname = "a"\n[broker]\nurl = ""', "broker.url"),
        ('[node]\nname = "a"\n[broker]\nlisten = "4222"', "broker.listen"),
        ('[node]\nname = "a"\n[broker]\nlisten = "h:66000"', "broker.listen"),
        ('[node]\nname = "a"\n[broker]\nreplicas = true', "broker.replicas"),
        ('[node]\nname = "a"\n[broker]\nreplicas = 3', "broker.replicas"),
        ('[node]\nname = "a"\n[broker]\nurl = "nats://h"\nlisten = "h:1"', "broker.listen"),
        ('[node]\nname = "a"\n[capture]\nsweep = 250', "capture.sweep"),
        ('[node]\nname = "a"\n[capture]\nsweep = "1ms"', "capture.sweep"),
        ('[node]\nname = "a"\n[capture]\nsweep = "soon"', "capture.sweep"),
        ('[node]\nname = "a"\n[capture]\nring = "1KiB"', "capture.ring"),
        ('[node]\nname = "a"\n[capture]\nring = "3MiB"', "capture.ring"),
        ('[node]\nname = "a"\n[capture]\ntransport = "pipe"', "capture.transport"),
        ('[node]\nname = "a"\n[capture]\nperf_pages = 8', "capture.perf_pages"),
        ('[node]\nname = "a"\n[capture]\nperf_pages = 96', "capture.perf_pages"),
        ('[node]\nname = "a"\n[capture]\nperf_pages = 131072', "capture.perf_pages"),
        ('[node]\nname = "a"\n[capture]\nperf_pages = "2MiB"', "capture.perf_pages"),
        ('[node]\nname = "a"\n[limits]\noutbox = "64MB"', "limits.outbox"),
        ('[node]\nname = "a"\n[limits]\ninbox = "0.3B"', "limits.inbox"),
        ('[node]\nname = "a"\n[http]\nlisten = "9475"', "http.listen"),
        ('[node]\nname = "a"\n[http]\nlisten = "unix:run/s"', "http.listen"),
        ('[node]\nname = "a"\n[http]\nlisten = "unix:/a\\u0000b"', "http.listen"),
        (f'[node]\nname = "a"\n[http]\nlisten = "unix:/{"a" * 107}"', "http.listen"),
        (with_map(""), "maps[0]"),
        (with_map("id = 0"), "maps[0].id"),
        (with_map("id = true"), "maps[0].id"),
        (with_map('map = "longer_than_15_b"'), "maps[0].map"),
        (with_map('map = "a-b"'), "maps[0].map"),
        (with_map('pin = "ct"'), "maps[0].pin"),
        (with_map("id = 1\nemit_losses = '/l'\nemit = {}"), "maps[0].emit"),
        (with_map("id = 1\nemit_losses = '/l'\nemit = 5"), "maps[0].emit"),
        (with_map("id = 1\nemit = '/ring'"), "maps[0].emit"),
        (with_map("id = 1\nemit_losses = '/l'"), "maps[0].emit_losses"),
        (with_map("id = 1").replace('"m"', '"m*"'), "maps[0].name"),
        (with_map('id = 1\n[[maps]]\nname = "m"\nid = 2'), "maps[1].name"),
        (with_map('id = 1\n[[maps]]\nname = "n"\nid = 1'), "maps[1].id"),
        (with_map('pin = "/a"\n[[maps]]\nname = "n"\npin = "/a"'), "maps[1].pin"),
    ],
)
def test_what_is_refused(text: str, path: str) -> None:
    assert list(problems_of(text)) == [path]


def test_problems_stand_in_the_order_of_the_maps() -> None:
    text = '[node]\nname = "a"\n' + "".join(f'[[maps]]\nname = "m{i}"\n' for i in range(12))
    assert list(problems_of(text)) == [f"maps[{i}]" for i in range(12)]


def test_too_many_maps() -> None:
    text = '[node]\nname = "a"\n'
    text += "".join(f'[[maps]]\nname = "m{i}"\nid = {i}\n' for i in range(1, 1002))
    assert problems_of(text)["maps"].reason == "at most 1000 maps"


def several(lines: str) -> str:
    return f'[node]\nname = "a"\n[[maps]]\n{lines}'


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


@pytest.mark.parametrize(
    ("lines", "path", "reason"),
    [
        ('pin = "/b/*"\nname = "lb"', "maps[0].name", "needs a '*'"),
        ('pin = "/b/m"\nname = "lb-*"', "maps[0].name", "needs a pattern in pin or map"),
        ('pin = "/b/m"', "maps[0].name", "is required"),
        ('pin = "/b/*"\nname = "a*b*"', "maps[0].name", "must be"),
        ('pin = "/b/*/m"\nname = "*"', "maps[0].pin", "last part of the path only"),
        ('map = "ct *"', "maps[0].map", "must be a pattern"),
        ('map = "ct*"\nemit = "/b/e"\nemit_losses = "/b/l"', "maps[0].emit", "a pattern"),
        ('pin = "/b/*"\n[[maps]]\npin = "/b/*"', "maps[1].pin", "already used"),
    ],
)
def test_patterns_that_are_refused(lines: str, path: str, reason: str) -> None:
    assert reason in problems_of(several(lines))[path].reason


def test_a_password_is_not_repeated() -> None:
    text = '[node]\nname = "a"\n[broker]\nurl = "http://user:secret@host"'
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "host" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "user" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[node", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"#" * ((1 << 20) + 1), "is too large"),
        (None, "cannot be read: no such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "bridge.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        load(file)


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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1.5s", 1.5), ("2 m", 120), ("1h", 3600), ("10us", 1e-5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["250", "ms", "-1s", "1S", "1.s", "", "1s1s"])
def test_durations_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [("16MiB", 16 << 20), ("1.5KiB", 1536), ("7 B", 7)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["16", "16MB", "MiB", "0.1B", "1kib", "-1MiB"])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_size(text)


@pytest.mark.parametrize("seconds", [0.01, 0.25, 1.0, 1.5, 90.0, 3600.0, 86_400.0])
def test_a_formatted_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize("size", [1, 1023, 1024, 4096, 1 << 20, (1 << 20) + 1, 1 << 30])
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


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


BROKER = '[node]\nname = "n"\n[broker]\n'
CONTEXT = {"url": "nats://ctx:4222", "user": "cu", "password": "planted", "ca": "/ctx/ca.pem"}


def context(tmp_path: Path, **content: object) -> dict[str, str]:
    """An environment whose selected context says ``content``."""
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "prod.json").write_text(json.dumps(content))
    return {"XDG_CONFIG_HOME": str(tmp_path), "NATS_CONTEXT": "prod"}


def read(text: str, environ: dict[str, str]) -> BrokerConfig:
    return from_mapping(tomllib.loads(text), environ=environ).broker


def test_the_environment_of_nats_goes_before_its_context(tmp_path: Path) -> None:
    environ = context(tmp_path, **CONTEXT, inbox_prefix="_INBOX_x", tls_first=True)
    found = read(BROKER, environ)
    assert found.urls == ("nats://ctx:4222",)
    assert (found.access.user, found.access.password) == ("cu", Secret("planted"))
    assert (found.access.ca, found.access.tls_first) == (Path("/ctx/ca.pem"), True)
    assert found.inbox_prefix == "_INBOX_x"
    assert "planted" not in repr(found)
    more = {"NATS_URL": "tls://env:1", "NATS_CA": "/env/ca.pem", "NATS_USER": "only-a-token"}
    found = read(BROKER, environ | more)
    assert (found.urls, found.access.ca) == (("tls://env:1",), Path("/env/ca.pem"))
    assert found.access.token == Secret("only-a-token")


def test_the_file_goes_before_the_environment(tmp_path: Path) -> None:
    environ = context(tmp_path, **CONTEXT) | {"NATS_URL": "nats://env:1", "NATS_NKEY": "/env/seed"}
    found = read(BROKER + 'url = "nats://file:1"\ncreds = "/file/creds"', environ)
    assert found.urls == ("nats://file:1",)
    assert found.access.credentials == Path("/file/creds")
    assert (found.access.user, found.access.nkey_seed) == ("", None)
    assert read(BROKER + 'listen = "127.0.0.1:0"', environ).embedded


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"url": "nats://x:1", "nsc": "op/account"}', "nsc is not supported"),
        ('{"password": "planted", "user": 7, "url": "x"}', "user must be text"),
        ('{"password": "planted"', "no JSON"),
        ('["planted"]', "must be a JSON object"),
        ('{"creds": "op://vault/planted"}', "op:// are not supported"),
        (None, "cannot be read"),
    ],
)
def test_contexts_that_are_no_good(tmp_path: Path, content: str | None, told: str) -> None:
    environ = context(tmp_path, url="nats://x:1")
    path = tmp_path / "nats" / "context" / "prod.json"
    if content is None:
        path.rename(path.with_name("other.json"))
    else:
        path.write_text(content)
    with pytest.raises(ConfigError, match=told) as caught:
        read(BROKER, environ)
    assert "planted" not in str(caught.value)
    if content is None:
        assert "there are: other" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('url = "nats://x:1"\nuser = "u"', "needs password_file"),
        ('url = "nats://x:1"\ncreds = "/c"\nnkey = "/n"', "may have one of"),
        ('url = "nats://x:1"\ntls_cert = "/c"', "needs tls_key"),
        ('listen = "127.0.0.1:1"\ncreds = "/c"', "is for servers that broker.url names"),
        ('creds = "/c"', "but not where that is"),
        ('url = "nats://x:1"\ncreds = "relative"', "must be an absolute path"),
        ('url = "nats://x:1"\ntls_cafile = "/c"', "unknown key"),
        ('context = "../../etc/passwd"', "no name of a NATS context"),
    ],
)
def test_wrong_words_of_who_the_bridge_is(lines: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(BROKER + lines, {})

"""Rules of fields: how they are read, and what becomes of them on another host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bridge.config import ConfigError, parse
from bridge.core.fingerprints import Fingerprints
from bridge.layout.columns import Decoder
from bridge.layout.declared import read_declared
from bridge.layout.fingerprint import fingerprint
from bridge.layout.fitting import Fitter
from bridge.layout.render import Renderer
from bridge.layout.rules import FieldRule, HostRules, Rule, RuleError, presented
from bridge.layout.types import Layout
from bridge.model import U8, Delta, DeltaBatch, Op, Origin
from tests.core_kit import differences

KEY = "struct k { __u32 peer; char hw[6]; __u8 ip_count[4]; __u16 port; };"
TYPES = (
    "struct in { __u64 seen; __u32 index; };"
    "struct v { __u64 born; struct in in[2]; __u32 a : 5, local : 7, b : 20; __u8 state; __u8 x; };"
)
LAYOUT = read_declared(KEY + TYPES, "struct k", "struct v")
OWN, OTHER = Origin("c", "m", "own", 1), Origin("c", "m", "other", 2)
DAY = 86_400 * 10**9
ROWS = 13


def rule(path: str, what: str) -> FieldRule:
    return FieldRule(path, Rule(what))


def values(seed: int = 7) -> U8:
    return np.random.default_rng(seed).integers(0, 128, (ROWS, LAYOUT.value.size), np.uint8)


def delta(rows: U8, origin: Origin = OTHER, *, offset: int = 0, layout: int = 0) -> Delta:
    keys = np.arange(ROWS * LAYOUT.key.size, dtype=np.uint64).astype(np.uint8)
    batch = DeltaBatch.of_entries(Op.UPDATE, keys.reshape(ROWS, -1), rows, 5)
    return Delta(origin, 1, batch, offset, layout)


def test_how_fields_are_read() -> None:
    rules = [
        rule("key.peer", "address"),
        rule("key.hw", "mac"),
        rule("key.ip_count", "plain"),
        rule("key.port", "network_order"),
        FieldRule("value.state", Rule.ENUM, (("NEW", 1),)),
        rule("value.in.index", "network_order"),
    ]
    found = presented(LAYOUT, rules)
    raw = bytes([10, 0, 0, 1, 2, 0, 0, 0, 0, 7, 1, 2, 3, 4, 0, 80])
    (shown,) = Renderer(found.key, "key").rows(np.frombuffer(raw, np.uint8).reshape(1, -1))
    assert shown == {
        "peer": "10.0.0.1",
        "hw": "02:00:00:00:00:07",
        "ip_count": [1, 2, 3, 4],
        "port": 80,
    }
    one = np.zeros((1, LAYOUT.value.size), np.uint8)
    one[0, [19, 44]] = 1
    (shown,) = Renderer(found.value, "value").rows(one)
    assert isinstance(shown, dict)
    assert shown["state"] == "NEW"
    assert shown["in"] == [{"seen": 0, "index": 1}, {"seen": 0, "index": 0}]
    assert fingerprint(found) != fingerprint(LAYOUT)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (rule("value.nothing", "ktime"), "there is no field 'nothing'"),
        (rule("value.in.index", "ktime"), "needs an integer of 8 bytes (got __u32)"),
        (rule("key.peer", "local"), "only fields of values"),
        (rule("value", "local"), "needs a field of the value"),
        (rule("value.born", "mac"), "needs 6 bytes (got __u64)"),
        (rule("value.born", "address"), "needs 4 or 16 unsigned bytes"),
        (rule("value.state", "network_order"), "needs integers of 2, 4 or 8 bytes"),
        (rule("key.hw", "enum"), "needs an integer"),
    ],
)
def test_rules_are_checked_against_the_layout(given: FieldRule, said: str) -> None:
    with pytest.raises(RuleError) as caught:
        HostRules(presented(LAYOUT, [given]), [given])
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"rule {given.rule} of {given.path}: ")


def test_kernel_times_are_rebased_in_every_element() -> None:
    rules = HostRules(LAYOUT, [rule("value.born", "ktime"), rule("value.in.seen", "ktime")])
    rows = values()
    before = {name: c.copy() for name, c in Decoder(LAYOUT.value, "v").columns(rows).items()}
    rows[3, :8] = 0  # never
    rows[4, :8] = [5, *[0] * 7]
    after = Decoder(LAYOUT.value, "v").columns(rules.rebased(rows, DAY))
    assert (after["born"].astype(np.int64) - before["born"].astype(np.int64))[:3].tolist() == [
        DAY
    ] * 3
    assert after["born"][3] == 0
    seen, was = (c["in[].seen"].astype(np.int64) for c in (after, before))
    assert (seen - was == DAY).all()
    for name in ("in[].index", "a", "local", "b", "state", "x"):
        assert np.array_equal(after[name], before[name])
    assert rules.rebased(rows, -DAY)[4, :8].view(np.uint64)[0] == 1  # not "never"


def test_kernel_times_are_shown_as_the_time_of_day() -> None:
    given = [rule("value.born", "ktime"), rule("value.in.seen", "ktime")]
    found = presented(LAYOUT, given)
    assert fingerprint(found) != fingerprint(LAYOUT)
    rows = np.zeros((2, LAYOUT.value.size), np.uint8)
    view = Decoder(LAYOUT.value, "v").view(rows)
    view["born"] = [0, 5 * 10**9]
    view["in"]["seen"] = [[0, 10**6], [0, 0]]
    renderer = Renderer(found.value, "value")
    first, second = renderer.listed(rows, DAY)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert (first["born"], second["born"]) == (0, "1970-01-02T00:00:05.000000+00:00")
    assert first["in"] == [
        {"seen": 0, "index": 0},
        {"seen": "1970-01-02T00:00:00.001000+00:00", "index": 0},
    ]
    (plain, _) = renderer.listed(rows)
    assert isinstance(plain, dict)
    assert plain["in"] == [{"seen": 0, "index": 0}, {"seen": 10**6, "index": 0}]


def test_an_entry_has_the_same_age_on_both_hosts() -> None:
    """Two machines, booted a day apart: the offsets of their clocks differ by that."""
    sender, receiver = 1_700_000_000 * 10**9, 1_700_000_000 * 10**9 + DAY
    fitter = Fitter(LAYOUT, [rule("value.born", "ktime")], lambda: receiver)
    rows = values()
    born = rows[:, :8].copy().view(np.int64)[:, 0]
    fitted = fitter.fit(1, delta(rows, offset=sender), OWN)
    assert fitted is not None
    now_here, now_there = 10**18, 10**18 + DAY  # the same instant on both monotonic clocks
    there = fitted.batch.values[:, :8].copy().view(np.int64)[:, 0]
    assert (now_there - born == now_here - there).all()
    own = delta(rows, OWN, offset=sender)
    assert fitter.fit(2, own, OWN) is own


def test_local_fields_stay_and_the_rest_is_taken() -> None:
    rules = [rule("value.local", "local"), rule("value.in", "local")]
    fitter = Fitter(LAYOUT, rules, lambda: 0)
    ours, theirs = values(1), values(2)
    batch = delta(theirs).batch
    batch.ops[5] = Op.DELETE
    asked: list[U8] = []

    def current(keys: U8) -> U8:
        asked.append(keys)
        return np.delete(ours, 5, axis=0)

    kept = Decoder(LAYOUT.value, "v").columns(fitter.local(batch, current).values)
    (keys,) = asked
    assert len(keys) == ROWS - 1
    mine = Decoder(LAYOUT.value, "v").columns(ours)
    other = Decoder(LAYOUT.value, "v").columns(theirs)
    rows = [row for row in range(ROWS) if row != 5]
    for name in ("local", "in[].seen", "in[].index"):
        assert np.array_equal(kept[name][rows], mine[name][rows]), name
    for name in ("born", "a", "b", "state", "x"):
        assert np.array_equal(kept[name], other[name]), name
    assert Fitter(LAYOUT, [], lambda: 0).local(batch, current) is batch


def test_fields_of_one_host_are_no_difference() -> None:
    rules = [rule("value.born", "ktime"), rule("value.local", "local"), rule("value.x", "ignore")]
    fitter = Fitter(LAYOUT, rules, lambda: 0)
    first = delta(values())
    table = Fingerprints(LAYOUT.key.size, fitter.compared)
    table.note(first.batch)
    rows = first.batch.values.copy()
    rows[:, :8] ^= 0x55
    rows[:, -3:] ^= 0  # the padding stays
    view = Decoder(LAYOUT.value, "v").view(rows)
    view["x"] ^= 0x7F
    same = differences(table, first.batch.keys, rows)
    assert (len(same.updated_keys), len(same.deleted_keys)) == (0, 0)
    view["state"][3] ^= 1
    one = differences(table, first.batch.keys, rows)
    assert np.array_equal(one.updated_keys, first.batch.keys[3:4])


def test_layouts_that_do_not_fit_park_a_node_until_they_do() -> None:
    newer = read_declared(KEY + TYPES.replace("__u8 x;", "__u8 x; int y;"), "struct k", "struct v")
    narrow = read_declared(KEY + TYPES.replace("__u64 born", "__u32 born"), "struct k", "struct v")
    number = fingerprint(LAYOUT)
    fitter = Fitter(narrow, [], lambda: 0)
    assert fitter.needs(number)
    assert not fitter.needs(0)
    assert not fitter.needs(fingerprint(narrow))
    assert fitter.fit(7, delta(values(), layout=number), OWN) is None
    fitter.learn(number, LAYOUT)
    assert not fitter.needs(number)
    assert fitter.fit(9, delta(values(), layout=number), OWN) is None
    parked = fitter.parked["other"]
    assert (parked.layout, parked.since, parked.changes) == (f"{number:016x}", 7, 2 * ROWS)
    assert fitter.parked_changes == 2 * ROWS
    plain = replace(delta(values()), batch=DeltaBatch.empty(16, narrow.value.size))
    assert fitter.fit(10, plain, OWN) is plain
    assert fitter.parked == {}

    fits = Fitter(newer, [], lambda: 0)
    fits.learn(number, LAYOUT)
    sent = delta(values(), layout=number)
    fitted = fits.fit(1, sent, OWN)
    assert fitted is not None
    assert fitted.batch.value_size == newer.value.size
    assert np.array_equal(fitted.batch.keys, sent.batch.keys)
    assert (fits.mapped, fits.parked) == (ROWS, {})
    wrong = replace(sent, batch=DeltaBatch.empty(16, 3))
    assert fits.fit(2, wrong, OWN) is None
    assert "sizes 16 and 3" in fits.parked["other"].reason
    fits.learn(5, None)
    assert fits.fit(3, replace(sent, layout=5), OWN) is None


def test_rules_in_the_configuration() -> None:
    base = '[node]\nname = "n"\n[[maps]]\nname = "a"\nid = 1\n[maps.fields]\n'
    found = parse(base + '"value.a.b" = "ktime"\n"key.x" = { enum = { A = 1, B = -2 } }\n')
    assert found.maps[0].rules == (
        rule("value.a.b", "ktime"),
        FieldRule("key.x", Rule.ENUM, (("A", 1), ("B", -2))),
    )
    for line, said in (
        ('"other.x" = "ktime"', "must name fields such as value.seen"),
        ('"value.x[0]" = "ktime"', "without indexes"),
        ('"value.x" = "time"', "value.x: must be one of ktime"),
        ('"value.x" = { enum = {} }', "value.x: must be one of"),
        ('value.x = "ktime"', "value: must be one of"),
    ):
        with pytest.raises(ConfigError, match=r"must be|without") as caught:
            parse(base + line)
        assert said in str(caught.value), line


def test_a_value_that_is_no_struct() -> None:
    plain = Layout(LAYOUT.key, read_declared("", "int", "__u64").value)
    rules = HostRules(plain, [rule("value", "ktime")])
    rows = np.arange(1, 3, dtype=np.uint64).view(np.uint8).reshape(2, 8)
    assert rules.rebased(rows, 5).view(np.uint64).reshape(-1).tolist() == [6, 7]

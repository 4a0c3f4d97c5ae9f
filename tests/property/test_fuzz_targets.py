"""The targets of `make fuzz` on damaged messages, without what it takes to follow branches."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from bridge.bus.inbound import to_item
from bridge.bus.protocol import Broken, Received
from bridge.wire.codec import encode
from bridge.wire.subjects import delta_subject
from tests.bus_kit import numbered_delta, same_changes
from tests.fuzz.targets import TARGETS

ROUNDS = 150
ENCODED = {"wire", "item", "manifest", "schema", "document", "btf", "ring", "board", "answer"}
ENCODED |= {"http", "headers"}
MEMORY_BYTES_MAX = 300 << 20  # a message may hold 128 MiB of deletes, and is copied once


def damaged(data: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, taken out, doubled or put in."""
    found = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(found) + 1)
        match dice.randrange(4):
            case 0 if at < len(found):
                found[at] = dice.choice((0, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            case 1:
                del found[at : at + dice.randint(1, 8)]
            case 2:
                found[at:at] = found[at : at + dice.randint(1, 16)]
            case _:
                found[at:at] = dice.randbytes(dice.randint(1, 8))
    return bytes(found)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_messages_end_in_the_errors_that_are_meant(name: str) -> None:
    target, dice = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    for seed in seeds:
        # What the encoders give is read without any error.
        (target.check if name in ENCODED else target.run)(seed)
    tracemalloc.start()
    try:
        for _ in range(ROUNDS):
            target.run(damaged(dice.choice(seeds), dice))
        target.run(b"")
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_good_messages_go_on_between_damaged_ones() -> None:
    dice = random.Random(1)
    broken = 0
    for number in range(1, 102):
        delta = numbered_delta(number, 3)
        subject, data = delta_subject(delta.origin), encode(delta)
        cut = to_item(number, 1, subject, data[: dice.randrange(len(data))])
        broken += isinstance(cut, Broken)
        good = to_item(number, 1, subject, data)
        assert isinstance(good, Received)
        assert same_changes(good.delta.batch, delta.batch)
    assert broken == 101

"""What a new configuration changes, and how it is read again."""

from __future__ import annotations

import asyncio

import pytest

from bridge.config import Config, parse
from bridge.errors import BridgeError
from bridge.node.reloading import Changes, Reloader, changes_between

HEAD = '[node]\nname = "a"\n'
PATTERN = '[[maps]]\npin = "/p/*"\n'


def table(name: str, more: str = "") -> str:
    return f'[[maps]]\nname = "{name}"\npin = "/{name}"\n{more}\n'


def changes(old: str, new: str, *, head: str = HEAD, new_head: str = HEAD) -> Changes:
    return changes_between(parse(head + old), parse(new_head + new))


def test_maps_are_told_apart_by_name_and_patterns_by_place() -> None:
    found = changes(
        table("one") + table("two") + PATTERN,
        table("two", 'role = "apply"') + table("three") + PATTERN + PATTERN.replace("/p/", "/q/"),
    )
    assert found.removed == ("one",)
    assert found.changed == ("two",)
    assert found.added == ("three", "* (pin /q/*)")
    assert changes(table("one") + PATTERN, PATTERN + table("one")) == Changes()


def test_keys_of_the_start_are_named_as_in_the_file() -> None:
    head = HEAD + (
        'cluster = "c"\nstate_dir = "/s"\n[broker]\nurl = "nats://h"\n[capture]\nring = "4KiB"\n'
        'mode = "sweep"\n[limits]\noutbox = "1MiB"\n[snapshots]\nevery = "2s"\nbytes = "1MiB"\n'
        '[http]\nlisten = "127.0.0.1:1"\n'
    )
    found = changes(table("one"), table("one"), new_head=head)
    assert set(found.restart) == {
        "node.cluster",
        "node.state_dir",
        "broker.url",
        "capture.mode",
        "limits.outbox",
        "snapshots.every",
        "snapshots.bytes",
        "http.listen",
    }
    assert found.changed == ("one",), "its ring is that of [capture]"


class Log:
    def __init__(self) -> None:
        self.warned: list[str] = []

    def say(self, text: str, **fields: object) -> None: ...

    def warn(self, text: str, **fields: object) -> None:
        self.warned.append(f"{text} {fields}")

    warn_once = warn


def test_what_is_refused_is_told_and_the_next_is_taken() -> None:
    good = parse(HEAD)
    answers: list[Config | BridgeError] = [BridgeError("file: is bad"), good]
    around: list[bool] = []
    log = Log()

    def read() -> Config:
        answer = answers.pop(0)
        if isinstance(answer, BridgeError):
            raise answer
        return answer

    async def take(config: Config) -> Changes:
        assert config is good
        return Changes(restart=("node.name",))

    async def run() -> None:
        reloader = Reloader(read, take, around.append, log)
        with pytest.raises(BridgeError):
            await reloader.reload()
        assert (reloader.counters.refused, reloader.counters.trouble) == (1, "file: is bad")
        running = asyncio.create_task(reloader.run())
        reloader.ask()
        reloader.ask()  # both at once are one reading
        while not reloader.counters.taken:  # noqa: ASYNC110 - a thread reads
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert reloader.counters.trouble is None
        assert reloader.counters.restart_needed == ("node.name",)

    asyncio.run(run())
    assert around == [True, False, True, False]
    assert answers == []
    assert "is bad" in log.warned[0]
    assert "node.name" in log.warned[1]

"""Checks that need more than one key. They look at the file's raw data, so that they find their
faults also when other keys are wrong; what they do not understand they leave to ``document``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bridge.config.problems import Problem, shown

SELECTORS = ("pin", "map", "id")


def cross_check(data: Mapping[str, object]) -> Iterator[Problem]:
    """The problems between keys of the whole document."""
    yield from _broker(data.get("broker"))
    maps = data.get("maps")
    if isinstance(maps, list):
        tables = [(f"maps[{index}]", table) for index, table in enumerate(maps)]
        yield from _selectors(tables)
        yield from _duplicates(tables)


def _broker(broker: object) -> Iterator[Problem]:
    if not isinstance(broker, dict):
        return
    if "url" in broker and "listen" in broker:
        yield Problem(
            "broker.listen",
            "only the embedded server listens, and broker.url turns it off",
            shown(broker["listen"]),
            "remove one of the two",
        )
    replicas = broker.get("replicas")
    if "url" not in broker and isinstance(replicas, int) and replicas > 1:
        yield Problem(
            "broker.replicas",
            "the embedded server keeps one copy; more need a cluster named by broker.url",
            shown(replicas),
        )


def _selectors(tables: list[tuple[str, object]]) -> Iterator[Problem]:
    for path, table in tables:
        if not isinstance(table, dict):
            continue
        yield from _one_selector(path, table)
        for key, other in (("emit", "emit_losses"), ("emit_losses", "emit")):
            selector = table.get(key)
            if isinstance(selector, dict):
                yield from _one_selector(f"{path}.{key}", selector)
            if selector is not None and other not in table:
                # A full ring that nobody counts would be a silent loss.
                yield Problem(f"{path}.{key}", f"needs {other} beside it", shown(selector))


def _one_selector(path: str, table: Mapping[str, object]) -> Iterator[Problem]:
    given = [key for key in SELECTORS if key in table]
    if len(given) != 1:
        yield Problem(
            path,
            f"needs exactly one of {', '.join(SELECTORS)}",
            " and ".join(given) or "none",
        )


def _duplicates(tables: list[tuple[str, object]]) -> Iterator[Problem]:
    """A name twice would be two histories in one; a map twice would be published twice."""
    first: dict[tuple[str, str], str] = {}
    for path, table in tables:
        if not isinstance(table, dict):
            continue
        for key in ("name", *SELECTORS):
            if key not in table or isinstance(table[key], dict | list):
                continue
            earlier = first.setdefault((key, repr(table[key])), path)
            if earlier != path:
                yield Problem(f"{path}.{key}", f"is already used by {earlier}", shown(table[key]))

"""What ``mapbridge top`` draws: rates out of two looks, rows in an order, a table that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bridge.bus.control import Answer
from bridge.health.neighbours import SILENT_SECONDS, Roll

SORTS = ("map", "node", "published", "applied", "behind", "lost")
_HEAD_LINES = 3  # title, the table's heading, the line of keys
_STATES = {"synced": "green", "broker away": "bold red", "halted": "bold red"}


@dataclass(frozen=True, slots=True)
class Row:
    """One map on one node; rates in changes per second."""

    map: str
    node: str
    capture: str
    role: str
    state: str
    behind: float | None
    published: float
    applied: float
    lost: int
    repaired: int
    drift: int | None  # keys that the last comparison found to differ; None: not compared
    trouble: str


@dataclass(slots=True)
class Screen:
    """What has been learnt of a cluster, and how it is to be shown."""

    cluster: str
    sort: str = "map"
    paused: bool = False
    trouble: str = ""
    nodes: Sequence[Answer] = ()
    rows: list[Row] = field(default_factory=list)
    _roll: Roll = field(default_factory=Roll)
    _before: dict[str, Answer] = field(default_factory=dict)
    _rates: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def learn(self, answers: Sequence[Answer], now: float) -> None:
        """Take what the nodes said ``now``, in steady seconds; two looks give the rates."""
        for answer in answers:
            self._learn_rates(answer)
        nodes = self._roll.hear(answers, now)
        self.trouble = ""
        if not self.paused:
            self.nodes = nodes
            self.rows = [
                self._row(node, name, found)
                for node in nodes
                for name, found in _maps(node).items()
            ]

    def _learn_rates(self, node: Answer) -> None:
        name = str(node.get("node"))
        before = self._before.get(name)
        self._before[name] = node
        if before is None or before.get("started") != node.get("started"):
            return
        passed = _number(node.get("written")) - _number(before.get("written"))
        if passed <= 0:
            return
        for map_name, now in _maps(node).items():
            then = _maps(before).get(map_name)
            if then is not None:
                published, applied = (
                    max(_number(now.get(which)) - _number(then.get(which)), 0.0) / passed
                    for which in ("published", "applied")
                )
                self._rates[name, map_name] = published, applied

    def _row(self, node: Answer, map_name: str, found: dict[str, Any]) -> Row:
        name = str(node.get("node"))
        silent = _number(node.get("silent_seconds")) > SILENT_SECONDS
        published, applied = (0.0, 0.0) if silent else self._rates.get((name, map_name), (0.0, 0.0))
        behind = found.get("behind_seconds")
        return Row(
            map=map_name,
            node=name,
            capture=str(node.get("capture")),
            role=str(found.get("role")),
            state=_state(node, found),
            behind=None if behind is None else _number(behind),
            published=published,
            applied=applied,
            lost=int(_number(found.get("lost"))),
            repaired=int(_number(found.get("repaired"))),
            drift=_drift(found),
            trouble=str(found.get("trouble") or node.get("trouble") or ""),
        )

    def sorted(self) -> list[Row]:
        rows = sorted(self.rows, key=lambda row: (row.map, row.node))
        if self.sort == "node":
            rows.sort(key=lambda row: row.node)
        elif self.sort != "map":
            rows.sort(key=lambda row: -(getattr(row, self.sort) or 0))
        return rows


def view(screen: Screen, height: int | None = None) -> RenderableType:
    """The picture, of at most ``height`` lines."""
    rows = screen.sorted()
    troubles = [f"{row.node}, {row.map}: {row.trouble}" for row in rows if row.trouble]
    if screen.trouble:
        troubles.insert(0, screen.trouble)
    troubles = troubles[:3]
    room = len(rows) if height is None else max(height - _HEAD_LINES - len(troubles) - 1, 1)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", expand=False)
    for name in ("MAP", "NODE", "STATE"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("BEHIND", "PUBLISHED/S", "APPLIED/S", "LOST", "REPAIRED", "DRIFT"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[:room]:
        table.add_row(*_cells(row))
    parts: list[RenderableType] = [_title(screen), table]
    if len(rows) > room:
        parts.append(Text(f"{len(rows) - room} more rows: make the window higher", style="dim"))
    parts += [Text(text, style="red", overflow="ellipsis", no_wrap=True) for text in troubles]
    if height is not None:
        told = f"q quit   p {'go on' if screen.paused else 'hold'}   s sort (by {screen.sort})"
        parts.append(Text(told, style="dim"))
    return Group(*parts)


def _title(screen: Screen) -> Text:
    synced = sum(row.state == "synced" for row in screen.rows)
    published = sum(row.published for row in screen.rows)
    text = Text(f"cluster {screen.cluster}", style="bold")
    nodes = "1 node" if len(screen.nodes) == 1 else f"{len(screen.nodes)} nodes"
    text.append(f"   {nodes}   {synced} of {len(screen.rows)} replicas synced", style="not bold")
    text.append(f"   {published:,.0f} changes/s", style="not bold")
    if screen.paused:
        text.append("   held", style="yellow")
    if not screen.nodes:
        text.append("   no node answers", style="red")
    return text


def _cells(row: Row) -> list[Text]:
    behind = "-" if row.behind is None else f"{row.behind:.1f} s"
    return [
        Text(row.map),
        Text(row.node),
        Text(row.state, style=_STATES.get(row.state, "yellow")),
        Text(behind, style="" if row.state == "synced" else "yellow"),
        Text(f"{row.published:,.0f}", style="" if row.published >= 0.5 else "dim"),
        Text(f"{row.applied:,.0f}", style="" if row.applied >= 0.5 else "dim"),
        Text(f"{row.lost:,}", style="red" if row.lost else "dim"),
        Text(f"{row.repaired:,}", style="" if row.repaired else "dim"),
        Text("-" if row.drift is None else f"{row.drift:,}", style="red" if row.drift else "dim"),
    ]


def _state(node: Answer, found: dict[str, Any]) -> str:
    silent = _number(node.get("silent_seconds"))
    if silent > SILENT_SECONDS:
        return f"silent {silent:.0f} s"
    if node.get("connected") is not True:
        return "broker away"
    if found.get("synced") is True:
        return "synced"
    if str(found.get("trouble") or "").startswith("halted"):
        return "halted"
    state = str(found.get("state"))
    return "not synced" if state == "running" else state


def _drift(found: dict[str, Any]) -> int | None:
    verified = found.get("verified")
    return int(_number(verified.get("drift"))) if isinstance(verified, dict) else None


def _maps(node: Answer) -> dict[str, dict[str, Any]]:
    maps = node.get("maps")
    found = maps.items() if isinstance(maps, dict) else ()
    return {str(name): each for name, each in found if isinstance(each, dict)}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0

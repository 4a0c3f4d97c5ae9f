"""The packages import in one direction only, as the table in ARCHITECTURE.md says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "bridge"

# What each part of `bridge` may import besides itself, `errors`, `resources` and the version.
STAGES = {
    *("access", "redaction", "model", "config", "core", "wire", "kernel", "layout", "bus", "feed"),
    *("capture", "apply", "health", "node"),
}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "resources": set(),
    "access": set(),
    "redaction": set(),
    "model": set(),
    "config": {"access", "layout", "model"},
    "core": {"model"},
    "wire": {"model"},
    "kernel": {"model"},
    "layout": {"kernel", "model"},
    "bus": {"access", "wire", "model"},
    "feed": {"access", "bus", "config", "core", "layout", "wire", "model"},
    "capture": {"kernel", "core", "model"},
    "apply": {"kernel", "core", "model"},
    "health": {"config", "model"},
    "node": STAGES - {"node"},
    "rig": STAGES,
    "demo": STAGES | {"rig"},
    "bench": STAGES | {"rig", "demo"},
    "cli": STAGES | {"rig", "demo", "bench"},
}
ANYWHERE = {"errors", "resources"}

# Packages of others that belong to one part, so that the rest can do without them.
HOLDERS = {
    "nats": {"bus"},
    "nkeys": {"bus"},
    "bcc": {"capture", "cli"},
    "google": {"bench", "feed", "wire"},
    "click": {"cli"},
    "prometheus_client": {"cli", "health"},
    "rich": {"cli", "demo", "bench"},
    "pydantic": {"config"},
    "pyarrow": {"feed"},
    "opentelemetry": {"feed"},
    "matplotlib": {"bench"},
}
# The rest of the package works on what this module has read, wherever it comes from.
LAYOUT_READER = "reader.py"
PURE_FORBIDDEN = {"asyncio", "threading", "time", "socket", "subprocess", "select"}


def part_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def modules() -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*.py")
        if not path.name.endswith("_pb2.py") and path != ROOT / "__init__.py"
    )


def imported(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Each imported module by its full name, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module == "bridge":  # from bridge import model
                for alias in node.names:
                    yield node.lineno, f"bridge.{alias.name}"
            else:
                yield node.lineno, node.module


def faults(source: str, path: Path) -> list[str]:
    part = part_of(path)
    found = []
    for line, name in imported(ast.parse(source), path):
        top, *rest = name.split(".")
        where = f"bridge/{path.relative_to(ROOT)}:{line}"
        if top == "bridge":
            assert part in ALLOWED, f"{where}: no rule for {part}"
            other = rest[0] if rest else ""
            if other in {"", "__version__", part} or other in ANYWHERE:
                continue
            if other not in ALLOWED[part]:
                found.append(f"{where}: {part} imports {other}")
            elif part == "layout" and other == "kernel" and path.name != LAYOUT_READER:
                found.append(f"{where}: only {LAYOUT_READER} of layout imports kernel")
        elif part not in HOLDERS.get(top, {part}):
            found.append(f"{where}: {part} imports {top}, which belongs to {HOLDERS[top]}")
        elif part == "core" and top in PURE_FORBIDDEN:
            found.append(f"{where}: core is pure and imports {top}")
    return found


def test_every_part_has_a_rule() -> None:
    assert {part_of(path) for path in modules()} <= ALLOWED.keys()


def test_rules_allow_no_cycle() -> None:
    order: list[str] = []
    left = dict(ALLOWED)
    while left:
        ready = [part for part, needs in left.items() if needs <= set(order)]
        assert ready, f"these import each other: {sorted(left)}"
        order += ready
        for part in ready:
            del left[part]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert faults(path.read_text(), path) == []


@pytest.mark.parametrize(
    ("source", "file", "fault"),
    [
        ("from bridge.bus import nats_bus", "core/x.py", "core imports bus"),
        ("def f():\n    import bridge.node.lane", "capture/x.py", "capture imports node"),
        ("from bridge import cli", "node/x.py", "node imports cli"),
        ("import time", "core/x.py", "core is pure and imports time"),
        ("from bridge.kernel import btf", "layout/x.py", "only reader.py of layout"),
        ("from bridge.bus import link", "layout/reader.py", "layout imports bus"),
        ("from bridge.kernel import btf", "config/x.py", "config imports kernel"),
        ("import nats", "node/x.py", "node imports nats"),
    ],
)
def test_a_wrong_import_is_found(source: str, file: str, fault: str) -> None:
    (found,) = faults(source, ROOT / file)
    assert fault in found

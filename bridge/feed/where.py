"""A small language for choosing changes: comparisons of fields, ``and``, ``or``, ``not``, ``in``.

    value.state == "ESTABLISHED" and key.address[0] in "10.0.0.0/8"
    op == "delete" or value.packets > 1000

The text is parsed by Python's parser and then only the forms above are taken; nothing of it is ever
run. It becomes masks over the columns of a batch, so that a filter costs per batch. The logic has
three values: a change without a value (a delete) meets no condition on ``value`` and none that
negates one.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bridge.errors import BridgeError, Exit
from bridge.feed.where_fields import Condition, FieldError, Literal, compare_numbers, condition_on
from bridge.layout.types import Layout
from bridge.model import Cause, Delta, Op

TEXT_MAX: Final = 4096
DEPTH_MAX: Final = 100
Mask = npt.NDArray[np.bool_]

_OPERATORS: Final = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_FLIPPED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_WORDS: Final = {"op": [op.name.lower() for op in Op], "cause": [c.name.lower() for c in Cause]}
_PLAIN: Final = ("map", "node", "op", "cause", "writer", "sequence")
_NAMES: Final = ("key", "value", *_PLAIN)


class WhereError(BridgeError):
    """A filter that cannot be understood, or names what the map has not."""

    exit_code = Exit.USAGE


@dataclass(frozen=True, slots=True)
class _Truth:
    """Rows for which a condition holds, and rows for which its opposite does."""

    yes: Mask
    no: Mask


@dataclass(frozen=True, slots=True)
class _Not:
    inner: _Node


@dataclass(frozen=True, slots=True)
class _Both:
    parts: tuple[_Node, ...]
    is_or: bool


@dataclass(frozen=True, slots=True)
class _Compare:
    """``path`` begins with one of the names; a number in it is an index, ``*`` any element."""

    path: tuple[str | int, ...]
    operator: str
    wanted: tuple[Literal, ...]
    column: int
    length: int


_Node = _Not | _Both | _Compare


class Where:
    """A filter. Fields are looked up when the first batch of a layout comes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tree = _Parser(text).parsed()
        self._conditions: dict[tuple[int, Layout | None], Condition] = {}

    def check(self, layout: Layout) -> None:
        """Raise ``WhereError`` when a field or a value is not one of this layout."""
        for leaf in _leaves(self._tree):
            if leaf.path[0] in ("key", "value"):
                self._condition(leaf, layout)

    def mask(self, delta: Delta, layout: Layout | None) -> Mask:
        """The rows of ``delta`` that are meant. Raises ``WhereError``."""
        return self._truth(self._tree, delta, layout).yes

    def _truth(self, node: _Node, delta: Delta, layout: Layout | None) -> _Truth:
        if isinstance(node, _Not):
            inner = self._truth(node.inner, delta, layout)
            return _Truth(inner.no, inner.yes)
        if isinstance(node, _Compare):
            return self._compared(node, delta, layout)
        parts = [self._truth(part, delta, layout) for part in node.parts]
        yes, no = [part.yes for part in parts], [part.no for part in parts]
        if node.is_or:
            return _Truth(np.logical_or.reduce(yes), np.logical_and.reduce(no))
        return _Truth(np.logical_and.reduce(yes), np.logical_or.reduce(no))

    def _compared(self, node: _Compare, delta: Delta, layout: Layout | None) -> _Truth:
        batch, name = delta.batch, node.path[0]
        if name not in ("key", "value"):
            found = _plain(node, delta)
            return _Truth(found, ~found)
        condition = self._condition(node, layout)
        rows = batch.keys if name == "key" else batch.values
        found = condition(rows)
        if name == "key":
            return _Truth(found, ~found)
        updates = batch.ops == Op.UPDATE
        return _Truth(found & updates, ~found & updates)

    def _condition(self, node: _Compare, layout: Layout | None) -> Condition:
        if layout is None:
            raise self._error("fields are not known: no layout of this map was found", node)
        known = self._conditions.get((id(node), layout))
        if known is None:
            found = layout.key if node.path[0] == "key" else layout.value
            role = str(node.path[0])
            try:
                known = condition_on(found, role, node.path[1:], node.operator, node.wanted)
            except FieldError as error:
                raise self._error(str(error), node, hint=error.hint) from error
            if len(self._conditions) >= 256:
                self._conditions.clear()
            self._conditions[id(node), layout] = known
        return known

    def _error(self, reason: str, node: _Compare, *, hint: str = "") -> WhereError:
        return _told(self._text, reason, node.column, node.length, hint=hint)


def _leaves(node: _Node) -> list[_Compare]:
    if isinstance(node, _Compare):
        return [node]
    parts = (node.inner,) if isinstance(node, _Not) else node.parts
    return [leaf for part in parts for leaf in _leaves(part)]


def _plain(node: _Compare, delta: Delta) -> Mask:
    """A condition on what is no field of the map."""
    batch, n = delta.batch, len(delta.batch)
    match node.path[0]:
        case "op":
            column = batch.ops.astype(np.int64)
            wanted: list[Literal] = [int(Op[str(w).upper()]) for w in node.wanted]
        case "writer":
            column, wanted = batch.writers.astype(np.int64), list(node.wanted)
        case "sequence":
            column = delta.first_sequence + np.arange(n, dtype=np.int64)
            wanted = list(node.wanted)
        case name:
            texts = {"map": delta.origin.map, "node": delta.origin.node}
            text = texts.get(str(name), batch.cause.name.lower())
            is_in = text in node.wanted
            return np.full(n, is_in == (node.operator in ("==", "in")), np.bool_)
    return compare_numbers(column, node.operator, wanted)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        if len(text) > TEXT_MAX or "\n" in text.strip("\n"):
            raise WhereError(f"filter: must be one line of at most {TEXT_MAX} characters")

    def parsed(self) -> _Node:
        text = self._text
        try:
            tree = ast.parse(text, "<filter>", mode="eval")
        except SyntaxError as error:
            column = (error.offset or len(text) + 1) - 1  # none: something is missing at the end
            reason = (
                "a single = is no comparison, write ==" if _assigns(text, column) else error.msg
            )
            raise _told(text, reason, column, 1) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise WhereError(f"filter: cannot be read ({error})") from error
        return self._node(tree.body)

    def _node(self, node: ast.expr, depth: int = 0) -> _Node:
        if depth > DEPTH_MAX:
            raise self._error(f"nested too deep (more than {DEPTH_MAX})", node)
        match node:
            case ast.BoolOp():
                parts = tuple(self._node(part, depth + 1) for part in node.values)
                return _Both(parts, is_or=isinstance(node.op, ast.Or))
            case ast.UnaryOp(op=ast.Not()):
                return _Not(self._node(node.operand, depth + 1))
            case ast.Compare():
                return self._compare(node)
        raise self._error("needs a comparison here, such as value.count > 7", node)

    def _compare(self, node: ast.Compare) -> _Compare:
        if len(node.ops) != 1:
            raise self._error("one comparison at a time: join them with `and`", node)
        operator = _OPERATORS.get(type(node.ops[0]))
        if operator is None:
            raise self._error("`is` is no comparison, write ==", node)
        left, right = node.left, node.comparators[0]
        if not _is_path(left) and _is_path(right) and operator in _FLIPPED:
            left, right, operator = right, left, _FLIPPED[operator]
        path = self._path(left)
        wanted = self._wanted(right, operator)
        found = _Compare(path, operator, wanted, left.col_offset, _length(left))
        if path[0] in _PLAIN:
            self._check_plain(found, right)
        return found

    def _path(self, node: ast.expr, depth: int = 0) -> tuple[str | int, ...]:
        if depth > DEPTH_MAX:
            raise self._error(f"nested too deep (more than {DEPTH_MAX})", node)
        match node:
            case ast.Name(id=name):
                if name not in _NAMES:
                    hint = f"what can be compared: {', '.join(_NAMES)}"
                    raise self._error(f"no such name (got {name!r})", node, hint=hint)
                return (name,)
            case ast.Attribute(value=holder, attr=name):
                return (*self._path(holder, depth + 1), name)
            case ast.Subscript(value=holder, slice=ast.Constant(value=index)) if isinstance(
                index, int | str
            ):
                return (*self._path(holder, depth + 1), index)
        raise self._error('needs a field here, such as value.count, key["from"] or key.ip[0]', node)

    def _wanted(self, node: ast.expr, operator: str) -> tuple[Literal, ...]:
        listed = isinstance(node, ast.List | ast.Tuple | ast.Set)
        if listed and operator not in ("in", "not in"):
            raise self._error("a list is compared with `in`", node)
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return tuple(self._literal(each) for each in node.elts)
        return (self._literal(node),)

    def _literal(self, node: ast.expr) -> Literal:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.Name(id="true" | "false" as word):
                return word == "true"
        raise self._error("needs a number, a text in quotes, true or false here", node)

    def _check_plain(self, found: _Compare, node: ast.expr) -> None:
        name = str(found.path[0])
        if len(found.path) > 1:
            raise _told(self._text, f"{name} has no fields", found.column, found.length)
        numeric = name in ("writer", "sequence")
        for literal in found.wanted:
            if numeric != (isinstance(literal, int) and not isinstance(literal, bool)):
                what = "a number" if numeric else "a text in quotes"
                raise self._error(f"{name} is compared with {what}", node)
            words = _WORDS.get(name)
            if words is not None and literal not in words:
                raise self._error(f"{name} is one of {', '.join(words)} (got {literal!r})", node)
        if not numeric and found.operator in ("<", "<=", ">", ">="):
            raise self._error(f"{name} has no order: use ==, != or in", node)

    def _error(self, reason: str, node: ast.expr, *, hint: str = "") -> WhereError:
        return _told(self._text, reason, node.col_offset, _length(node), hint=hint)


def _is_path(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute | ast.Subscript) or (
        isinstance(node, ast.Name) and node.id not in ("true", "false")
    )


def _assigns(text: str, column: int) -> bool:
    return text[column : column + 1] == "=" and "==" not in text[max(column - 1, 0) : column + 2]


def _length(node: ast.expr) -> int:
    return (node.end_col_offset or node.col_offset + 1) - node.col_offset


def _told(text: str, reason: str, column: int, length: int, *, hint: str = "") -> WhereError:
    """The reason, and the text with a mark under the place. The parser's columns count bytes."""
    at = len(text.encode()[:column].decode(errors="ignore"))
    mark = " " * at + "^" * max(1, min(length, len(text) - at))
    return WhereError(f"filter, column {at + 1}: {reason}\n  {text}\n  {mark}", hint=hint)

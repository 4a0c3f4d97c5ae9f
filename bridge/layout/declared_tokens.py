"""The words of a text in C syntax, each with its place, and the numbers among them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bridge.errors import BridgeError, Exit

TEXT_MAX = 256 << 10
NESTED_MAX = 32  # parentheses and signs of one number
_TOKEN = re.compile(r"[A-Za-z_]\w*|0[xX][0-9a-fA-F]+[uUlL]*|\d+[uUlL]*|<<|[-{}\[\]();,*:=+|~&]")
_SPACE = re.compile(r"(?:\s|//[^\n]*|/\*.*?\*/)+", re.DOTALL)
_DEFINE = re.compile(r"[ \t]*#[ \t]*define[ \t]+([A-Za-z_]\w*)[ \t]+(0[xX][0-9a-fA-F]+|\d+)[uUlL]*")
_DIRECTIVE = re.compile(r"^[ \t]*#[^\n]*$", re.MULTILINE)
_BINARY = (("|",), ("<<",), ("+", "-"), ("*",))  # what binds least comes first


class DeclaredError(BridgeError):
    """A text that declares no layout; the message has line and column."""

    exit_code = Exit.CONFIG


@dataclass(frozen=True, slots=True)
class Token:
    """A word and where it begins; an empty one ends the text."""

    text: str
    offset: int

    @property
    def is_name(self) -> bool:
        return self.text[:1].isalpha() or self.text[:1] == "_"


class Tokens:
    """Reads forward, one word ahead. ``what`` names the text in errors."""

    def __init__(self, text: str, what: str) -> None:
        self._text = text
        self._what = what
        self._at = 0
        self._nested = 0
        if len(text) > TEXT_MAX:
            raise DeclaredError(f"{what}: is longer than {TEXT_MAX} characters")
        self.defines: dict[str, int] = {}
        self._text = _DIRECTIVE.sub(self._directive, text)
        self._tokens = self._split()

    def _directive(self, match: re.Match[str]) -> str:
        line = re.sub(r"//.*|/\*.*?\*/", "", match.group()).rstrip()
        found = _DEFINE.fullmatch(line)
        if found is None:
            what = "only '#define NAME NUMBER' is understood of the preprocessor"
            raise self.error(what, Token("", match.start()))
        self.defines[found.group(1)] = _value(found.group(2))
        return " " * len(match.group())

    def _split(self) -> list[Token]:
        found, at = [], 0
        while at < len(self._text):
            space = _SPACE.match(self._text, at)
            if space is not None:
                at = space.end()
                continue
            token = _TOKEN.match(self._text, at)
            if token is None:
                raise self.error(f"not understood (got {self._text[at]!r})", Token("", at))
            found.append(Token(token.group(), at))
            at = token.end()
        return [*found, Token("", len(self._text))]

    def more(self) -> bool:
        return self.next().text != ""

    def next(self) -> Token:
        return self._tokens[self._at]

    def advance(self) -> Token:
        token = self._tokens[self._at]
        if token.text:
            self._at += 1
        return token

    def take(self, text: str) -> bool:
        """Whether ``text`` comes next; if so it is passed."""
        if self.next().text != text:
            return False
        self._at += 1
        return True

    def need(self, text: str) -> None:
        if not self.take(text):
            raise self.error(f"needs {text!r} here (got {self.next().text or 'the end'!r})")

    def name(self) -> str:
        token = self.advance()
        if not token.is_name:
            raise self.error(f"needs a name here (got {token.text or 'the end'!r})", token)
        return token.text

    def number(self, known: Mapping[str, int], level: int = 0) -> int:
        """A constant: numbers and known names, with ``| << + - *``, signs and parentheses."""
        if level == len(_BINARY):
            return self._operand(known)
        left = self.number(known, level + 1)
        while (operator := self.next().text) in _BINARY[level]:
            at = self.advance()
            right = self.number(known, level + 1)
            if operator == "<<" and not 0 <= right < 64:
                raise self.error(f"cannot be shifted by {right}", at)
            left = {
                "|": lambda a, b: a | b,
                "<<": lambda a, b: a << b,
                "+": lambda a, b: a + b,
                "-": lambda a, b: a - b,
                "*": lambda a, b: a * b,
            }[operator](left, right)
        if abs(left) >= 1 << 64:
            raise self.error("a number of more than 64 bits")
        return left

    def _operand(self, known: Mapping[str, int]) -> int:
        token = self.advance()
        if token.text in ("-", "~", "("):
            self._nested += 1
            if self._nested > NESTED_MAX:
                raise self.error(f"nested too deep (more than {NESTED_MAX})", token)
            value = self.number(known) if token.text == "(" else self._operand(known)
            self._nested -= 1
            if token.text == "(":
                self.need(")")
                return value
            return -value if token.text == "-" else ~value
        if token.text in known:
            return known[token.text]
        if not token.text[:1].isdigit():
            raise self.error(f"needs a number here (got {token.text or 'the end'!r})", token)
        return _value(token.text)

    def error(self, reason: str, token: Token | None = None) -> DeclaredError:
        """An error at ``token``, or at the next one."""
        offset = (self.next() if token is None else token).offset
        line = self._text.count("\n", 0, offset) + 1
        column = offset - (self._text.rfind("\n", 0, offset) + 1) + 1
        return DeclaredError(f"{self._what}, line {line}, column {column}: {reason}")


def _value(text: str) -> int:
    plain = text.rstrip("uUlL")
    if plain[:1] == "0" and plain.isdigit():
        return int(plain, 8) if set(plain) <= set("01234567") else int(plain)
    return int(plain, 0)

"""Layouts in C syntax, for maps that carry no type information: declarations in, types out.

A small and strict part of C: structs, unions, enums, typedefs, arrays, bit fields, pointers,
``#define NAME NUMBER``, and the attributes ``packed`` and ``aligned(N)``. Sizes and places are
those of the BPF target, so that the same text gives the same layout as a program's BTF. Anything
else is an error that names line and column: a guess about the bytes of a map would be worse than
none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge.layout.declared_places import Sized, enum_of, placed
from bridge.layout.declared_tokens import DeclaredError, Token, Tokens
from bridge.layout.types import Kind, Layout, Type

FIELDS_MAX = 10_000
DEPTH_MAX = 32
ARRAY_MAX = 1 << 20
_QUALIFIERS = frozenset({"const", "volatile", "static", "extern", "restrict"})
_RECORDS = {"struct": Kind.STRUCT, "union": Kind.UNION}


def _integer(name: str, size: int, *, signed: bool = False, typedefs: tuple[str, ...] = ()) -> Type:
    return Type(Kind.INT, size, name, typedefs, signed)


_PLAIN = {1: "char", 2: "short", 4: "int", 8: "long long", 16: "__int128"}


def _known_types() -> dict[str, Type]:
    found: dict[str, Type] = {"bool": Type(Kind.BOOL, 1, "_Bool")}
    for size in (1, 2, 4, 8):
        bits, plain = 8 * size, _PLAIN[size]
        unsigned, signed = f"unsigned {plain}", "signed char" if size == 1 else plain
        for name in (f"__u{bits}", f"u{bits}", f"uint{bits}_t"):
            found[name] = _integer(unsigned, size, typedefs=(name,))
        for name in (f"__s{bits}", f"s{bits}", f"int{bits}_t"):
            found[name] = _integer(signed, size, signed=True, typedefs=(name,))
        for name in (f"__be{bits}", f"be{bits}", f"__le{bits}") if size > 1 else ():
            found[name] = _integer(unsigned, size, typedefs=(name, f"__u{bits}"))
    found["size_t"] = _integer("unsigned long", 8, typedefs=("size_t",))
    found["__wsum"] = _integer("unsigned int", 4, typedefs=("__wsum", "__u32"))
    found["__sum16"] = _integer("unsigned short", 2, typedefs=("__sum16", "__u16"))
    return found


KNOWN_TYPES = _known_types()
_WORDS = frozenset(
    {
        *("char", "short", "int", "long", "signed", "unsigned"),
        *("_Bool", "float", "double", "void", "__int128"),
    }
)


@dataclass(frozen=True, slots=True)
class _Attributes:
    packed: bool = False
    align: int = 0


def read_declared(text: str, key: str, value: str) -> Layout:
    """The layout whose key and value have the named types (``struct flow``, ``__u32[4]``).

    Raises ``DeclaredError`` with line and column.
    """
    reader = _Reader(Tokens(text, "types"))
    reader.declarations()
    return Layout(reader.named(key, "key"), reader.named(value, "value"))


class _Reader:
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._types = {name: Sized(found, found.size) for name, found in KNOWN_TYPES.items()}
        self._tags: dict[tuple[str, str], Sized] = {}
        self._numbers: dict[str, int] = dict(tokens.defines)
        self._fields = 0

    def declarations(self) -> None:
        """All of the text: definitions and typedefs."""
        tokens = self._tokens
        while tokens.more():
            if tokens.take(";"):
                continue
            is_typedef = tokens.take("typedef")
            base = self._specifier(0)
            while not tokens.take(";"):
                at = tokens.next()
                name, sized, bits = self._declarator(base)
                if not is_typedef or bits is not None or not name:
                    raise tokens.error("only types are declared here", at)
                found = replace(sized.type, typedefs=(name, *sized.type.typedefs))
                self._types[name] = Sized(found, sized.align)
                if not tokens.take(","):
                    tokens.need(";")
                    break

    def named(self, text: str, what: str) -> Type:
        """The type that ``text`` names."""
        outer, self._tokens = self._tokens, Tokens(text, what)
        try:
            start = self._tokens.next()
            name, sized, bits = self._declarator(self._specifier(0))
            if name or bits is not None or self._tokens.more():
                raise self._tokens.error("must be the name of one type")
            if sized.type.size == 0:
                raise self._tokens.error("has no size", start)
            return sized.type
        finally:
            self._tokens = outer

    def _specifier(self, depth: int) -> Sized:
        """The type in front of declarators."""
        tokens = self._tokens
        while tokens.next().text in _QUALIFIERS:
            tokens.advance()
        token = tokens.advance()
        if token.text in _RECORDS or token.text == "enum":
            found = self._tagged(token, depth)
        elif token.text in _WORDS:
            found = self._basic(token)
        elif token.text in self._types:
            found = self._types[token.text]
        else:
            raise tokens.error(f"no such type (got {token.text!r})", token)
        while tokens.next().text in _QUALIFIERS:
            tokens.advance()
        return found

    def _basic(self, first: Token) -> Sized:
        """``unsigned long long`` and its like, in any order of words."""
        words = [first.text]
        while self._tokens.next().text in _WORDS:
            words.append(self._tokens.advance().text)
        kinds = sorted(word for word in words if word not in ("signed", "unsigned"))
        unsigned, signed = "unsigned" in words, "signed" in words
        sizes = {
            ("char",): (1, "char"),
            ("short",): (2, "short"),
            ("int", "short"): (2, "short"),
            (): (4, "int"),
            ("int",): (4, "int"),
            ("long",): (8, "long"),
            ("int", "long"): (8, "long"),
            ("long", "long"): (8, "long long"),
            ("int", "long", "long"): (8, "long long"),
            ("__int128",): (16, "__int128"),
        }
        found = sizes.get(tuple(kinds))
        if found is not None and not (unsigned and signed):
            size, name = found
            if unsigned or (signed and name == "char"):
                name = f"{'unsigned' if unsigned else 'signed'} {name}"
            if size == 16:
                return Sized(Type(Kind.BYTES, 16, name), 16)
            return Sized(_integer(name, size, signed=not unsigned), size)
        simple = {
            "_Bool": Type(Kind.BOOL, 1, "_Bool"),
            "float": Type(Kind.FLOAT, 4, "float"),
            "double": Type(Kind.FLOAT, 8, "double"),
            "void": Type(Kind.BYTES, 0, "void"),
        }
        if len(words) == 1 and first.text in simple:
            only = simple[first.text]
            return Sized(only, max(only.size, 1))
        raise self._tokens.error(f"no such type (got {' '.join(words)!r})", first)

    def _tagged(self, keyword: Token, depth: int) -> Sized:
        """A struct, union or enum: its definition, or its name."""
        tokens = self._tokens
        if depth > DEPTH_MAX:
            raise tokens.error(f"nested too deep (more than {DEPTH_MAX})", keyword)
        before = self._attributes()
        tag = tokens.advance().text if tokens.next().is_name else ""
        place = (keyword.text, tag)
        if not tokens.take("{"):
            if not tag:
                raise tokens.error(f"{keyword.text}: needs a name or a body")
            known = self._tags.get(place)
            if known is None and tokens.next().text not in ("*", ";"):
                raise tokens.error(f"no such type (got '{keyword.text} {tag}')", keyword)
            kind = _RECORDS.get(keyword.text, Kind.ENUM)
            return known or Sized(Type(kind, 0, tag), 1)
        if keyword.text == "enum":
            body = self._enumerators()
            after = self._attributes()
            made = enum_of(tag, body, packed=before.packed or after.packed)
            found = Sized(made, made.size)
        else:
            found = self._record(keyword, tag, before, depth)
        if tag:
            if place in self._tags:
                raise tokens.error(f"{keyword.text} {tag}: is there twice", keyword)
            self._tags[place] = found
        return found

    def _enumerators(self) -> list[tuple[str, int]]:
        tokens = self._tokens
        found: list[tuple[str, int]] = []
        value = 0
        while not tokens.take("}"):
            name = tokens.name()
            if tokens.take("="):
                value = self._number()
            found.append((name, value))
            self._numbers[name] = value
            value += 1
            if not tokens.take(","):
                tokens.need("}")
                break
        return found

    def _record(self, keyword: Token, tag: str, before: _Attributes, depth: int) -> Sized:
        """The body of a struct or union; ``packed`` stands behind it, so members are kept first."""
        tokens = self._tokens
        members: list[tuple[str, Sized, int | None, int]] = []
        while not tokens.take("}"):
            base = self._specifier(depth + 1)
            if tokens.next().text == ";" and base.type.is_record and base.type.name == "":
                members.append(("", base, None, 0))
            while not tokens.take(";"):
                self._fields += 1
                if self._fields > FIELDS_MAX:
                    raise tokens.error(f"too many fields (more than {FIELDS_MAX})")
                at = tokens.next()
                name, sized, bits = self._declarator(base)
                if sized.type.size == 0 and sized.type.kind is not Kind.ARRAY:
                    raise tokens.error("its type has no size", at)
                if not name and bits is None:
                    raise tokens.error("a field needs a name", at)
                members.append((name, sized, bits, self._attributes().align))
                if not tokens.take(","):
                    tokens.need(";")
                    break
        after = self._attributes()
        packed = before.packed or after.packed
        kind = _RECORDS[keyword.text]
        fields, size, align = placed(members, is_union=kind is Kind.UNION, packed=packed)
        names = [field.name for field in fields]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise tokens.error(f"field {twice}: is there twice", keyword)
        align = max(align, before.align, after.align)
        size = -(-size // align) * align
        return Sized(Type(kind, size, tag, fields=tuple(fields)), align)

    def _declarator(self, base: Sized) -> tuple[str, Sized, int | None]:
        """Name, type and width of a bit field. A name may be missing."""
        tokens = self._tokens
        while tokens.take("*"):
            base = Sized(Type(Kind.POINTER, 8), 8)
            while tokens.next().text in _QUALIFIERS:
                tokens.advance()
        if tokens.next().text == "(":
            raise tokens.error("functions and pointers to them are not understood; use void *")
        name = tokens.advance().text if tokens.next().is_name else ""
        counts: list[int] = []
        while tokens.take("["):
            at = tokens.next()
            counts.append(0 if tokens.next().text == "]" else self._number())
            tokens.need("]")
            if not 0 <= counts[-1] <= ARRAY_MAX:
                raise tokens.error(f"an array has 0 to {ARRAY_MAX} elements", at)
        found = base.type
        for count in reversed(counts):
            if found.kind is Kind.INT and found.name == "char":
                found = Type(Kind.TEXT, count, "char")
            else:
                found = Type(Kind.ARRAY, count * found.size, element=found, count=count)
        bits: int | None = None
        if tokens.take(":"):
            at = tokens.next()
            bits = self._number()
            whole = found.kind in (Kind.INT, Kind.ENUM, Kind.BOOL)
            if not whole or counts or not 0 <= bits <= 8 * found.size or (name and bits == 0):
                raise tokens.error(f"no width for a bit field of {found.label}", at)
        return name, Sized(found, base.align), bits

    def _attributes(self) -> _Attributes:
        """``__attribute__((packed, aligned(8)))``, any number of them; ``__packed``."""
        tokens = self._tokens
        packed, align = False, 0
        while True:
            if tokens.take("__packed"):
                packed = True
            elif tokens.take("__attribute__"):
                tokens.need("(")
                tokens.need("(")
                while not tokens.take(")"):
                    at = tokens.next()
                    word = tokens.name().strip("_")
                    if word == "packed":
                        packed = True
                    elif word == "aligned":
                        tokens.need("(")
                        align = self._number()
                        tokens.need(")")
                        if not 0 < align <= 4096 or align & (align - 1):
                            raise tokens.error("aligned: needs a power of two", at)
                    else:
                        raise tokens.error(f"attribute: not understood (got {word!r})", at)
                    tokens.take(",")
                tokens.need(")")
            else:
                return _Attributes(packed, align)

    def _number(self) -> int:
        return self._tokens.number(self._numbers)


__all__ = ["DeclaredError", "read_declared"]

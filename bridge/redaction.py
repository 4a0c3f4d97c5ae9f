"""Texts without what looks like a secret: the last look at what is printed, logged, handed on.

Whoever makes a message keeps secrets out of it. This is for what others made: exceptions of
libraries, tracebacks, the logs in an archive.
"""

from __future__ import annotations

import re

_IDENTITY = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s\"'<>,]+@", re.IGNORECASE)
# In a quoted text a line's end is `\n`, so a letter may stand before either.
_SEED = re.compile(r"(?<![A-Z0-9])S[AUONCX][A-Z2-7]{56}(?![A-Z2-7])")  # NATS' secret keys
_TOKEN = re.compile(r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+")  # JSON web tokens
_NAMED = re.compile(
    r"""(?ix)
    ( \\* ["']? \w* (?:password|passwd|token|secret|seed) (?:_str)? \\* ["']? \s* [=:] \s* )
    ( \\* "[^"]*" | \\* '[^']*' | [^\s,})]+ )"""
)


def redacted(text: str) -> str:
    """Without identities in addresses, secret keys, web tokens, and what is called a password."""
    text = _IDENTITY.sub(r"\1***@", text)
    text = _SEED.sub("***", text)
    text = _TOKEN.sub("***", text)
    return _NAMED.sub(r'\1"***"', text)

"""Who speaks first: a broker greets in the clear and then begins TLS, or begins with TLS.

A client that expects the other way hears nothing at all, and nothing looks like a broker that is
away. Looking once at what the broker does in truth tells a wrong option from a broker to wait for.
Nothing secret is sent, so the certificate does not matter here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from bridge.access import Access
from bridge.bus.protocol import BrokerRefusedError
from bridge.bus.refusals import redacted

LOOK_SECONDS_MAX = 1.0  # a broker that hangs is not waited for much longer than it was
PORT = 4222
_GREETING = b"INFO "
_SCHEMES = ("nats", "tls")


def other_order_may_be_meant(error: Exception) -> bool:
    """Whether a connection that ended with ``error`` before a greeting is worth the look."""
    return not isinstance(error, ssl.SSLError) or error.reason == "WRONG_VERSION_NUMBER"


async def other_order(access: Access, url: str) -> BrokerRefusedError | None:
    """What is wrong with ``broker.tls_first``, ``None``: nothing, as far as one can see."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        return None
    look = _greets if access.tls_first else _takes_tls
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            if not await look(parts.hostname, parts.port or PORT):
                return None
    except (OSError, EOFError):  # TimeoutError among them
        return None
    shown = redacted(url)
    if access.tls_first:
        return BrokerRefusedError(
            f"broker {shown}: greets before TLS begins, and broker.tls_first waits for TLS",
            hint="take broker.tls_first out here, or set handshake_first in the broker's tls block",
        )
    return BrokerRefusedError(
        f"broker {shown}: begins with TLS (handshake_first), and here its greeting is awaited",
        hint="set broker.tls_first = true",
    )


async def _greets(host: str, port: int) -> bool:
    async with _connected(host, port) as reader:
        return await reader.readexactly(len(_GREETING)) == _GREETING


async def _takes_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with _connected(host, port, context):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # TLS all the same: it wants a certificate, say


@contextlib.asynccontextmanager
async def _connected(
    host: str, port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        yield reader
    finally:
        writer.transport.abort()

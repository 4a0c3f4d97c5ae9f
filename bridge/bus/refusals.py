"""Why a connection did not come about, in words that say what to do."""

from __future__ import annotations

import os
import re
import ssl

from nats import errors as nats_errors

from bridge.bus.protocol import AwayError, BrokerRefusedError, BrokerSettingsError
from bridge.errors import BridgeError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_REFUSALS = ("authorization", "authentication", "permissions", "certificate")
_HINT = "check the broker's user, token, credentials file and certificates"
_HINT_IDENTITY = (
    "check who the bridge is for the broker (broker.user, creds, nkey, token) and that the broker "
    "knows and has not revoked it"
)
# OpenSSL's X509_V_ERR_*, <openssl/x509_vfy.h>
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNTRUSTED = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}


def translated(url: str, error: Exception, reasons: list[str]) -> BridgeError:
    """What whoever dials ``url`` is told. ``reasons``: what the broker said before."""
    secret, url = "@" in url, redacted(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(url, error)
    if isinstance(error, ssl.SSLError):
        return _no_tls(url, error)
    text = reasons[-1] if isinstance(error, nats_errors.NoServersError) and reasons else str(error)
    text = text.removeprefix("nats: ").strip("'") or type(error).__name__
    if isinstance(error, ValueError):
        return BrokerSettingsError(
            f"broker {url}: is no address" + ("" if secret else f" ({text})"),
            hint="broker.url is nats://host:port or tls://host:port",
        )
    if any(word in text.lower() for word in _REFUSALS):
        told = _HINT if "certificate" in text.lower() else _HINT_IDENTITY
        return BrokerRefusedError(f"broker {url}: turned the bridge away ({text})", hint=told)
    number = re.search(r"\[Errno (\d+)\]", text)
    if number is not None:  # asyncio repeats the address, in its own way
        text = os.strerror(int(number[1])).lower()
    return AwayError(f"broker {url}: cannot connect ({text})")


def redacted(url: str) -> str:
    """``url`` without user and password, whatever else is wrong with it."""
    identity, _, rest = url.rpartition("@")
    scheme = _SCHEME.match(identity)
    return f"{scheme[0] if scheme else ''}{rest}"


def _untrusted(url: str, error: ssl.SSLCertVerificationError) -> BridgeError:
    code = error.verify_code
    if code in (_EXPIRED, _NOT_YET_VALID):
        hint = "renew the broker's certificate, and check this machine's clock"
    elif code in _OTHER_NAME:
        hint = "name the broker in broker.url as its certificate does"
    elif code in _UNTRUSTED:
        hint = "name the certificate of the broker's CA in broker.tls_ca"
    else:
        hint = "check the broker's certificate and broker.tls_ca"
    return BrokerRefusedError(
        f"broker {url}: its certificate is not trusted ({error.verify_message.rstrip('.')})",
        hint=hint,
    )


def _no_tls(url: str, error: ssl.SSLError) -> BridgeError:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason:
        return BrokerRefusedError(
            f"broker {url}: turned the bridge away ({reason})",
            hint="the broker wants a certificate that it trusts: see broker.tls_cert, tls_key",
        )
    return BrokerRefusedError(
        f"broker {url}: TLS does not come about ({reason})",
        hint="check that the broker speaks TLS there, and broker.tls_first against its "
        "handshake_first",
    )

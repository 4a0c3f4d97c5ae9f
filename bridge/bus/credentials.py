"""What a connection needs to show who it is and to check the broker, read from files just now.

Each connection reads them again: whoever rotates a certificate, a token or a creds file replaces
the file, and the next connection has the new one.
"""

from __future__ import annotations

import itertools
import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nats.aio.client import RawCredentials

from bridge.access import Access
from bridge.bus.protocol import BrokerSettingsError

FILE_BYTES_MAX = 64 << 10
_SEED_LENGTHS = range(50, 70)  # 58 characters; a creds file or a public key is told from it
_JWT_MARK, _SEED_MARK = "BEGIN NATS USER JWT", "BEGIN USER NKEY SEED"
_TLS_SCHEMES = ("tls", "wss")


def wants_tls(access: Access, url: str) -> bool:
    """Whether a connection without TLS would be weaker than what was asked for."""
    return access.asks_for_tls or urlsplit(url).scheme in _TLS_SCHEMES


def connect_options(access: Access, url: str) -> Mapping[str, object]:
    """Arguments for nats-py's ``connect``. What stands in ``url`` goes before user and token.

    Raises ``BrokerSettingsError``.
    """
    options: dict[str, object] = {}
    parts = urlsplit(url)
    if parts.username and parts.password is not None:
        options["user"], options["password"] = unquote(parts.username), unquote(parts.password)
    elif parts.username:
        options["token"] = unquote(parts.username)
    else:
        options.update(_identity(access))
    if access.credentials is not None and not access.user:
        options["user_credentials"] = _creds(access.credentials)
    elif access.nkey_seed is not None and not access.user:
        options["nkeys_seed_str"] = _seed(access.nkey_seed)
    if wants_tls(access, url):
        options["tls"] = tls_context(access)
        options["tls_handshake_first"] = access.tls_first
    return options


def tls_context(access: Access) -> ssl.SSLContext:
    """Trust and own certificate for one connection. Raises ``BrokerSettingsError``."""
    if access.ca is not None:
        _read(access.ca, "tls_ca", secret=False)
    try:
        context = ssl.create_default_context(cafile=access.ca)
    except (ssl.SSLError, OSError) as error:
        raise BrokerSettingsError(
            f"broker: {access.ca} holds no certificates ({_reason(error)})",
            hint="broker.tls_ca names a PEM file with the certificate of the broker's CA",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if access.certificate is not None:
        _read(access.certificate, "tls_cert", secret=access.key is None)
        if access.key is not None:
            _read(access.key, "tls_key", secret=True)
        try:
            # Without a password given, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(access.certificate, access.key, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise BrokerSettingsError(
                f"broker: {access.certificate} and {access.key or 'its key'} cannot be used "
                f"together ({_reason(error)})",
                hint="broker.tls_cert and broker.tls_key name PEM files that belong to each "
                "other, the key without a passphrase",
            ) from error
    return context


def _identity(access: Access) -> Mapping[str, object]:
    found: dict[str, object] = {}
    if access.user:
        found["user"] = access.user
        found["password"] = (
            _line(access.password_file, "password_file")
            if access.password_file is not None
            else access.password.reveal()
            if access.password is not None
            else ""
        )
    if access.token_file is not None:
        found["token"] = _line(access.token_file, "token_file")
    elif access.token is not None:
        found["token"] = access.token.reveal()
    return found


def _line(path: Path, key: str) -> str:
    text = _read(path, key).strip()
    if not text:
        raise BrokerSettingsError(
            f"broker: {path} is empty", hint=f"write the secret into it, or correct broker.{key}"
        )
    return text


def _creds(path: Path) -> RawCredentials:
    text = _read(path, "creds")
    if not all(_has_line_behind(text, mark) for mark in (_JWT_MARK, _SEED_MARK)):
        raise BrokerSettingsError(
            f"broker: {path} is no creds file (it lacks a user's JWT or its seed)",
            hint="write one with `nsc generate creds`; a seed alone goes into broker.nkey",
        )
    return RawCredentials(text)


def _has_line_behind(text: str, mark: str) -> bool:
    """nats-py reads for ever where the mark is missing."""
    lines = text.splitlines()
    return any(mark in one and other.strip() for one, other in itertools.pairwise(lines))


def _seed(path: Path) -> str:
    import nkeys

    text = _read(path, "nkey").strip()
    try:
        if len(text) not in _SEED_LENGTHS:
            raise ValueError
        pair = nkeys.from_seed(bytearray(text.encode()))
        pair.wipe()
    except Exception as error:  # noqa: BLE001 - whatever the library says of it, never the seed
        raise BrokerSettingsError(
            f"broker: {path} holds no nkey seed",
            hint="it begins with SU; a creds file goes into broker.creds",
        ) from error.with_traceback(None)
    return text


def _read(path: Path, key: str, *, secret: bool = True) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BrokerSettingsError(
            f"broker: cannot read {path} ({_reason(error)})",
            hint=f"correct broker.{key}, or make the file readable for the bridge's user",
        ) from error
    if len(data) > FILE_BYTES_MAX:
        raise BrokerSettingsError(
            f"broker: {path} is too large (more than {FILE_BYTES_MAX} bytes)",
            hint=f"correct broker.{key}",
        )
    if secret and stat.S_IMODE(mode) & (stat.S_IROTH | stat.S_IWOTH):
        raise BrokerSettingsError(
            f"broker: {path} is open to everybody (mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod o-rwx {path}, and replace the secret if others may have read it",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BrokerSettingsError(
            f"broker: {path} is no text", hint=f"correct broker.{key}"
        ) from error.with_traceback(None)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not understood").lower().replace("_", " ")
    return (getattr(error, "strerror", None) or str(error)).lower()

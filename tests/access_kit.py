"""Certificates and credentials for tests, and servers that ask for them."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import nkeys
import trustme

JSON = dict[str, object]


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """A CA that lives as long as the test."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self.path = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def issue(self, name: str, *identities: str, expired: bool = False) -> Certificate:
        ends = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        made = self._ca.issue_cert(*identities, not_after=ends if expired else None)
        found = Certificate(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        write_secret(found.key, made.private_key_pem.bytes().decode())
        found.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        return found


def write_secret(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


class Key:
    """An nkey pair of any kind: operator, account or user."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(secrets.token_bytes(32), kind).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public = self._pair.public_key.decode()

    def sign(self, data: bytes) -> bytes:
        return bytes(self._pair.sign(data))


def user_key() -> Key:
    return Key(nkeys.PREFIX_BYTE_USER)


class Operator:
    """An operator with a system account and one for the bridge, as `nsc` would make them.

    Source of the format: github.com/nats-io/jwt, version 2.
    """

    def __init__(self) -> None:
        self.key, self.system, self.account = (
            Key(kind)
            for kind in (
                nkeys.PREFIX_BYTE_OPERATOR,
                nkeys.PREFIX_BYTE_ACCOUNT,
                nkeys.PREFIX_BYTE_ACCOUNT,
            )
        )

    def server_config(self, revoked: dict[str, int] | None = None) -> str:
        limits = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1}
        limits |= {"payload": -1, "wildcards": True}
        storage = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
        body: JSON = {"type": "account", "version": 2, "limits": limits | storage}
        if revoked:
            body["revocations"] = revoked
        plain: JSON = {"type": "account", "version": 2, "limits": limits}
        operator: JSON = {"type": "operator", "version": 2, "system_account": self.system.public}
        account = encode_jwt(self.key, self.account.public, "bridge", body)
        system = encode_jwt(self.key, self.system.public, "SYS", plain)
        return (
            f"operator: {encode_jwt(self.key, self.key.public, 'op', operator)}\n"
            f"system_account: {self.system.public}\nresolver: MEMORY\nresolver_preload: {{\n"
            f"  {self.account.public}: {account}\n  {self.system.public}: {system}\n}}\n"
        )

    def creds(self, user: Key, *, permissions: JSON | None = None, ends: int = 0) -> str:
        body: JSON = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
        body |= permissions or {}
        token = encode_jwt(self.account, user.public, "node", body, ends=ends)
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )


def encode_jwt(issuer: Key, subject: str, name: str, body: JSON, *, ends: int = 0) -> str:
    claims: JSON = {"iat": int(time.time()), "iss": issuer.public, "name": name, "sub": subject}
    if ends:
        claims["exp"] = ends
    claims["nats"] = body
    digest = hashlib.new("sha512_256", json.dumps(claims).encode()).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    signed = ".".join(_part(json.dumps(part).encode()) for part in (head, claims))
    return f"{signed}.{_part(issuer.sign(signed.encode()))}"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")

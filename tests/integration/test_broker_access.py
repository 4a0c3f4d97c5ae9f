"""Real servers that ask who the bridge is: TLS, certificates, passwords, tokens, nkeys, JWTs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.access import Access, Secret
from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.protocol import BrokerRefusedError, BrokerSettingsError
from bridge.errors import BridgeError, Exit
from tests.access_kit import Authority, Certificate, Operator, user_key, write_secret
from tests.bus_kit import DEADLINE_SECONDS, eventually
from tests.server_kit import bare_server

LOCAL = "127.0.0.1"


def tls_config(certificate: Certificate, ca: Path, *, more: str = "") -> str:
    lines = [
        f'cert_file: "{certificate.cert}"',
        f'key_file: "{certificate.key}"',
        f'ca_file: "{ca}"',
        more,
    ]
    return "\n".join(["tls {", *lines, "}", ""])


@asynccontextmanager
async def connected(url: str, access: Access) -> AsyncIterator[NatsBus]:
    bus = await open_bus(BusSettings("n1", (url,), access))
    try:
        yield bus
    finally:
        await bus.close()


async def refusal(url: str, access: Access) -> BridgeError:
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(BridgeError) as caught:
            await open_bus(BusSettings("n1", (url,), access))
    assert caught.value.exit_code == Exit.CONFIG
    assert caught.value.hint
    return caught.value


async def test_tls_with_a_ca_of_ones_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config = tls_config(authority.issue("server", LOCAL), authority.path)
    other = Authority(tmp_path, "other")
    async with EmbeddedServer(tmp_path / "nats", extra_config=config) as server:
        async with connected(server.url, Access(ca=authority.path)) as bus:
            assert bus.state.connected
        for access in (Access(), Access(ca=other.path)):
            error = await refusal(server.url, access)
            assert "not trusted" in str(error)
            assert "broker.tls_ca" in error.hint
        named = server.url.replace(LOCAL, "localhost")
        error = await refusal(named, Access(ca=authority.path))
        assert "localhost" in str(error)
        assert "as its certificate does" in error.hint


@pytest.mark.parametrize("first", ["true", "auto", '"1s"'])
async def test_tls_before_the_greeting(tmp_path: Path, first: str) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue("server", LOCAL)
    config = tls_config(certificate, authority.path, more=f"handshake_first: {first}")
    asked = Access(ca=authority.path, tls_first=True)
    path = tmp_path / "bare.conf"  # one that greets nobody never looks ready to the bridge's own
    path.write_text(f"jetstream {{ store_dir: {json.dumps(str(tmp_path))} }}\n{config}")
    with bare_server(tmp_path, "-c", str(path)) as url:
        async with connected(url, asked) as bus:
            assert bus.state.connected
        if first != "true":  # it waits a while for TLS, and then greets whoever said nothing
            async with connected(url, Access(ca=authority.path)) as bus:
                assert bus.state.connected
            return
        for address in (url, url.replace("nats://", "tls://me:planted@")):
            for access in (Access(ca=authority.path), Access()):
                error = await refusal(address, access)
                assert "begins with TLS" in str(error)
                assert error.hint == "set broker.tls_first = true"
                assert "planted" not in str(error)


async def test_who_begins_tls_where_the_broker_greets_first_is_told_so(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config = tls_config(authority.issue("server", LOCAL), authority.path)
    for number, each in enumerate((config, "")):
        async with EmbeddedServer(tmp_path / f"nats-{number}", extra_config=each) as server:
            error = await refusal(server.url, Access(ca=authority.path, tls_first=True))
            assert "greets before TLS begins" in str(error)
            assert "take broker.tls_first out" in error.hint


@pytest.mark.parametrize(
    ("said", "access"),
    [(b"", Access()), (b"", Access(tls_first=True)), (b"HTTP/1.1 400 \r\n\r\n", Access())],
)
async def test_what_greets_in_neither_way_is_waited_for(said: bytes, access: Access) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    listener = await asyncio.start_server(answer, LOCAL, 0)
    port = listener.sockets[0].getsockname()[1]
    reports: list[str] = []
    settings = BusSettings("n1", (f"nats://{LOCAL}:{port}",), access)
    opening = asyncio.create_task(open_bus(settings, reports.append))
    await eventually(lambda: bool(reports) or opening.done())
    assert not opening.done()
    assert "cannot connect" in reports[0]
    opening.cancel()
    await asyncio.wait({opening})
    listener.close()
    await listener.wait_closed()


async def test_an_expired_certificate_is_called_so(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config = tls_config(authority.issue("server", LOCAL, expired=True), authority.path)
    async with EmbeddedServer(tmp_path / "nats", extra_config=config) as server:
        error = await refusal(server.url, Access(ca=authority.path))
    assert "expired" in str(error)
    assert "renew" in error.hint


async def test_mutual_tls_and_certificates_as_users(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config = tls_config(
        authority.issue("server", LOCAL), authority.path, more="verify_and_map: true"
    )
    config += 'authorization { users: [ { user: "n1.cluster" } ] }\n'
    known, unknown = authority.issue("n1", "n1.cluster"), authority.issue("n2", "n2.cluster")
    async with EmbeddedServer(tmp_path / "nats", extra_config=config) as server:
        own = Access(ca=authority.path, certificate=known.cert, key=known.key)
        async with connected(server.url, own) as bus:
            assert bus.state.connected
        error = await refusal(server.url, Access(ca=authority.path))
        assert "certificate" in str(error) + error.hint
        other = Access(ca=authority.path, certificate=unknown.cert, key=unknown.key)
        assert "uthorization" in str(await refusal(server.url, other))


async def test_no_password_goes_over_a_connection_that_lost_its_tls(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "nats") as server:
        for url, access in (
            (server.url.replace("nats://", "tls://me:planted@"), Access()),
            (server.url, Access(user="me", password=Secret("planted"), tls=True)),
        ):
            error = await refusal(url, access)
            assert "offers no TLS" in str(error)
            assert "planted" not in str(error) + error.hint
        assert "planted" not in server.log_path.read_text(errors="replace")


async def test_passwords_and_tokens_from_files_follow_their_rotation(tmp_path: Path) -> None:
    secret = write_secret(tmp_path / "password", "first\n")
    reports: list[str] = []
    directory = tmp_path / "nats"
    first = 'authorization { user: "n1", password: "first" }'
    access = Access(user="n1", password_file=secret)
    async with EmbeddedServer(directory, extra_config=first) as server:
        port = int(server.url.rpartition(":")[2])
        bus = await open_bus(BusSettings("n1", (server.url,), access), reports.append)
        assert bus.state.connected
    second = 'authorization { user: "n1", password: "second" }'
    async with EmbeddedServer(directory, port=port, extra_config=second):
        await eventually(lambda: any("uthorization" in text for text in reports))
        assert "uthorization" in bus.state.trouble
        secret.write_text("second\n")
        await eventually(lambda: bus.state.connected)
    secret.unlink()
    async with EmbeddedServer(directory, port=port, extra_config=second):
        await eventually(lambda: str(secret) in bus.state.trouble)
        write_secret(secret, "second")
        await eventually(lambda: bus.state.connected)
        await bus.close()
    assert not any("second" in text or "first" in text for text in reports)


@pytest.mark.parametrize("in_url", [True, False])
async def test_tokens(tmp_path: Path, in_url: bool) -> None:
    config = 'authorization { token: "s3cret-t0ken" }'
    async with EmbeddedServer(tmp_path / "nats", extra_config=config) as server:
        token = write_secret(tmp_path / "token", "s3cret-t0ken")
        url = server.url.replace("nats://", "nats://s3cret-t0ken@") if in_url else server.url
        access = Access() if in_url else Access(token_file=token)
        bus = await open_bus(BusSettings("n1", (url,), access))
        assert bus.state.connected
        assert "s3cret" not in bus.state.url
        await bus.close()


async def test_nkeys(tmp_path: Path) -> None:
    known, unknown = user_key(), user_key()
    config = f"authorization {{ users: [ {{ nkey: {known.public} }} ] }}"
    async with EmbeddedServer(tmp_path / "nats", extra_config=config) as server:
        seed = write_secret(tmp_path / "n1.nk", f"{known.seed}\n")
        async with connected(server.url, Access(nkey_seed=seed)) as bus:
            assert bus.state.connected
        seed.write_text(unknown.seed)
        error = await refusal(server.url, Access(nkey_seed=seed))
        assert "uthorization" in str(error)
        assert unknown.seed not in str(error)


async def test_creds_of_an_operator_that_expire_and_are_revoked(tmp_path: Path) -> None:
    operator, user = Operator(), user_key()
    directory = tmp_path / "nats"
    creds = write_secret(tmp_path / "n1.creds", operator.creds(user))
    access = Access(credentials=creds)
    reports: list[str] = []
    async with EmbeddedServer(directory, extra_config=operator.server_config()) as server:
        port = int(server.url.rpartition(":")[2])
        bus = await open_bus(BusSettings("n1", (server.url,), access), reports.append)
        assert bus.state.connected
        late = write_secret(tmp_path / "late.creds", operator.creds(user, ends=1_000_000_000))
        assert "uth" in str(await refusal(server.url, Access(credentials=late)))
    revoked = operator.server_config({user.public: int(time.time()) + 1})
    async with EmbeddedServer(directory, port=port, extra_config=revoked):
        await eventually(lambda: any("turned the bridge away" in text for text in reports))
        creds.write_text(operator.creds(user_key()))
        await eventually(lambda: bus.state.connected)
        await bus.close()
    assert any("revoked" in text for text in reports), reports


@pytest.mark.parametrize(
    ("key", "content", "told"),
    [
        ("credentials", None, "cannot read"),
        ("credentials", "-----BEGIN NATS USER JWT-----\n", "no creds file"),
        ("credentials", "", "no creds file"),
        ("nkey_seed", None, "cannot read"),
        ("nkey_seed", "SUAPLANTED", "no nkey seed"),
        ("nkey_seed", "S" * 58, "no nkey seed"),
        ("token_file", "\n", "is empty"),
        ("ca", "no certificate", "no certificates"),
        ("ca", None, "cannot read"),
        ("certificate", "no certificate", "cannot be used together"),
    ],
)
async def test_files_that_are_no_good(
    tmp_path: Path, key: str, content: str | None, told: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        write_secret(path, content)
    access = Access(**{key: path}, tls=key in ("ca", "certificate"))  # type: ignore[arg-type]
    with pytest.raises(BrokerSettingsError, match=told) as caught:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await open_bus(BusSettings("n1", ("nats://127.0.0.1:4999",), access))
    assert caught.value.hint
    assert "PLANTED" not in str(caught.value)


async def test_secrets_that_everybody_can_read_are_refused(tmp_path: Path) -> None:
    path = write_secret(tmp_path / "token", "t0ken")
    path.chmod(0o644)
    with pytest.raises(BrokerSettingsError, match="open to everybody \\(mode 0644\\)") as caught:
        await open_bus(BusSettings("n1", access=Access(token_file=path)))
    assert "chmod" in caught.value.hint


async def test_who_is_refused_at_the_start_is_told_at_once(tmp_path: Path) -> None:
    config = 'authorization { user: "n1", password: "right" }'
    async with EmbeddedServer(tmp_path / "nats", extra_config=config) as server:
        with pytest.raises(BrokerRefusedError) as caught:
            await open_bus(BusSettings("n1", (server.url,)))
        assert "broker.user" in caught.value.hint

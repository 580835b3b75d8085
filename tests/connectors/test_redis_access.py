"""Who may connect to Redis and how: passwords, ACL users, TLS, and servers that are none."""

from __future__ import annotations

import asyncio
import re
import traceback

import pytest

from proxyplane.connectors.redis import RedisConnector
from proxyplane.exceptions import ConfigError, ConnectorUnavailableError
from support.servers import admin
from support.tls_proxy import Authority, TLSProxy

SECRET = "s3kr1t-value"
VARIABLE = "TEST_REDIS_PASSWORD"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
async def guarded(own_redis_server):
    """A server with a password for the default user."""
    return await asyncio.to_thread(own_redis_server, args=["--requirepass", SECRET])


async def refused(connector, *, words, hint):
    """Every kind of call is unavailable, with these words and no secret anywhere."""
    for call in (
        lambda: connector.get("x"),
        lambda: connector.put([bytes(1 << 20)]),
        lambda: connector.put([b"x"], key="named"),
        lambda: connector.put_batch([[b"x"], [b"y"]]),
        lambda: connector.get_batch(["x", "y"]),
        lambda: asyncio.to_thread(connector.get_sync, "x"),
        lambda: asyncio.to_thread(connector.put_sync, [b"x"], key="named"),
        lambda: asyncio.to_thread(connector.evict_sync, "x"),
    ):
        with pytest.raises(ConnectorUnavailableError, match=words) as caught:
            await call()
        assert hint in caught.value.hint
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    await connector.aclose()


async def test_the_password_comes_from_the_environment(guarded, monkeypatch):
    """The variable that password_env= names is read when a connection is made."""
    connector = RedisConnector(guarded.url, password_env=VARIABLE)
    monkeypatch.setenv(VARIABLE, SECRET)
    assert b"x" == await connector.get(await connector.put([b"x"]))
    assert b"y" == await connector.get(await asyncio.to_thread(connector.put_sync, [b"y"]))
    assert SECRET not in repr(connector) + connector.url
    await connector.aclose(clear=True)


@pytest.mark.parametrize(("value", "state"), [(None, "not set"), ("", "empty")])
async def test_a_variable_that_is_not_set_is_named(guarded, monkeypatch, value, state):
    """A missing password is a mistake in the configuration, not of the server."""
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    connector = RedisConnector(guarded.url, password_env=VARIABLE)
    calls = [connector.put([b"x"]), connector.get("x"), connector.put_batch([[b"x"]])]
    for call in (*calls, asyncio.to_thread(connector.get_sync, "x")):
        with pytest.raises(ConfigError, match=f"{VARIABLE} is {state}"):
            await call
    monkeypatch.setenv(VARIABLE, SECRET)
    assert await connector.get("x") is None, "a mistake that is mended is forgotten"
    await connector.aclose()


async def test_no_password_where_one_is_wanted(guarded):
    """The hint names password_env=, whatever the size of the first command."""
    await refused(RedisConnector(guarded.url), words="refused the login", hint="password_env=")


async def test_a_wrong_password(guarded, monkeypatch):
    """The hint names the variable that it came from; nothing shows the password."""
    monkeypatch.setenv(VARIABLE, SECRET + "-wrong")
    connector = RedisConnector(guarded.url, password_env=VARIABLE)
    await refused(connector, words="refused the login", hint=f"${VARIABLE}, for the default user")


async def test_a_wrong_user(guarded, monkeypatch):
    """An unknown ACL user is named, and so is the way to choose another."""
    monkeypatch.setenv(VARIABLE, SECRET)
    connector = RedisConnector(guarded.url, username="nobody", password_env=VARIABLE)
    await refused(connector, words="refused the login", hint="user 'nobody'")


async def test_an_unrequested_password_over_a_unix_socket(redis_server, monkeypatch):
    """A login that the server refuses is told as such over every kind of connection."""
    monkeypatch.setenv(VARIABLE, SECRET)
    connector = RedisConnector(redis_server.unix_url, username="me", password_env=VARIABLE)
    await refused(connector, words="refused the login", hint="user 'me'")


async def test_an_acl_user_needs_only_what_is_documented(own_redis_server, monkeypatch):
    """A user with the documented commands on the namespace, and no others, can do everything."""
    server = await asyncio.to_thread(own_redis_server)
    documented = RedisConnector.__doc__.partition("needs the commands")[2].partition("on ``<")[0]
    commands = re.findall("[A-Z]+", documented)
    assert "GETRANGE" in commands
    with admin(server) as client:
        client.acl_setuser(
            "worker",
            enabled=True,
            passwords=[f"+{SECRET}"],
            keys=["team:*"],
            commands=[f"+{command}" for command in [*commands, "SCAN"]],
        )
    monkeypatch.setenv(VARIABLE, SECRET)
    for base in (server.url, server.unix_url):
        connector = RedisConnector(
            base, username="worker", password_env=VARIABLE, namespace="team", db=0
        )
        body = bytes(5 << 20)
        key = await connector.put([body])
        assert body == await connector.get(key)
        assert await connector.exists(await connector.put([b"x"], key="named"))
        keys = await connector.put_batch([[b"x"], [b"y"]])
        assert [b"x", b"y"] == await connector.get_batch(keys)
        assert [True, True] == await connector.evict_batch(keys)
        assert await connector.evict(key)
        for number in range(300):  # now and then it looks which of them are there still
            await connector.put([b"x"], key=f"named {number}")
            await asyncio.to_thread(connector.put_sync, [b"x"], key=f"named also {number}")
        await connector.aclose(clear=True)
        outside = RedisConnector(base, username="worker", password_env=VARIABLE)
        await refused(outside, words="does not permit this to user 'worker'", hint="ACL SETUSER")
    with admin(server) as client:
        assert 0 == client.dbsize()


async def test_a_database_that_the_server_does_not_have(redis_server):
    """The hint points at the number in the URL."""
    connector = RedisConnector(redis_server.url, db=99)
    await refused(connector, words="DB index is out of range", hint="database number")


async def test_tls(redis_server, redis_url, authority):
    """rediss:// with the authority's file reads and writes, small and large, and closes cleanly."""
    async with TLSProxy(redis_server.port, authority) as proxy:
        for host in ("localhost", "127.0.0.1"):
            url = f"rediss://{host}:{proxy.port}?ssl_ca_certs={authority.ca_file}"
            connector = RedisConnector(url, namespace=redis_url.partition("=")[2])
            body = bytes(range(256)) * (20 << 12)
            key = await connector.put([body[:7], body[7:]])
            assert body == await connector.get(key)
            assert [body, None] == await connector.get_batch([key, "missing"])
            await asyncio.gather(*(connector.exists(key) for _ in range(10)))
            await connector.aclose(clear=True)
    direct = RedisConnector(redis_url)
    assert not await direct.exists(key)
    await direct.aclose()


async def test_a_certificate_of_an_unknown_authority(redis_server, authority):
    """An untrusted server gets nothing, and the hint names ssl_ca_certs=."""
    async with TLSProxy(redis_server.port, authority) as proxy:
        connector = RedisConnector(f"rediss://localhost:{proxy.port}")
        await refused(connector, words="certificate is not trusted", hint="ssl_ca_certs=")


async def test_a_certificate_for_another_host(redis_server, authority):
    """The certificate must name the host of the URL, unless that is switched off."""
    async with TLSProxy(redis_server.port, authority, hosts=("elsewhere",)) as proxy:
        url = f"rediss://localhost:{proxy.port}?ssl_ca_certs={authority.ca_file}"
        await refused(RedisConnector(url), words="localhost", hint="ssl_ca_certs=")
        connector = RedisConnector(url, ssl_check_hostname=False)
        assert await connector.get("missing") is None
        await connector.aclose()


async def test_a_client_certificate(redis_server, authority):
    """A server that wants a certificate of its clients is shown the one of ssl_certfile=."""
    own = authority.issue("client", client=True)
    async with TLSProxy(redis_server.port, authority, want_client=True) as proxy:
        url = f"rediss://localhost:{proxy.port}?ssl_ca_certs={authority.ca_file}"
        with pytest.raises(ConnectorUnavailableError):
            await RedisConnector(url).get("x")
        connector = RedisConnector(url, ssl_certfile=str(own))
        assert await connector.get("missing") is None
        await connector.aclose()


async def test_certificate_files_that_cannot_be_used_are_named(redis_server, tmp_path):
    """A missing or foreign file is a mistake in the configuration that names option and path."""
    (tmp_path / "junk.pem").write_text("no certificate")
    for name in ("missing.pem", "junk.pem"):
        connector = RedisConnector("rediss://localhost", ssl_ca_certs=str(tmp_path / name))
        with pytest.raises(ConfigError, match=f"ssl_ca_certs={tmp_path / name}"):
            await connector.get("x")


async def test_tls_to_a_plain_server_and_the_reverse(redis_server, authority):
    """Both mistakes are unavailable servers with a hint, not hangs."""
    plain = RedisConnector(f"rediss://127.0.0.1:{redis_server.port}", connect_timeout=2)
    with pytest.raises(ConnectorUnavailableError, match="cannot connect"):
        await plain.get("x")
    async with TLSProxy(redis_server.port, authority) as proxy:
        connector = RedisConnector(f"redis://localhost:{proxy.port}", connect_timeout=2)
        with pytest.raises(ConnectorUnavailableError, match="cannot connect") as caught:
            await connector.get("x")
        assert "rediss://" in caught.value.hint


async def test_a_server_of_another_kind():
    """Something that answers, but not in the Redis protocol, is told as such."""

    async def answer(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connector = RedisConnector(f"redis://127.0.0.1:{port}")
        with pytest.raises(ConnectorUnavailableError, match="Redis protocol"):
            await connector.get("x")
        await connector.aclose()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://127.0.0.1:1", "127.0.0.1:1: connection refused"),
        ("redis://localhost:1", "localhost:1: connection refused"),
        ("redis://no-such-host.invalid", "no-such-host.invalid:6379: the host name is unknown"),
        ("unix:///no/such/socket", "/no/such/socket: there is no such socket"),
    ],
)
async def test_nobody_there(url, words):
    """The message says where and why, in words of its own."""
    connector = RedisConnector(url)
    with pytest.raises(ConnectorUnavailableError, match=words) as caught:
        await connector.get("x")
    assert caught.value.hint
    await connector.aclose()


async def test_a_full_server(own_redis_server):
    """A server at its maximum of clients is unavailable, and says so."""
    server = await asyncio.to_thread(own_redis_server)
    with admin(server) as client:
        client.config_set("maxclients", 1)
        connector = RedisConnector(server.url)
        with pytest.raises(ConnectorUnavailableError, match="maximum of clients"):
            await connector.get("x")
        await connector.aclose()


async def test_a_replica_takes_no_objects(own_redis_server):
    """Writing to a read-only replica is an error that points at the primary."""
    server = await asyncio.to_thread(own_redis_server)
    with admin(server) as client:
        client.replicaof("127.0.0.1", 1)
        connector = RedisConnector(server.url)
        for call in (
            connector.put([b"x"]),
            connector.evict("x"),
            connector.put_batch([[b"x"]] * 2),
        ):
            with pytest.raises(ConnectorUnavailableError, match="read-only replica"):
                await call
        assert await connector.get("x") is None
        await connector.aclose()

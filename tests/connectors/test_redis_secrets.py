"""Passwords of Redis by reference: where they come from, and that nothing shows them."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import traceback

import pytest

from proxyplane import (
    RedisConnector,
    Store,
    StoreConfig,
    StoreFactory,
    adrop,
    get_factory,
    get_key,
)
from proxyplane.config import register_secret
from proxyplane.exceptions import ConfigError, ConnectorUnavailableError

SECRET = "open-sesame-4711"
WRONG = SECRET + "-wrong"
NAME = "test-vault.redis"


@pytest.fixture
async def guarded(own_redis_server):
    """A server with a password for the default user."""
    return await asyncio.to_thread(own_redis_server, args=["--requirepass", SECRET])


@pytest.fixture(params=["password_env", "password_file", "password_from"])
def named(request, tmp_path, monkeypatch):
    """Sets the password, and returns the argument that names it."""
    path = tmp_path / "password"
    value = [""]

    def give(password):
        monkeypatch.setenv("TEST_PASSWORD_4711", password)
        path.write_text(password + "\n")
        value[0] = password

    register_secret(NAME, lambda: value[0])
    give.option = {
        "password_env": {"password_env": "TEST_PASSWORD_4711"},
        "password_file": {"password_file": str(path)},
        "password_from": {"password_from": NAME},
    }[request.param]
    return give


def everything_of(error):
    """All that a logger could show of an error: with variables, causes and contexts."""
    shown, left, seen = [], [error], set()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += [one.__cause__, one.__context__]
        shown += traceback.TracebackException.from_exception(one, capture_locals=True).format()
        shown += [repr(one), str(vars(one))]
    return "".join(shown)


async def test_each_source(guarded, named):
    """The password comes from a variable, a file or a function, at each new connection."""
    named(WRONG)
    connector = RedisConnector(guarded.url, **named.option)
    with pytest.raises(ConnectorUnavailableError, match="refused the login") as caught:
        await connector.put([b"x"])
    (where,) = named.option.values()
    assert where in caught.value.hint
    named(SECRET)
    key = await connector.put([b"x"])
    again = RedisConnector.from_url(connector.url)
    assert b"x" == await again.get(key)
    for one in (connector, again):
        await one.aclose(clear=True)


async def test_nothing_shows_it(guarded, named, caplog, monkeypatch):
    """Reprs, pickles, errors with all variables of their frames, and logs hold no password."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    named(WRONG)
    connector = RedisConnector(guarded.url, **named.option)
    async with Store("secretive", connector, signing_key="env:TEST_PASSWORD_4711") as store:
        monkeypatch.setenv("TEST_PASSWORD_4711", WRONG)
        texts = [repr(connector), connector.url, repr(store), repr(store.trust), store.reference]
        texts += [repr(store.config()), store.config().to_toml(), repr(vars(connector))]
        proxy = store.proxy_from_key("key")
        texts += [repr(proxy), str(pickle.dumps(proxy)), str(pickle.dumps(store.config()))]
        texts += [str(pickle.dumps(connector)), repr(connector._options)]
        for call in (
            lambda: store.get("x"),
            lambda: store.put("x"),
            lambda: store.put_batch(["x", "y"]),
            lambda: store.exists("x"),
            lambda: store.future(),
            lambda: proxy,
        ):
            with pytest.raises(Exception, match="refused the login") as caught:
                await call()
            texts.append(everything_of(caught.value))
    asyncio.get_running_loop().set_debug(False)
    texts.append(caplog.text)
    assert [] == [text for text in texts if SECRET in text]


async def test_a_login_logs_nothing(guarded, named, caplog):
    """Whoever logs in with a password, from a loop or without one, finds no word of it in the log.

    redis-py warns of each connection whose credentials are asked for in the old way.
    """
    caplog.set_level(logging.INFO)
    named(SECRET)
    connector = RedisConnector(guarded.url, **named.option)
    key = await connector.put([b"x"])
    assert await asyncio.to_thread(connector.get_sync, key) == b"x"
    assert caplog.text == ""
    await connector.aclose()


async def test_nothing_pickles_it(guarded, named):
    """What travels, and what is stored, holds neither the password nor the signing key."""
    named(SECRET)
    signing = {"password_env": "env", "password_file": "file", "password_from": "call"}
    ((option, where),) = named.option.items()
    connector = RedisConnector(guarded.url, namespace="pickles", **named.option)
    async with Store("travels", connector, signing_key=f"{signing[option]}:{where}") as store:
        future = await store.future()
        await future.aset_exception(LookupError("no"))
        proxy = await store.proxy([1], populate_target=False)
        owner = await store.owned_proxy([2], populate_target=False)
        config = store.config()
        travel = [
            proxy,
            future,
            future.proxy(),
            config,
            connector,
            StoreFactory,
            get_factory(proxy),
        ]
        data = [pickle.dumps(one) for one in (*travel, owner)]
        data += [bytes(await connector.get(key)) for key in (get_key(proxy), future._key)]
        data += [config.to_url().encode(), config.to_toml().encode()]
        assert [] == [one for one in data if SECRET.encode() in one]
        assert all(where.encode() in pickle.dumps(one) for one in (proxy, future, config))
        await adrop(pickle.loads(data[len(travel)]))


async def test_the_test_would_see_it(guarded):
    """The search above finds a password that redis-py is given as it is."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    client = Redis(unix_socket_path=guarded.socket_path, password=WRONG)
    with pytest.raises(RedisError) as caught:
        await client.ping()
    assert SECRET in everything_of(caught.value)
    await client.aclose()
    del client, caught
    gc.collect()


async def test_what_the_caller_handles_is_left_alone(guarded, named):
    """An error that the caller was handling keeps its traceback."""
    named(WRONG)
    connector = RedisConnector(guarded.url, **named.option)
    try:
        raise LookupError("of the caller")
    except LookupError as first:
        with pytest.raises(ConnectorUnavailableError) as caught:
            await connector.get("x")
        assert first.__traceback__ is not None
        assert "of the caller" in everything_of(caught.value)
    await connector.aclose()


async def test_cancelled_login(guarded, named, monkeypatch):
    """Who is cancelled while the server is slow to answer learns no password either."""
    named(WRONG)
    connector = RedisConnector(guarded.url, connect_timeout=0.2, **named.option)
    os.kill(guarded.pid, 19)  # SIGSTOP
    try:
        with pytest.raises(ConnectorUnavailableError, match="no answer") as caught:
            await connector.get("x")
        assert SECRET not in everything_of(caught.value)
        task = asyncio.ensure_future(connector.get("x"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert SECRET not in everything_of(cancelled.value)
    finally:
        os.kill(guarded.pid, 18)
    await connector.aclose()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"password_env": "no name"}, "password_env is not the name"),
        ({"password_file": ""}, "password_file is not the path"),
        ({"password_from": "no name"}, "password_from is not a name"),
        ({"password_env": "A", "password_from": "b"}, "named twice, by password_env and"),
    ],
)
def test_wrong_references(option, message):
    """A reference that cannot be one is refused, by the name of the argument, and not shown."""
    with pytest.raises(ConfigError, match=message) as caught:
        RedisConnector("redis://h", **option)
    assert "no name" not in str(caught.value)


async def test_missing_sources(tmp_path):
    """What is not there is told with the place where it should be."""
    for option, message in (
        ({"password_file": str(tmp_path / "absent")}, "absent.*cannot be read"),
        ({"password_from": "nobody"}, "no secret is registered as 'nobody'"),
    ):
        connector = RedisConnector("redis://localhost:1", **option)
        with pytest.raises(ConfigError, match=message):
            await connector.get("x")
        await connector.aclose()


def test_function_that_fails():
    """What a function raised is told by its type; its text and frames could hold the secret."""

    def fails():
        password = SECRET
        raise RuntimeError(f"bad {password}")

    register_secret("test-fails", fails)
    store = Store("a", "redis://localhost:1", signing_key="call:test-fails")
    with pytest.raises(ConfigError, match="raised RuntimeError") as caught:
        store.trust.key_id()
    assert SECRET not in everything_of(caught.value)
    register_secret("test-fails", lambda: 3)
    with pytest.raises(ConfigError, match="returned no text"):
        store.trust.key_id()


def test_urls_name_each_source(tmp_path):
    """The URL names the source, in one spelling, and reads it back."""
    for option in (
        {"password_env": "A"},
        {"password_file": str(tmp_path / "a b")},
        {"password_from": "vault.x"},
    ):
        connector = RedisConnector("redis://me@h", **option)
        assert connector.url == RedisConnector(connector.url).url
        (name,) = option
        assert f"{name}=" in connector.url
        StoreConfig("a", connector.url)

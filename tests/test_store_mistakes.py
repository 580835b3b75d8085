"""What a user is told, or spared, who hands a store something else than it expects."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import proxyplane as pp
from proxyplane import sync
from proxyplane._registry import connector_class
from proxyplane._store_base import DEFERRABLE
from proxyplane._store_leases import LEASING
from proxyplane._store_names import NAMING
from proxyplane.exceptions import ConfigError, StoreNotFoundError


@pytest.fixture
def store() -> Any:
    with sync.Store("mistakes", pp.LocalConnector()) as store:
        yield store


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.put(1, key=5),
        lambda store: store.get(5),
        lambda store: store.get(None),
        lambda store: store.get_batch([5]),
        lambda store: store.exists(5),
        lambda store: store.evict(5),
        lambda store: store.evict_batch([5]),
        lambda store: store.proxy_from_key(5),
    ],
)
def test_a_key_that_is_no_string(store: sync.Store, call: Callable[[Any], Any]) -> None:
    """Whatever the connector, it is a TypeError that names the key."""
    with pytest.raises(TypeError, match="a key is a string, not "):
        call(store)


async def test_a_key_that_was_not_awaited() -> None:
    """A coroutine where a key is expected: the error asks for the missing `await`."""
    async with pp.Store("not awaited", pp.LocalConnector()) as store:
        coroutine = store.put(1)
        with pytest.raises(TypeError, match="is an `await` missing"):
            await store.get(coroutine)  # type: ignore[call-overload]
        assert await store.get(await coroutine) == 1


def test_entered_without_a_loop() -> None:
    """Under another framework than asyncio it is said at once what to use there."""
    store = pp.Store("no loop", pp.LocalConnector())
    with pytest.raises(RuntimeError, match="runs on asyncio.*proxyplane.sync.Store"):
        store.__aenter__().send(None)  # as a loop of another framework would


@pytest.mark.parametrize("name", ["get_batch", "evict_batch"])
def test_one_key_where_many_are_expected(store: sync.Store, name: str) -> None:
    """A string is not taken for a list of keys of one letter."""
    with pytest.raises(TypeError, match="not one string: 'abc'"):
        getattr(store, name)("abc")


def test_batches_take_any_iterable(store: sync.Store) -> None:
    """Generators serve as batches of objects and of keys."""
    keys = store.put_batch(n for n in range(3))  # type: ignore[arg-type]
    assert store.get_batch(key for key in keys) == [0, 1, 2]  # type: ignore[arg-type]
    assert store.evict_batch(key for key in keys) == [True] * 3  # type: ignore[arg-type]
    assert store.proxy_batch(n for n in range(3)) == [0, 1, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize("connector", [None, pp.LocalConnector, Path("/data"), 5])
def test_what_is_no_connector(connector: Any) -> None:
    """A store wants a connector or a URL, and says so."""
    with pytest.raises(ConfigError, match="is a Connector or a URL, not"):
        pp.Store("mistakes", connector)


@pytest.mark.parametrize("serializer", [object(), 5, dict])
def test_what_is_no_serializer(store: sync.Store, serializer: Any) -> None:
    """An object is not encoded with what cannot encode."""
    with pytest.raises(ConfigError, match="cannot encode with"):
        store.put(1, serializer=serializer)


def test_a_url_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file connector makes no directory named ``file:``."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="from_url"):
        pp.FileConnector("file:///data")
    assert list(tmp_path.iterdir()) == []


def test_variable_of_the_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is wrong, the message names the variable."""
    monkeypatch.setenv("PROXYPLANE_STORE", "nonsense")
    with pytest.raises(ConfigError, match="PROXYPLANE_STORE.*'nonsense'"):
        pp.to_proxy([1])


def test_blocking_stores_are_stores(store: sync.Store) -> None:
    """The functions that take a store take a blocking one."""
    assert store.exists(pp.get_key(pp.to_proxy([1], store=store)))
    assert store.exists(pp.get_key(asyncio.run(pp.ato_proxy([1], store=store))))
    pp.register_store(store, exist_ok=True)
    assert pp.get_store("mistakes") is store.asynchronous
    with pp.store_registration(store, exist_ok=True):
        assert pp.get_store("mistakes") is store.asynchronous
    pp.set_default_store(store)
    try:
        assert store.exists(pp.get_key(pp.to_proxy([1])))
    finally:
        pp.set_default_store(None)


def test_what_is_no_store() -> None:
    """Neither an async nor a blocking store."""
    with pytest.raises(TypeError, match=r"expected a proxyplane\.Store .* got str"):
        pp.to_proxy([1], store="mistakes")  # type: ignore[arg-type]


def test_a_store_is_not_pickled(store: sync.Store) -> None:
    """The message says what to send in its place."""
    for dumps in (pickle.dumps, cloudpickle.dumps):
        for one in (store, store.asynchronous):
            with pytest.raises(TypeError, match=r"send its proxies.* store\.config\(\)"):
                dumps(one)
    with pytest.raises(TypeError, match="send its proxies"):
        cloudpickle.dumps(lambda: store)  # as a task that uses the store does


def test_a_block_inside_of_another() -> None:
    """Two equal stores: when the inner one is closed, the outer one has its name again."""
    connector = pp.LocalConnector()
    with sync.Store("twice", connector) as outer:
        proxy = pickle.dumps(outer.proxy([1]))
        with sync.Store("twice", connector.url) as inner:
            assert pp.get_store("twice") is inner.asynchronous
            with sync.Store("twice", connector.url):
                pass
            assert pp.get_store("twice") is inner.asynchronous
        assert pp.get_store("twice") is outer.asynchronous
        assert pp.get_store(pickle.loads(proxy)) is outer.asynchronous
    with pytest.raises(StoreNotFoundError):
        pp.get_store("twice")


def test_blocks_that_overlap() -> None:
    """Two equal stores: when the first one is closed first, the second keeps the name."""
    connector = pp.LocalConnector()
    first, second = sync.Store("twice", connector), sync.Store("twice", connector.url)
    with second:
        with first:
            pass
        assert pp.get_store("twice") is second.asynchronous
    first, second = sync.Store("twice", connector.url), sync.Store("twice", connector.url)
    first.__enter__()
    second.__enter__()
    first.close()
    assert pp.get_store("twice") is second.asynchronous
    second.close()
    with pytest.raises(StoreNotFoundError):
        pp.get_store("twice")


def test_a_name_that_is_freed() -> None:
    """`unregister_store` frees a name for good, however many equal stores had it."""
    connector = pp.LocalConnector()
    with sync.Store("twice", connector), sync.Store("twice", connector.url):
        pp.unregister_store("twice")
        with pytest.raises(StoreNotFoundError):
            pp.get_store("twice")


def test_messages_name_all_that_can() -> None:
    """What a message says of the library's connectors is so, and complete."""
    schemes = ("local", "file", "redis", "multi", "endpoint")
    ours = {one.__name__: one for one in map(connector_class, schemes)}
    for named, can in (
        (DEFERRABLE, lambda one: issubclass(one, pp.DeferrableConnector)),
        (NAMING, lambda one: hasattr(one, "swap")),
        (LEASING, lambda one: one.takes_ttl),
    ):
        assert sorted(named) == sorted(name for name, one in ours.items() if can(one))

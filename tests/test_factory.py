"""What stands behind a proxy."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import Proxy, StoreFactory, get_factory
from proxyplane._server import EmbeddedServer
from proxyplane.exceptions import (
    BlockingCallError,
    BlockingResolveWarning,
    ConfigError,
    ConnectorUnavailableError,
    ProxyResolveError,
    ProxyResolveMissingKeyError,
)
from proxyplane.factory import Factory


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with pp.sync.Store("factories", pp.FileConnector(tmp_path)) as store:
        yield store


class Named(Factory[str]):
    """Tells the thread it was called on."""

    def __call__(self) -> str:
        return threading.current_thread().name


class Awaited(Named):
    async def acall(self) -> str:
        await asyncio.sleep(0)
        return "awaited on " + threading.current_thread().name


class TestFactory:
    async def test_default_runs_on_a_thread(self) -> None:
        """A factory without an async form is called on a thread when it is awaited."""
        mine = threading.current_thread().name
        assert await Named().acall() != mine
        assert await Proxy(Named()) not in (mine, "proxyplane-io")

    async def test_async_form(self) -> None:
        """One with an async form is awaited, on the library's loop and never on ours."""
        assert await Proxy(Awaited()) == "awaited on proxyplane-io"

    def test_blocking_touch(self) -> None:
        """A touch calls a plain factory in its own thread."""
        assert Proxy(Named()) == threading.current_thread().name

    def test_blocking_touch_of_an_async_form(self) -> None:
        """A touch calls the factory all the same: its thread may block."""
        assert str(Proxy(Awaited())) == threading.current_thread().name

    async def test_callable_with_an_acall_of_its_own(self) -> None:
        """Any callable with an `acall` of its own is awaited, subclass of Factory or not."""

        class Duck:
            def __call__(self) -> str:
                return "called"

            async def acall(self) -> str:
                return "awaited"

        assert await Proxy(Duck()) == "awaited"


class TestStoreFactory:
    def test_calling(self, store: Any) -> None:
        """Calling the factory of a store's proxy gives the object."""
        p = store.proxy([1], populate_target=False)
        assert get_factory(p)() == [1]
        assert get_factory(pickle.loads(pickle.dumps(p)))() == [1]

    async def test_acall(self, store: Any) -> None:
        """And so does awaiting its async form."""
        p = await asyncio.to_thread(store.proxy, [1])
        assert await get_factory(p).acall() == [1]  # type: ignore[attr-defined]

    @pytest.mark.allow_blocking
    async def test_calling_on_a_loop(self, store: Any) -> None:
        """Calling it on a thread with a running loop warns, as touching the proxy does."""
        p = await asyncio.to_thread(store.proxy, [1])
        with pytest.warns(BlockingResolveWarning, match="await"):
            assert get_factory(p)() == [1]

    @pytest.mark.usefixtures("lazy")
    @pytest.mark.allow_blocking
    async def test_policy_of_the_store(self, tmp_path: Path) -> None:
        """The policy of a proxy's store is that of the proxy."""
        async with pp.Store("strict", pp.FileConnector(tmp_path), on_blocking="raise") as store:
            p = pickle.loads(pickle.dumps(await store.proxy([1])))
            with pytest.raises(BlockingCallError):
                len(p)
            assert await p == [1]

    def test_equality(self, store: Any) -> None:
        """Factories of one object are equal, and equal ones have one hash."""
        key = store.put([1])
        factories = [get_factory(store.proxy_from_key(key)) for _ in range(2)]
        evicting = get_factory(store.proxy_from_key(key, evict=True))
        assert factories[0] == factories[1] != evicting
        assert len({*factories, evicting}) == 2
        assert factories[0] != "factory"

    @pytest.mark.parametrize("module", [pickle, cloudpickle, copy])
    def test_travels(self, module: Any) -> None:
        """A copy is equal, whatever the key looks like."""
        for key in ("a" * 32, "A" * 32, "0" * 31, "a key/of ours", "ü" * 32, "z" * 32):
            factory = StoreFactory[Any]("file:///x#s", key, evict=True, size=7)
            copied = copy.copy(factory) if module is copy else module.loads(module.dumps(factory))
            assert copied == factory
            assert (copied.key, copied.size, copied.evict) == (key, 7, True)

    def test_missing(self, store: Any) -> None:
        """A missing key says which, where, and what may have happened."""
        with pytest.raises(
            ProxyResolveMissingKeyError, match="'nothing' in store 'factories'"
        ) as e:
            str(store.proxy_from_key("nothing"))
        assert (e.value.key, e.value.store) == ("nothing", "factories")
        with pytest.raises(ProxyResolveMissingKeyError, match="claimed by another"):
            str(store.proxy_from_key("nothing", evict=True))

    def test_closed_store_is_opened_again(self, tmp_path: Path) -> None:
        """A proxy outlives the store object that made it."""
        with pp.sync.Store("short-lived", pp.FileConnector(tmp_path)) as store:
            p = store.proxy([1], populate_target=False)
        assert p == [1]

    async def test_wrong_reference(self) -> None:
        """A reference to no connector is a resolve error, blocking or awaited, chained."""
        for reference in ("nothing://here#store", "file:///x?y=z#store", "no url"):
            p: Any = pp.proxy.make_proxy(StoreFactory[Any](reference, "k"))
            with pytest.raises(ProxyResolveError) as caught:
                await p
            assert isinstance(caught.value.cause, ConfigError)
            with pytest.raises(ProxyResolveError) as caught:
                await asyncio.to_thread(str, p)
            assert isinstance(caught.value.cause, ConfigError)
            assert "unresolved" in repr(p)

    async def test_server_that_is_not_there(self) -> None:
        """So is a server that refuses."""
        p: Any = pp.proxy.make_proxy(StoreFactory[Any]("redis://localhost:1/0#store", "k"))
        for use in (p, asyncio.to_thread(str, p)):
            with pytest.raises(ProxyResolveError) as caught:
                await use
            assert isinstance(caught.value.cause, ConnectorUnavailableError)

    def test_repr(self, store: Any) -> None:
        """It names key, store and medium."""
        text = repr(get_factory(store.proxy([1], key="mine")))
        for part in ("StoreFactory", "'mine'", "'factories'", "file://"):
            assert part in text


class TestRedisFactory:
    def test_needs_an_object_or_a_key(self) -> None:
        """Neither an object nor a key is a TypeError."""
        with pytest.raises(TypeError, match="an object, a key, or both"):
            pp.RedisFactory(url="redis://localhost:1")

    def test_key_of_its_own(self, redis_url: str) -> None:
        """Given only an object it makes a key."""
        factory = pp.RedisFactory([1], url=redis_url)
        assert pp.RedisFactory(key=factory.key, url=redis_url)() == [1]

    def test_none_is_an_object(self, redis_url: str) -> None:
        """None can be put like any object."""
        assert pp.RedisFactory(None, url=redis_url)() is None

    def test_taken_key(self, redis_url: str) -> None:
        """What a key holds is replaced, and a strict factory gets the latest."""
        strict = pp.RedisFactory([1], key="again", url=redis_url, strict=True)
        assert strict() == [1]
        pp.RedisFactory([2], key="again", url=redis_url)
        assert strict() == [2]

    @pytest.mark.usefixtures("lazy")
    def test_proxy_travels(self, redis_url: str) -> None:
        """Its proxies travel as those of a store."""
        p = Proxy(pp.RedisFactory([1], url=redis_url))
        received = pickle.loads(pickle.dumps(p))
        assert not pp.is_resolved(received)
        assert received == [1]
        assert pp.get_key(received) == pp.get_key(p)

    def test_no_password_in_the_url(self) -> None:
        """A password in the URL is refused, and not repeated."""
        with pytest.raises(ValueError, match="password_env") as caught:
            pp.RedisFactory(key="k", url="redis://:hunter2@localhost:1")
        assert "hunter2" not in str(caught.value)

    def test_reading_does_not_connect(self, own_redis_server: Any) -> None:
        """A factory for a key that is there connects when it is called, and not before."""
        server: EmbeddedServer = own_redis_server()
        url = server.url
        server.stop()
        factory: Any = pp.RedisFactory(key="k", url=url)
        with pytest.raises(ConnectorUnavailableError):
            factory()


def test_importing_needs_no_driver() -> None:
    """Factories are there without redis."""
    import subprocess

    code = "import sys, proxyplane.factory; assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)

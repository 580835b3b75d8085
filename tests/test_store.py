"""The store, async and blocking: objects in, keys and proxies out."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import proxyplane as pp
from proxyplane import sync
from proxyplane._server import EmbeddedServer
from proxyplane.abc import Parts
from proxyplane.exceptions import (
    ConfigError,
    KeyExistsError,
    NonProxiableTypeError,
    ProxyResolveMissingKeyError,
    SerializationError,
    StoreClosedError,
    StoreExistsError,
    StoreNotFoundError,
    UnknownSchemeError,
)


@pytest.fixture(params=["local", "file", "redis"])
def connector(request: pytest.FixtureRequest, tmp_path: Path) -> pp.Connector:
    if request.param == "local":
        return pp.LocalConnector()
    if request.param == "file":
        return pp.FileConnector(tmp_path)
    return pp.RedisConnector(request.getfixturevalue("redis_url"))


@pytest.fixture
async def store(connector: pp.Connector) -> AsyncIterator[pp.Store]:
    async with pp.Store("test", connector) as store:
        yield store


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return pp.FileConnector(tmp_path).url


@pytest.fixture
def blocking(file_url: str) -> Iterator[sync.Store]:
    with sync.Store("test", file_url) as store:
        yield store


_elsewhere: list[pp.Store] = []


def elsewhere(store: pp.Store) -> pp.Store:
    """What another process would have: the same store, with another cache."""
    _elsewhere.append(pp.Store.from_config(store.config()))
    return _elsewhere[-1]


@pytest.fixture(autouse=True)
async def _close_elsewhere() -> AsyncIterator[None]:
    yield
    while _elsewhere:
        await _elsewhere.pop().aclose()


class TestObjects:
    async def test_round_trip(self, store: pp.Store) -> None:
        """What is put can be got, with its type and contents."""
        for obj in (b"bytes", "text", 1, {"a": [1, 2]}, None, True, np.arange(6).reshape(2, 3)):
            got = await elsewhere(store).get(await store.put(obj))
            assert type(obj) is type(got)
            assert np.array_equal(obj, got) if isinstance(obj, np.ndarray) else obj == got

    async def test_default(self, store: pp.Store) -> None:
        """A key that holds nothing gives the default."""
        assert await store.get("absent") is None
        assert await store.get("absent", 1) == 1

    async def test_stored_none_is_not_the_default(self, store: pp.Store) -> None:
        """A stored None is an object."""
        key = await store.put(None)
        assert await elsewhere(store).get(key, default=1) is None
        assert await elsewhere(store).get_batch([key], default=1) == [None]

    async def test_batches(self, store: pp.Store) -> None:
        """Batches keep their order; a key that holds nothing has the default in its place."""
        keys = await store.put_batch([b"a", "b", 3])
        assert [3, None, b"a"] == await elsewhere(store).get_batch([keys[2], "no", keys[0]])
        assert [True, False] == await store.evict_batch([keys[0], "no"])
        assert [] == await store.put_batch([])
        assert [] == await store.get_batch([])

    async def test_a_key_asked_twice_in_a_batch(self, store: pp.Store) -> None:
        """A key that occurs twice is answered twice."""
        key = await store.put([1])
        assert [[1], [1]] == await elsewhere(store).get_batch([key, key])

    async def test_batch_that_cannot_be_encoded_stores_nothing(
        self, file_url: str, tmp_path: Path
    ) -> None:
        """One object that cannot be encoded keeps its whole batch out of the store."""
        store = pp.Store("test", file_url)
        with pytest.raises(SerializationError):
            await store.put_batch([b"fine", (i for i in "not")])
        assert [] == [path for path in tmp_path.rglob("*") if path.is_file()]

    async def test_evict(self, store: pp.Store) -> None:
        """Evict tells whether the object was there, and the cache forgets it."""
        key = await store.put("x")
        assert await store.get(key) == "x"
        assert store.is_cached(key)
        assert await store.evict(key)
        assert not await store.evict(key)
        assert not store.is_cached(key)
        assert await store.get(key) is None

    async def test_exists_asks_the_medium(self, store: pp.Store) -> None:
        """`exists` knows of an eviction elsewhere although the cache holds the object."""
        key = await store.put("x")
        await store.get(key)
        assert await elsewhere(store).evict(key)
        assert store.is_cached(key)
        assert not await store.exists(key)

    async def test_named_keys_can_be_write_once(self, store: pp.Store) -> None:
        """A second put under one name is refused, if that is wanted, and changes nothing."""
        assert await store.put("old", key="a name / of ours") == "a name / of ours"
        for new in ("new", b"n" * 100_000):
            with pytest.raises(KeyExistsError):
                await store.put(new, key="a name / of ours", overwrite=False)
        assert await elsewhere(store).get("a name / of ours") == "old"

    async def test_producer_cannot_change_what_it_put(self, store: pp.Store) -> None:
        """After a put returns, a change of the object is invisible to readers."""
        array = np.zeros(100_000)
        key = await store.put(array)
        array[:] = 1
        assert (await elsewhere(store).get(key)).sum() == 0

    async def test_reader_may_write_into_what_it_got(self, store: pp.Store) -> None:
        """An array that was got is writable, and private to who got it."""
        key = await store.put(np.zeros(100_000))
        first = await elsewhere(store).get(key)
        first[:] = 1
        assert (await elsewhere(store).get(key)).sum() == 0

    async def test_not_an_object(self, file_url: str, tmp_path: Path) -> None:
        """A file that is no object of ours is an error, not a wrong object."""
        store = pp.Store("test", file_url)
        key = await store.put("x" * 100)
        (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
        path.chmod(0o600)
        path.write_bytes(b"something else altogether")
        with pytest.raises(SerializationError, match="not"):
            await elsewhere(store).get(key)


class TestCache:
    async def test_same_object(self, store: pp.Store) -> None:
        """The cache gives the same object to everyone."""
        key = await store.put([1])
        assert await store.get(key) is await store.get(key)

    async def test_bound(self, connector: pp.Connector) -> None:
        """Only the objects used last stay, as many as the store was told."""
        store = pp.Store("test", connector, cache_size=2)
        _elsewhere.append(store)
        keys = await store.put_batch([b"0", b"1", b"2"])
        for key in keys:
            await store.get(key)
        assert [False, True, True] == [store.is_cached(key) for key in keys]

    async def test_disabled(self, connector: pp.Connector) -> None:
        """A size of 0 keeps nothing."""
        store = pp.Store("test", connector, cache_size=0)
        _elsewhere.append(store)
        key = await store.put([1])
        assert await store.get(key) is not await store.get(key)

    async def test_bytes(self, connector: pp.Connector) -> None:
        """An object larger than the bound in bytes is not kept."""
        store = pp.Store("test", connector, cache_bytes=1000)
        _elsewhere.append(store)
        small, large = await store.put_batch([b"x", b"x" * 1000])
        await store.get(small)
        await store.get(large)
        assert store.is_cached(small)
        assert not store.is_cached(large)

    async def test_environment(
        self, connector: pp.Connector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An argument beats the environment; a store rebuilt for a proxy takes the environment."""
        monkeypatch.setenv("PROXYPLANE_CACHE_SIZE", "0")
        told = pp.Store("told", connector, cache_size=1)
        _elsewhere.append(told)
        key = await told.put([1])
        await told.get(key)
        assert told.is_cached(key)
        rebuilt = pp.Store.from_url(told.reference)
        await rebuilt.get(key)
        assert not rebuilt.is_cached(key)
        await rebuilt.aclose()

    async def test_environment_that_is_no_number(
        self, connector: pp.Connector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cache size in the environment that is no number is refused by its name."""
        monkeypatch.setenv("PROXYPLANE_CACHE_SIZE", "many")
        with pytest.raises(ConfigError, match=r"PROXYPLANE_CACHE_SIZE.*many"):
            pp.Store("test", connector)


class TestProxies:
    @pytest.mark.usefixtures("lazy")
    async def test_resolves_elsewhere(self, store: pp.Store) -> None:
        """A proxy that was pickled resolves to an equal object."""
        proxy = await store.proxy(np.arange(10))
        copy = pickle.loads(pickle.dumps(proxy))
        assert not pp.is_resolved(copy)
        assert (await copy).sum() == 45

    async def test_populated(self, store: pp.Store) -> None:
        """The proxy that the store returns has its target, unless told otherwise."""
        target = [1]
        assert pp.extract(await store.proxy(target)) is target
        assert not pp.is_resolved(await store.proxy(target, populate_target=False))

    @pytest.mark.parametrize("obj", [None, True, False])
    async def test_not_proxiable(self, store: pp.Store, obj: Any) -> None:
        """None and bools are refused, and passed through where they may be skipped."""
        with pytest.raises(NonProxiableTypeError, match="is"):
            await store.proxy(obj)
        with pytest.raises(TypeError):
            await store.proxy_batch([1, obj])
        assert await store.proxy(obj, skip_nonproxiable=True) is obj

    async def test_batch_keeps_positions(self, store: pp.Store) -> None:
        """What is skipped in a batch keeps its place."""
        first, second, third = await store.proxy_batch([[1], None, "x"], skip_nonproxiable=True)
        assert second is None
        assert (first, third) == ([1], "x")
        assert isinstance(first, pp.Proxy)

    async def test_evict_is_a_claim(self, store: pp.Store) -> None:
        """Of two proxies that evict, the first use has the object and the second a missing key."""
        proxy = await store.proxy([1], evict=True)
        assert not pp.is_resolved(proxy)
        first, second = (pickle.loads(pickle.dumps(proxy)) for _ in range(2))
        assert await first == [1]
        assert not await store.exists(pp.get_key(proxy))
        with pytest.raises(ProxyResolveMissingKeyError) as caught:
            await second
        assert caught.value.key == pp.get_key(proxy)
        assert caught.value.store == "test"

    async def test_claims_at_once(self, store: pp.Store) -> None:
        """Of many claims made at once exactly one has the object."""
        proxy = await store.proxy([1], evict=True)
        copies = [pickle.loads(pickle.dumps(proxy)) for _ in range(10)]
        results = await asyncio.gather(*map(pp.aresolve, copies), return_exceptions=True)
        assert 1 == results.count([1])
        assert 9 == sum(isinstance(r, ProxyResolveMissingKeyError) for r in results)

    @pytest.mark.usefixtures("lazy")
    async def test_missing_key(self, store: pp.Store) -> None:
        """A proxy whose object is gone says which key is missing, and from which store."""
        proxy = pickle.loads(pickle.dumps(await store.proxy([1])))
        await pp.aevict(proxy)
        with pytest.raises(ProxyResolveMissingKeyError, match=pp.get_key(proxy)):
            await proxy

    async def test_from_key(self, store: pp.Store) -> None:
        """A key can be made into a proxy."""
        assert await store.proxy_from_key(await store.put([1])) == [1]

    async def test_locked(self, store: pp.Store) -> None:
        """A locked proxy gives the proxy when it is unlocked, here and after pickling."""
        locked = await store.locked_proxy([1])
        assert isinstance(locked, pp.ProxyLocker)
        assert await pickle.loads(pickle.dumps(locked)).unlock() == [1]

    async def test_closed_store(self, file_url: str) -> None:
        """A proxy outlives its store: the store is opened again for it."""
        async with pp.Store("test", file_url) as store:
            proxy = await store.proxy([1], populate_target=False)
        assert await proxy == [1]
        pp.unregister_store("test")

    async def test_object_with_a_proxy_inside(self, store: pp.Store) -> None:
        """A proxy inside of a stored object arrives unresolved."""
        inner = await store.proxy([1])
        outer = await elsewhere(store).get(await store.put({"inner": inner}))
        assert not pp.is_resolved(outer["inner"])
        assert await outer["inner"] == [1]


class TestConfiguration:
    async def test_config_round_trip(self, store: pp.Store) -> None:
        """A store made from another's configuration is that store."""
        config = pickle.loads(pickle.dumps(store.config()))
        assert pp.Store.from_config(config).config() == store.config()
        assert pp.Store.from_url(store.reference).reference == store.reference

    def test_connector_from_url(self, tmp_path: Path) -> None:
        """A URL does for a connector."""
        assert isinstance(pp.Store("test", f"file://{tmp_path}").connector, pp.FileConnector)

    def test_typo_in_scheme(self) -> None:
        """An unknown scheme is named, with those that are known and the nearest."""
        with pytest.raises(UnknownSchemeError, match=r"rediss"):
            pp.Store("test", "redsi://localhost")

    def test_with_on_the_async_store(self, file_url: str) -> None:
        """Plain `with` on the async class says what to do instead."""
        with (
            pytest.raises(TypeError, match=r"async with.*proxyplane\.sync"),
            pp.Store("test", file_url),
        ):
            pass  # pragma: no cover

    async def test_closed(self, store: pp.Store) -> None:
        """A closed store says so, and can be closed again."""
        await store.aclose()
        await store.aclose()
        for call in (store.put(1), store.get("k"), store.exists("k"), store.evict("k")):
            with pytest.raises(StoreClosedError, match="closed"):
                await call

    async def test_close_keeps_and_clear_removes(self, file_url: str) -> None:
        """Closing keeps what was stored; with `clear` it removes what this store stored."""
        other = pp.Store("other", file_url)
        theirs = await other.put("theirs")
        async with pp.Store("test", file_url) as store:
            kept = await store.put("kept")
        assert await other.get(kept) == "kept"
        store = pp.Store("test", file_url)
        gone = await store.put("gone")
        await store.aclose(clear=True)
        assert [True, True, False] == [await other.exists(key) for key in (theirs, kept, gone)]

    async def test_serializer(self, store: pp.Store) -> None:
        """A store's serialiser encodes, and any reader finds it by what the object says."""
        other = pp.Store("other", store.connector, serializer=JSON)
        key = await other.put({"a": 1})
        assert b'{"a": 1}' in bytes(await store.connector.get(key) or b"")
        assert await elsewhere(store).get(key) == {"a": 1}
        key = await store.put([1], serializer=JSON.id)
        assert await elsewhere(store).get(key) == [1]

    async def test_checksum(self, tmp_path: Path) -> None:
        """With checksums on, a changed body is an error."""
        store = pp.Store("test", pp.FileConnector(tmp_path), checksum=True)
        key = await store.put(np.zeros(1000))
        (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(SerializationError) as caught:
            await store.get(key)
        assert caught.value.reason == "corrupt"


class JsonSerializer:
    """Plain JSON."""

    id = f"{__name__}:JSON"
    copies = True

    def encode(self, obj: Any) -> Parts:
        import json

        return Parts([json.dumps(obj).encode()])

    def decode(self, inband: memoryview, buffers: Any) -> Any:
        import json

        return json.loads(bytes(inband))


JSON = JsonSerializer()


class TestRegistry:
    async def test_entering_registers(self, file_url: str) -> None:
        """A store has its name while it is entered, and no longer."""
        async with pp.Store("named", file_url) as store:
            assert pp.get_store("named") is store
        with pytest.raises(StoreNotFoundError, match="named"):
            pp.get_store("named")

    async def test_namesake(self, file_url: str, tmp_path: Path) -> None:
        """A store of the same name with another configuration is refused."""
        other = pp.Store("named", pp.FileConnector(tmp_path / "other"))
        async with pp.Store("named", file_url):
            for refused in (
                lambda: pp.register_store(other),
                lambda: pp.register_store(other, exist_ok=True),
                lambda: pp.get_or_create_store(other.config()),
            ):
                with pytest.raises(StoreExistsError, match="another name"):
                    refused()
            with pytest.raises(StoreExistsError):
                async with other:
                    pass  # pragma: no cover

    async def test_proxies_of_namesakes(self, file_url: str, tmp_path: Path) -> None:
        """A proxy finds its own store, not a namesake of it."""
        other = pp.Store("named", pp.FileConnector(tmp_path / "other"))
        data = pickle.dumps(await other.proxy("from the other"))
        async with pp.Store("named", file_url) as store:
            proxy = pickle.loads(data)
            assert await proxy == "from the other"
            assert pp.get_store(proxy).reference == other.reference
            assert pp.get_store("named") is store

    async def test_same_store_twice(self, file_url: str) -> None:
        """A second store of one configuration may take the name only if told so."""
        first, second = pp.Store("named", file_url), pp.Store("named", file_url)
        with pp.store_registration(first):
            with pytest.raises(StoreExistsError, match="exist_ok"):
                pp.register_store(second)
            assert pp.get_or_create_store(second.config()) is first
        with pytest.raises(StoreNotFoundError):
            pp.get_store("named")

    async def test_registration_is_all_or_none(self, file_url: str) -> None:
        """If one of many stores cannot be registered, none stays registered."""
        a, b, again = (pp.Store(name, file_url) for name in ("a", "b", "a"))
        with pytest.raises(StoreExistsError), pp.store_registration(a, b, again):
            pass  # pragma: no cover
        for name in ("a", "b"):
            with pytest.raises(StoreNotFoundError):
                pp.get_store(name)

    async def test_arriving_proxy_opens_its_store_once(self, store: pp.Store) -> None:
        """Proxies of one store that arrive share the store that they opened."""
        data = pickle.dumps(await store.proxy_batch([[1], [2]]))
        pp.unregister_store("test")
        first, second = pickle.loads(data)
        assert pp.get_store(first) is pp.get_store(second)
        assert await pp.gather(first, second) == ([1], [2])
        await pp.get_store(first).aclose()

    async def test_default_store(
        self, file_url: str, monkeypatch: pytest.MonkeyPatch, redis_server: EmbeddedServer
    ) -> None:
        """`to_proxy` takes the store that was set, else the one that the environment names."""
        monkeypatch.setenv("PROXYPLANE_STORE", f"{file_url}#ours")
        proxy = await pp.ato_proxy([1])
        assert pp.get_store(proxy).name == "ours"
        chosen = pp.Store("chosen", file_url)
        pp.set_default_store(chosen)
        try:
            assert pp.get_store(await pp.ato_proxy([1])) is chosen
        finally:
            pp.set_default_store(None)
        pp.unregister_store("ours")


class TestBlocking:
    def test_round_trip(self, blocking: sync.Store) -> None:
        """The blocking store does what the async one does, with nothing to await."""
        key = blocking.put([1])
        assert blocking.exists(key)
        assert blocking.get(key) == [1]
        proxy = pickle.loads(pickle.dumps(blocking.proxy(np.arange(3))))
        assert proxy.sum() == 3
        assert blocking.evict(key)
        assert blocking.get(key, "gone") == "gone"
        assert [None, [2]] == blocking.get_batch([key, *blocking.put_batch([[2]])])

    def test_shared_with_async_code(self, blocking: sync.Store) -> None:
        """A key that was put by blocking code can be got by async code."""
        key = blocking.put([1])
        assert asyncio.run(pp.get_store("test").get(key)) == [1]

    def test_to_proxy(self, blocking: sync.Store) -> None:
        """`to_proxy` works without a store and without a loop."""
        pp.set_default_store(pp.get_store("test"))
        try:
            proxy = pp.to_proxy([1], key="mine")
        finally:
            pp.set_default_store(None)
        assert pp.get_key(proxy) == "mine"
        assert pp.get_store(proxy).name == "test"
        pp.evict(proxy)
        assert not blocking.exists("mine")

"""Stores that sign, and stores that accept no pickle: every way in and out of them."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import proxyplane as pp
from proxyplane import (
    EndpointConnector,
    FileConnector,
    LocalConnector,
    MultiConnector,
    ProxyAlways,
    RedisConnector,
    Store,
    StoreConfig,
    StoreExecutor,
    sync,
)
from proxyplane.abc import Connector
from proxyplane.config import register_secret
from proxyplane.connectors.multi import Policy
from proxyplane.exceptions import (
    ConfigError,
    FutureCancelled,
    ProducerError,
    ProxyResolveError,
    SerializationError,
    UntrustedDataError,
)
from proxyplane.serialization import encode
from proxyplane.testing import CoroutinesOnly, cancelled_at
from support import evil

SECRET = "a signing key that nobody guesses"
SAFE = {"numpy", "arrow", "bytes", "bytearray", "str"}


@pytest.fixture(autouse=True)
def _secret(monkeypatch, lazy):
    monkeypatch.setenv("SIGNING", SECRET)
    monkeypatch.setenv("SIGNING_NEXT", SECRET[::-1])


class Keyless(CoroutinesOnly):
    """A connector of somebody else's, which knows nothing of keys that are made before."""

    takes_keys = False
    make_key = Connector.make_key


@pytest.fixture(params=["file", "local", "redis", "multi", "keyless", "endpoint"])
def connector(request, tmp_path):
    if request.param == "redis":
        return RedisConnector(request.getfixturevalue("redis_url"))
    if request.param == "endpoint":
        request.getfixturevalue("site")
        return EndpointConnector()
    if request.param == "local":
        return LocalConnector()
    if request.param == "multi":
        small = f"file://{tmp_path}/small"
        return MultiConnector(
            {"small": (small, Policy(max_bytes=2000)), "large": FileConnector(tmp_path / "large")}
        )
    if request.param == "keyless":
        return Keyless(LocalConnector())
    return FileConnector(tmp_path / "objects")


def signing(connector, **options):
    return Store("signing", connector, cache_size=0, signing_key="env:SIGNING", **options)


async def swapped(connector, one, other):
    """Puts what `one` holds in the place of what `other` holds."""
    data = bytes(await connector.get(one))
    await connector.evict(other)
    await connector.put([data], key=other)


async def refused(awaitable):
    with pytest.raises((UntrustedDataError, ProxyResolveError)) as caught:
        await awaitable
    error = caught.value
    error = error.cause if isinstance(error, ProxyResolveError) else error
    assert isinstance(error, UntrustedDataError)
    return error.reason


async def test_round_trips(connector):
    """Puts, batches, proxies and owners are read by whoever has the key."""
    large = np.arange(100_000)
    async with signing(connector) as store:
        key = await store.put({"a": 1})
        keys = await store.put_batch([1, large, "three"])
        assert {str} == {type(one) for one in (key, *keys)}
        assert {"a": 1} == await store.get(key)
        one, two, three = await store.get_batch(keys)
        assert (1, "three", large.sum()) == (one, three, two.sum())
        proxies = await store.proxy_batch([[1], large], populate_target=False)
        again = pickle.loads(pickle.dumps(proxies))
        assert large.sum() == (await again[1]).sum()
        assert [1] == await again[0]
        owner = await store.owned_proxy([2], populate_target=False)
        twin = await pp.aclone(owner)
        assert [2] == await pp.aextract(twin)
        assert [2] == await pp.aextract(owner)
        assert await store.evict(key) and await store.evict_batch(keys) == [True] * 3


async def test_swapped_objects_are_refused(connector):
    """A signed object in the place of another signed object is refused, by every way to read."""
    async with signing(connector) as store:
        good, target = await store.put("small"), await store.put("other")
        await swapped(connector, good, target)
        assert "small" == await store.get(good)
        assert "signature" == await refused(store.get(target))
        assert "signature" == await refused(store.get_batch([good, target]))
        assert "signature" == await refused(pp.aresolve(store.proxy_from_key(target)))


@pytest.mark.parametrize("obj", ["small", np.arange(50_000)], ids=["small", "large"])
async def test_chosen_keys(connector, obj):
    """An object under a key of the user's is signed for that, and for no other."""
    async with signing(connector) as store:
        await store.put(obj, key="mine")
        await store.put("theirs", key="yours")
        assert repr(obj) == repr(await store.get("mine"))
        await swapped(connector, "mine", "yours")
        assert "signature" == await refused(store.get("yours"))
        made = await store.put("another")
        await connector.evict("mine")
        await connector.put([bytes(await connector.get(made))], key="mine")
        assert "signature" == await refused(store.get("mine"))
        await connector.evict("mine")
        await connector.put(encode("forged"), key="mine")
        assert "unsigned" == await refused(store.get("mine"))


async def test_unsigned_objects_are_refused(connector, tmp_path):
    """What anybody else wrote is refused before it is loaded: no file appears."""
    path = tmp_path / "evil"
    async with signing(connector) as store:
        for data in evil.frames(path):
            key = await connector.put([data])
            with pytest.raises(SerializationError):
                await store.get(key)
            with pytest.raises(ProxyResolveError):
                await pp.aresolve(store.proxy_from_key(key))
        plain = await connector.put(encode([1]))
        assert "unsigned" == await refused(store.get(plain))
    assert not path.exists()


async def test_no_pickle(connector, tmp_path):
    """A store that accepts no pickle takes arrays and text, and runs nothing that others wrote."""
    path = tmp_path / "evil"
    async with Store("safe", connector, cache_size=0, allow=SAFE) as store:
        array = np.arange(5000.0)
        assert (array == await store.get(await store.put(array))).all()
        assert "text" == await (await store.proxy("text", populate_target=False))
        with pytest.raises(SerializationError, match="accepts only"):
            await store.put([1])
        for data in evil.frames(path):
            key = await connector.put([data])
            try:
                found = await store.get(key)
            except SerializationError:
                continue
            assert type(found) is bytes
        assert "disallowed" == await refused(store.get(await connector.put(encode([1]))))
    assert not path.exists()


async def test_clear(connector):
    """Closing with ``clear=True`` evicts signed objects like others."""
    store = signing(connector)
    key, *keys = [await store.put([1]), *await store.put_batch([2, np.arange(10_000)])]
    url = connector.url
    if isinstance(connector, LocalConnector | Keyless):
        return  # whose memory goes with its last connector
    await store.aclose(clear=True)
    other = type(connector).from_url(url)
    assert [False] * 3 == [await other.exists(one) for one in (key, *keys)]
    await other.aclose()


@pytest.mark.parametrize("medium", ["local", "file", "redis", "multi"])
async def test_futures(medium, tmp_path, request):
    """Results, failures and cancellations of futures are signed for the future's key."""
    connector = {
        "local": lambda: LocalConnector(),
        "file": lambda: FileConnector(tmp_path),
        "redis": lambda: RedisConnector(request.getfixturevalue("redis_url")),
        "multi": lambda: MultiConnector({"one": FileConnector(tmp_path)}),
    }[medium]()
    async with signing(connector) as store:
        future, failed, cancelled, forged, moved = [await store.future() for _ in range(5)]
        await future.aset_result([1])
        await failed.aset_exception(LookupError("no"))
        await cancelled.acancel("enough")
        await connector.set(forged._key, encode([1]))
        await connector.set(moved._key, [bytes(await connector.get(future._key))])
        assert [1] == await future
        with pytest.raises(LookupError, match="no"):
            await failed
        with pytest.raises(FutureCancelled, match="enough"):
            await cancelled
        assert "unsigned" == await refused(forged.aresult(10))
        assert "signature" == await refused(moved.aresult(10))


async def test_failures_without_pickle(tmp_path):
    """Where no pickle is accepted, exceptions cross as their text."""
    async with Store("safe", FileConnector(tmp_path), cache_size=0, allow=SAFE) as store:
        failed, cancelled, forged = [await store.future() for _ in range(3)]
        await failed.aset_exception(LookupError("no such thing"))
        await cancelled.acancel("enough")
        with pytest.raises(ProducerError, match="LookupError: no such thing") as caught:
            await failed
        assert "test_trust_stores" in str(caught.value.__cause__) or caught.value.__cause__
        with pytest.raises(FutureCancelled, match="enough"):
            await cancelled
        async with Store("plain", FileConnector(tmp_path)) as plain:
            await plain.setting(forged._key, 1).perform()
        assert "disallowed" == await refused(forged.aresult(10))


def test_blocking(tmp_path):
    """The blocking facade and touches sign and check too, without a loop."""
    store = sync.Store("blocking", FileConnector(tmp_path), cache_size=0, signing_key="env:SIGNING")
    with store:
        proxy = store.proxy([1, 2], populate_target=False)
        assert 2 == len(proxy)
        assert ["a", "b"] == store.get_batch(store.put_batch(["a", "b"]))
        owner = store.owned_proxy({"a": 1}, populate_target=False)
        assert {"a": 1} == pp.extract(pp.clone(owner))
        owner["b"] = 2
        pp.update(owner)
        assert {"a": 1, "b": 2} == store.get(pp.get_key(owner))
        key = store.asynchronous.connector.put_sync(encode([1]))
        with pytest.raises(UntrustedDataError):
            store.get(key)
        with pytest.raises(ProxyResolveError):
            len(store.proxy_from_key(key))
        pp.drop(owner)


def _double(array):
    return array * 2


def test_executor(tmp_path):
    """Arguments and results of tasks in other processes are signed and checked."""
    context = get_context("spawn")
    with (
        sync.Store("exec", FileConnector(tmp_path), signing_key="env:SIGNING") as store,
        ProcessPoolExecutor(1, mp_context=context) as pool,
        StoreExecutor(pool, store, ProxyAlways()) as executor,
    ):
        result = executor.submit(_double, np.arange(1000)).result(60)
        assert 999_000 == result.sum()


def test_other_process_needs_the_key(tmp_path):
    """A process that lacks the variable is told which one; what it got holds no secret."""
    with sync.Store("elsewhere", FileConnector(tmp_path), signing_key="env:SIGNING") as store:
        proxy = store.proxy([1, 2, 3], populate_target=False)
        data = pickle.dumps(proxy)
    assert SECRET.encode() not in data and b"env:SIGNING" in data
    script = (
        "import pickle, sys\n"
        "proxy = pickle.loads(sys.stdin.buffer.read())\n"
        "try: print(sum(proxy))\n"
        "except Exception as error: print(type(error.cause).__name__, error.cause)\n"
    )

    def run(**more):
        environment = {**os.environ, **more}
        environment = {name: value for name, value in environment.items() if value}
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=data,
            capture_output=True,
            check=True,
            timeout=60,
            env=environment,
        )
        return done.stdout.decode()

    assert "6" == run().strip()
    without = run(SIGNING="")
    assert without.startswith("UntrustedDataError") and "export SIGNING=" in without


async def test_rotation(tmp_path):
    """Readers get both keys, then writers sign with the new one, then the old one goes."""
    connector = FileConnector(tmp_path)
    old, both, new = (
        Store("rotation", FileConnector(tmp_path), cache_size=0, signing_key=keys)
        for keys in ("env:SIGNING", ["env:SIGNING_NEXT", "env:SIGNING"], "env:SIGNING_NEXT")
    )
    first, second = await old.put("first"), await both.put("second")
    assert ["first", "second"] == await both.get_batch([first, second])
    assert "second" == await new.get(second)
    assert "key" == await refused(new.get(first))
    assert "key" == await refused(old.get(second))
    for one in (connector, old, both, new):
        await one.aclose()


async def test_secret_of_a_file_and_a_function(tmp_path):
    """The key may come from a file, less its line end, or from a registered function."""
    (tmp_path / "key").write_text(SECRET + "\n")
    calls = []
    register_secret("test-vault", lambda: calls.append(1) or SECRET.encode())
    connector = LocalConnector()
    keys = []
    for reference in ("env:SIGNING", f"file:{tmp_path / 'key'}", "call:test-vault"):
        async with Store("a", connector, cache_size=0, signing_key=reference) as store:
            keys.append(await store.put(reference))
            assert len(keys) == len(await asyncio.gather(*map(store.get, keys)))
            connector = LocalConnector.from_url(connector.url)
    assert calls == [1]


@pytest.mark.parametrize(
    "wrong", [SECRET, b"bytes", "env:", "env:1X", "file:", "call:a b", "vault:x", 3, ["env:A", 4]]
)
def test_a_key_itself_is_refused(wrong):
    """Only a reference is taken; what was given instead is not shown."""
    with pytest.raises(ConfigError) as caught:
        Store("wrong", LocalConnector(), signing_key=wrong)
    assert "signing_key" in str(caught.value) and "env:NAME" in str(caught.value)
    assert repr(wrong) not in str(caught.value) and SECRET not in str(caught.value)


async def test_writer_without_the_key(tmp_path, monkeypatch):
    """A writer that lacks its key puts nothing, and is told what to do."""
    monkeypatch.delenv("SIGNING")
    async with signing(FileConnector(tmp_path)) as store:
        with pytest.raises(ConfigError, match="SIGNING is not set"):
            await store.put([1])
    assert not any(Path(tmp_path).rglob("*0000*"))


def test_allow_of_the_environment(monkeypatch):
    """`PROXYPLANE_ALLOW` is what stores accept that were not told, those of proxies too."""
    monkeypatch.setenv("PROXYPLANE_ALLOW", "numpy, bytes")
    assert ("bytes", "numpy") == StoreConfig("a", "local:").accepted()
    assert ("str",) == StoreConfig("a", "local:", allow={"str"}).accepted()
    assert {"bytes", "numpy"} == Store("a", LocalConnector()).trust.allow
    monkeypatch.setenv("PROXYPLANE_ALLOW", "numpi")
    with pytest.raises(ConfigError, match="'numpi', which is unknown"):
        Store("a", LocalConnector())


async def test_checksums_of_a_store(tmp_path):
    """A store writes the checksums it is told to, and reads all kinds."""
    keys = []
    for checksum in (False, True, "crc32", "xxh3"):
        async with Store("sums", FileConnector(tmp_path), checksum=checksum, cache_size=0) as one:
            keys.append(await one.put(np.arange(1000)))
            assert 499_500 == sum([array.sum() for array in await one.get_batch(keys)]) / len(keys)


async def test_cancelled_put_leaves_nothing(tmp_path):
    """A signed put that is cancelled anywhere leaves no object, as one that is not signed."""

    def objects():
        found = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
        return [path for path in found if path.stat().st_size > 1_000_000]

    async with signing(FileConnector(tmp_path / "objects")) as store:
        nth = 1
        while await cancelled_at(store.put(np.zeros(2_000_000, "u1")), nth):
            for _ in range(1000):  # a worker may still be at it
                if not await asyncio.to_thread(objects):
                    break
                await asyncio.sleep(0.01)
            assert [] == await asyncio.to_thread(objects), nth
            nth += 1
        assert nth > 1
        assert 1 == len(await asyncio.to_thread(objects))

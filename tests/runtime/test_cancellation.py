"""A coroutine of the store, cancelled wherever it waits, leaves no task and no wrong state."""

from __future__ import annotations

import asyncio
import pickle

import pytest

import proxyplane
from proxyplane import FileConnector, LocalConnector, RedisConnector, aresolve, is_resolved
from proxyplane.testing import cancelled_at

pytestmark = pytest.mark.row("cancellation at every await")

BIG = [0] * 300_000  # encoded and decoded on a worker


@pytest.fixture(params=["local", "file", "redis"])
def connector(request, tmp_path):
    if request.param == "local":
        return LocalConnector()
    if request.param == "file":
        return FileConnector(tmp_path / "objects")
    return RedisConnector(request.getfixturevalue("redis_url"))


@pytest.fixture
async def store(connector):
    async with proxyplane.Store("s", connector, cache_size=0) as store:
        await store.put(0)
        yield store


async def at_every_step(make, check):
    """Cancels ``make()`` at its first, second, ... suspension, and checks after each."""
    before = asyncio.all_tasks()
    n = 1
    while await cancelled_at(make(), n):
        for _ in range(100):
            if asyncio.all_tasks() <= before:
                break
            await asyncio.sleep(0.01)
        assert asyncio.all_tasks() <= before, n
        await check()
        n += 1
    await check()


@pytest.mark.parametrize("obj", [[1], BIG], ids=["small", "big"])
async def test_get(store, obj):
    """get, get_batch, exists."""
    key = await store.put(obj)

    async def check():
        assert await store.get(key) == obj

    await at_every_step(lambda: store.get(key), check)
    await at_every_step(lambda: store.get_batch([key, key]), check)
    await at_every_step(lambda: store.exists(key), check)


@pytest.mark.parametrize("obj", [[1], BIG], ids=["small", "big"])
async def test_put(store, obj):
    """put, put_batch, proxy, with a key of the library's and with one of the user's."""
    made = []

    async def check():
        if made and await store.exists(made[-1]):
            # Cancelled, and there all the same: then whole.
            assert await store.get(made[-1]) == obj
        assert await store.get(await store.put(obj)) == obj

    def put_named():
        made.append(f"name-{len(made)}")
        return store.put(obj, key=made[-1])

    await at_every_step(lambda: store.put(obj), check)
    await at_every_step(put_named, check)
    await at_every_step(lambda: store.put_batch([obj, obj]), check)
    await at_every_step(lambda: store.proxy(obj), check)


async def test_evict(store):
    """evict and evict_batch: the object is there, or it is not."""
    keys = []

    def make_for(operation):
        def make():
            return operation(keys[-1])

        return make

    async def check():
        if keys:
            there = await store.exists(keys[-1])
            assert await store.get(keys[-1]) == ([1] if there else None)
        keys.append(await store.put([1]))

    await check()
    await at_every_step(make_for(store.evict), check)
    await at_every_step(make_for(lambda key: store.evict_batch([key])), check)


@pytest.mark.parametrize("obj", [[1], BIG], ids=["small", "big"])
async def test_resolve(store, obj):
    """A proxy whose wait was cancelled resolves when it is awaited again."""
    proxy = await store.proxy(obj, populate_target=False)
    copies = []

    def make():
        copies.append(pickle.loads(pickle.dumps(proxy)))
        return aresolve(copies[-1])

    async def check():
        assert await copies[-1] == obj
        assert is_resolved(copies[-1])

    await at_every_step(make, check)


async def test_close(store):
    """A close that was cancelled can be repeated."""
    connectors = store.config()

    async def check():
        other = proxyplane.Store.from_config(connectors)
        assert other.name == "s"
        await other.aclose()

    other = proxyplane.Store.from_config(connectors)
    await at_every_step(other.aclose, check)
    await other.aclose()
    assert other.closed

"""What mixed work does with objects, proxies, futures and names; see `support.mixed`."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import numpy as np

import proxyplane as pp
from proxyplane import exceptions as ex
from support.mixed.world import PATIENCE, World, operation, raises

# -- objects ---------------------------------------------------------------------------------------


@operation()
async def put_and_get(world: World) -> None:
    body = world.body()
    key = await world.store.put(body)
    assert await world.store.exists(key)
    assert await world.store.get(key) == body
    assert await world.store.evict(key)
    assert await world.store.get(key) is None
    assert not await world.store.evict(key)


@operation()
async def large_arrays(world: World) -> None:
    array = np.full(world.dice.choice((100_000, 400_000)), world.dice.random())
    key = await world.store.put(array)
    found = await world.store.get(key)
    assert np.array_equal(found, array)
    found[0] += 1  # it is the reader's own
    assert await world.store.evict(key)
    assert found[0] == array[0] + 1 and found[-1] == array[-1]


@operation()
async def batches(world: World) -> None:
    bodies = [world.body() for _ in range(world.dice.randrange(1, 12))]
    keys = await world.store.put_batch(bodies)
    assert await world.store.get_batch([*keys, "absent"], 7) == [*bodies, 7]
    assert await world.store.evict_batch([*keys, "absent"]) == [True] * len(keys) + [False]
    assert await world.store.get_batch(keys) == [None] * len(keys)


@operation()
async def more_than_the_cache_has_room_for(world: World) -> None:
    bodies = [b"%d" % number * 100 for number in range(12)]
    keys = [await world.store.put(body) for body in bodies]
    for key, body in [*zip(keys, bodies, strict=True)] * 2:
        assert await world.store.get(key) == body
    assert sum(map(world.store.is_cached, keys)) <= 8
    assert await world.store.evict_batch(keys) == [True] * 12


@operation()
async def in_threads(world: World) -> None:
    def work(body: bytes) -> None:
        store = world.blocking
        keys = [store.put(body), *store.put_batch([body, body[:1]])]
        assert store.get(keys[0]) == body and store.exists(keys[1])
        assert store.get_batch(keys) == [body, body, body[:1]]
        future: Any = store.future()
        producer = threading.Thread(target=future.set_result, args=(body,))
        producer.start()
        assert future.result(PATIENCE) == body
        producer.join()
        proxy = store.proxy(body, populate_target=False)
        assert len(proxy) == len(body) and pp.is_resolved(proxy)
        keys += [pp.get_key(future.proxy()), pp.get_key(proxy)]
        assert store.evict_batch(keys) == [True] * 5

    await asyncio.gather(*(asyncio.to_thread(work, world.body()) for _ in range(3)))


@operation()
async def a_loop_in_a_thread(world: World) -> None:
    await asyncio.to_thread(lambda: asyncio.run(put_and_get(world)))


# -- proxies ---------------------------------------------------------------------------------------


@operation()
async def awaited_and_touched(world: World) -> None:
    array = np.arange(world.dice.choice((10, 50_000)))
    proxy = await world.store.proxy(array, populate_target=False)
    pickled = pickle.dumps(proxy)
    awaited, touched, *others = [pickle.loads(pickled) for _ in range(5)]
    assert await asyncio.to_thread(lambda: int(touched.sum())) == array.sum()
    assert np.array_equal(await awaited, array)
    assert [one.size for one in await pp.gather(*others)] == [array.size] * 3
    await pp.aevict(proxy)


@operation()
async def in_the_background(world: World) -> None:
    bodies = [world.body() for _ in range(4)]
    proxies = await world.store.proxy_batch(bodies, populate_target=False)
    keys = [pp.get_key(one) for one in proxies]
    arrived, unused = pickle.loads(pickle.dumps(proxies)), pickle.loads(pickle.dumps(proxies))
    del unused  # some are under way
    while not all(map(pp.is_resolved, arrived)):
        await asyncio.sleep(0.001)
    assert [bytes(one) for one in arrived] == bodies
    assert await world.store.evict_batch(keys) == [True] * 4


@operation()
async def the_first_use_evicts(world: World) -> None:
    body = world.body()
    proxy = await world.store.proxy(body, evict=True)
    copies = [pickle.loads(pickle.dumps(proxy)) for _ in range(3)]
    results = await asyncio.gather(*map(pp.aresolve, copies), return_exceptions=True)
    assert sum(isinstance(one, ex.ProxyResolveMissingKeyError) for one in results) == 2
    assert body in results and not await world.store.exists(pp.get_key(proxy))


@operation("elsewhere")
async def used_elsewhere(world: World) -> None:
    body = world.body()
    proxy = await world.store.proxy(body)
    assert await world.elsewhere(size_of, proxy, world.dice.random() < 0.5) == len(body)
    await pp.aevict(proxy)


def size_of(proxy: Any, touch: bool) -> int:
    return len(proxy) if touch else len(asyncio.run(pp.aextract(proxy)))


# -- futures ---------------------------------------------------------------------------------------


@operation()
async def futures_of_this_process(world: World) -> None:
    body = world.body()
    future: Any = await world.store.future()
    waiting = [asyncio.create_task(future.aresult()) for _ in range(3)]
    waiting.append(asyncio.create_task(pp.aresolve(pickle.loads(pickle.dumps(future.proxy())))))
    with raises(TimeoutError):
        await future.aresult(0.001 * world.dice.random())
    waiting.pop().cancel()
    await future.aset_result(body)
    assert await asyncio.gather(*waiting) == [body] * 3
    with raises(pp.exceptions.FutureAlreadySet):
        await future.aset_result(b"")
    assert await world.store.evict(pp.get_key(future.proxy()))


@operation("elsewhere")
async def futures_of_another_process(world: World) -> None:
    body = world.body()
    future: Any = await world.store.future()
    _, *results = await asyncio.gather(
        world.elsewhere(set_result, future, body), future, pp.aresolve(future.proxy())
    )
    assert results == [body] * 2
    assert await world.store.evict(pp.get_key(future.proxy()))


def set_result(future: Any, body: bytes) -> None:
    future.set_result(body)


@operation()
async def futures_in_vain(world: World) -> None:
    failed: Any = await world.store.future()
    given_up: Any = await world.store.future()
    evicted: Any = await world.store.future()
    waiting = asyncio.create_task(evicted.aresult())
    await failed.aset_exception(LookupError("in vain"))
    assert await given_up.acancel() and not await given_up.acancel()
    assert isinstance(await failed.aexception(), LookupError)
    with raises(ex.FutureCancelled):
        await given_up
    keys = [pp.get_key(one.proxy()) for one in (failed, given_up, evicted)]
    await world.store.evict_batch(keys)
    with raises(ex.ObjectLostError):
        await waiting


# -- names -----------------------------------------------------------------------------------------


@operation("names")
async def names(world: World) -> None:
    name, first, second = world.fresh(), world.body(), world.body()
    await world.store.put(first, key=name)
    assert await world.store.get(name) == first
    with raises(ex.KeyExistsError):
        await world.store.put(second, key=name, overwrite=False)
    await world.store.put(second, key=name)
    assert await world.store.get(name, strict=True) == second
    proxy = world.store.proxy_from_key(name, strict=True)
    assert await proxy == second
    assert await world.store.evict(name)
    with raises(ex.ProxyResolveMissingKeyError):
        await world.store.proxy_from_key(name)


@operation("names", "elsewhere")
async def names_of_two_processes(world: World) -> None:
    name, config = world.fresh(), world.store.config()
    bodies = [world.body() for _ in range(3)]
    await world.store.put(bodies[0], key=name)
    assert await world.elsewhere(replace, config, name, bodies[1]) == bodies[0]
    assert await world.store.get(name, strict=True) == bodies[1]
    await world.store.put(bodies[2], key=name)
    assert await world.elsewhere(replace, config, name, None) == bodies[2]
    assert await world.store.get(name, strict=True) is None


def replace(config: Any, name: str, body: bytes | None) -> Any:
    store = pp.sync.Store.of(pp.get_or_create_store(config))
    found = store.get(name, strict=True)
    if body is None:
        assert store.evict(name)
    else:
        store.put(body, key=name)
    return found

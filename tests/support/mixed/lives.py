"""What mixed work does with lifetimes, owners, tasks and stores, and with errors on purpose."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from typing import Any

import proxyplane as pp
from proxyplane import exceptions as ex
from proxyplane import scopes
from support.mixed.objects import size_of
from support.mixed.world import World, operation, raises

# -- lifetimes -------------------------------------------------------------------------------------


@operation("leases")
async def leases(world: World) -> None:
    short, longer = [await world.store.put(world.body(), ttl=ttl) for ttl in (0.05, 600)]
    assert await world.store.extend([longer, "absent"], None) == [True, False]
    while await world.store.exists(short):
        await asyncio.sleep(0.01)
    assert await world.store.evict(longer)


@operation("leases", seldom=True)
async def a_future_with_a_lease(world: World) -> None:
    future: Any = await world.store.future(ttl=0.05)
    with raises(ex.ObjectLostError):
        await future  # is told at the next slow look


@operation("leases")
async def leases_that_are_renewed(world: World) -> None:
    async with pp.LeaseLifetime(world.store, 60) as lifetime:
        proxy = await world.store.proxy(world.body(), lifetime=lifetime)
        await lifetime.aadd_key(await world.store.put(b"another"))
        await lifetime.aextend(60)
        assert lifetime.active_count() == 2
    assert lifetime.done() and not await world.store.exists(pp.get_key(proxy))


@operation()
async def owners(world: World) -> None:
    body = world.body()
    owner: Any = await world.store.owned_proxy([body])
    readers = [pp.borrow(owner, populate_target=False) for _ in range(2)]
    assert await readers[0] == [body]
    with raises(ex.MutableBorrowError):
        pp.mut_borrow(owner)
    task = scopes.submit(world.threads.submit, args=(len, readers.pop()))
    assert await asyncio.wrap_future(task) == 1
    del readers
    writer: Any = pp.mut_borrow(owner)
    writer.append(body[:3])
    await pp.aupdate(writer)
    del writer
    copy: Any = await pp.aclone(owner)
    assert await pp.aresolve(copy) == [body, body[:3]]
    key = pp.get_key(owner)
    await pp.adrop(owner)
    assert not await world.store.exists(key)
    # `copy` goes with its last reference, behind the back of everybody.


@operation()
async def blocks(world: World) -> None:
    async with pp.ContextLifetime(world.store) as lifetime:
        proxies = await world.store.proxy_batch([b"1", b"2"], lifetime=lifetime)
        future: Any = await world.store.future(lifetime=lifetime)
        await future.aset_result(proxies)
    keys = [pp.get_key(one) for one in (*proxies, future.proxy())]
    assert await world.store.get_batch(keys) == [None] * 3


# -- tasks -----------------------------------------------------------------------------------------


@operation("elsewhere")
async def an_executor(world: World) -> None:
    body = world.body()
    executor = pp.StoreExecutor(world.process, world.store, pp.ProxySize(1_000))
    submitted = await asyncio.to_thread(executor.submit, turned, body)
    result: Any = await asyncio.wrap_future(submitted)
    if len(body) < 1_000:
        assert result == body[::-1]
    else:
        assert await pp.aresolve(result) == body[::-1]
        await pp.adrop(result)


@operation()
async def a_task_group(world: World) -> None:
    body = world.body()
    async with pp.StoreTaskGroup(world.store, pp.ProxySize(1_000)) as group:
        tasks = [group.submit(turned, body), group.submit(turned_later, body)]
    for task in tasks:
        result: Any = task.result()
        assert (await pp.aresolve(result) if isinstance(result, pp.Proxy) else result) == body[::-1]


def turned(body: Any) -> bytes:
    return bytes(body)[::-1]


async def turned_later(body: Any) -> bytes:
    return turned(await body if isinstance(body, pp.Proxy) else body)


@operation()
async def cancelled(world: World) -> None:
    store, body = world.store, world.body()
    kept, future = await store.put(body), await store.future()
    key = world.fresh()
    lease: dict[str, Any] = {"ttl": 5} if store.connector.takes_ttl else {}
    calls: list[Callable[[], Any]] = [
        lambda: store.put(body, key=key, **lease),
        lambda: store.get(kept),
        lambda: store.get_batch([kept, key]),
        lambda: store.exists(kept),
        lambda: pp.aresolve(store.proxy_from_key(kept)),
        lambda: store.evict(key),
        future.aresult,
        lambda: future.aset_result(body),
        lambda: asyncio.to_thread(world.blocking.get, kept),
    ]
    if lease:
        calls += [lambda: store.put(body, **lease), lambda: store.put_batch([body] * 3, **lease)]
    for _ in range(3):
        task = asyncio.ensure_future(world.dice.choice(calls)())
        if world.dice.random() < 0.5:
            await asyncio.sleep(world.dice.random() / 200)
        else:
            for _ in range(world.dice.randrange(8)):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        assert isinstance(error, None | ex.KeyExistsError | ex.FutureAlreadySet), error
    assert await store.get(kept) == body
    await store.evict_batch([kept, key, pp.get_key(future.proxy())])


# -- errors, and stores that come and go -----------------------------------------------------------


@operation()
async def errors(world: World) -> None:
    key, store = world.fresh(), world.store
    await store.put(b"here", key=key, overwrite=False)
    with raises(ex.KeyExistsError):
        await store.put(b"there", key=key, overwrite=False)
    assert await store.get("absent", 7) == 7
    with raises(ex.NonProxiableTypeError):
        await store.proxy(None)
    with raises(ex.SerializationError):
        await store.put(threading.Lock())
    missing = store.proxy_from_key("absent")
    for _ in range(2):
        with raises(ex.ProxyResolveMissingKeyError):
            await missing
    assert await store.evict(key)


@operation()
async def a_store_that_is_closed(world: World) -> None:
    body = world.body()
    async with pp.Store(world.fresh(), world.url, metrics=True, cache_size=2) as store:
        proxy = await store.proxy(body, populate_target=False)
        assert await pickle.loads(pickle.dumps(proxy)) == body
        future: Any = await store.future()
        waiting = asyncio.create_task(future.aresult())
        await asyncio.sleep(0)
        await store.aclose(clear=True)
    with raises(ex.ConnectorClosedError, ex.StoreClosedError, ex.ObjectLostError):
        await waiting
    with raises(ex.StoreClosedError):
        await store.put(body)
    with raises(ex.ProxyResolveMissingKeyError):
        await proxy  # which opens it again
    await pp.get_store(proxy).aclose()


@operation("elsewhere")
async def a_store_that_is_new_to_another_process(world: World) -> None:
    body = world.body()
    async with pp.Store(world.fresh(), world.url) as store:
        proxy = await store.proxy(body, populate_target=False)
        assert await world.elsewhere(size_of, proxy, world.dice.random() < 0.5) == len(body)
        assert await store.evict(pp.get_key(proxy))


@operation()
async def a_blocking_store_that_is_closed(world: World) -> None:
    def work(body: bytes) -> None:
        with pp.sync.Store(world.fresh(), world.url, metrics=True) as store:
            proxy = store.proxy(body, populate_target=False)
            assert pickle.loads(pickle.dumps(proxy)) == body
            store.close(clear=True)
        with raises(ex.StoreClosedError):
            store.get("absent")

    await asyncio.to_thread(work, world.body())

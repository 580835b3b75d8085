"""What asyncio, and anyio on it, do to those who await: time limits, groups, scopes, loops."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import time
import uuid

import anyio
import pytest
import uvloop

from proxyplane import (
    DeferrableConnector,
    LeaseLifetime,
    Proxy,
    ProxyFuture,
    Store,
    StoreTaskGroup,
    aresolve,
    gather,
    get_key,
    resolve_async,
)
from proxyplane.abc import SupportsNames
from proxyplane.exceptions import ProxyResolveMissingKeyError
from proxyplane.ownership import OwnedProxy, aclone, adrop, aupdate
from proxyplane.policies import ProxyAlways
from support.counted import is_left

MB = 1 << 20
LARGE = bytes(3 * MB)
SIZES = pytest.mark.parametrize("size", [10, len(LARGE)], ids=["small", "large"])


def told(done, total):
    pass


def store_of(connector):
    return Store(f"loops-{uuid.uuid4().hex}", connector, cache_size=0)


CALLS = {
    "put": lambda store, obj, key: store.put(obj),
    "put and tell": lambda store, obj, key: store.put(obj, progress=told),
    "put_batch": lambda store, obj, key: store.put_batch([obj, b"2"]),
    "proxy": lambda store, obj, key: store.proxy(obj),
    "owned_proxy": lambda store, obj, key: store.owned_proxy(obj),
    "future": lambda store, obj, key: store.future(),
    "get": lambda store, obj, key: store.get(key),
    "get and tell": lambda store, obj, key: store.get(key, progress=told),
    "get_batch": lambda store, obj, key: store.get_batch([key, key]),
    "exists": lambda store, obj, key: store.exists(key),
    "extend": lambda store, obj, key: store.extend([key], None),
    "await": lambda store, obj, key: aresolve(store.proxy_from_key(key)),
    "gather": lambda store, obj, key: gather(*map(store.proxy_from_key, (key, key))),
}
"""What may be awaited: of a store, an object, and the key of that object."""


def calls_of(connector):
    """Those that the connector has."""
    return {
        name: call
        for name, call in CALLS.items()
        if not (name == "future" and not isinstance(connector, DeferrableConnector))
        and not (name == "extend" and not connector.takes_ttl)
    }


async def undo(store, got, obj):
    """Removes what a call has stored, by what it gave; checks what it has read."""
    if issubclass(type(got), OwnedProxy):
        await adrop(got)
    elif issubclass(type(got), Proxy):
        await store.evict(get_key(got))
    elif isinstance(got, ProxyFuture):
        await store.evict(got._key)
    elif isinstance(got, str):
        await store.evict(got)
    elif isinstance(got, list) and isinstance(got[0], str):
        await store.evict_batch(got)
    elif not isinstance(got, bool) and got != [True]:
        assert (list(got) if isinstance(got, tuple) else got) in (obj, [obj, obj])


# -- limits of time -------------------------------------------------------------------------------


async def limited(call, seconds):
    """Whether it ended in time; the limit leaves no trace in the task."""
    try:
        async with asyncio.timeout(seconds):
            await call
    except TimeoutError:
        return False
    finally:
        assert asyncio.current_task().cancelling() == 0
    return True


@SIZES
async def test_a_limit_in_the_same_turn_as_the_result(counted, size):
    """The call has a result, or there was a TimeoutError and nothing is left; and all goes on."""
    connector, count = counted
    obj = LARGE[:size]
    async with store_of(connector) as store:
        await store.evict_batch(await store.put_batch([b"1", LARGE]))
        key = await store.put(obj)
        before = await asyncio.to_thread(count)
        for make in calls_of(connector).values():
            for turns in (0, 1, 3):
                got = []

                async def call():
                    got.append(await make(store, obj, key))  # noqa: B023

                task = asyncio.create_task(limited(call(), 0.005))
                for _ in range(turns):
                    await asyncio.sleep(0)
                time.sleep(0.01)  # what has come is taken in the turn in which the time is up
                assert await task == bool(got)
                for one in got:
                    await undo(store, one, obj)
                await is_left(count, before)
                assert obj == await store.proxy_from_key(key)
        await store.evict(key)


# -- groups ---------------------------------------------------------------------------------------


@SIZES
async def test_one_of_a_group_fails(counted, size):
    """The others are cancelled, the error is the only one, and they can be awaited again."""
    connector, _ = counted
    obj = LARGE[:size]
    async with store_of(connector) as store:
        keys = await store.put_batch([obj] * 5)
        proxies = [store.proxy_from_key(key) for key in [*keys[:3], "missing", *keys[3:]]]
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(aresolve(one)) for one in proxies]
        assert [ProxyResolveMissingKeyError] == [type(one) for one in caught.value.exceptions]
        for one, task in zip(proxies, tasks, strict=True):
            assert task.done()
            if get_key(one) != "missing":
                assert task.cancelled() or obj == task.result()
                assert obj == await one
        await store.evict_batch(keys)


# -- scopes of anyio, which cancel at each await --------------------------------------------------


class Cut:
    """Cancels a scope when a coroutine in it suspends for the nth time."""

    def __init__(self, coroutine, nth, scope):
        self.coroutine, self.left, self.scope = coroutine, nth, scope
        self.reached = False

    def __await__(self):
        steps = self.coroutine.__await__()
        resume, argument = steps.send, None
        while True:
            try:
                waits_for = resume(argument)
            except StopIteration as stop:
                return stop.value
            self.left -= 1
            if self.left == 0:
                self.reached = True
                self.scope.cancel()
            try:
                argument = yield waits_for
                resume = steps.send
            except BaseException as error:
                resume, argument = steps.throw, error


@SIZES
async def test_scopes(counted, size):
    """Wherever a scope ends a call, nothing is left, and the same task goes on with the store."""
    connector, count = counted
    obj = LARGE[:size]
    async with store_of(connector) as store:
        await store.evict_batch(await store.put_batch([b"1", LARGE]))
        key = await store.put(obj)
        before = await asyncio.to_thread(count)
        for make in calls_of(connector).values():
            nth, reached = 0, True
            while reached:
                nth += 1 + nth // 4
                got = []

                async def call():
                    got.append(await make(store, obj, key))  # noqa: B023

                with anyio.CancelScope() as scope:
                    cut = Cut(call(), nth, scope)
                    await cut
                reached = cut.reached
                assert reached or got
                assert asyncio.current_task().cancelling() == 0
                for one in got:
                    await undo(store, one, obj)
                assert obj == await store.proxy_from_key(key)
                await is_left(count, before)
        await store.evict(key)


# -- loops of other kinds -------------------------------------------------------------------------


def eager():
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = eager  # uvloop does not take the factory on each of these Pythons


async def use_all(connector):
    """A bit of everything, at the same time and one after another."""
    async with store_of(connector) as store:
        for obj in (b"small", LARGE):
            key = await store.put(obj)
            results = await asyncio.gather(
                *(make(store, obj, key) for make in calls_of(connector).values())
            )
            for one in results:
                await undo(store, one, obj)
            proxy = store.proxy_from_key(key)
            resolve_async(proxy)
            assert obj == await proxy
            assert obj == await asyncio.wait_for(store.proxy_from_key(key), 60)
            owner = await store.owned_proxy([obj])
            copy = await aclone(owner)
            owner.append(1)
            await aupdate(owner)
            await adrop(owner)
            assert [obj] == await copy
            await adrop(copy)
            async with StoreTaskGroup(store, ProxyAlways()) as group:
                task = group.submit(lambda x: x + x, obj)
            assert obj + obj == await task.result()
            if isinstance(connector, DeferrableConnector):
                future = await store.future()
                waiting = asyncio.ensure_future(aresolve(future.proxy()))
                also = asyncio.ensure_future(future.aresult())
                await asyncio.sleep(0.01)
                await future.aset_result(obj)
                assert [obj, obj] == [await waiting, await also]
            if isinstance(connector, SupportsNames):
                await asyncio.gather(*(store.put(obj, key="name") for _ in range(5)))
                assert obj == await store.get("name", strict=True)
            if connector.takes_ttl:
                async with LeaseLifetime(store, 600) as lifetime:
                    await store.put(obj, lifetime=lifetime)
                    await lifetime.aadd_key(await store.put(obj))
            for make in calls_of(connector).values():
                task = asyncio.ensure_future(make(store, obj, key))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    await undo(store, task.result(), obj)
        await store.aclose(clear=True)


@pytest.mark.parametrize("kind", LOOPS)
def test_loops(counted, caplog, kind):
    """On each kind of loop all works, and in its debug mode nobody has anything to say.

    That mode notices what is called from a thread that is not the loop's, and what is not awaited.
    """
    connector, count = counted

    async def main():
        asyncio.get_running_loop().slow_callback_duration = 3600.0  # a busy machine is no fault
        await use_all(connector)

    with asyncio.Runner(debug=True, loop_factory=LOOPS[kind]) as runner:
        runner.run(main(), context=contextvars.copy_context())
    gc.collect()
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []

"""A caller who stores is cancelled, and cancelled again while that is cleaned up."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from proxyplane import (
    DeferrableConnector,
    Proxy,
    ProxyFuture,
    Store,
    get_key,
)
from proxyplane.abc import SupportsNames
from proxyplane.ownership import OwnedProxy, adrop
from proxyplane.testing import cancelled_at
from support.counted import is_left
from support.waiting import LONG

MB = 1 << 20
LARGE = bytes(3 * MB)
FOR_EVER = 1 << 30


def told(done, total):
    pass


STORING = {
    "put": lambda store, obj: store.put(obj),
    "put with progress": lambda store, obj: store.put(obj, progress=told),
    "put with a lease": lambda store, obj: store.put(obj, ttl=600),
    "put_batch": lambda store, obj: store.put_batch([b"1", obj, b"2"]),
    "signed batch": lambda store, obj: store.put_batch([b"1", obj, b"2"]),
    "proxy with progress": lambda store, obj: store.proxy(obj, progress=told),
    "owned_proxy": lambda store, obj: store.owned_proxy(obj),
    "future": lambda store, obj: store.future(),
}


TIMES = pytest.mark.parametrize("times", [2, FOR_EVER], ids=["twice", "at each await"])
SIZES = pytest.mark.parametrize("size", [10, len(LARGE)], ids=["small", "large"])


async def undo(store, got):
    """Removes what a call gave."""
    if isinstance(got, ProxyFuture):
        await store.evict(got._key)
    elif issubclass(type(got), OwnedProxy):
        await adrop(got)
    elif issubclass(type(got), Proxy):
        await store.evict(get_key(got))
    else:
        await store.evict_batch([got] if isinstance(got, str) else got)


@TIMES
@SIZES
@pytest.mark.parametrize("how", STORING)
async def test_nothing_is_left_that_nobody_knows(counted, monkeypatch, how, size, times):
    """Wherever a caller is cancelled, and how often: without a key there is no object."""
    connector, count = counted
    if how == "put with a lease" and not connector.takes_ttl:
        pytest.skip("it keeps no leases")
    if how == "future" and not isinstance(connector, DeferrableConnector):
        pytest.skip("it has no futures")
    monkeypatch.setenv("AGAIN_KEY", "k" * 32)
    signing = "env:AGAIN_KEY" if how == "signed batch" else None
    async with Store(f"again-{uuid.uuid4().hex}", connector, signing_key=signing) as store:
        await store.evict_batch(await store.put_batch([b"1", LARGE]))
        before = await asyncio.to_thread(count)
        nth, more = 0, True
        while more:
            nth += 1 + nth // 16
            got = []

            async def storing():
                got.append(await STORING[how](store, LARGE[:size]))  # noqa: B023

            more = await cancelled_at(storing(), nth, times=times)
            assert more or got
            if got:
                await undo(store, got.pop())
            await is_left(count, before)


@TIMES
@SIZES
@pytest.mark.parametrize("progress", [None, told], ids=["plain", "progress"])
async def test_a_name_holds_one_or_the_other(counted, size, progress, times):
    """Of a put under a name that is cancelled, and what the name does not hold is not there."""
    connector, count = counted
    replaces = isinstance(connector, SupportsNames)
    async with Store(f"again-{uuid.uuid4().hex}", connector, cache_size=0) as store:
        await store.evict_batch(await store.put_batch([b"1", LARGE]))
        before = await asyncio.to_thread(count)
        nth, more = 0, True
        while more:
            nth += 1 + nth // 16
            old, new = b"old" + LARGE[:size], b"new" + LARGE[:size]
            if replaces:
                await store.put(old, key="name")
            putting = store.put(new, key="name", progress=progress)
            more = await cancelled_at(putting, nth, times=times)
            assert await store.get("name") in ((old, new) if replaces else (None, new))
            until = time.monotonic() + LONG
            while await asyncio.to_thread(count) != before:  # it may still be on its way
                assert await store.get("name") in (None, new, old)
                await store.evict("name")
                assert time.monotonic() < until, "an object is left"

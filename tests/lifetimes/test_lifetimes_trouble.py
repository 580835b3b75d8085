"""Lifetimes when things go wrong beside them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import warnings
from datetime import UTC, datetime, timedelta

import pytest
import redis

import proxyplane as pp
import proxyplane.sync
from proxyplane.exceptions import AlreadyOwnedError, BlockingCallError
from proxyplane.lifetimes import ContextLifetime, LeaseLifetime
from proxyplane.testing import CoroutinesOnly, FailingConnector, Recorder, Wrapper
from support.owners import gone, until

LONG = 600.0


def test_what_others_own_gets_no_lease(store):
    """A lifetime that may not have an object does not let it end either, nor takes its fellows."""
    owner = store.owned_proxy([1])
    key, free = pp.get_key(owner), store.put("free")
    with LeaseLifetime(store, 0.2) as lifetime:
        with pytest.raises(AlreadyOwnedError):
            lifetime.add_key(free, key)
        assert lifetime.active_count() == 0
        time.sleep(0.4)
        assert store.exists(key)
        assert store.exists(free)
    with ContextLifetime(store) as lifetime:
        with pytest.raises(AlreadyOwnedError):
            lifetime.add_key(free, key)
        assert lifetime.active_count() == 0
    assert store.exists(free)
    del owner
    gone(store, key)


def test_a_name_of_another_lifetime_is_not_replaced(store):
    """To put an object in a lifetime under a name that another one has is refused beforehand."""
    with ContextLifetime(store) as one, LeaseLifetime(store, LONG) as two:
        store.put("one", key="name", lifetime=one)
        with pytest.raises(AlreadyOwnedError):
            store.put("two", key="name", lifetime=two)
        assert store.get("name") == "one"
        assert one.active_count() == 1
        assert two.active_count() == 0


async def test_an_end_that_may_not_block_is_none(tmp_path):
    """A policy that forbids to block the loop does not make the objects stay for ever."""
    store = pp.sync.Store("one", f"file://{tmp_path}", on_blocking="raise")
    lifetime = ContextLifetime(store)
    lease = LeaseLifetime(store, LONG, renew=False)
    connector = pp.FileConnector(tmp_path)
    keys = [await store.asynchronous.put("x", lifetime=one) for one in (lifetime, lease)]
    for one in (lifetime, lease):
        with pytest.raises(BlockingCallError):
            one.close()
        assert not one.done()
    with warnings.catch_warnings(), pytest.raises(BlockingCallError):
        warnings.simplefilter("error")
        lease.extend(1)
    for one in (lifetime, lease):
        await one.aclose()
    assert not any(connector.exists_sync(key) for key in keys)
    await store.asynchronous.aclose()


def test_a_lease_is_never_shortened(tmp_path):
    """`extend` to a time before the end of the lease lets nothing end earlier."""
    recorder = Recorder(pp.FileConnector(tmp_path))
    with (
        pp.sync.Store("one", recorder) as store,
        LeaseLifetime(store, 10 * LONG, renew=False) as lifetime,
    ):
        store.put("x", lifetime=lifetime)
        lifetime.extend(datetime.now(UTC) + timedelta(seconds=LONG))
        (call,) = [one for one in recorder.calls if one.operation == "extend"]
        assert call.args[1] > 2 * LONG


def test_a_damaged_record_ends_nobody_else(file_store):
    """What else is extended with it is."""
    store = file_store
    store.put("x" * 100_000, key="good", ttl=LONG)
    store.put("x", key="bad")
    store.connector.swap_sync("bad", [b"\xc1PXN damaged"])
    other = store.put("other", ttl=LONG)
    assert store.extend(["bad", "good", other], 0.2) == [True, True, True]
    for key in ("good", other):
        gone(store, key)


async def test_tasks_add_the_same(tmp_path):
    """Of many who add an object at once none is refused, and it is there once."""
    async with pp.Store("one", CoroutinesOnly(pp.FileConnector(tmp_path))) as store:
        async with LeaseLifetime(store, LONG) as lifetime:
            key = await store.put("x")
            await asyncio.gather(*(lifetime.aadd_key(key) for _ in range(5)))
            await asyncio.gather(
                *(store.put(i, key="name", lifetime=lifetime) for i in range(5)),
            )
            assert lifetime.active_count() == 2
        assert not await store.exists(key)
        assert not await store.exists("name")


def test_every_store_is_closed(tmp_path):
    """With `close_stores`, also when objects could not be evicted, or a store not be closed."""
    lost = pp.exceptions.ConnectorLostError("broken")
    failing = FailingConnector(pp.FileConnector(tmp_path), 1, lost, operations={"evict_batch"})
    stores = [pp.sync.Store("one", failing), pp.sync.Store("two", pp.LocalConnector())]
    lifetime = ContextLifetime(stores[0])
    key = stores[0].put("x", lifetime=lifetime)
    stores[1].put("y", lifetime=lifetime)
    with pytest.raises(pp.exceptions.ConnectorLostError):
        lifetime.close(close_stores=True)
    assert all(store.closed for store in stores)
    until(lambda: not pp.FileConnector(tmp_path).exists_sync(key))


def test_whatever_ends_a_renewal_is_told_and_repeated(tmp_path, caplog):
    """Also an error that no connector should raise: the next renewal is tried."""
    connector = FailingConnector(
        pp.FileConnector(tmp_path), 1, RuntimeError("a fault of the driver"), operations={"extend"}
    )
    with (
        caplog.at_level(logging.WARNING, "proxyplane"),
        pp.sync.Store("one", connector) as store,
        LeaseLifetime(store, 20.0) as lifetime,
    ):
        lifetime._renewal._period = 0.3  # how often to renew; the first lease is long
        key = store.put("x", lifetime=lifetime)
        until(lambda: connector.calls >= 3)
        assert "a fault of the driver" in caplog.text
        assert store.exists(key)


class Meanwhile(Wrapper):
    """Has something else done after the first call of an operation."""

    def __init__(self, connector, operation, then):
        super().__init__(connector)
        self.operation = operation
        self.then = then

    async def call(self, operation, *args, **kwargs):
        result = await super().call(operation, *args, **kwargs)
        if operation == self.operation:
            self.operation = None
            await self.then()
        return result


@pytest.mark.parametrize("ttl", [LONG, None])
@pytest.mark.parametrize("at", ["get_batch", "extend"])
async def test_a_name_is_replaced_while_it_is_extended(redis_url, ttl, at):
    """What it stands for in the end lives as long as its record, and what it stood for ends."""
    connector = pp.RedisConnector(redis_url)
    writer = pp.Store("writer", connector)

    async def replace():
        await writer.put(b"2" * (2 << 20), key="name", ttl=10)

    store = pp.Store("one", Meanwhile(connector, at, replace))
    await store.put(b"1" * (2 << 20), key="name", ttl=10)
    assert await store.extend(["name"], ttl) == [True]
    name = connector._name("name")
    with contextlib.closing(redis.Redis.from_url(redis_url.partition("?")[0])) as client:
        lives = {one: client.pttl(one) for one in client.keys(connector._name("*"))}
    record = lives.pop(name)
    now, *before = sorted(lives.values(), reverse=ttl is not None)
    if ttl is None:
        assert (record, now) == (-1, -1)
    else:
        assert now > record > 100_000
    assert all(0 < left <= 31_000 for left in before)
    assert await store.get("name") == b"2" * (2 << 20)
    await writer.aclose(clear=True)
    await store.aclose(clear=True)

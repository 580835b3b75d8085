"""ContextLifetime, LeaseLifetime and StaticLifetime in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane.exceptions import AlreadyOwnedError, ObjectLostError
from proxyplane.lifetimes import ContextLifetime, LeaseLifetime, Lifetime, StaticLifetime
from proxyplane.testing import CoroutinesOnly, FailingConnector
from proxyplane.testing.steps import cancelled_at, in_forked_child
from support.owners import gone, until

# What has ended is swept soon.
pytestmark = pytest.mark.usefixtures("swept_often")

LONG = 600.0


def test_a_block_ends_its_objects(store):
    """What was put, proxied and promised in a lifetime is gone after it, and nothing else is."""
    other = store.put("other")
    with ContextLifetime(store) as lifetime:
        keys = [
            store.put("one", lifetime=lifetime),
            *store.put_batch(["two", "three"], lifetime=lifetime),
        ]
        proxies = [
            store.proxy([1], lifetime=lifetime),
            *store.proxy_batch([[2], True, [3]], lifetime=lifetime, skip_nonproxiable=True),
            store.locked_proxy([4], lifetime=lifetime).unlock(),
        ]
        future = store.future(lifetime=lifetime)
        future.set_result("result")
        keys += [pp.get_key(one) for one in proxies if isinstance(one, pp.Proxy)]
        keys.append(pp.get_key(future.proxy()))
        assert lifetime.active_count() == len(keys) == 8
        assert all(store.exists(key) for key in keys)
        assert not lifetime.done()
    assert lifetime.done()
    assert lifetime.active_count() == 0
    assert not any(store.exists(key) for key in keys)
    assert store.get(other) == "other"


async def test_an_async_block_ends_its_objects(tmp_path):
    """The same with `async with`, an async store and the async twins."""
    async with pp.Store("lifetimes", f"file://{tmp_path}") as store:
        async with ContextLifetime(store) as lifetime:
            key = await store.put("one", lifetime=lifetime)
            (batch,) = await store.put_batch(["two"], lifetime=lifetime)
            added, proxy = await store.put("three"), await store.proxy([4])
            await lifetime.aadd_key(added)
            await lifetime.aadd_proxy(proxy)
            assert lifetime.active_count() == 4
        for one in (key, batch, added, pp.get_key(proxy)):
            assert not await store.exists(one)


def test_objects_are_added_later(store):
    """By key, by proxy, by future; twice is once."""
    lifetime = ContextLifetime(store, name="mine")
    key, proxy, future = store.put("one"), store.proxy([2]), store.future()
    lifetime.add_key(key, key)
    lifetime.add_key(key)
    lifetime.add_proxy(proxy, future)
    assert lifetime.active_count() == 3
    assert "mine" in repr(lifetime)
    lifetime.close()
    assert not store.exists(key)
    assert not store.exists(pp.get_key(proxy))
    with pytest.raises(ObjectLostError):
        future.result(30)


@pytest.mark.parametrize("make", [ContextLifetime, lambda store: LeaseLifetime(store, LONG)])
def test_done_is_done(store, make):
    """A second close does nothing, and nothing can be added to what has ended."""
    lifetime = make(store)
    assert isinstance(lifetime, Lifetime)
    lifetime.close()
    lifetime.close()
    key = store.put("x")
    for call in (
        lambda: lifetime.add_key(key),
        lambda: lifetime.add_proxy(store.proxy([1])),
        lambda: store.put("y", lifetime=lifetime),
        lambda: store.proxy([1], lifetime=lifetime),
        lambda: store.future(lifetime=lifetime),
        lifetime.__enter__,
    ):
        with pytest.raises(RuntimeError, match="ended"):
            call()
    assert store.exists(key)


def test_what_excludes_each_other(store):
    """`evict` and a lifetime, a lease and a lease: ValueError, and nothing is stored."""
    with ContextLifetime(store) as context, LeaseLifetime(store, LONG) as lease:
        for put in (
            lambda: store.proxy([1], evict=True, lifetime=context),
            lambda: store.proxy_batch([[1]], evict=True, lifetime=lease),
            lambda: store.locked_proxy([1], evict=True, lifetime=context),
            lambda: store.future(evict=True, lifetime=context),
            lambda: store.put("x", ttl=1, lifetime=lease),
            lambda: store.put("x", ttl=0),
        ):
            with pytest.raises(ValueError, match="exclude|ttl"):
                put()
        with pytest.raises(TypeError, match="lifetime"):
            store.put("x", lifetime="for ever")
        with pytest.raises(TypeError, match="ttl"):
            store.put("x", ttl="10")


def test_one_owner(store):
    """An object has one lifetime or owner at a time."""
    with ContextLifetime(store) as one, ContextLifetime(store) as two:
        proxy = store.proxy([1], lifetime=one)
        with pytest.raises(AlreadyOwnedError):
            two.add_proxy(proxy)
        with pytest.raises(AlreadyOwnedError):
            pp.into_owned(proxy)


def test_lifetimes_do_not_travel(store):
    """A lifetime belongs to its process: to pickle one is a TypeError."""
    with ContextLifetime(store) as lifetime, pytest.raises(TypeError, match="pickled"):
        pickle.dumps(lifetime)
    assert pickle.loads(pickle.dumps(StaticLifetime())) is StaticLifetime()


def test_close_can_close_the_stores(tmp_path):
    """With `close_stores` the stores of the objects are closed too."""
    one = pp.sync.Store("one", f"file://{tmp_path}/one")
    two = pp.sync.Store("two", f"file://{tmp_path}/two")
    lifetime = ContextLifetime(one)
    key = two.put("x")
    lifetime.add_key(key, store=two)
    lifetime.close(close_stores=True)
    assert one.closed and two.closed
    assert not pp.FileConnector(tmp_path / "two").exists_sync(key)


def test_a_store_that_was_closed_before(tmp_path):
    """The objects go all the same."""
    lifetime = None
    with pp.sync.Store("one", f"file://{tmp_path}") as store:
        lifetime = ContextLifetime(store)
        key = store.put("x", lifetime=lifetime)
    lifetime.close()
    assert not pp.FileConnector(tmp_path).exists_sync(key)


def test_what_cannot_be_evicted_is_tried_again(tmp_path):
    """Closing tells of the error, and the object goes behind one's back."""
    connector = FailingConnector(
        pp.FileConnector(tmp_path),
        1,
        pp.exceptions.ConnectorLostError("broken"),
        operations={"evict_batch"},
    )
    store = pp.sync.Store("one", connector)
    lifetime = ContextLifetime(store)
    key = store.put("x", lifetime=lifetime)
    with pytest.raises(pp.exceptions.ConnectorLostError):
        lifetime.close()
    gone(store, key)
    store.close()


async def test_a_cancelled_end_is_an_end(tmp_path):
    """Wherever `aclose` is cancelled, the objects go."""
    store = pp.Store("one", CoroutinesOnly(pp.FileConnector(tmp_path)))
    nth, reached = 1, True
    while reached:
        lifetime = ContextLifetime(store)
        key = await store.put("x", lifetime=lifetime)
        reached = await cancelled_at(lifetime.aclose(), nth)
        assert lifetime.done()
        sync = pp.sync.Store.of(store)
        await asyncio.to_thread(gone, sync, key)
        nth += 1
    await store.aclose()


def test_a_forked_child_owns_nothing(file_store):
    """It cannot use the lifetime, and its end evicts nothing."""
    lifetime = ContextLifetime(file_store)
    lease = LeaseLifetime(file_store, LONG)
    keys = [file_store.put("x", lifetime=one) for one in (lifetime, lease)]

    def child() -> None:
        assert lifetime.done() and lease.done()
        with pytest.raises(RuntimeError):
            lifetime.add_key(keys[0])
        lifetime.close()
        lease.close()

    in_forked_child(child)
    assert all(file_store.exists(key) for key in keys)
    lifetime.close()
    lease.close()
    assert not any(file_store.exists(key) for key in keys)


# -- leases -----------------------------------------------------------------------------------


def test_ttl_of_a_store(store):
    """What is put for some seconds is gone after them, however it was put."""
    keys = [
        store.put("one", ttl=0.2),
        *store.put_batch(["two"], ttl=0.2),
        pp.get_key(store.proxy([3], ttl=0.2)),
        pp.get_key(store.proxy_batch([[4]], ttl=0.2)[0]),
    ]
    lasting = store.put("lasting", ttl=LONG)
    for key in keys:
        gone(store, key)
    assert store.extend([lasting, *keys], LONG) == [True, *[False] * 4]
    assert store.get(lasting) == "lasting"


@pytest.mark.usefixtures("looks_often")
def test_ttl_of_a_future(store):
    """A future that nobody sets in time is lost."""
    future = store.future(ttl=0.2)
    with pytest.raises(ObjectLostError):
        future.result(30)
    with pytest.raises(ObjectLostError):
        future.set_result(1)


def test_a_lease_is_renewed(tmp_path, redis_url):
    """Objects outlive many periods while their lifetime is open, and are gone when it closed."""
    period = 1.5
    with contextlib.ExitStack() as stores:
        kept = []
        for number, medium in enumerate((pp.LocalConnector(), f"file://{tmp_path}", redis_url)):
            store = stores.enter_context(pp.sync.Store(f"renewed {number}", medium, cache_size=0))
            lifetime = stores.enter_context(LeaseLifetime(store, period))
            key = store.put("x", lifetime=lifetime)
            later = store.put("y")
            lifetime.add_key(later)
            kept.append((store, lifetime, key, later, store.future(lifetime=lifetime)))
        end = time.monotonic() + 4 * period
        while time.monotonic() < end:
            time.sleep(0.05)
            for store, lifetime, key, later, _ in kept:
                if lifetime.done():  # a machine that stood still for as long as the period
                    pytest.skip("this machine is too busy")
                assert store.exists(key)
                assert store.exists(later)
        for store, lifetime, key, later, future in kept:
            future.set_result("z")
            assert lifetime.active_count() == 3
            lifetime.close()
            for one in (key, later, pp.get_key(future.proxy())):
                assert not store.exists(one)


def test_a_lease_that_is_not_renewed_ends(store):
    """By itself, with its objects; `extend` lets it end later."""
    lifetime = LeaseLifetime(store, timedelta(seconds=0.3), renew=False)
    key = store.put("x", lifetime=lifetime)
    until(lifetime.done)
    gone(store, key)
    with pytest.raises(RuntimeError):
        lifetime.extend(1)
    longer = LeaseLifetime(store, LONG, renew=False)
    key = store.put("x", lifetime=longer)
    longer.extend(LONG)
    longer.extend(timedelta(seconds=LONG))
    longer.extend(datetime.now(UTC) + timedelta(seconds=5 * LONG))
    assert not longer.done()
    assert store.exists(key)
    longer.close()
    assert not store.exists(key)


async def test_a_lease_is_extended_on_a_loop(tmp_path):
    """By `aextend`."""
    async with pp.Store("one", f"file://{tmp_path}") as store:
        async with LeaseLifetime(store, LONG, renew=False) as lifetime:
            key = await store.put("x", lifetime=lifetime)
            await lifetime.aextend(LONG)
            assert await store.exists(key)
        assert not await store.exists(key)


def test_evicted_objects_are_let_go(file_store):
    """What somebody evicted is no longer in the lifetime after its next renewal, silently."""
    with LeaseLifetime(file_store, 1.0) as lifetime:
        keys = file_store.put_batch(["x", "y"], lifetime=lifetime)
        file_store.evict(keys[0])
        until(lambda: lifetime.active_count() == 1 or lifetime.done())


def test_a_renewal_that_fails_is_repeated(tmp_path, caplog):
    """One that fails is logged and tried again, and the lease holds."""
    lost = pp.exceptions.ConnectorLostError("broken")
    connector = FailingConnector(pp.FileConnector(tmp_path), 1, lost, operations={"extend"})
    with (
        caplog.at_level(logging.WARNING, "proxyplane"),
        pp.sync.Store("one", connector) as store,
        LeaseLifetime(store, 20.0) as lifetime,
    ):
        lifetime._renewal._period = 0.3  # how often to renew; the first lease is long
        key = store.put("x", lifetime=lifetime)
        until(lambda: connector.calls >= 3)
        assert not lifetime.done()
        assert "could not be renewed" in caplog.text
        assert store.exists(key)


def test_a_lost_lease_is_told(redis_server, own_redis_server, caplog):
    """When the medium was away until the lease ended, a warning says so, and the lifetime ends."""
    server = own_redis_server()
    with caplog.at_level(logging.WARNING, "proxyplane"):
        store = pp.sync.Store("one", server.url)
        lifetime = LeaseLifetime(store, 1.0)
        store.put("x", lifetime=lifetime)
        server.kill()
        until(lambda: "ended before it could be renewed" in caplog.text)
        assert lifetime.done()
        assert lifetime.active_count() == 0
        lifetime.close()
        store.close()


def test_a_medium_without_leases(tmp_path):
    """Says so, before anything is stored."""

    class Plain(pp.FileConnector):
        takes_ttl = False

    with pp.sync.Store("one", Plain(tmp_path)) as store:
        for call in (
            lambda: store.put("x", ttl=1),
            lambda: store.extend(["x"], 1),
            lambda: LeaseLifetime(store, 1),
        ):
            with pytest.raises(NotImplementedError, match="keeps no leases"):
                call()
        with ContextLifetime(store) as lifetime:  # which needs none
            store.put("x", lifetime=lifetime)


# -- the end of a process ---------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["returns", "raises", "exits"])
def test_static_objects_end_with_the_process(tmp_path, ends):
    """However the interpreter exits, and whether or not the store was closed."""
    script = f"""
        import sys
        import proxyplane as pp, proxyplane.sync
        from proxyplane.lifetimes import ContextLifetime, LeaseLifetime, StaticLifetime

        store = pp.sync.Store("one", "file://{tmp_path}")
        keys = [store.put("x", lifetime=StaticLifetime())]
        keys.append(store.put("x", lifetime=ContextLifetime(store)))
        keys.append(store.put("x", lifetime=LeaseLifetime(store, 600)))
        added = store.put("x")
        StaticLifetime().add_key(added, store=store)
        assert all(store.exists(key) for key in [*keys, added])
        print(*keys, added, store.put("stays"), flush=True)
        if {ends!r} == "raises":
            raise ValueError
        if {ends!r} == "exits":
            sys.exit(3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert {"returns": 0, "raises": 1, "exits": 3}[ends] == done.returncode, done.stderr
    *keys, stays = done.stdout.split()
    connector = pp.FileConnector(tmp_path)
    assert len(keys) == 4
    assert not any(connector.exists_sync(key) for key in keys)
    assert connector.exists_sync(stays)


def test_static_needs_the_store(file_store):
    """There is one, which has no store of its own."""
    assert StaticLifetime() is StaticLifetime()
    with pytest.raises(ValueError, match="store="):
        StaticLifetime().add_key("x")


def test_names_have_lifetimes(store):
    """What a name stands for is extended, replaced and ended with its record."""
    with LeaseLifetime(store, LONG) as lifetime:
        for body in ("small", "large" * 50_000, "again" * 50_000):
            assert store.put(body, key="name", lifetime=lifetime) == "name"
            assert store.get("name") == body
        assert lifetime.active_count() == 1
        lifetime.extend(LONG)
        assert store.get("name") == "again" * 50_000
    assert store.get("name") is None
    store.put("x" * 100_000, key="name", ttl=0.3)
    gone(store, "name")
    store.put("y" * 100_000, key="name")
    assert store.extend(["name"], 0.3) == [True]
    gone(store, "name")

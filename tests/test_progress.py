"""How far a put or a get has come: who is told, where, how often, and what if that fails."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import sys
import threading
import uuid

import pytest

from proxyplane import (
    EndpointConnector,
    FileConnector,
    LocalConnector,
    MultiConnector,
    Proxy,
    RedisConnector,
    Store,
    progress_bar,
)
from proxyplane._runtime.io_thread import io_thread
from proxyplane._runtime.progress import Meter, metered
from proxyplane.connectors.file import publish as file_io
from proxyplane.connectors.redis import parts
from proxyplane.exceptions import ConnectorError, ConnectorLostError, SerializationError
from proxyplane.sync import Store as BlockingStore
from proxyplane.testing import FailingConnector
from support.counted import Plain
from support.tcp_proxy import TCPProxy
from support.waiting import LONG, until

MB = 1 << 20


class Calls(list):
    """Takes note of its calls, and of where they came from."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def __call__(self, done, total):
        self.append((done, total))
        running = asyncio._get_running_loop()
        self.places.add((threading.get_ident(), running))

    def check(self, size=None):
        """They only grow, and the last one says that all is done."""
        totals = {total for _, total in self}
        assert len(totals) == 1
        (total,) = totals
        assert size is None or size <= total <= size + 1000
        assert self == sorted(set(self))
        assert [total] == [done for done, _ in self if done == total]
        assert self[-1] == (total, total)


@pytest.fixture(params=["local", "file", "redis", "endpoint", "peer", "multi", "plain"])
def connector(request, tmp_path):
    if request.param == "local":
        return LocalConnector()
    if request.param == "file":
        return FileConnector(tmp_path)
    if request.param == "plain":
        return Plain()
    if request.param == "endpoint":
        request.getfixturevalue("site")
        return EndpointConnector()
    if request.param == "peer":
        _, far = request.getfixturevalue("sites")
        return EndpointConnector(far.name)
    redis = RedisConnector(request.getfixturevalue("redis_url"))
    return MultiConnector({"one": redis}) if request.param == "multi" else redis


def store_of(connector, **options):
    return Store(f"progress-{uuid.uuid4().hex}", connector, cache_size=0, **options)


@pytest.mark.parametrize("size", [1000, 40 * MB])
async def test_awaited(connector, size):
    """Each call comes from the caller's loop; at the end all is done."""
    data = os.urandom(size)
    here = {(threading.get_ident(), asyncio.get_running_loop())}
    async with store_of(connector) as store:
        put, get, proxied = Calls(), Calls(), Calls()
        key = await store.put(data, progress=put)
        assert data == await store.get(key, progress=get)
        proxy = await store.proxy(data, progress=proxied)
        assert isinstance(proxy, Proxy)
        for calls in (put, get, proxied):
            calls.check(size)
            assert here == calls.places
        assert 0 == put[0][0] == proxied[0][0]
        missing = Calls()
        assert await store.get("missing", progress=missing) is None
        assert [] == missing
        await store.aclose(clear=True)


@pytest.mark.parametrize("size", [1000, 40 * MB])
def test_blocking(connector, size):
    """Each call comes from the calling thread, and never from the library's loop."""
    data = os.urandom(size)
    here = {(threading.get_ident(), None)}
    with BlockingStore.of(store_of(connector)) as store:
        put, get, proxied = Calls(), Calls(), Calls()
        key = store.put(data, progress=put)
        assert data == store.get(key, progress=get)
        store.proxy(data, progress=proxied)
        for calls in (put, get, proxied):
            calls.check(size)
            assert here == calls.places
        store.close(clear=True)


async def test_the_cache_has_nothing_to_move():
    """An object that is here already is told as nothing of nothing."""
    async with Store(f"progress-{uuid.uuid4().hex}", LocalConnector()) as store:
        key = await store.put([1, 2])
        await store.get(key)
        calls = Calls()
        assert [1, 2] == await store.get(key, progress=calls)
        assert [(0, 0)] == calls


async def test_it_is_a_function():
    """Anything else is refused before anything is stored."""
    async with store_of(LocalConnector()) as store:
        with pytest.raises(TypeError, match="progress= is a function of two numbers, not True"):
            await store.put(b"x", progress=True)


# -- while it goes on -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def through_proxy(redis_server, redis_url):
    async with TCPProxy(redis_server.port) as proxy:
        namespace = redis_url.partition("=")[2]
        yield proxy, RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)


@pytest.mark.parametrize("in_parts", [False, True])
async def test_redis_tells_how_far_it_is(redis_server, redis_url, monkeypatch, in_parts):
    """A transfer that stands still in the middle was told as far as it came, and not as done."""
    if in_parts:
        monkeypatch.setattr(parts, "WHOLE", 4 * MB)
        monkeypatch.setattr(parts, "PART", 8 * MB)
    data = os.urandom(40 * MB)
    async with through_proxy(redis_server, redis_url) as (proxy, connector):
        async with store_of(connector) as store:
            key = await store.put(data)
            for direction, call in (
                ("down", lambda calls: store.get(key, progress=calls)),
                ("up", lambda calls: store.put(data, progress=calls)),
            ):
                proxy.cut(direction, 20 * MB, "stall")
                calls = Calls()
                task = asyncio.create_task(call(calls))
                await until(
                    lambda calls=calls: proxy._cut is None and calls and calls[-1][0] >= 10 * MB
                )
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert calls == sorted(set(calls))
                assert all(done < total for done, total in calls)
                proxy.reset_all()  # the link that stands still
                again = Calls()
                assert data == await store.get(key, progress=again)
                again.check(len(data))
            await store.aclose(clear=True)


def test_a_blocking_get_tells_how_far_it_is(redis_server, redis_url):
    """Though a thread of the library's reads it, and the caller's is blocked."""
    data = os.urandom(40 * MB)
    calls = Calls()
    done = threading.Event()

    def stop_in_the_middle(done_bytes, total):
        calls(done_bytes, total)
        if 10 * MB < done_bytes < total:
            done.set()
            raise RuntimeError("enough")

    async def make():
        proxy = TCPProxy(redis_server.port)
        await proxy.__aenter__()
        return proxy

    async def give_way():
        proxy._cut = None
        proxy.reset_all()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    proxy = asyncio.run_coroutine_threadsafe(make(), loop).result()
    namespace = redis_url.partition("=")[2]
    connector = RedisConnector(f"redis://127.0.0.1:{proxy.port}", namespace=namespace)
    with BlockingStore.of(store_of(connector)) as store:
        key = store.put(data)
        proxy.cut("down", 20 * MB, "stall")
        with pytest.raises(RuntimeError, match="enough"):
            store.get(key, progress=stop_in_the_middle)
        assert done.is_set()
        assert {(threading.get_ident(), None)} == calls.places
        asyncio.run_coroutine_threadsafe(give_way(), loop).result()
        assert data == store.get(key)
        store.close(clear=True)
    asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def test_a_file_tells_how_far_it_is(tmp_path, monkeypatch):
    """A file that is written in pieces is told of each."""
    seen = threading.Event()
    write = os.write

    def slow(fd, piece):
        if len(calls) > 1:
            seen.set()
        if meanwhile and not seen.wait(0.01):
            meanwhile.append(1)
            assert seen.wait(LONG)
        meanwhile.append(1)
        return write(fd, piece)

    meanwhile = []
    monkeypatch.setattr(file_io.os, "write", slow)
    data = os.urandom(40 * MB)

    class Seen(Calls):
        def __call__(self, done, total):
            super().__call__(done, total)
            if 0 < done:
                seen.set()

    calls = Seen()
    async with store_of(FileConnector(tmp_path)) as store:
        key = await store.put(data, progress=calls)
        calls.check(len(data))
        assert len(calls) > 2
        assert data == await store.get(key)


async def test_two_at_once_do_not_mix(redis_url):
    """Each function hears of its own object only."""
    sizes = [5 * MB, 11 * MB, 23 * MB]
    async with store_of(RedisConnector(redis_url)) as store:
        calls = [Calls() for _ in sizes]
        keys = await asyncio.gather(
            *(store.put(bytes(n), progress=c) for n, c in zip(sizes, calls, strict=True))
        )
        for size, one in zip(sizes, calls, strict=True):
            one.check(size)
            one.clear()
        await asyncio.gather(*(store.get(k, progress=c) for k, c in zip(keys, calls, strict=True)))
        for size, one in zip(sizes, calls, strict=True):
            one.check(size)
        await store.aclose(clear=True)


# -- what fails -----------------------------------------------------------------------------------


class BadError(Exception):
    pass


def failing(when):
    def progress(done, total):
        if when == "first" or done == total:
            raise BadError

    return progress


@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("size", [1000, 5 * MB])
async def test_one_that_raises(connector, when, size):
    """It ends the call with its exception; what was stored is taken back, and all goes on."""
    data = os.urandom(size)
    async with store_of(connector) as store:
        kept = await store.put(data)
        put = connector.put
        made = []

        async def noted(frames, **kwargs):
            made.append(await put(frames, **kwargs))
            return made[-1]

        connector.put = noted
        for call in (
            lambda: store.put(data, progress=failing(when)),
            lambda: store.proxy(data, progress=failing(when)),
            lambda: store.get(kept, progress=failing(when)),
            lambda: asyncio.to_thread(BlockingStore.of(store).put, data, progress=failing(when)),
            lambda: asyncio.to_thread(BlockingStore.of(store).get, kept, progress=failing(when)),
        ):
            with pytest.raises(BadError):
                await call()
        assert (3 if when == "last" else 0) == len(made)
        assert [False] * len(made) == [await store.exists(key) for key in made]
        assert data == await store.get(kept)
        await store.evict(kept)


async def test_what_fails_is_never_done(redis_server, redis_url):
    """Neither a put whose connection breaks at its end, nor bytes that are no object."""
    async with through_proxy(redis_server, redis_url) as (proxy, connector):
        async with store_of(connector) as store:
            await store.exists("x")
            proxy.cut("up", 5 * MB, "reset")
            proxy.delay = 0.01
            calls = Calls()

            def tell(done: int, total: int) -> None:
                calls(done, total)
                proxy.refuses = done > 0  # else the put is tried again, with success

            with pytest.raises(ConnectorError):
                await store.put(bytes(5 * MB), key="named", progress=tell)
            assert proxy.refuses
            assert all(done < total for done, total in calls)
            proxy.delay, proxy.refuses = 0.0, False
            await connector.put([bytes(5 * MB)], key="garbage")
            calls = Calls()
            with pytest.raises(SerializationError):
                await store.get("garbage", progress=calls)
            assert all(done < total for done, total in calls)
            await store.aclose(clear=True)


def test_without_a_function_nothing_is_metered(redis_url):
    """A meter belongs to the call it was made for, and hears nothing of the next."""
    meter = Meter()
    connector = RedisConnector(redis_url)
    with metered(meter):
        key = io_thread().run(connector.put([bytes(5 * MB)]))
    assert meter.latest is not None
    meter.latest = None
    io_thread().run(connector.get(key))
    assert meter.latest is None
    io_thread().run(connector.aclose(clear=True))


# -- the bar --------------------------------------------------------------------------------------


async def test_the_bar(redis_url):
    """It shows how much of how much, and one bar serves several operations."""
    file = io.StringIO()
    async with store_of(RedisConnector(redis_url)) as store:
        with progress_bar("moving", file=file, mininterval=0, ascii=True) as progress:
            key = await store.put(bytes(10 * MB), progress=progress)
            assert bytes(10 * MB) == await store.get(key, progress=progress)
        await store.aclose(clear=True)
    shown = file.getvalue()
    assert shown.startswith("\rmoving: ")
    assert re.search(r"100%\|#+\| 10\.0M/10\.0M", shown)


def test_a_bar_without_tqdm(monkeypatch):
    """Who has not installed it is told what to install."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r'pip install "proxyplane\[progress\]"'):
        with progress_bar():
            pass


@pytest.mark.parametrize("blocking", [False, True])
async def test_what_the_function_raises_comes_first(tmp_path, blocking):
    """Also where what was stored cannot be taken back."""
    lost = ConnectorLostError("lost on purpose")
    connector = FailingConnector(FileConnector(tmp_path), 1, lost, operations={"evict"})
    async with Store("undone", connector) as store:
        with pytest.raises(BadError):
            if blocking:
                blocked = BlockingStore.of(store).put
                await asyncio.to_thread(blocked, bytes(MB), progress=failing("last"))
            else:
                await store.put(bytes(MB), progress=failing("last"))

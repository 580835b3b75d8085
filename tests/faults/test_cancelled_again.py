"""A caller who stores is cancelled, and cancelled again while that is cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import uuid

import pytest
from redis import Redis

from proxyplane import (
    Connector,
    DeferrableConnector,
    EndpointConnector,
    FileConnector,
    LocalConnector,
    MultiConnector,
    Proxy,
    ProxyFuture,
    RedisConnector,
    Store,
    get_key,
)
from proxyplane.abc import SupportsNames
from proxyplane.connectors._file_leases import has_ended
from proxyplane.connectors.multi import Policy
from proxyplane.connectors.redis import parts
from proxyplane.ownership import OwnedProxy, adrop
from proxyplane.testing import cancelled_at
from support.waiting import LONG

MB = 1 << 20
LARGE = bytes(3 * MB)
FOR_EVER = 1 << 30


def files(directory):
    """All files of objects whose lease has not ended."""
    found = []
    for folder, _, names in os.walk(directory):
        if "/.leases/" not in f"{folder}/":
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    if not has_ended(os.lstat(os.path.join(folder, name))):
                        found.append(name)
    return found


def keys(server, url):
    """All but parts that end by themselves: those of an object that was replaced do so later."""
    with Redis(unix_socket_path=server.socket_path) as client:
        found = client.keys(f"*{url.partition('=')[2]}:*")
        return [one for one in found if b"part:" not in one or client.pttl(one) == -1]


class Plain(Connector):
    """Of a third party: one object at a time, and each step takes a moment."""

    scheme = "plain"
    url = "plain:"

    def __init__(self):
        self.objects = {}

    @classmethod
    def from_url(cls, url):
        raise NotImplementedError

    async def put(self, frames, *, key=None):
        await asyncio.sleep(0.001)
        key = key or uuid.uuid4().hex
        self.objects[key] = b"".join(frames)
        return key

    async def get(self, key, *, size=None):
        return self.objects.get(key)

    async def exists(self, key):
        return key in self.objects

    async def evict(self, key):
        await asyncio.sleep(0.001)
        return self.objects.pop(key, None) is not None

    async def aclose(self, *, clear=False):
        pass


@pytest.fixture(params=["plain", "local", "file", "multi", "endpoint", "redis", "parts", "cluster"])
def medium(request, tmp_path, monkeypatch):
    """A connector, and what counts all that its medium holds."""
    kind = request.param
    directory = tmp_path / "objects"
    if kind == "plain":
        connector = Plain()
        return connector, lambda: len(connector.objects)
    if kind == "local":
        connector = LocalConnector()
        return connector, lambda: len(connector._medium.entries)
    if kind == "file":
        return FileConnector(directory), lambda: len(files(directory))
    if kind == "endpoint":
        site = request.getfixturevalue("site")
        return EndpointConnector(), lambda: json.loads(site.ask("GET", "/v1/status")[1])["objects"]
    if kind == "cluster":
        url, cluster = map(request.getfixturevalue, ("cluster_url", "redis_cluster"))
        names = f"*{url.partition('=')[2]}:*"
        return RedisConnector(url), lambda: sum(len(one.keys(names)) for one in cluster.clients)
    url, server = map(request.getfixturevalue, ("redis_url", "redis_server"))
    if kind == "multi":
        connector = MultiConnector({
            "redis": (RedisConnector(url), Policy(max_bytes=MB, priority=1)),
            "files": FileConnector(directory),
        })  # fmt: skip
        return connector, lambda: len(keys(server, url)) + len(files(directory))
    if kind == "parts":
        monkeypatch.setattr(parts, "WHOLE", MB)
        monkeypatch.setattr(parts, "PART", MB)
    return RedisConnector(url), lambda: len(keys(server, url))


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


async def is_left(count, before):
    """Waits until nothing more is there than before, and fails if that takes for ever."""
    until = time.monotonic() + LONG
    while (now := await asyncio.to_thread(count)) != before:
        assert time.monotonic() < until, f"{now - before} objects are left"
        await asyncio.sleep(0.01)


@TIMES
@SIZES
@pytest.mark.parametrize("how", STORING)
async def test_nothing_is_left_that_nobody_knows(medium, monkeypatch, how, size, times):
    """Wherever a caller is cancelled, and how often: without a key there is no object."""
    connector, count = medium
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
async def test_a_name_holds_one_or_the_other(medium, size, progress, times):
    """Of a put under a name that is cancelled, and what the name does not hold is not there."""
    connector, count = medium
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

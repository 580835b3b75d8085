"""Stores that were made for proxies that arrived, which nobody closes."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle

import pytest

import proxyplane as pp
from proxyplane import _stores
from proxyplane.exceptions import StoreNotFoundError
from support.servers import admin, connections
from support.waiting import until

# Descriptors are counted on the loop.
pytestmark = pytest.mark.allow_blocking

COUNT = 150


async def arrivals(url, names):
    """Pickled proxies, each of a store of its own."""
    made = []
    for name in names:
        async with pp.Store(name, url) as store:
            made.append(pickle.dumps(await store.proxy(name, populate_target=False)))
    return made


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def url_of(kind, request):
    if kind == "file":
        return (request.getfixturevalue("tmp_path") / "objects").as_uri()
    wire = "&wire=redis-py" if kind == "redis-py" else ""
    return f"{request.getfixturevalue('redis_url')}{wire}"


async def use(url, names):
    """Uses proxies of stores that this process does not have: one by a touch, the next awaited."""
    for number, data in enumerate(await arrivals(url, names)):
        if number % 2:
            assert await pickle.loads(data) == names[number]
        else:
            assert await asyncio.to_thread(pp.extract, pickle.loads(data)) == names[number]


def guests_of(names):
    return [name for name in names if name in _stores._process.by_name]


@pytest.fixture
def no_guests(monkeypatch):
    """As in a process to which nothing was sent yet."""
    for kept in ("by_name", "by_reference", "guests"):
        monkeypatch.setattr(_stores._process, kept, type(getattr(_stores._process, kept))())


@pytest.mark.parametrize("kind", ["file", "redis", "redis-py"])
async def test_of_ever_new_stores_only_some_are_kept(request, no_guests, kind):
    """Who is sent proxies of ever new stores keeps neither all of them nor their connections."""
    url = url_of(kind, request)
    names = [f"guest {number}" for number in range(COUNT)]
    await use(url, names[:-50])
    before = descriptors()
    await use(url, names[-50:])
    assert guests_of(names) == names[-_stores._MOST_GUESTS :]
    await until(lambda: descriptors() <= before + 5)


async def test_of_ever_new_stores_undefended(redis_server, redis_url, no_guests, monkeypatch):
    """Were all of them kept, so would be a connection of each."""
    monkeypatch.setattr(_stores, "_MOST_GUESTS", COUNT)
    names = [f"kept guest {number}" for number in range(100)]
    await use(redis_url, names)
    assert guests_of(names) == names
    with admin(redis_server) as client:
        assert connections(client) >= 100
    for name in names:
        await pp.get_store(name).aclose()


async def test_one_that_is_let_go_serves_who_has_it(request, no_guests):
    """A proxy has its store for as long as it lives, and a new one opens another."""
    url = url_of("file", request)
    (data,) = await arrivals(url, ["let go"])
    proxy = pickle.loads(data)
    store = pp.get_store(proxy)
    await use(url, [f"other {number}" for number in range(_stores._MOST_GUESTS)])
    with pytest.raises(StoreNotFoundError):
        pp.get_store("let go")
    assert pp.get_store(proxy) is store
    assert await proxy == "let go"
    assert await pickle.loads(data) == "let go"
    assert pp.get_store("let go") is not store


async def test_one_that_is_registered_stays(request, no_guests):
    """A guest that somebody registers is a store like others."""
    url = url_of("file", request)
    (data,) = await arrivals(url, ["adopted"])
    store = pp.get_store(pickle.loads(data))
    pp.register_store(store)
    await use(url, [f"other {number}" for number in range(_stores._MOST_GUESTS + 1)])
    assert pp.get_store("adopted") is store
    await store.aclose()


@pytest.mark.parametrize("among_others", [False, True])
async def test_what_is_in_memory_stays(request, no_guests, among_others):
    """Objects in memory do not go because proxies of other stores arrived."""
    connector = pp.LocalConnector()
    if among_others:
        connector = pp.MultiConnector({"memory": connector})
    async with pp.Store("closed", connector) as store:
        proxy = await store.proxy("object", populate_target=False)
        again = type(connector).from_url(connector.url)
    data = pickle.dumps(proxy)
    assert pp.get_store(pickle.loads(data)) is not store
    await again.aclose()
    del again, connector, proxy, store
    await use(url_of("file", request), [f"other {n}" for n in range(_stores._MOST_GUESTS + 1)])
    gc.collect()
    assert await pickle.loads(data) == "object"
    await pp.get_store("closed").aclose()

"""Every way to put an object has the same options, or says why it has not."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

import proxyplane
from proxyplane import FileConnector, LocalConnector, MultiConnector, ProxyFuture, get_key, sync
from proxyplane.connectors.multi import Policy
from proxyplane.executor import StoreExecutor, StoreTaskGroup
from proxyplane.ownership import OwnedProxy
from proxyplane.policies import ProxyAlways
from support.waiting import until

OPTIONS = (
    "key",
    "overwrite",
    "strict",
    "evict",
    "eager",
    "serializer",
    "populate_target",
    "skip_nonproxiable",
    "tags",
    "progress",
    "ttl",
    "lifetime",
)  # fmt: skip
"""All, in the order in which they stand everywhere."""

OF_PROXIES = {"strict", "evict", "eager", "populate_target", "skip_nonproxiable"}
OF_ONE_KEY = {"key", "overwrite"}

# What each lacks, and why.
LACKS = {
    # There is no proxy.
    "put": OF_PROXIES,
    # Names are put one by one; and no connector tells how far a whole batch is.
    "put_batch": OF_PROXIES | OF_ONE_KEY | {"progress"},
    "proxy_batch": OF_ONE_KEY | {"strict", "progress"},
    "proxy": set(),
    "to_proxy": set(),
    "ato_proxy": set(),
    # What cannot be proxied has no place in a box of a proxy.
    "locked_proxy": {"skip_nonproxiable"},
    # Its owner says when the object goes, and nobody else has a key of it.
    "owned_proxy": OF_ONE_KEY | {"strict", "evict", "lifetime"},
    # The object comes later, from elsewhere, under the key that the future has.
    "future": OF_ONE_KEY
    | {"strict", "serializer", "populate_target", "skip_nonproxiable", "progress"},
    # The policy chooses what is stored, and owners say when it goes; the rest is the store's.
    "StoreExecutor": set(OPTIONS) - {"tags", "ttl"},
    "StoreTaskGroup": set(OPTIONS) - {"tags", "ttl"},
}
WAYS = {
    **{f"Store.{name}": getattr(proxyplane.Store, name) for name in LACKS if name[0] != "S"
       and not name.endswith("to_proxy")},
    **{f"sync.Store.{name}": getattr(sync.Store, name) for name in LACKS if name[0] != "S"
       and not name.endswith("to_proxy")},
    "to_proxy": proxyplane.to_proxy,
    "ato_proxy": proxyplane.ato_proxy,
    "StoreExecutor": StoreExecutor,
    "StoreTaskGroup": StoreTaskGroup,
}  # fmt: skip


def options_of(way):
    return {name: one for name, one in inspect.signature(way).parameters.items() if name in OPTIONS}


@pytest.mark.parametrize("name", WAYS)
def test_options(name):
    """It has all of them but those that mean nothing there, in the same order, by name only."""
    lacks = LACKS[name.rpartition(".")[2]]
    options = options_of(WAYS[name])
    assert [one for one in OPTIONS if one not in lacks] == list(options)
    assert {one.kind for one in options.values()} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_the_same_everywhere(option):
    """Its type and its default do not depend on who takes it."""
    found = {
        (str(one.annotation), one.default)
        for way in WAYS.values()
        for name, one in options_of(way).items()
        if name == option
    }
    assert len(found) == 1


def test_all_ways_are_here():
    """Whatever takes the tags of an object is one of these."""
    for kind in (proxyplane.Store, sync.Store):
        taking = {
            name
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if name[0] != "_" and {"tags", "obj", "objs"} & {*inspect.signature(method).parameters}
        }
        prefix = "Store." if kind is proxyplane.Store else "sync.Store."
        inner = {name for name in taking if name.endswith("ing") or "ing_" in name}  # operations
        assert {prefix + name for name in taking - inner} == {
            name for name in WAYS if name.startswith(prefix)
        }


# -- and they mean the same -----------------------------------------------------------------------


@pytest.fixture
def tagged(tmp_path):
    """A connector for objects with the tag ``this``, beside one for all others; and what it has."""
    connector = MultiConnector({
        "others": (LocalConnector(), Policy(priority=1, subset_tags=())),
        "tagged": FileConnector(tmp_path / "tagged"),
    })  # fmt: skip
    return connector, lambda: [one for one in (tmp_path / "tagged").rglob("*") if one.is_file()]


BOTH = {"tags": {"this"}, "ttl": 600}


async def in_store(way, store):
    return await getattr(store, way)(["x"] if way.endswith("batch") else "x", **BOTH)


def in_blocking_store(way, store):
    return getattr(sync.Store.of(store), way)(["x"] if way.endswith("batch") else "x", **BOTH)


@pytest.mark.parametrize("blocking", [False, True], ids=["awaited", "blocking"])
@pytest.mark.parametrize(
    "way", ["put", "put_batch", "proxy", "proxy_batch", "locked_proxy", "owned_proxy", "to_proxy"]
)
async def test_tags_and_leases(tagged, way, blocking):
    """A tag decides where an object goes, and a lease is the object's, whoever puts it."""
    connector, found = tagged
    async with proxyplane.Store(f"options-{uuid.uuid4().hex}", connector) as store:
        if way == "to_proxy":
            to_proxy = proxyplane.to_proxy if blocking else proxyplane.ato_proxy
            got = (
                await asyncio.to_thread(to_proxy, "x", store=store, **BOTH)
                if blocking
                else await to_proxy("x", store=store, **BOTH)
            )
        elif blocking:
            got = await asyncio.to_thread(in_blocking_store, way, store)
        else:
            got = await in_store(way, store)
        assert is_leased(found())
        del got


def is_leased(found):
    """Whether there is one object, with its entry in the index of leases."""
    folders = sorted(one.parent.name for one in found)
    return len(folders) == 2 and "tagged" in folders


@pytest.mark.parametrize("ownership", [True, False])
async def test_executors(tagged, ownership):
    """What they store, arguments and results, has their tags and leases."""
    connector, found = tagged
    seen = []

    def task(x):
        seen.append(is_leased(found()))
        return x + "y"

    async with proxyplane.Store(f"options-{uuid.uuid4().hex}", connector) as store:
        options = {"ownership": ownership, **BOTH}
        async with StoreTaskGroup(store, ProxyAlways(), **options) as group:
            running = group.submit(task, "x")
        result = running.result()
        assert "xy" == await result
        assert issubclass(type(result), OwnedProxy) is ownership
        await until(lambda: is_leased(found()))
        await store.evict(get_key(result))
        await until(lambda: not found())
        del result, running

        def blocking():
            pool = ThreadPoolExecutor(1)
            executor = StoreExecutor(pool, store, ProxyAlways(), **options)
            with executor:
                return executor.submit(task, "x").result()

        result = await asyncio.to_thread(blocking)
        assert "xy" == await result
        await until(lambda: is_leased(found()))
        assert seen == [True, True]


def test_executors_refuse_at_once():
    """Tags or leases that mean nothing to the connector, not at the first task."""
    with pytest.raises(NotImplementedError, match="no use for tags"):
        StoreTaskGroup(proxyplane.Store("x", LocalConnector()), tags={"this"})
    with pytest.raises(ValueError, match="ttl"):
        StoreTaskGroup(proxyplane.Store("x", LocalConnector()), ttl=-1)


async def test_overwrite():
    """A proxy of a name that is taken replaces its object, or does not."""
    async with proxyplane.Store(f"options-{uuid.uuid4().hex}", LocalConnector()) as store:
        await store.proxy("old", key="name")
        for put in (store.proxy, store.locked_proxy, lambda *a, **k: proxyplane.ato_proxy(
            *a, store=store, **k
        )):  # fmt: skip
            with pytest.raises(proxyplane.exceptions.KeyExistsError):
                await put("new", key="name", overwrite=False)
        assert "old" == await store.get("name")
        await store.locked_proxy("new", key="name")
        assert "new" == await store.get("name", strict=True)


async def test_progress_of_owners_and_boxes():
    """It is told for them as for a proxy."""
    async with proxyplane.Store(f"options-{uuid.uuid4().hex}", LocalConnector()) as store:
        for put in (store.owned_proxy, store.locked_proxy):
            told = []
            await put(b"x" * 1000, progress=lambda done, total: told.append((done, total)))  # noqa: B023
            assert told[-1][0] == told[-1][1] > 1000


@pytest.mark.parametrize("eager", [False, True])
async def test_eager_futures(eager):
    """The proxies of a future are as eager as it says."""
    async with proxyplane.Store(f"options-{uuid.uuid4().hex}", LocalConnector()) as store:
        future = await store.future(eager=eager)
        assert isinstance(future, ProxyFuture)
        assert proxyplane.get_factory(future.proxy()).eager is eager

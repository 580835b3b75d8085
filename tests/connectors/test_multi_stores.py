"""Stores over a multi-connector: tags, futures, and what proxies meet."""

from __future__ import annotations

import asyncio
import threading

import pytest

import proxyplane as pp
from proxyplane import (
    FileConnector,
    LocalConnector,
    MultiConnector,
    RedisConnector,
    Store,
    register_connector,
    sync,
)
from proxyplane._registry import _registered
from proxyplane.abc import Connector
from proxyplane.connectors.multi import Policy
from proxyplane.exceptions import (
    KeyExistsError,
    NoConnectorError,
    ObjectLostError,
    ProxyResolveError,
)
from proxyplane.testing import CoroutinesOnly
from support.multi import ELSEWHERE, NO_SERVER, recorders

# -- stores and tags ---------------------------------------------------------------------------


async def test_tags_through_a_store(tmp_path):
    """Put, batches, proxies and futures of a store take tags, awaited and blocking."""
    multi, made = recorders(tagged=Policy(superset_tags=["x"]), rest=Policy())

    def there():
        return len(made["tagged"].inner._medium.entries)

    async with Store("tags", multi, cache_size=0) as store:
        key = await store.put("object", tags=["x"])
        keys = await store.put_batch(["a", "b"], tags=["x"])
        proxies = await store.proxy_batch(["c", "d"], tags=["x"], populate_target=False)
        proxies.append(await store.proxy("e", tags={"x"}, populate_target=False))
        locked = await store.locked_proxy("f", tags=["x"])
        assert there() == 7
        future = await store.future(tags=["x"])
        await future.aset_result("g")
        assert there() == 8
        await store.put("rest", tags=())
        await store.put("rest", tags=["y"])
        assert there() == 8
        assert await store.get_batch([key, *keys]) == ["object", "a", "b"]
        assert list(await pp.gather(*proxies)) == ["c", "d", "e"]
        assert (locked.unlock(), await future) == ("f", "g")
        with pytest.raises(TypeError, match="collection of strings"):
            await store.put("object", tags="x")

        blocking = sync.Store.of(store)

        def work():
            blocking.put("object", tags=["x"])
            blocking.put_batch(["a", "b"], tags=["x"])
            blocking.proxy("c", tags=["x"])
            blocking.proxy_batch(["d"], tags=["x"])
            blocking.locked_proxy("e", tags=["x"])
            blocking.future(tags=["x"]).set_result("f")

        await asyncio.to_thread(work)
        assert there() == 15


@pytest.mark.parametrize("wrap", [lambda one: one, CoroutinesOnly])
async def test_tags_where_nobody_chooses(wrap):
    """A connector that has no use for tags refuses them, so that none is lost in silence."""
    async with Store("no tags", wrap(LocalConnector())) as store:
        for call in (
            lambda: store.put("object", tags=["x"]),
            lambda: store.put_batch(["object"], tags=["x"]),
            lambda: store.proxy("object", tags=["x"]),
            lambda: store.proxy_batch(["object"], tags=["x"]),
            lambda: store.future(tags=["x"]),
        ):
            with pytest.raises(NotImplementedError, match="MultiConnector"):
                await call()
        await store.put("object", tags=[])


def test_tags_do_not_take_the_shortcut():
    """Plain calls have no tags, so a blocking put with tags goes through the coroutine."""

    class Tagging(LocalConnector):
        takes_tags = True
        seen = ()

        async def put(self, frames, *, key=None, tags=()):
            self.seen = tags
            return await super().put(frames, key=key)

    with sync.Store("tagging", Tagging()) as store:
        assert store.get(store.put("object", tags=["x"])) == "object"
        assert store.connector.seen == {"x"}


async def test_an_object_that_nobody_takes_through_a_store():
    """A store passes the error on, for proxies too."""
    multi, _ = recorders(small=Policy(max_bytes=1000))
    async with Store("small", multi) as store:
        with pytest.raises(NoConnectorError, match="above max_bytes=1000"):
            await store.proxy(bytes(1000))


async def test_a_proxy_of_a_missing_connector(lazy):
    """A proxy whose key is of no described connector says so when it is resolved."""
    media = {"a": LocalConnector()}
    key = await MultiConnector(media).put([b"x"])
    async with Store("other", MultiConnector({"b": LocalConnector()})) as store:
        with pytest.raises(ProxyResolveError) as caught:
            await store.proxy_from_key(key)
        assert isinstance(caught.value.cause, NoConnectorError)


# -- futures -----------------------------------------------------------------------------------


class Plain(Connector):
    """A connector that cannot defer, in local memory."""

    scheme = "plain"

    def __init__(self, inner=None):
        self.inner = inner or LocalConnector()

    @classmethod
    def from_url(cls, url):
        return cls(LocalConnector.from_url(url.replace("plain", "local", 1)))

    @property
    def url(self):
        return self.inner.url.replace("local", "plain", 1)

    async def put(self, frames, *, key=None):
        return await self.inner.put(frames, key=key)

    async def get(self, key, *, size=None):
        return await self.inner.get(key)

    async def exists(self, key):
        return await self.inner.exists(key)

    async def evict(self, key):
        return await self.inner.evict(key)

    async def aclose(self, *, clear=False):
        await self.inner.aclose(clear=clear)


@pytest.fixture
def plain():
    """A registered connector that cannot defer."""
    register_connector("plain", Plain)
    yield Plain()
    del _registered["plain"]


async def test_futures_go_where_one_can_wait(plain):
    """To the first that can defer and takes any size; else to the one that takes the largest."""
    memory = {name: LocalConnector() for name in "bcd"}

    async def deferring(**policies):
        multi = MultiConnector(
            {
                "a": (plain.url if policies.pop("dormant", False) else plain, Policy(priority=9)),
                **{name: (memory[name], policy) for name, policy in policies.items()},
            }
        )
        before = {name: set(one._medium.pending) for name, one in memory.items()}
        await multi.new_key(tags=policies and ["x"])
        (name,) = [n for n, one in memory.items() if set(one._medium.pending) != before[n]]
        return name

    small, large, unlimited = Policy(max_bytes=10), Policy(max_bytes=20), Policy()
    assert await deferring(b=small, c=unlimited, d=unlimited) == "c"
    assert await deferring(b=small, c=large, dormant=True) == "c"
    assert await deferring(b=Policy(subset_tags=["y"]), c=ELSEWHERE, d=small) == "d"


async def test_no_connector_can_defer(plain):
    """That is a NotImplementedError, which names those that can; of a store's future too."""
    for connectors in ({"a": plain.url}, {"a": plain}):
        async with Store("plain", MultiConnector(connectors)) as store:
            with pytest.raises(NotImplementedError, match=r"\(a\) can defer.*RedisConnector"):
                await store.future()
            key = await store.put("object")
            with pytest.raises(ObjectLostError, match="not registered"):
                await store.connector.wait("name", 0)
            with pytest.raises(KeyExistsError):
                await store.connector.set(key, [b"x"])
            await store.connector.wait(key, 0)


async def test_those_that_can_defer_refuse(plain):
    """If others could, but for their policy, the error says why not."""
    multi = MultiConnector({"a": plain, "b": (NO_SERVER, Policy(subset_tags=[]))})
    with pytest.raises(NoConnectorError, match="takes a future tagged 'x': a: it cannot defer; b"):
        await multi.new_key(tags=["x"])


async def test_a_future_may_be_larger_than_its_connector_takes_otherwise():
    """What was promised is kept, since nobody knew the size."""
    multi, made = recorders(small=Policy(max_bytes=10))
    key = await multi.new_key()
    await multi.set(key, [bytes(100)])
    assert await multi.get(key) == bytes(100)
    assert made["small"].count("set") == 1


def test_multi_connectors_of_two_loops(redis_url, tmp_path):
    """A store on two loops at once: a future is set on the one and awaited on the other."""
    multi = MultiConnector(
        {
            "server": (RedisConnector(redis_url), Policy(max_bytes=10_000)),
            "files": FileConnector(tmp_path),
        }
    )
    ready, futures = threading.Event(), []

    async def consume():
        future = await store.future()
        futures.append(future)
        ready.set()
        return await future, list(
            await pp.gather(*[await store.proxy(bytes(n)) for n in (9, 90_000)])
        )

    async def produce():
        await asyncio.to_thread(ready.wait)
        await futures[0].aset_result("result")

    store = Store("two loops", multi)
    found = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(consume())))
    thread.start()
    asyncio.run(produce())
    thread.join(50)
    assert found == [("result", [bytes(9), bytes(90_000)])]
    asyncio.run(store.aclose(clear=True))

"""Keys of the user's own: what they hold can be replaced."""

from __future__ import annotations

import asyncio

import pytest

import proxyplane as pp
from proxyplane._records import SMALL, read_record
from proxyplane.exceptions import (
    KeyExistsError,
    ProxyResolveMissingKeyError,
)
from support.names import LARGE, body


@pytest.mark.parametrize("size", [1, LARGE])
class TestOverwrite:
    """What a key holds is replaced."""

    async def test_the_latest_is_read(self, store, other, size):
        """A put under a taken key replaces what it holds, for who has not read it yet."""
        for number in range(5):
            assert await store.put(body(number, size), key="name") == "name"
            assert await store.get("name") == body(number, size)
            assert await other.get("name", strict=True) == body(number, size)

    async def test_a_cache_may_be_behind(self, store, other, size):
        """Who is not strict may get from the cache what was replaced elsewhere."""
        await store.put(body(1, size), key="name")
        assert await store.get("name") == body(1, size)
        await other.put(body(2, size), key="name")
        assert await store.get("name") == body(1, size)
        assert await store.get("name", strict=True) == body(2, size)
        assert await store.get("name") == body(2, size)

    async def test_the_other_is_removed(self, store, size):
        """What was replaced leaves nothing behind; nor does an evict."""
        connector = store.connector
        await store.put(body(1, size), key="name")
        record = read_record(await connector.get("name"))
        assert (record.body is None) == (size > SMALL)
        await store.put(body(2, size), key="name")
        if record.body is None:
            assert await connector.get(record.generation) is None
        latest = read_record(await connector.get("name"))
        assert latest.generation != record.generation
        assert await store.evict("name") is True
        if latest.body is None:
            assert await connector.get(latest.generation) is None
        assert await connector.get("name") is None
        assert await store.evict("name") is False

    async def test_small_and_large_take_turns(self, store, other, size):
        """A small object is in its record, and a large one takes its place as well."""
        for number in range(4):
            await store.put(body(number, size if number % 2 else 2 * SMALL), key="name")
            latest = await other.get("name", strict=True)
            assert latest == body(number, size if number % 2 else 2 * SMALL)

    async def test_batches(self, store, other, size):
        """Many are got and evicted at once, names among other keys."""
        await store.put(body(1, size), key="one")
        made = await store.put(body(2, size))
        await store.put(body(3, size), key="three")
        keys = ["one", made, "absent", "three", "one"]
        expected = [body(1, size), body(2, size), None, body(3, size), body(1, size)]
        assert await other.get_batch(keys) == expected
        assert await other.get_batch(keys, strict=True) == expected
        await store.put(body(4, size), key="three")
        assert await other.evict(made)
        assert await other.get_batch(keys, strict=True) == [
            *(body(1, size), None, None, body(4, size), body(1, size))
        ]
        assert await store.get_batch(keys[:2], strict=True) == [body(1, size), None]
        there = await store.evict_batch(keys)
        assert sorted((there[0], there[4])) == [False, True]
        assert there[1:4] == [False, False, True]
        assert await store.get_batch(keys, "gone") == ["gone"] * 5

    async def test_blocking_twins(self, store, size):
        """The facade puts, gets and evicts in the same way."""
        sync = pp.sync.Store.of(store)

        def work():
            assert sync.put(body(1, size), key="name") == "name"
            assert sync.get("name") == body(1, size)
            assert sync.put(body(2, size), key="name") == "name"
            assert sync.get("name", strict=True) == body(2, size)
            assert sync.get_batch(["name", "absent"], strict=True) == [body(2, size), None]
            assert sync.proxy_from_key("name", strict=True) == body(2, size)
            with pytest.raises(KeyExistsError):
                sync.put(body(3, size), key="name", overwrite=False)
            assert sync.proxy(body(4, size), key="name", strict=True) == body(4, size)
            assert sync.evict("name") is True
            assert sync.get("name", strict=True) is None

        await asyncio.to_thread(work)

    async def test_nothing_lies_after_an_evict(self, store, other, size):
        """When others evicted it, `exists`, `evict` and strict readers know at once."""
        await store.put(body(1, size), key="name")
        proxy = await store.proxy(body(2, size), key="another", strict=True)
        assert await store.get("name") == body(1, size)
        assert await other.evict("name") and await other.evict("another")
        assert await store.exists("name") is False
        assert await store.get("name", "gone", strict=True) == "gone"
        assert await store.get("name", "gone") == "gone"
        assert await store.evict("name") is False
        with pytest.raises(ProxyResolveMissingKeyError):
            await proxy

    async def test_a_made_key_can_be_read_strictly(self, store, other, size):
        """A key that the store made is written once; a strict reader knows that it was evicted."""
        key = await store.put(body(1, size))
        found = await store.get(key)
        assert await store.get(key, strict=True) is found
        assert await other.evict(key)
        assert await store.get(key) is found
        assert await store.get(key, strict=True) is None
        assert await store.get(key) is None

    async def test_one_claims_it(self, store, size):
        """Of many proxies that evict, one gets the object, and that is the latest."""
        await store.put(body(1, size), key="name")
        proxies = [store.proxy_from_key("name", evict=True) for _ in range(8)]
        await store.put(body(2, size), key="name")
        found = await asyncio.gather(*(pp.aresolve(one) for one in proxies), return_exceptions=True)
        missing = [one for one in found if isinstance(one, ProxyResolveMissingKeyError)]
        assert [one for one in found if one not in missing] == [body(2, size)]
        assert len(missing) == 7
        assert await store.exists("name") is False

    async def test_one_of_many_evicts(self, store, other, size):
        """Of many who evict a key at once, while others put, nobody is told a thing twice."""
        await store.put(body(1, size), key="name")
        evicts = [one.evict("name") for one in (store, other) for _ in range(10)]
        assert sorted(await asyncio.gather(*evicts)) == [False] * 19 + [True]

    async def test_owners_of_names(self, store, size):
        """An owner of such a key evicts record and object, updates and clones it."""
        owner = pp.into_owned(await store.proxy([body(1, size)], key="name"))
        owner[0] = body(2, size)
        await pp.aupdate(owner)
        assert await store.get("name", strict=True) == [body(2, size)]
        copy = await pp.aclone(owner)
        assert copy == [body(2, size)]
        record = read_record(await store.connector.get("name"))
        await pp.adrop(owner)
        await pp.adrop(copy)
        assert await store.exists("name") is False
        assert record.body is not None or await store.connector.get(record.generation) is None

"""A caller is cancelled, at each of the moments where it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from proxyplane.abc import Connector
from proxyplane.testing._buffers import content, large
from proxyplane.testing._harness import Harness
from proxyplane.testing.steps import cancelled_at

SIZES = pytest.mark.parametrize("size", [10, 5 << 20], ids=["small", "large"])


async def every_suspension(
    operation: Callable[[int], Coroutine[Any, Any, object]],
) -> AsyncIterator[int]:
    """Cancels an operation at its 1st, 2nd, ... suspension, until it ends before that.

    Yields the number after each try. From the 16th on some are left out.
    """
    nth = 1
    while await cancelled_at(operation(nth), nth):
        yield nth
        nth += 1 + nth // 16
    yield nth


class CancellationTests(Harness):
    """Each test tries one operation again and again, cancelled a step later each time."""

    @SIZES
    async def test_cancelled_put(self, connector: Connector, size: int) -> None:
        """A cancelled put leaves the whole object or nothing."""
        await self.assert_works(connector)
        body = large()[:size]

        async def put(nth: int) -> object:
            return await connector.put([body[:4], body[4:]], key=f"key {nth}")

        async for nth in every_suspension(put):
            assert content(await self.behind(self.read_raw, f"key {nth}")) in (None, body)
            assert content(await connector.get(f"key {nth}")) in (None, body)
            await connector.evict(f"key {nth}")
            await self.assert_works(connector)

    @SIZES
    async def test_cancelled_put_with_a_made_key(self, connector: Connector, size: int) -> None:
        """A cancelled put without a chosen key does not spoil the next one."""

        async def put(_: int) -> object:
            return await connector.put([large()[:size]])

        async for _ in every_suspension(put):
            await self.assert_works(connector)

    @SIZES
    async def test_cancelled_get(self, connector: Connector, size: int) -> None:
        """A cancelled get leaves the object, and the next get returns it, not something else."""
        key, other = await connector.put_batch([[large()[:size]], [b"another"]])

        async def get(_: int) -> object:
            return await connector.get(key)

        async for _ in every_suspension(get):
            found = await asyncio.gather(*map(connector.get, (other, key, other)))
            assert [content(one) for one in found] == [b"another", large()[:size], b"another"]

    @SIZES
    async def test_cancelled_evict(self, connector: Connector, size: int) -> None:
        """A cancelled evict leaves the whole object or nothing, and the key is not stuck."""
        body = large()[:size]

        async def evict(nth: int) -> object:
            await connector.put([body], key=f"key {nth}")
            return await connector.evict(f"key {nth}")

        async for nth in every_suspension(evict):
            key = f"key {nth}"
            assert content(await connector.get(key)) in (None, body)
            await connector.evict(key)
            assert await connector.exists(key) is False
            await self.assert_works(connector)

    async def test_cancelled_exists(self, connector: Connector) -> None:
        """A cancelled exists does not give its answer to the next one."""
        key = await connector.put([b"object"])

        async def exists(_: int) -> object:
            return await connector.exists(key)

        async for _ in every_suspension(exists):
            assert await connector.exists("absent") is False
            assert await connector.exists(key) is True

    @SIZES
    async def test_cancelled_put_batch(self, connector: Connector, size: int) -> None:
        """A cancelled batch leaves all of its objects or none."""
        await self.assert_works(connector)
        before = await self.behind(self.count_raw)
        batch = [[large()[:size]], [b"another"], [large()[size : 2 * size], b"and a third"]]

        async def put(_: int) -> object:
            return await connector.put_batch(batch)

        async for _ in every_suspension(put):
            now = await self.behind(self.count_raw)
            assert (now - before) % len(batch) == 0
            await self.assert_works(connector)

    async def test_cancelled_batches_of_reads(self, connector: Connector) -> None:
        """A cancelled get_batch leaves the objects, and the next one is answered right."""
        bodies = [large()[i : 2 * i + 1] for i in (0, 10, 300_000, 2 << 20)]
        keys = await connector.put_batch([[body] for body in bodies])

        async def get(_: int) -> object:
            return await connector.get_batch(keys)

        async for _ in every_suspension(get):
            found = await connector.get_batch(["absent", *keys[::-1]])
            assert [content(one) for one in found] == [None, *bodies[::-1]]

    async def test_cancelled_among_many(self, connector: Connector) -> None:
        """Tasks that are cancelled do not harm those that are not."""
        keys = await connector.put_batch([[b"object %d" % number] for number in range(100)])
        tasks = [asyncio.ensure_future(connector.get(key)) for key in keys]
        for steps in range(5):
            await asyncio.sleep(0)
            for task in tasks[steps::10]:
                task.cancel()
        await asyncio.wait(tasks)
        for number, task in enumerate(tasks):
            if not task.cancelled():
                assert content(task.result()) == b"object %d" % number
        assert sum(task.cancelled() for task in tasks) <= 50
        await self.assert_works(connector)

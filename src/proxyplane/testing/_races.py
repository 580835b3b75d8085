"""Many callers at once: tasks, threads, loops, processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from proxyplane.abc import Connector
from proxyplane.exceptions import ConnectorClosedError, ConnectorError, KeyExistsError
from proxyplane.testing._buffers import content, large
from proxyplane.testing._harness import Harness, needs_fork, operations
from proxyplane.testing.steps import in_forked_child

T = TypeVar("T")


def in_threads(count: int, work: Callable[[int], Coroutine[Any, Any, T]]) -> list[T]:
    """Runs coroutines at once, each in a thread and a loop of its own."""
    barrier = threading.Barrier(count)

    def run(number: int) -> T:
        barrier.wait()
        return asyncio.run(work(number))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


async def put_wins(connector: Connector, body: bytes, key: str) -> bool:
    """Puts under a chosen key and tells whether that worked."""
    try:
        await connector.put([body], key=key)
    except KeyExistsError:
        return False
    return True


class RaceTests(Harness):
    """Tasks of one loop, threads with their own loops, one loop after another."""

    async def test_one_of_many_evicts_wins(self, connector: Connector) -> None:
        """Of many tasks that evict one object at once, one learns that it was there."""
        other = self.second(connector)
        for size in (1, 300_000):
            key = await connector.put([large()[:size]])
            evicts = [one.evict(key) for _ in range(25) for one in (connector, other)]
            assert sorted(await asyncio.gather(*evicts)) == [False] * 49 + [True]

    async def test_one_of_many_puts_wins(self, connector: Connector) -> None:
        """Of many tasks that put under one key at once, one succeeds, and its object stays."""
        other = self.second(connector)
        for size in (1, 300_000):
            bodies = [bytes([number]) * size for number in range(40)]
            puts = [
                put_wins((connector, other)[number % 2], body, f"key {size}")
                for number, body in enumerate(bodies)
            ]
            won = await asyncio.gather(*puts)
            assert won.count(True) == 1
            assert content(await connector.get(f"key {size}")) == bodies[won.index(True)]

    async def test_readers_see_all_or_nothing(self, connector: Connector) -> None:
        """While a large object is put and evicted, a get returns all of it or None."""
        other = self.second(connector)

        async def write() -> None:
            for _ in range(3):
                await connector.put([large()[:1000], large()[1000:]], key="key")
                await connector.evict("key")

        async def read() -> None:
            while not writing.done():
                try:
                    assert content(await other.get("key")) in (None, large())
                except ConnectorError:
                    pass  # it vanished while it was read, and that is said
                await asyncio.sleep(0)

        writing = asyncio.ensure_future(write())
        await asyncio.gather(writing, read(), read())

    async def test_many_tasks(self, connector: Connector) -> None:
        """Three hundred tasks on one loop get what they put."""

        async def work(number: int) -> bool:
            key = await connector.put([b"object %d" % number])
            await connector.exists(key)
            found = content(await connector.get(key))
            return found == b"object %d" % number and await connector.evict(key)

        assert all(await asyncio.gather(*map(work, range(300))))

    def test_twenty_threads(self, connector: Connector) -> None:
        """Twenty threads, each with its own loop, share one connector."""
        connector.url  # noqa: B018  # also when several ask for it at first

        async def work(number: int) -> int:
            body = b"object %d" % number * 1000
            for turn in range(5):
                key = await connector.put([body])
                assert content(await connector.get(key)) == body
                assert await connector.evict(key) is True
                await connector.put([body], key=f"{number} {turn}")
            return number

        assert in_threads(20, work) == list(range(20))
        assert asyncio.run(connector.exists("19 4")) is True

    def test_threads_race_for_keys(self, connector: Connector) -> None:
        """Of threads that put or evict the same keys at once, one wins each key."""
        keys = [f"key {number}" for number in range(15)]

        async def put(number: int) -> list[bool]:
            return [await put_wins(connector, b"%d" % number, key) for key in keys]

        async def evict(_: int) -> list[bool]:
            return [await connector.evict(key) for key in keys]

        for race in (put, evict):
            results = in_threads(8, race)
            assert [sum(won) for won in zip(*results, strict=True)] == [1] * len(keys)

    def test_one_loop_after_another(self, connector: Connector) -> None:
        """A connector works in each of several runs of asyncio."""
        keys = [asyncio.run(connector.put([b"object"])) for _ in range(3)]
        for key in keys:
            assert content(asyncio.run(connector.get(key))) == b"object"
            asyncio.run(self.assert_works(connector))

    def test_two_loops_in_turn(self, connector: Connector) -> None:
        """Two loops that live at the same time use one connector in turn."""
        with asyncio.Runner() as one, asyncio.Runner() as two:
            for _ in range(3):
                key = one.run(connector.put([b"object"]))
                assert content(two.run(connector.get(key))) == b"object"
                assert one.run(connector.evict(key)) is True
            two.run(connector.aclose())
            with pytest.raises(ConnectorClosedError):
                one.run(connector.get(key))


@needs_fork
class ForkTests(Harness):
    """A forked child and its parent."""

    def test_a_forked_child_uses_the_connector(self, connector: Connector) -> None:
        """Parent and child reach each other's objects, also if the parent's loop is running.

        Where that cannot be, by design, every operation of the child is an error.
        """
        if self.process_local:
            key = asyncio.run(connector.put([b"object"]))
            names = in_forked_child(lambda: self._refused(key, connector, self.second(connector)))
            assert names == [*operations(connector)] * 2
            return

        async def child(key: str) -> str:
            for one in (connector, self.second(connector)):
                assert content(await one.get(key)) == b"of the parent"
                await self.assert_works(one)
            return await connector.put([b"of the child"])

        async def parent() -> None:
            key = await connector.put([b"of the parent"])
            theirs = in_forked_child(lambda: asyncio.run(child(key)))
            assert content(await connector.get(key)) == b"of the parent"
            assert content(await connector.get(theirs)) == b"of the child"
            assert theirs != await connector.put([b"x"])
            await self.assert_works(connector)

        asyncio.run(parent())

    def test_a_forked_child_clears_only_its_own(self, connector: Connector) -> None:
        """The child is a connector that has put nothing yet; clearing it spares the parent's."""
        if self.process_local:
            pytest.skip("no other process can reach the objects, by design")

        async def put_two() -> list[str]:
            return [await connector.put([b"object"]) for _ in range(2)]

        async def child() -> list[str]:
            keys = await put_two()
            await connector.put([b"x"], key="the child's")
            await connector.aclose(clear=True)
            return keys

        async def put_all() -> list[str]:
            return [*await put_two(), await connector.put([b"x"], key="the parent's")]

        mine = asyncio.run(put_all())
        theirs = [*in_forked_child(lambda: asyncio.run(child())), "the child's"]
        assert [asyncio.run(connector.exists(key)) for key in mine] == [True] * 3
        assert [asyncio.run(connector.exists(key)) for key in theirs] == [False] * 3

    @staticmethod
    def _refused(key: str, *connectors: Connector) -> list[str]:
        refused = []
        for connector in connectors:
            for name, call in operations(connector, key).items():
                with pytest.raises(ConnectorError):
                    asyncio.run(call())
                refused.append(name)
        return refused

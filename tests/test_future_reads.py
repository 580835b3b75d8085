"""Who reads the result of a future when many wait: one of them, on the loop that is woken."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

import proxyplane as pp
from proxyplane import testing


async def until_waiting() -> None:
    """Lets tasks go as far as they come."""
    for _ in range(20):
        await asyncio.sleep(0.001)


class Held(testing.Recorder):
    """Lets no get through before it is released."""

    def __init__(self, connector: pp.LocalConnector) -> None:
        super().__init__(connector)
        self.release = asyncio.Event()

    async def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        result = await super().call(operation, *args, **kwargs)
        if operation == "get":
            await self.release.wait()
        return result


@pytest.fixture
def held() -> Any:
    return Held(pp.LocalConnector())


async def test_one_read_for_all_of_a_loop(held: Any) -> None:
    """A hundred tasks that await copies of a future on one loop read its result once."""
    async with pp.Store("reads", held, cache_size=0) as store:
        future = await store.future()
        copies = [pickle.loads(pickle.dumps(future)) for _ in range(100)]
        tasks = [asyncio.ensure_future(copy.aresult()) for copy in copies]
        await until_waiting()
        await future.aset_result([1])
        await until_waiting()
        held.release.set()
        results = await asyncio.gather(*tasks)
        assert results == [[1]] * 100
        assert held.count("get") == 1
        assert all(one is results[0] for one in results)
        assert [pp.extract(copy.proxy()) is results[0] for copy in copies] == [True] * 100


async def test_cancelled_reader(held: Any) -> None:
    """When the task that reads is cancelled, another one reads."""
    async with pp.Store("reads", held, cache_size=0) as store:
        future = await store.future()
        copies = [pickle.loads(pickle.dumps(future)) for _ in range(3)]
        tasks = [asyncio.ensure_future(copy.aresult()) for copy in copies]
        await until_waiting()
        await future.aset_result("x")
        await until_waiting()
        tasks[0].cancel()
        await until_waiting()
        held.release.set()
        assert await asyncio.gather(*tasks[1:]) == ["x", "x"]
        assert tasks[0].cancelled()
        assert held.count("get") == 2


async def test_a_touch_was_first(held: Any) -> None:
    """A result that the future's own proxy is being resolved to is not read a second time."""
    async with pp.Store("reads", held, cache_size=0) as store:
        held.release.set()
        future = await store.future()
        touching = asyncio.create_task(asyncio.to_thread(pp.extract, future.proxy()))
        while not held.count("get"):
            await asyncio.sleep(0.001)
        await until_waiting()
        before = held.count("get")  # whether it is there already
        waiting = asyncio.ensure_future(future.aresult())
        await until_waiting()
        await future.aset_result("x")
        assert await waiting == "x"
        assert await touching == "x"
        assert held.count("get") == before + 1


async def test_failures_are_raised_in_each(held: Any) -> None:
    """What the producer raised is raised in each waiter of a loop, and not shared."""
    async with pp.Store("reads", held, cache_size=0) as store:
        held.release.set()
        future = await store.future()
        tasks = [
            asyncio.ensure_future(pickle.loads(pickle.dumps(future)).aresult()) for _ in range(3)
        ]
        await until_waiting()
        await future.aset_exception(ValueError("no"))
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [ValueError] * 3
        assert len({id(error) for error in errors}) == 3
